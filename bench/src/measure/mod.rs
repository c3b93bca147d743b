//! Measurements: a part per file. Within a part everybody takes turns, round after round.

use anyhow::{Context, Result};

use crate::contender::{Contender, Kind, Programs};
use crate::report::Report;
use crate::shard::Shard;

pub mod bulk;
pub mod crowd;
pub mod goals;
pub mod load;
pub mod syscalls;

/// Everything running: the shard and those in front of it.
#[derive(Debug)]
pub struct Field {
    /// Those measured; before the shard, so that they end first.
    pub contenders: Vec<Contender>,
    /// The shard.
    pub shard: Shard,
    /// Programs of the contenders.
    pub programs: Programs,
}

impl Field {
    /// Starts all of `kinds` in front of `shard`.
    pub async fn start(shard: Shard, kinds: &[Kind], programs: Programs) -> Result<Self> {
        let mut contenders = Vec::new();
        for &kind in kinds {
            eprintln!("starting {}", kind.name());
            contenders.push(Contender::start(kind, &shard, &programs).await?);
        }
        Ok(Self { contenders, shard, programs })
    }

    /// An error if one of them has ended.
    pub fn check(&mut self) -> Result<()> {
        self.contenders.iter_mut().try_for_each(Contender::check)
    }

    /// Notes the versions.
    pub fn describe(&self, report: &mut Report) {
        let versions = self.contenders.iter().map(|one| (one.kind.name().to_owned(), one.version.clone()));
        report.versions.extend(versions);
    }
}

/// Says what went wrong with whom.
pub(crate) fn of<T>(kind: Kind, what: &str, result: Result<T>) -> Result<T> {
    result.with_context(|| format!("{}, {what}", kind.name()))
}
