//! Starting, adopting, promoting and stopping the server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use manatee_shared::lsn::Timeline;
use rustix::process::Signal;

use super::error::Error;
use super::inner::{Inner, Record};
use super::process::{self, Postmaster};
use super::{apply, ask, capacity, control, files, guard, observe, render, replay, session, slots};
use crate::machine::action::StopMode;
use crate::machine::local::{Data, Recovery, Server, ServerConfig, Synchronous};

/// Longest time for an immediate stop. The postmaster itself kills its children after 5 s; but
/// whoever asks for this has a takeover waiting.
const IMMEDIATE: Duration = Duration::from_secs(1);
/// Message of a postmaster (`sysv_shmem.c`) while backends of a killed one before it still live.
const ORPHANS: &str = "pre-existing shared memory block";
/// Those notice within milliseconds; on a busy machine later.
const ORPHANS_WAIT: Duration = Duration::from_secs(2);
/// Between two tries.
const ORPHANS_PAUSE: Duration = Duration::from_millis(10);
/// Longest time for SIGKILL: a process in an uninterruptible wait for a dead disk stays.
const KILLED: Duration = Duration::from_secs(5);

/// Finds a running postmaster and what it was told last.
pub(crate) async fn adopt(inner: &Inner) -> Result<bool, Error> {
    let record = inner.layout.record();
    match std::fs::read(&record) {
        Ok(bytes) => match serde_json::from_slice::<Record>(&bytes) {
            Ok(record) => inner.known().record = Some(record),
            // It will be configured anew.
            Err(error) => tracing::warn!(path = %record.display(), %error, "the last configuration is not readable"),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io("read", record)(error)),
    }
    let found = Postmaster::find(&inner.layout.data())?;
    let adopted = found.is_some();
    match found {
        Some(postmaster) => {
            tracing::info!(pid = postmaster.pid(), "adopted the running PostgreSQL");
            inner.set_postmaster(Arc::new(postmaster));
        }
        None => observe::note_left_over(inner),
    }
    inner.refresh().await;
    Ok(adopted)
}

/// Starts the server, or configures it if it runs.
pub(crate) async fn start(inner: &Inner, config: &ServerConfig) -> Result<(), Error> {
    if inner.postmaster().is_some() {
        return apply::apply(inner, config).await;
    }
    if let Some(postmaster) = Postmaster::find(&inner.layout.data())? {
        inner.set_postmaster(Arc::new(postmaster));
        inner.refresh().await;
        return apply::apply(inner, config).await;
    }
    match control::classify(&inner.layout, &inner.version) {
        Data::Fresh(_) | Data::Present(_) => {}
        Data::Absent => return Err(Error::DataNotFit("there is none".to_owned())),
        Data::Incomplete => return Err(Error::DataNotFit("a copy was not finished".to_owned())),
        Data::Unusable(problem) => return Err(Error::DataNotFit(problem)),
    }
    let data = inner.layout.data();
    let signal = data.join("standby.signal");
    match (&config.recovery, signal.exists()) {
        (Recovery::Primary, true) => return Err(Error::StandbyData),
        (Recovery::Primary, false) | (_, true) => {}
        (_, false) => files::replace(&signal, "", &inner.user)?,
    }
    files::remove(&data.join("recovery.signal"))?;
    inner.make_folders()?;
    // What the upstream has become meanwhile is not known.
    let rendered = render::render(inner, config, guard::name(false));
    let record = |confirmed| Record { id: rendered.id.clone(), config: config.clone(), confirmed, trusted: false };
    inner.set_record(record(false))?;
    render::write(inner, &rendered)?;
    // Before PostgreSQL runs: from now on the data is somebody's.
    files::remove(&inner.layout.fresh())?;
    for left_out in control::unused_on_top(&data) {
        // The server ended between these and the promotion that they were for. PostgreSQL would take the
        // last of the numbers for its target (`findNewestTimeLine`) and refuse to start, because that is no
        // child of its own timeline. A promotion makes them again, a follower fetches them.
        files::remove(&left_out)?;
    }
    if !spawn(inner, config).await? {
        return Ok(());
    }
    // Every process began with these settings; only the slots are left.
    let session = inner.session()?;
    let live = ask::text(&session, "SELECT current_setting('manatee.config_id', true)").await?;
    if live.as_deref() != Some(&rendered.id) {
        return Err(Error::NotApplied("postgresql.conf does not end with our include".to_owned()));
    }
    slots::keep(&session, &config.slots).await?;
    inner.set_record(record(true))?;
    inner.refresh().await;
    Ok(())
}

/// Runs a postmaster. Whether it answers within the bound; an error if it ends instead.
async fn spawn(inner: &Inner, config: &ServerConfig) -> Result<bool, Error> {
    let begin = Instant::now();
    let mut given = match config.recovery {
        Recovery::Primary => capacity::held_back(inner).await,
        Recovery::Follow(_) | Recovery::Detached => Vec::new(),
    };
    loop {
        let postmaster = Arc::new(Postmaster::spawn(&inner.settings, &inner.layout, &inner.user, &given)?);
        tracing::info!(pid = postmaster.pid(), recovery = ?config.recovery, "started PostgreSQL");
        inner.set_postmaster(Arc::clone(&postmaster));
        match wait_for_answer(inner, &postmaster).await {
            Err(Error::StartFailed { log }) if log.contains(ORPHANS) && begin.elapsed() < ORPHANS_WAIT => {
                tokio::time::sleep(ORPHANS_PAUSE).await;
            }
            Err(error @ Error::StartFailed { .. }) if config.recovery != Recovery::Primary => {
                match capacity::needed(inner, &given).await {
                    Some(more) => given = more,
                    None => return Err(error),
                }
            }
            outcome => return outcome,
        }
    }
}

