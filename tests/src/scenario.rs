//! One round of one fault, under the eyes of the oracle.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use manatee_shared::cluster::{ClusterState, Role};
use serde::Serialize;

use crate::lab::Lab;
use crate::oracle::ledger::{Figures, seconds};
use crate::oracle::{Oracle, Verdict};

/// How long a shard may take to be whole again once everything runs: covers a fresh copy.
const WHOLE: Duration = Duration::from_secs(90);
/// How long a change of roles may take before the round is given up.
const CHANGE: Duration = Duration::from_secs(30);
/// Writes and reads before a fault.
const SETTLED: u64 = 300;
/// How long is watched that nothing happens: longer than the suspicion timeout and a restart,
/// and than the ZooKeeper session that the killed process left behind.
const NOTHING: Duration = Duration::from_secs(6);
/// systemd's default pause before it restarts a service.
const SERVICE_RESTART: Duration = Duration::from_millis(100);

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL to the primary's postmaster.
    KillPostmaster,
    /// SIGKILL to the sitter of the peer with this role; its service manager starts it again.
    KillSitter(Role),
    /// SIGKILL to everything on the primary's host.
    KillPrimary,
    /// SIGTERM to the primary's sitter.
    StopPrimary,
    /// The primary's host loses power.
    PowerOffPrimary,
    /// The primary's host is cut off from everyone.
    IsolatePrimary,
    /// The sync's host is cut off from everyone.
    IsolateSync,
}

/// What the roles must do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Nothing,
    RestartOrTakeover,
    Takeover,
    NewSync,
}

impl Fault {
    fn victim(self) -> Role {
        match self {
            Self::KillSitter(role) => role,
            Self::IsolateSync => Role::Sync,
            _ => Role::Primary,
        }
    }

    fn expected(self) -> Expected {
        match self {
            Self::KillPostmaster => Expected::RestartOrTakeover,
            Self::KillSitter(_) => Expected::Nothing,
            Self::IsolateSync => Expected::NewSync,
            _ => Expected::Takeover,
        }
    }
}

/// What a round showed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Round {
    /// What the clients saw, from the fault until the shard was whole again.
    pub figures: Figures,
    /// From the fault until ZooKeeper had the new state.
    pub change_s: f64,
    /// From the host's return until the shard was whole again.
    pub rejoin_s: f64,
    /// Acknowledged rows missing.
    pub lost: u64,
    /// Rows present of which the client was told that they were not written.
    pub ghosts: u64,
    /// What did not hold, in words.
    pub failures: Vec<String>,
}

/// Runs `fault` once and waits until the shard is whole again.
///
/// An error means that the round could not be finished; what it shows otherwise is in
/// [`Round::failures`].
pub async fn round(lab: &mut Lab, oracle: &Oracle, fault: Fault) -> Result<Round> {
    let before = lab.whole(WHOLE).await?;
    // Clients that have just come read from the primary until the proxy knows better: let them settle.
    oracle.progress(SETTLED, CHANGE).await?;
    let victim = lab.index_in(&before, fault.victim())?;
    let postmaster = lab.hosts[victim].postmaster_pid();
    oracle.begin_round();
    let begin = Instant::now();
    tracing::info!("{fault:?}: {}", lab.hosts[victim].name());
    inject(lab, victim, fault).await?;

    let mut round = Round::default();
    let state = wait_for_change(lab, &before, fault, victim, postmaster).await?;
    round.change_s = seconds(begin.elapsed());
    round.failures.extend(check_roles(&before, &state, fault).err().map(|error| format!("{error:#}")));
    oracle.progress(20, CHANGE).await.context("after the change of roles")?;

    if fault == Fault::StopPrimary {
        lab.hosts[victim].sitter_ended(CHANGE).await?;
    }
    lab.heal(victim)?;
    let healed = Instant::now();
    let after = lab.whole(WHOLE).await?;
    round.rejoin_s = seconds(healed.elapsed());
    oracle.progress(20, CHANGE).await.context("after the shard was whole again")?;
    round.figures = oracle.figures();

    if fault.expected() == Expected::Nothing && lab.hosts[victim].postmaster_pid() != postmaster {
        round.failures.push("PostgreSQL was restarted".to_owned());
    }
    // A restart in place that takes too long becomes a takeover after all.
    let takeover_after_all = fault.expected() == Expected::RestartOrTakeover
        && state.generation == before.generation
        && after.generation == before.generation + 1;
    if after.generation != state.generation && !takeover_after_all {
        round.failures.push(format!("the generation went on from {} to {}", state.generation, after.generation));
    }
    judge(lab, oracle, fault, &mut round).await?;
    Ok(round)
}

