//! The rejoin ladder: the cheapest way to bring data back in line with the shard's primary.
//!
//! ```text
//! as it is → pg_rewind → back to a snapshot, and stream → what changed since a common snapshot → full copy
//! └───────────────── rejoin, to the primary ──────────┘   └──────── bootstrap, from any peer ─────────────┘
//! ```
//!
//! Each rung is judged before it is tried: whether the data lies on the source's history, and whether the
//! source still has the WAL that is missing here. One that fails or is interrupted leads to the next: a
//! rewind that has begun to write leaves a marker, with which the data is never started, and the snapshot
//! that was taken before it. When no rung of a rejoin holds, the data is *marked*: the same
//! marker, upon which the machine chooses a source and bootstraps. PostgreSQL is stopped throughout.
//!
//! A sync never goes back to a snapshot: the snapshot lacks what the sync has acknowledged since, and if the
//! primary died before it was streamed again, the sync would still be found fit to take over.

#[cfg(test)]
mod ladder_tests;

use std::path::Path;
use std::time::Duration;

use manatee_shared::ids::PeerId;
use manatee_shared::lsn::{Lsn, Timeline, TimelineHistory, WalPosition};

use super::marker::{self, MarkerReason};
use super::staged;
use crate::host::control::{self, ClusterMode, ControlPositions};
use crate::host::{Error, REPLICATION_ROLE, files};
use crate::machine::action::{Rung, StopMode};
use crate::machine::local::{Data, Gate, Recovery, ServerConfig, Synchronous};
use crate::postgres::inner::Inner;
use crate::postgres::same_wal::{self, Comparison};
use crate::postgres::source::{self as sources, SourceFacts};
use crate::postgres::{lifecycle, session};
use crate::storage::Storage;

/// End of a rejoin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejoined {
    /// The data is in line.
    Held(Rung),
    /// It can only be replaced, and is marked so.
    NeedsCopy,
}

/// Longest wait for the source's first checkpoint after its promotion (`pg_rewind` needs it).
const CHECKPOINT: Duration = Duration::from_secs(60);
/// Longest time for reading the end of the local WAL; it is at most what lies between two checkpoints.
const WALDUMP: Duration = Duration::from_secs(120);

/// Longest time for `pg_rewind` to tell no progress. While it copies it tells some each second; before that it reads
/// the local WAL and lists files, which takes minutes only where there is very much. A source that stalls with its
/// connection intact is noticed by nothing else.
const SILENCE: Duration = Duration::from_secs(300);

/// Task of a rejoin: the source, and the way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task {
    /// A primary.
    pub(super) source: PeerId,
    /// The first rung to try.
    pub(super) from: Rung,
    /// Position that the source must hold.
    pub(super) init: Option<WalPosition>,
    /// Whether going back in time is allowed.
    pub(super) may_roll_back: bool,
}

/// Goes down the ladder until one rung holds.
pub(super) async fn rejoin(inner: &Inner, storage: &dyn Storage, task: Task) -> Result<Rejoined, Error> {
    let Task { source, from, init, may_roll_back } = task;
    lifecycle::stop(inner, StopMode::Fast).await?;
    storage.attach().await?;
    let facts = sources::ask_source(inner, source).await?;
    let not_fit = |problem: String| Err(Error::SourceNotFit { source_peer: source, problem });
    if facts.in_recovery {
        return not_fit("it is not out of recovery".to_owned());
    }
    if let Some(init) = init.filter(|init| !facts.history.contains(facts.position, *init)) {
        return not_fit(format!("it does not hold the generation's beginning, {init}"));
    }
    let system = match control::classify(&inner.layout, &inner.version) {
        Data::Present(system) => Some(system),
        _ => None,
    };
    if system.is_some_and(|system| system == facts.system) {
        let judgement = judge(inner, &inner.layout.data(), source, &facts).await?;
        if from <= Rung::AsIs && judgement == Judgement::Follows {
            return finish(inner, Rung::AsIs).await;
        }
        // What is on the path and lacks WAL is not changed by a rewind.
        if from <= Rung::Rewind && judgement != Judgement::LacksWal {
            match rewind(inner, storage, source, &facts).await {
                Ok(()) => return finish(inner, Rung::Rewind).await,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "could not rewind");
                    // A source that is gone proves nothing about the data.
                    sources::ask_source(inner, source).await?;
                }
            }
        }
        if from <= Rung::Rollback && may_roll_back && roll_back(inner, storage, source, &facts).await? {
            return Ok(Rejoined::Held(Rung::Rollback));
        }
    }
    tracing::warn!(%source, "the data cannot be brought back in line: it is to be replaced");
    marker::mark_for_replacement(inner, MarkerReason::Diverged)?;
    inner.refresh().await;
    Ok(Rejoined::NeedsCopy)
}

