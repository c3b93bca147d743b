//! What must never happen. It sees everything, also what no sitter can see.

use std::collections::BTreeMap;

use manatee_shared::cluster::ClusterState;
use manatee_shared::invariants::{check_transition, join};
use manatee_shared::zk::HistoryEntry;

use super::postgres::{Postgres, Record};

/// A write that a client was told to be durable.
#[derive(Clone, Copy, Debug)]
struct Acknowledged {
    index: usize,
    record: Record,
}

#[derive(Default)]
pub(super) struct Oracle {
    acknowledged: Vec<Acknowledged>,
    /// Who acknowledges on each timeline.
    owners: BTreeMap<u32, usize>,
    pub(super) last_acknowledged_at: u64,
    seen_history: usize,
    last: Option<ClusterState>,
}

impl Oracle {
    pub(super) fn count(&self) -> usize {
        self.acknowledged.len()
    }

    /// `host` tells a client that the record at `index` is durable: one acknowledger at a time. A
    /// reply of the sync that was on its way when it detached may still release a commit later; the
    /// new primary, `newest`, then has it, and to its client it is only a late answer.
    pub(super) fn acknowledge(
        &mut self,
        now: u64,
        host: usize,
        index: usize,
        record: Record,
        newest: &dyn Fn(usize) -> Option<Record>,
    ) -> Result<(), String> {
        if let Some((timeline, owner)) = self.owners.last_key_value()
            && record.timeline < *timeline
            && newest(*owner) != Some(record)
        {
            return Err(format!(
                "host {host} acknowledged {record:?} after timeline {timeline} had begun to without it"
            ));
        }
        let owner = *self.owners.entry(record.timeline).or_insert(host);
        if owner != host {
            return Err(format!("hosts {owner} and {host} both acknowledged on timeline {}", record.timeline));
        }
        self.acknowledged.push(Acknowledged { index, record });
        self.last_acknowledged_at = now;
        Ok(())
    }

    /// Everything acknowledged is in this WAL.
    pub(super) fn holds_everything(&self, who: &str, postgres: &Postgres) -> Result<(), String> {
        let missing = |write: &&Acknowledged| postgres.wal.records.get(write.index) != Some(&write.record);
        match self.acknowledged.iter().find(missing) {
            None => Ok(()),
            Some(write) => Err(format!(
                "{who} lacks the acknowledged write {:?} at {}; it has {:?}",
                write.record,
                write.index,
                postgres.wal.records.get(write.index)
            )),
        }
    }

    /// Each state written is a lawful successor of the one before. Returns those that began a
    /// generation.
    pub(super) fn check_history(&mut self, history: &[HistoryEntry]) -> Result<Vec<ClusterState>, String> {
        let mut begun = Vec::new();
        for entry in &history[self.seen_history..] {
            let violations = check_transition(self.last.as_ref(), &entry.state);
            if !violations.is_empty() {
                return Err(format!("unlawful state {:?}: {}", entry.state.reason, join(&violations)));
            }
            if self.last.as_ref().is_none_or(|last| last.generation != entry.state.generation) {
                begun.push(entry.state.clone());
            }
            self.last = Some(entry.state.clone());
        }
        self.seen_history = history.len();
        Ok(begun)
    }
}
