//! One round of one fault, under the eyes of the oracle.
//!
//! A [`Play`] is the whole of what is particular to a fault: what is done to which host, what the
//! roles must do about it, and what clients may notice. It is told to the [`Stage`], which waits,
//! takes the times and notes what did not hold. What must hold after every play is here: nothing
//! lost, one acknowledger at a time, no session's past gone, the history by the rules, and the
//! shard whole again by itself once everything runs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::future::LocalBoxFuture;
use manatee_shared::cluster::{ClusterState, Role};
use serde::Serialize;

use crate::lab::Lab;
use crate::oracle::ledger::{Figures, seconds};
use crate::oracle::{Oracle, Verdict};

/// Longest time for a shard to be whole again once everything runs: covers a fresh copy.
const WHOLE: Duration = Duration::from_secs(90);
/// Longest time for a change of roles before the round is given up.
pub const CHANGE: Duration = Duration::from_secs(30);
/// Writes and reads before a fault.
const SETTLED: u64 = 300;
/// Writes and reads that show that clients are served.
const SERVED: u64 = 20;
/// Time for which it is watched that nothing happens: longer than the suspicion timeout and a restart,
/// and than the ZooKeeper session that a killed process left behind.
pub const NOTHING: Duration = Duration::from_secs(6);
/// Pause between two looks at something awaited.
const POLL: Duration = Duration::from_millis(50);

/// Script of a play, as `|stage| Box::pin(an_async_function(stage))`.
pub type Script = for<'a, 'b> fn(&'a mut Stage<'b>) -> LocalBoxFuture<'a, Result<()>>;

/// One way in which something goes wrong, and what must come of it.
#[derive(Clone, Copy)]
pub struct Play {
    /// Name for messages: `everything on the primary's host is killed`.
    pub name: &'static str,
    /// Effects that clients may notice.
    pub clients: Clients,
    /// Does it.
    pub script: Script,
}

/// Effects of a fault that clients may notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// No error, and no session lost.
    NoticeNothing,
    /// Errors of what was under way, while no read fails.
    WritesMayFail,
    /// Errors of what was under way.
    MayFail,
}

/// Change of roles that a fault must bring about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing: the generation stays.
    None,
    /// The sync becomes primary.
    Takeover,
    /// The first async becomes sync.
    NewSync,
    /// An operator put a state in place of a lost one. Without a running primary, any peer that has
    /// everything may have become it.
    Restored,
}

impl Change {
    /// Whether this is how `after` came of `before`.
    fn is_from(self, before: &ClusterState, after: &ClusterState) -> bool {
        let next = after.generation == before.generation + 1;
        match self {
            Self::None => after.generation == before.generation,
            Self::Takeover => next && Some(after.primary.id) == sync_of(before),
            Self::NewSync => {
                let first = before.async_peers.first().map(|peer| peer.id);
                next && after.primary.id == before.primary.id && sync_of(after) == first
            }
            Self::Restored => after.generation > before.generation || after.is_restored(),
        }
    }
}

fn sync_of(state: &ClusterState) -> Option<manatee_shared::ids::PeerId> {
    state.sync_peer.as_ref().map(|peer| peer.id)
}

/// Results of a round.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Round {
    /// Figures of the clients, from the fault until the shard was whole again.
    pub figures: Figures,
    /// From the fault until ZooKeeper had the new state; 0 if no change was awaited.
    pub change_s: f64,
    /// From the time when everything was made to run again until the shard was whole.
    pub rejoin_s: f64,
    /// Acknowledged rows missing.
    pub lost: u64,
    /// Rows present of which the client was told that they were not written.
    pub ghosts: u64,
    /// Expectations that did not hold, in words.
    pub failures: Vec<String>,
}

/// Stage of a play.
pub struct Stage<'a> {
    /// The shard.
    pub lab: &'a mut Lab,
    /// Its clients.
    pub oracle: &'a Oracle,
    /// Number of the round, from 0: for plays that vary.
    pub number: u32,
    /// The state before the fault.
    pub before: ClusterState,
    /// The state that is right now, as far as the play has said: nothing may change it but what
    /// the play expects.
    state: ClusterState,
    /// Changes of the generation that may follow unasked.
    more_changes: u64,
    began: Instant,
    healed: Option<Instant>,
    round: Round,
}

/// Runs `play` once and waits until the shard is whole again.
///
/// An error means that the round could not be finished; what it shows otherwise is in
/// [`Round::failures`].
pub async fn round(lab: &mut Lab, oracle: &Oracle, play: &Play, number: u32) -> Result<Round> {
    let before = lab.whole(WHOLE).await?;
    // Clients that have just come read from the primary until the proxy knows better: let them settle.
    oracle.progress(SETTLED, CHANGE).await?;
    oracle.begin_round();
    let mut stage = Stage {
        lab,
        oracle,
        number,
        state: before.clone(),
        before,
        more_changes: 0,
        began: Instant::now(),
        healed: None,
        round: Round::default(),
    };
    (play.script)(&mut stage).await?;
    if stage.healed.is_none() {
        stage.heal().await?;
    }
    let after = stage.lab.whole(WHOLE).await?;
    let (first, last) = (stage.state.generation, stage.state.generation + stage.more_changes);
    let mut round = stage.round;
    round.rejoin_s = stage.healed.map(|healed| seconds(healed.elapsed())).unwrap_or_default();
    if !(first..=last).contains(&after.generation) {
        round.failures.push(format!("the generation went on from {first} to {}", after.generation));
    }
    oracle.progress(SERVED, CHANGE).await.context("after the shard was whole again")?;
    round.figures = oracle.figures();
    judge(lab, oracle, play.clients, &mut round).await?;
    Ok(round)
}