/// Goes back to the newest snapshot from which the source can be followed; whether there was one. The data is
/// set aside.
pub(super) async fn roll_back(
    inner: &Inner,
    storage: &dyn Storage,
    source: PeerId,
    facts: &SourceFacts,
) -> Result<bool, Error> {
    let Some(snapshots) = storage.snapshots() else { return Ok(false) };
    // A copy that was interrupted may have borrowed the data's.
    snapshots.unstage().await?;
    for snapshot in snapshots.list().await?.iter().rev() {
        let name = &snapshot.name;
        let staging = match snapshots.stage_snapshot(snapshot).await {
            Ok(staging) => staging,
            Err(error) => {
                tracing::warn!(name, error = &error as &dyn std::error::Error, "a snapshot cannot be looked at");
                continue;
            }
        };
        let same = control::read_control(&staging).is_ok_and(|control| control.system == facts.system);
        if !same || judge(inner, &staging, source, facts).await? != Judgement::Follows {
            continue;
        }
        tracing::info!(name, "going back to a snapshot from before the divergence");
        staged::adopt(inner, storage, "rolled-back").await?;
        return Ok(true);
    }
    snapshots.unstage().await?;
    Ok(false)
}

/// Finishes a rejoin: after every rung the directory is a standby's.
async fn finish(inner: &Inner, rung: Rung) -> Result<Rejoined, Error> {
    files::replace(&inner.layout.data().join("standby.signal"), "", &inner.user)?;
    files::remove(&inner.layout.incomplete())?;
    inner.known().unfit = None;
    inner.known().last_position = None;
    inner.known().end = None;
    inner.refresh().await;
    Ok(Rejoined::Held(rung))
}

/// Whether a standby whose last WAL record *begins* at `last` follows a server at `source`, as far as numbers tell.
///
/// A history is left only between records, so a record that begins before the point is whole on
/// the shared path; its end need not be known. What goes beyond the source's position is of another history, or
/// the source has lost it: it does not become a part of the source's by the source's writing on.
fn lies_on(history: &TimelineHistory, source: WalPosition, last: WalPosition) -> bool {
    if last.timeline == source.timeline {
        return last.lsn < source.lsn;
    }
    history.0.iter().any(|left| left.timeline == last.timeline && last.lsn < left.lsn)
}

/// Whether the source has the segment in which streaming would begin; names are of `pg_wal`.
fn has_segment(names: &[String], position: Lsn, segment_bytes: u64) -> bool {
    // Its timeline does not matter: a branch begins with a copy of the segment it leaves.
    let wanted = control::segment_file(Timeline(0), position, segment_bytes);
    names.iter().any(|name| name.len() == wanted.len() && name.get(8..) == wanted.get(8..))
}

/// Relation of data to a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    /// It can stream from there as it is.
    Follows,
    /// It could, but the WAL is gone there.
    LacksWal,
    /// It is on another path, or nobody can tell.
    Diverged,
}

/// An error is about the source, not about the data.
async fn judge(inner: &Inner, data: &Path, source: PeerId, facts: &SourceFacts) -> Result<Judgement, Error> {
    let judgement = match wal_end(inner, data).await {
        Ok(WalEnd { last, segment_bytes, .. }) => {
            let mut on_path = lies_on(&facts.history, facts.position, last);
            // Not allowed to look is no reason against.
            let has_wal = facts.wal.as_ref().is_none_or(|names| has_segment(names, last.lsn, segment_bytes));
            if on_path && has_wal {
                let end = WalPosition { lsn: end_of_header(last.lsn, segment_bytes), ..last };
                let compared = same_wal::compare(inner, data, end, segment_bytes, source, facts).await?;
                if compared == Comparison::Other {
                    tracing::warn!(%last, "the source has other WAL at the same place: these are two histories");
                    on_path = false;
                }
            }
            tracing::info!(%last, source = %facts.position, on_path, has_wal, "compared our WAL with the source's");
            match (on_path, has_wal) {
                (true, true) => Judgement::Follows,
                (true, false) => Judgement::LacksWal,
                (false, _) => Judgement::Diverged,
            }
        }
        Err(error) => {
            tracing::info!(error = &error as &dyn std::error::Error, "the end of our WAL is not known");
            Judgement::Diverged
        }
    };
    Ok(judgement)
}

