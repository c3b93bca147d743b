//! Guard of acknowledgements: a standby counts by its name, and gives it only to an upstream that has
//! all of its WAL.
//!
//! A standby that went past the point where its upstream was promoted still attaches: PostgreSQL
//! streams it the rest of the old timeline, over and over, and meanwhile counts it as synchronous if
//! it is named. Its flush position lies *beyond* the fork, on the old timeline, but the walsender
//! compares plain numbers (`SyncRepReleaseWaiters`): commits of the new timeline up to there would be
//! acknowledged by a peer that does not have them (rule 2).
//!
//! So a standby follows a new upstream as a guest, under a name that no `synchronous_standby_names`
//! holds. Once it streams, an ordinary session asks the upstream for its timeline, history and
//! position; if our WAL is a part of that, it will stay so (from now on ours comes from there
//! only, and if the upstream is promoted, it forks at its own end or later), and the receiver is
//! restarted under our own name. Numbers are not enough for that: a primary whose disk came back older writes other WAL
//! under the same ones, so the bytes before our end are compared as well ([`super::same_wal`]). Trust ends with the upstream, with a restart of this server, and
//! with a longer interruption, in which the upstream may have been rewound.
//!
//! Costs nothing in the usual takeover, where the next sync follows the new primary all along.

use std::sync::Arc;
use std::time::{Duration, Instant};

use manatee_shared::ids::PeerId;
use manatee_shared::lsn::WalPosition;
use tokio::task::JoinHandle;

use super::ask;
use super::conf::{self, Name};
use super::error::Error;
use super::inner::{Inner, Record};
use super::render;
use super::same_wal::{self, Comparison};
use super::source;
use crate::machine::local::Recovery;

/// An interruption of this length ends the trust: less than a stop, rewind and start take.
const FORGET_MS: u64 = 2_000;
/// Between two questions at first…
const QUICK: Duration = Duration::from_millis(50);
/// …and later, after as many.
const QUICK_TRIES: u32 = 40;
const SLOW: Duration = Duration::from_millis(500);

/// The name to follow under.
pub(super) fn name(trusted: bool) -> Name {
    if trusted { Name::Own } else { Name::Guest }
}

/// Driven by the observation; asks in a task of its own, one at a time.
pub(super) struct Guard {
    inner: Arc<Inner>,
    task: Option<JoinHandle<()>>,
    /// Upstream that `task` and `tries` are about.
    upstream: Option<PeerId>,
    tries: u32,
    last: Option<Instant>,
}

impl Guard {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Self { inner, task: None, upstream: None, tries: 0, last: None }
    }

    /// The standby follows: `received` while it streams, else how long it has not.
    pub(super) fn observe(&mut self, received: Option<WalPosition>, not_streaming_ms: u64) {
        let Some(record) = self.inner.known().record.clone().filter(|record| record.confirmed) else { return };
        let Recovery::Follow(upstream) = record.config.recovery else { return };
        if self.upstream != Some(upstream) {
            // A question to an upstream that was lost may be answered only by a timeout, and the
            // coming sync cannot acknowledge before the next upstream was asked.
            self.forget_task();
            (self.upstream, self.tries, self.last) = (Some(upstream), 0, None);
        }
        let change = match (record.trusted, received) {
            (false, Some(received)) => Change::Trust { upstream, received },
            (true, None) if not_streaming_ms >= FORGET_MS => Change::Forget,
            (trusted, _) => {
                if trusted {
                    self.tries = 0;
                }
                return;
            }
        };
        let pause = if self.tries < QUICK_TRIES { QUICK } else { SLOW };
        let too_early = self.last.is_some_and(|last| last.elapsed() < pause);
        if too_early || self.task.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        self.tries = self.tries.saturating_add(1);
        self.last = Some(Instant::now());
        let inner = Arc::clone(&self.inner);
        self.task = Some(tokio::spawn(async move {
            if let Err(error) = carry_out(&inner, record, change).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "the trust in the upstream is as it was");
            }
        }));
    }

    fn forget_task(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.forget_task();
    }
}

enum Change {
    Trust { upstream: PeerId, received: WalPosition },
    Forget,
}

async fn carry_out(inner: &Inner, record: Record, change: Change) -> Result<(), Error> {
    let trusted = match change {
        Change::Forget => false,
        Change::Trust { upstream, received } => {
            // Asked after `received` was seen: the answer can only be more than what it was then.
            let facts = source::ask_source(inner, upstream).await?;
            if !facts.is_certain || !facts.history.contains(facts.position, received) {
                tracing::debug!(%upstream, %received, theirs = %facts.position, "the upstream does not have all our WAL");
                return Ok(());
            }
            let data = inner.layout.data();
            let segment_bytes = inner.known().segment_bytes.unwrap_or(same_wal::USUAL_SEGMENT_BYTES);
            if same_wal::compare(inner, &data, received, segment_bytes, upstream, &facts).await? == Comparison::Other {
                tracing::warn!(%upstream, %received, "the upstream has other WAL at the same place: two histories");
                inner.known().foreign = Some(upstream);
                return Ok(());
            }
            true
        }
    };
    // Only now: an action must not wait for somebody else's host.
    let Some(_one) = inner.try_begin() else { return Ok(()) };
    if inner.known().record.as_ref() != Some(&record) {
        return Ok(());
    }
    let session = inner.session()?;
    let rendered = render::render(inner, &record.config, name(trusted));
    // Before it is in effect: a sitter that dies in between must not find trust that was revoked.
    if !trusted {
        inner.set_record(Record { trusted, ..record.clone() })?;
    }
    render::reload(inner, &rendered)?;
    let wanted = conf::primary_conninfo(&inner.settings, &record.config.recovery, inner.me, name(trusted));
    let live = || ask::text(&session, "SELECT current_setting('primary_conninfo')");
    ask::until(inner.settings.confirm_timeout, "the name to follow under", || async {
        Ok((live().await?.as_deref() == Some(wanted.as_str())).then_some(()))
    })
    .await?;
    if trusted {
        inner.set_record(Record { trusted, ..record })?;
        tracing::info!("following under our own name: the upstream has all our WAL");
    }
    Ok(())
}