/// Whether it answers within the bound; an error if it ends instead.
async fn wait_for_answer(inner: &Inner, postmaster: &Postmaster) -> Result<bool, Error> {
    let answering = async {
        loop {
            inner.refresh().await;
            if inner.session().is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = postmaster.ended() => {
            inner.refresh().await;
            Err(Error::StartFailed { log: process::log_tail(&inner.layout) })
        }
        () = answering => Ok(true),
        () = tokio::time::sleep(inner.settings.start_wait) => Ok(false),
    }
}

/// Leaves recovery.
pub(super) async fn promote(
    inner: &Arc<Inner>,
    config: &ServerConfig,
    timeline: Option<Timeline>,
) -> Result<(), Error> {
    let session = inner.session()?;
    if config.recovery != Recovery::Primary {
        return Err(Error::NotApplied("a promotion makes a primary".to_owned()));
    }
    if ask::is_in_recovery(&session).await? {
        let record = inner.known().record.clone().filter(|record| record.confirmed);
        let ready = record.is_some_and(|record| {
            record.config.recovery == Recovery::Detached && record.config.synchronous == Synchronous::Impossible
        });
        if !ready {
            // Rule 4: who acknowledges is settled before the first commit is possible; until the
            // configuration below is in effect, that is nobody.
            let (recovery, synchronous) = (Recovery::Detached, Synchronous::Impossible);
            apply::apply(inner, &ServerConfig { recovery, synchronous, ..config.clone() }).await?;
        }
        if let Some(timeline) = timeline {
            skip_timelines(inner, timeline)?;
        }
        // Not waiting: PostgreSQL's own wait looks every 100 ms only.
        session.execute("SELECT pg_promote(false)", &[]).await.map_err(Error::query("promote"))?;
        apply::announce(inner, config)?;
        let promoting = ask::until(inner.settings.promote_timeout, "the promotion", || async {
            Ok((!ask::is_in_recovery(&session).await?).then_some(()))
        });
        // All that was received is replayed first. Either may be dropped: each look is whole by itself.
        tokio::select! {
            promoted = promoting => promoted?,
            () = replay::keep_clear(inner, &session) => {}
        }
        checkpoint_in_background(inner);
    }
    apply::apply(inner, config).await
}

/// Makes the coming promotion begin `timeline`: PostgreSQL takes the first number above its own that
/// has no history file (`findNewestTimeLine` in timeline.c), so those in between get one. It names
/// no ancestor, which makes every standby refuse to switch to it; a follower fetches it and goes on.
fn skip_timelines(inner: &Inner, timeline: Timeline) -> Result<(), Error> {
    let received = match &inner.local.borrow().server {
        Server::Standby(standby) => standby.received,
        _ => None,
    };
    let wal = inner.layout.data().join("pg_wal");
    // Without a position the files tell: ancestors have one each, and the newest is our own timeline.
    let own = received.map_or_else(
        || {
            (2..timeline.0)
                .rev()
                .find(|&number| wal.join(control::history_file(Timeline(number))).exists())
                .unwrap_or(1)
        },
        |received| received.timeline.0,
    );
    for number in own.saturating_add(1)..timeline.0 {
        let path = wal.join(control::history_file(Timeline(number)));
        if !path.exists() {
            files::replace(&path, control::NEVER_USED, &inner.user)?;
        }
    }
    Ok(())
}

/// `pg_rewind` reads the new timeline from the source's control file, which only the first
/// checkpoint writes, and PostgreSQL spreads that one over minutes.
fn checkpoint_in_background(inner: &Arc<Inner>) {
    let inner = Arc::clone(inner);
    // Bounded by the checkpoint's own timeout.
    tokio::spawn(async move {
        let done = match session::local(&inner).await {
            Ok(session) => ask::checkpoint(&session).await,
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            tracing::warn!(error = &error as &dyn std::error::Error, "the checkpoint after the promotion failed");
        }
    });
}

/// Stops the server, harder and harder.
pub(crate) async fn stop(inner: &Inner, mode: StopMode) -> Result<(), Error> {
    let postmaster = match inner.postmaster() {
        Some(postmaster) => postmaster,
        None => match Postmaster::find(&inner.layout.data())? {
            None => {
                inner.known().crashed = false;
                inner.refresh().await;
                return Ok(());
            }
            Some(postmaster) => {
                let postmaster = Arc::new(postmaster);
                inner.set_postmaster(Arc::clone(&postmaster));
                postmaster
            }
        },
    };
    inner.known().told_to_stop = true;
    let fast = [(Signal::INT, inner.settings.stop_timeout), (Signal::QUIT, IMMEDIATE)];
    let steps = match mode {
        StopMode::Fast => &fast[..],
        StopMode::Immediate => &fast[1..],
    };
    let mut ended = false;
    for &(signal, bound) in steps {
        postmaster.signal(signal);
        ended = postmaster.ended_within(bound).await;
        if ended {
            break;
        }
        tracing::warn!(pid = postmaster.pid(), ?signal, "PostgreSQL did not stop in time");
    }
    if !ended {
        postmaster.kill_all();
        if !postmaster.ended_within(KILLED).await {
            return Err(Error::Timeout { what: "the end of PostgreSQL".to_owned(), timeout: KILLED });
        }
    }
    inner.refresh().await;
    Ok(())
}