impl Stage<'_> {
    /// Index of the host that had `role` before the fault.
    pub fn host(&self, role: Role) -> Result<usize> {
        self.lab.index_in(&self.before, role)
    }

    /// Index of the host that has `role` by the state as the play knows it.
    pub fn host_now(&self, role: Role) -> Result<usize> {
        self.lab.index_in(&self.state, role)
    }

    /// The state as the play knows it.
    pub fn state(&self) -> &ClusterState {
        &self.state
    }

    /// To be called right before the fault: figures count from here.
    pub fn begin(&mut self, what: &str, host: usize) {
        tracing::info!("{what}: {}", self.lab.hosts[host].name());
        self.begin_all(what);
    }

    /// The same for a fault that is no single host's.
    pub fn begin_all(&mut self, what: &str) {
        tracing::debug!("{what}");
        self.oracle.begin_round();
        self.began = Instant::now();
    }

    /// Notes something that did not hold; the play goes on.
    pub fn fail(&mut self, what: impl Into<String>) {
        self.round.failures.push(what.into());
    }

    /// Waits for the change of roles, and checks that it is this one.
    pub async fn expect(&mut self, change: Change) -> Result<()> {
        self.expect_within(change, CHANGE).await
    }

    /// The same with another bound.
    pub async fn expect_within(&mut self, change: Change, limit: Duration) -> Result<()> {
        let generation = self.state.generation;
        let what = format!("{change:?} was expected, but nothing was done");
        let after = self
            .lab
            .until(Instant::now() + limit, &what, async |lab| {
                let state = lab.current().await?;
                if state.generation == generation { bail!("still in generation {generation}") } else { Ok(state) }
            })
            .await?;
        self.note_change(change, after);
        Ok(())
    }

    /// Takes the state as it is now for right, if it came by one of `changes`.
    pub async fn accept(&mut self, changes: &[Change]) -> Result<()> {
        let after = self.lab.current().await?;
        let found = changes.iter().find(|change| change.is_from(&self.state, &after));
        self.note_change(*found.or(changes.first()).unwrap_or(&Change::None), after);
        Ok(())
    }

    /// Up to `changes` changes of the generation may follow, at any time.
    pub fn allow_more_changes(&mut self, changes: u64) {
        self.more_changes = changes;
    }

    fn note_change(&mut self, change: Change, after: ClusterState) {
        if self.round.change_s == 0.0 {
            self.round.change_s = seconds(self.began.elapsed());
        }
        let before = std::mem::replace(&mut self.state, after);
        if !change.is_from(&before, &self.state) {
            let text = |state: &ClusterState| {
                format!("{} (primary {}, sync {:?})", state.generation, state.primary.id, sync_of(state))
            };
            let what =
                format!("{change:?} was expected, but generation {} became {}", text(&before), text(&self.state));
            self.fail(what);
        }
    }

    /// Watches for `time` that the generation stays. ZooKeeper may be away meanwhile.
    pub async fn nothing_happens(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            if let Ok(state) = self.lab.current().await
                && state.generation != self.state.generation
            {
                self.note_change(Change::None, state);
            }
            self.lab.check()?;
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Waits until clients are served: both writes and reads.
    pub async fn served(&mut self) -> Result<()> {
        self.oracle.progress(SERVED, CHANGE).await
    }

    /// Waits until `condition` holds.
    pub async fn until<T>(&mut self, what: &str, condition: impl AsyncFnMut(&mut Lab) -> Result<T>) -> Result<T> {
        self.lab.until(Instant::now() + CHANGE, what, condition).await
    }

    /// Notes it if the postmaster of `host` is not `pid` any more.
    pub fn same_postmaster(&mut self, host: usize, pid: Option<i32>) {
        let now = self.lab.hosts[host].postmaster_pid();
        if now != pid {
            self.fail(format!("{}: PostgreSQL was restarted ({pid:?} became {now:?})", self.lab.hosts[host].name()));
        }
    }

    /// Undoes whatever was done to anything. Done at the end of a play that has not.
    pub async fn heal(&mut self) -> Result<()> {
        self.lab.heal_all().await?;
        self.healed = Some(Instant::now());
        Ok(())
    }
}

/// Adds what the oracle finds to the round.
async fn judge(lab: &Lab, oracle: &Oracle, clients: Clients, round: &mut Round) -> Result<()> {
    let Verdict { lost, ghosts, double, examples } = oracle.verify(lab).await?;
    (round.lost, round.ghosts) = (lost, ghosts);
    let failures = &mut round.failures;
    if lost > 0 || ghosts > 0 || double > 0 {
        failures.push(format!(
            "{lost} acknowledged rows lost, {ghosts} refused rows present, {double} rows acknowledged by a former \
             primary: {}",
            examples.join(", ")
        ));
    }
    let figures = &round.figures;
    if figures.stale > 0 {
        failures.push(format!("{} stale reads: {}", figures.stale, figures.stale_reads.join(", ")));
    }
    let noticed = match clients {
        Clients::NoticeNothing => figures.write_errors + figures.read_errors + figures.dropped,
        Clients::WritesMayFail => figures.read_errors,
        Clients::MayFail => 0,
    };
    if noticed > 0 {
        failures.push(format!("clients noticed: {:?}, {} sessions dropped", figures.errors, figures.dropped));
    }
    if let Err(error) = lab.state.check_history().await {
        failures.push(format!("{error:#}"));
    }
    Ok(())
}