async fn inject(lab: &mut Lab, victim: usize, fault: Fault) -> Result<()> {
    match fault {
        Fault::KillPostmaster => lab.hosts[victim].kill_postmaster().map(drop),
        Fault::KillSitter(_) => {
            lab.hosts[victim].kill_sitter()?;
            tokio::time::sleep(SERVICE_RESTART).await;
            lab.hosts[victim].start_sitter()
        }
        Fault::KillPrimary => {
            lab.hosts[victim].kill();
            Ok(())
        }
        Fault::StopPrimary => lab.hosts[victim].stop_sitter(),
        Fault::PowerOffPrimary => lab.power_off(victim),
        Fault::IsolatePrimary | Fault::IsolateSync => lab.cut(victim),
    }
}

/// Waits for what must come of the fault (or, if nothing must, long enough to see that nothing
/// does) and returns the state.
async fn wait_for_change(
    lab: &mut Lab,
    before: &ClusterState,
    fault: Fault,
    victim: usize,
    postmaster: Option<i32>,
) -> Result<ClusterState> {
    if fault.expected() == Expected::Nothing {
        tokio::time::sleep(NOTHING).await;
        return lab.current().await;
    }
    lab.until(Instant::now() + CHANGE, &format!("{fault:?}: nothing was done about it"), async |lab| {
        let state = lab.current().await?;
        let pid = lab.hosts[victim].postmaster_pid();
        let restarted = fault == Fault::KillPostmaster && pid.is_some() && pid != postmaster;
        if restarted || state.generation > before.generation {
            return Ok(state);
        }
        bail!("still in generation {}", state.generation);
    })
    .await
}

fn check_roles(before: &ClusterState, after: &ClusterState, fault: Fault) -> Result<()> {
    let sync_of = |state: &ClusterState| state.sync_peer.as_ref().map(|peer| peer.id);
    let same = after.generation == before.generation;
    let takeover = after.generation == before.generation + 1 && Some(after.primary.id) == sync_of(before);
    let new_sync = after.generation == before.generation + 1
        && after.primary.id == before.primary.id
        && sync_of(after) == before.async_peers.first().map(|peer| peer.id);
    let as_expected = match fault.expected() {
        Expected::Nothing => same,
        Expected::RestartOrTakeover => same || takeover,
        Expected::Takeover => takeover,
        Expected::NewSync => new_sync,
    };
    if as_expected {
        return Ok(());
    }
    bail!(
        "{:?} was expected of {fault:?}, but generation {} (primary {}, sync {:?}) became {} (primary {}, sync {:?})",
        fault.expected(),
        before.generation,
        before.primary.id,
        sync_of(before),
        after.generation,
        after.primary.id,
        sync_of(after)
    );
}

/// Adds what the oracle finds to the round.
async fn judge(lab: &Lab, oracle: &Oracle, fault: Fault, round: &mut Round) -> Result<()> {
    let Verdict { lost, ghosts, examples } = oracle.verify(lab).await?;
    (round.lost, round.ghosts) = (lost, ghosts);
    let failures = &mut round.failures;
    if lost > 0 || ghosts > 0 {
        failures.push(format!("{lost} acknowledged rows lost, {ghosts} refused rows present: {}", examples.join(", ")));
    }
    let figures = &round.figures;
    if figures.stale > 0 {
        failures.push(format!("{} stale reads: {}", figures.stale, figures.stale_reads.join(", ")));
    }
    if fault.expected() == Expected::Nothing && figures.write_errors + figures.read_errors + figures.dropped > 0 {
        failures.push(format!("clients noticed: {:?}, {} sessions dropped", figures.errors, figures.dropped));
    }
    if let Err(error) = lab.state.check_history().await {
        failures.push(format!("{error:#}"));
    }
    Ok(())
}