/// End of the header of the record that begins at `record`, which has its checksum, or of its segment if that comes
/// first.
fn end_of_header(record: Lsn, segment_bytes: u64) -> Lsn {
    /// `SizeOfXLogRecord` (xlogrecord.h).
    const HEADER_BYTES: u64 = 24;
    let segment_end = record.0 - record.0 % segment_bytes.max(1) + segment_bytes;
    Lsn((record.0 + HEADER_BYTES).min(segment_end))
}

/// Positions according to pg_control.
async fn positions(inner: &Inner, data: &Path) -> Result<ControlPositions, Error> {
    let output = inner.tool("pg_controldata").arg(data).run(&inner.user).await?;
    control::parse_controldata(&output.stdout)
        .ok_or_else(|| Error::DataNotFit("pg_controldata says nothing of positions".to_owned()))
}

/// Begin of a recovery: the data has everything before it.
pub(super) async fn redo(inner: &Inner, data: &Path) -> Result<WalPosition, Error> {
    Ok(positions(inner, data).await?.redo)
}

/// End of the local WAL.
pub(super) struct WalEnd {
    /// Begin of the last valid record.
    pub(super) last: WalPosition,
    /// Message of `pg_waldump` about what follows it.
    pub(super) message: String,
    /// Size of a segment, in bytes.
    pub(super) segment_bytes: u64,
}

/// Finds the end of the local WAL: on the newest timeline that was written.
pub(super) async fn wal_end(inner: &Inner, data: &Path) -> Result<WalEnd, Error> {
    let positions = positions(inner, data).await?;
    let segment_bytes = positions.segment_bytes;
    let (mut last, mut message) = scan(inner, data, positions.redo).await?;
    // The WAL goes on on newer timelines if they were followed since the last checkpoint. Bounded:
    // each round reaches a newer one.
    for _ in 0..16 {
        let newest = control::newest_timeline(data, last.timeline, last.lsn, segment_bytes);
        let begin = control::read_history(data, newest).0.last().map(|left| left.lsn);
        let Some(begin) = begin.filter(|_| newest != last.timeline) else { break };
        match scan(inner, data, WalPosition { timeline: newest, lsn: begin }).await {
            Ok(found) => (last, message) = found,
            // Nothing valid on it: it was prepared, not used.
            Err(_) => break,
        }
    }
    Ok(WalEnd { last, message, segment_bytes })
}

/// The beginning of the last valid record at or after `from`, which `pg_waldump` names when it
/// comes to the end of what is valid, and its message.
async fn scan(inner: &Inner, data: &Path, from: WalPosition) -> Result<(WalPosition, String), Error> {
    let output = inner
        .tool("pg_waldump")
        .arg("--stats")
        .arg("--path")
        .arg(data.join("pg_wal"))
        .arg(format!("--timeline={}", from.timeline))
        .arg(format!("--start={}", from.lsn))
        .timeout(WALDUMP)
        .run_any(&inner.user)
        .await?;
    let lsn = parse_last_record(&output.stderr)
        .ok_or_else(|| Error::DataNotFit(format!("no end of WAL found after {from}: {}", output.stderr.trim())))?;
    Ok((WalPosition { timeline: from.timeline, lsn }, output.stderr))
}

/// `pg_waldump: error: error in WAL record at 0/5000028: invalid record length at …`.
fn parse_last_record(stderr: &str) -> Option<Lsn> {
    stderr.lines().find_map(|line| line.split_once("error in WAL record at ")?.1.split(':').next()?.trim().parse().ok())
}

