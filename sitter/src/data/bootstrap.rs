//! A copy of another peer's data.

use manatee_shared::ids::PeerId;

use super::marker::{self, MarkerReason};
use super::{rejoin, staged};
use crate::host::{Error, control};
use crate::machine::action::Rung;
use crate::machine::local::Data;
use crate::postgres::inner::Inner;
use crate::postgres::{render, source as sources};
use crate::status::CopyMethod;
use crate::storage::{Source, Storage};

/// Task of a copy: its source, and the way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task {
    pub(super) source: PeerId,
    /// Whether going back in time is allowed.
    pub(super) may_roll_back: bool,
    /// Number of data sets set aside that are kept.
    pub(super) isolated_kept: usize,
}

/// Replaces what is here, which must not be anybody's data, by a copy from `source`; what was here is set
/// aside when the copy is complete. The lower rungs of the ladder ([`super::rejoin`]), the cheapest first.
pub(super) async fn bootstrap(inner: &Inner, storage: &dyn Storage, task: Task) -> Result<Rung, Error> {
    let Task { source, may_roll_back, isolated_kept } = task;
    if inner.postmaster().is_some() {
        return Err(Error::Running);
    }
    inner.make_folders()?;
    // What is not mounted looks like nothing.
    storage.attach().await?;
    match control::classify(&inner.layout, &inner.version) {
        Data::Absent | Data::Incomplete | Data::Fresh(_) => {}
        Data::Present(_) => {
            inner.refresh().await;
            return Err(Error::DataPresent);
        }
        Data::Unusable(problem) => return Err(Error::DataNotFit(problem)),
    }
    let verdict = marker::verdict(inner);
    render::write_passfile(inner)?;
    let facts = sources::ask_source(inner, source).await?;
    if may_roll_back && verdict == Some(MarkerReason::Rewind) {
        if rejoin::roll_back(inner, storage, source, &facts).await? {
            return Ok(Rung::Rollback);
        }
        // Another attempt must not undo the beginning of a copy by looking again.
        marker::mark_for_replacement(inner, MarkerReason::Diverged)?;
    }
    let slot = sources::ensure_slot(inner, source).await?;
    // Otherwise copies that succeed without making this peer healthy would fill the disk.
    storage.prune_aside(isolated_kept.max(1)).await?;
    let wanted = Source {
        peer: source,
        slot,
        system: facts.system,
        incremental: verdict != Some(MarkerReason::Rebuild),
        conninfo: inner.settings.replication_tls.conninfo(),
        tablespaces: facts.tablespaces,
    };
    let method = storage.fetch(&wanted).await?;
    let found = control::read_control(&inner.layout.staging())?.system;
    if found != wanted.system {
        return Err(Error::OtherSystem { found: found.0, expected: wanted.system.0 });
    }
    staged::adopt(inner, storage, "replaced").await?;
    tracing::info!(%source, ?method, "the copy is complete");
    Ok(match method {
        CopyMethod::ZfsIncremental => Rung::Incremental,
        CopyMethod::BaseBackup | CopyMethod::ZfsFull | CopyMethod::ZfsResumed => Rung::Copy,
    })
}