async fn rewind(inner: &Inner, storage: &dyn Storage, source: PeerId, facts: &SourceFacts) -> Result<(), Error> {
    ensure_clean(inner).await?;
    if let Some(snapshots) = storage.snapshots() {
        // What is about to be overwritten stays to be looked at, until snapshots of its age are forgotten.
        let taken = snapshots.take().await?;
        tracing::info!(name = taken.name, "took a snapshot before the rewind");
    }
    sources::wait_for_checkpoint(inner, source, facts, CHECKPOINT).await?;
    let database = session::database_of(inner, source).await?;
    let connection = format!(
        "host={} port={} user={REPLICATION_ROLE} dbname={database} application_name=manatee-rewind connect_timeout=10 \
         keepalives_idle=5 keepalives_interval=2 keepalives_count=3 tcp_user_timeout=15000 {}",
        source.ip,
        source.pg_port,
        inner.settings.replication_tls.conninfo(),
    );
    // From its first write to its last the data is neither the old nor the new.
    marker::mark_for_replacement(inner, MarkerReason::Rewind)?;
    let run = inner
        .tool("pg_rewind")
        .arg("--target-pgdata")
        .arg(inner.layout.data())
        .arg("--source-server")
        .arg(connection)
        .arg("--progress")
        .env("PGPASSFILE", inner.layout.passfile())
        .silence(SILENCE)
        .run_any(&inner.user)
        .await;
    match run {
        Ok(output) if output.success && !nothing_to_do(&output.stdout) && !nothing_to_do(&output.stderr) => Ok(()),
        Ok(output) if output.success => {
            // It looks at timelines only, and this data was found not to follow: two histories have one number.
            files::remove(&inner.layout.incomplete())?;
            Err(Error::DataNotFit("pg_rewind sees no difference where there is one".to_owned()))
        }
        Ok(output) => {
            if !began_writing(&output.stdout) && !began_writing(&output.stderr) {
                files::remove(&inner.layout.incomplete())?;
            }
            Err(output.into_error("pg_rewind"))
        }
        Err(error) => Err(error),
    }
}

/// Whether `pg_rewind` says that the target is in line already.
fn nothing_to_do(output: &str) -> bool {
    output.contains("no rewind required")
}

/// Whether `pg_rewind` got as far as changing the target: this message precedes its first write.
fn began_writing(output: &str) -> bool {
    output.contains("rewinding from last common checkpoint")
}

/// `pg_rewind` wants a server that ended cleanly. It recovers a crashed primary itself (single-user);
/// a crashed standby must run once, detached.
async fn ensure_clean(inner: &Inner) -> Result<(), Error> {
    let control = control::read_control(&inner.layout.data())?;
    let standby = inner.layout.data().join("standby.signal").exists();
    if !standby || matches!(control.mode, ClusterMode::ShutDown | ClusterMode::ShutDownInRecovery) {
        return Ok(());
    }
    let config = ServerConfig {
        recovery: Recovery::Detached,
        synchronous: Synchronous::Impossible,
        gate: Gate::Closed,
        slots: Default::default(),
    };
    lifecycle::start(inner, &config).await?;
    lifecycle::stop(inner, StopMode::Fast).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(timeline: u32, lsn: u64) -> WalPosition {
        WalPosition { timeline: Timeline(timeline), lsn: Lsn(lsn) }
    }

    #[test]
    fn data_follows_only_from_the_shared_path() {
        let history = TimelineHistory(vec![at(1, 100), at(2, 200)]);
        for (last, follows) in [
            (at(3, 240), true),
            (at(3, 250), false),
            (at(2, 199), true),
            (at(2, 200), false),
            (at(1, 99), true),
            (at(1, 150), false),
            (at(4, 10), false),
        ] {
            assert_eq!(lies_on(&history, at(3, 250), last), follows, "{last}");
        }
    }

    #[test]
    fn longer_on_one_timeline_is_another_history() {
        let none = TimelineHistory::default();
        assert!(!lies_on(&none, at(1, 100), at(1, 100)));
        assert!(!lies_on(&none, at(1, 100), at(1, 101)));
        assert!(lies_on(&none, at(1, 100), at(1, 99)));
    }

    #[test]
    fn the_header_of_a_record_ends_with_its_segment_at_the_latest() {
        assert_eq!(end_of_header(Lsn(0x300_0060), 16 << 20), Lsn(0x300_0078));
        assert_eq!(end_of_header(Lsn(0x3FF_FFF8), 16 << 20), Lsn(0x400_0000));
    }

    #[test]
    fn end_of_wal_is_read_from_waldump() {
        let text = "pg_waldump: first record is after 0/3000000\n\
            pg_waldump: error: error in WAL record at 0/30001C8: invalid record length at 0/3000240: wanted 24, got 0\n";
        assert_eq!(parse_last_record(text), Some(Lsn(0x300_01C8)));
        assert_eq!(parse_last_record("pg_waldump: error: could not find file"), None);
    }

    #[test]
    fn segments_are_found_on_any_timeline() {
        let names = ["000000020000000000000003".to_owned(), "00000002.history".to_owned()];
        assert!(has_segment(&names, Lsn(0x300_0060), 16 << 20));
        assert!(!has_segment(&names, Lsn(0x200_0060), 16 << 20));
    }
}
