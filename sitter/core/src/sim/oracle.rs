//! Checks for what must never happen. The oracle sees everything, also what no sitter can see.

use std::collections::BTreeMap;

use manatee_shared::cluster::ClusterState;
use manatee_shared::ids::PeerId;
use manatee_shared::invariants::{check_transition, join};
use manatee_shared::lsn::Lsn;
use manatee_shared::zk::HistoryEntry;

use super::postgres::{Postgres, peer_id};
use super::wal::{RECORD, Record};
use crate::machine::situation::Promotion;

/// A primary that is not any more may serve reads for this long, while its sitter is able to
/// notice (H7): the time to suspect and to close the gate, with some to spare.
const STALE_MS: u64 = 6_000;

/// Settings that somebody loosened are put right within this much, while the sitter is able to: a look at them each
/// 50 ms, and an action that may be under way.
const LOOSENED_MS: u64 = 3_000;

/// A write that a client was told to be durable.
#[derive(Clone, Copy, Debug)]
struct Acknowledged {
    #[cfg_attr(not(test), expect(dead_code, reason = "for the scenarios"))]
    at: u64,
    index: usize,
    record: Record,
}

/// Of one write of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Open,
    CarriedOut,
    /// Somebody was told that it did not and will not happen.
    Denied,
}

#[derive(Default)]
pub(super) struct Oracle {
    acknowledged: Vec<Acknowledged>,
    /// Up to where each record was shown to a reader of a primary, or acknowledged.
    shown: Vec<Record>,
    /// Host that acknowledges on each timeline.
    owners: BTreeMap<u32, usize>,
    pub(super) last_acknowledged_at: u64,
    pub(super) seen_history: usize,
    last: Option<ClusterState>,
    /// The generation of an old state that somebody put there.
    pub(super) old_state: Option<u64>,
    /// Promotion to each takeover's timeline according to the state: its peer, and init_wal.
    promotions: BTreeMap<u32, (PeerId, Lsn)>,
    /// Each timeline as it was first written to a disk: where it begins, and its records.
    written: BTreeMap<u32, (usize, Vec<u64>)>,
    /// Writes of the state: how often somebody had tampered with ZooKeeper when they were sent, and what became of them.
    writes: Vec<(u64, Fate)>,
    /// Since when each host serves as a primary that the state does not name.
    stale_since: BTreeMap<usize, u64>,
    /// Since when settings that Manatee owns are not in force on each.
    loosened_since: BTreeMap<usize, u64>,
}

impl Oracle {
    pub(super) fn count(&self) -> usize {
        self.acknowledged.len()
    }

    /// Moments at which writes were acknowledged.
    #[cfg(test)]
    pub(super) fn times(&self) -> Vec<u64> {
        self.acknowledged.iter().map(|write| write.at).collect()
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
        self.acknowledged.push(Acknowledged { at: now, index, record });
        self.last_acknowledged_at = now;
        Ok(())
    }

    /// Primary `host` has written its WAL from `begin` on to its disk: nobody ever wrote anything else there on that
    /// timeline.
    pub(super) fn wrote(&mut self, host: usize, postgres: &Postgres, begin: usize) -> Result<(), String> {
        for (index, record) in postgres.wal.records.iter().enumerate().take(postgres.flushed).skip(begin) {
            let (first, ids) = self.written.entry(record.timeline).or_insert((index, Vec::new()));
            match index.checked_sub(*first).map(|place| (place, ids.get(place))) {
                Some((_, Some(id))) if *id == record.id => {}
                Some((place, None)) if place == ids.len() => ids.push(record.id),
                _ => {
                    return Err(format!(
                        "p{host} begins another history on timeline {} at {index}: {record:?}",
                        record.timeline
                    ));
                }
            }
        }
        Ok(())
    }

    /// A write of the state is sent.
    pub(super) fn new_write(&mut self, tampered: u64) -> u64 {
        self.writes.push((tampered, Fate::Open));
        self.writes.len() as u64 - 1
    }

    fn write(&mut self, id: u64) -> Option<&mut (u64, Fate)> {
        usize::try_from(id).ok().and_then(|id| self.writes.get_mut(id))
    }

    /// The server carries it out.
    pub(super) fn carried_out(&mut self, id: u64) -> Result<(), String> {
        let Some((_, fate)) = self.write(id) else { return Ok(()) };
        match std::mem::replace(fate, Fate::CarriedOut) {
            Fate::Denied => Err(format!("write {id} was carried out after somebody was told that it was not (rule 1)")),
            Fate::Open | Fate::CarriedOut => Ok(()),
        }
    }

    /// Somebody is told for certain whether it was `written`. What a hand removed from ZooKeeper tells nobody anything.
    pub(super) fn told(&mut self, id: u64, written: bool, tampered: u64) -> Result<(), String> {
        let Some((_, fate)) = self.write(id).filter(|(before, _)| *before == tampered) else { return Ok(()) };
        match (*fate, written) {
            (Fate::CarriedOut, true) => Ok(()),
            (Fate::Open | Fate::Denied, false) => {
                *fate = Fate::Denied;
                Ok(())
            }
            (fate, _) => Err(format!("write {id} is {fate:?}, and somebody is told: written: {written} (rule 1)")),
        }
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

    /// Readers of primary `host` see its WAL up to `end`: it continues what readers of primaries saw.
    pub(super) fn show(&mut self, host: usize, postgres: &Postgres, end: usize) -> Result<(), String> {
        let shown = &postgres.wal.records[..end.min(postgres.wal.len())];
        let common = self.shown.len().min(shown.len());
        // What differs, differs at the end: a record of one place and timeline has one history.
        if common > 0 && self.shown[common - 1] != shown[common - 1] {
            return Err(format!(
                "readers of p{host} see {:?} at {}, where readers of a primary saw {:?}",
                shown[common - 1],
                common - 1,
                self.shown[common - 1]
            ));
        }
        self.shown.extend_from_slice(&shown[common..]);
        Ok(())
    }

    /// Everything that readers of a primary saw is in this WAL.
    pub(super) fn holds_what_was_shown(&self, who: &str, postgres: &Postgres) -> Result<(), String> {
        match self.shown.last() {
            Some(last) if postgres.wal.records.get(self.shown.len() - 1) != Some(last) => Err(format!(
                "{who} lacks {last:?} at {}, which readers of a primary saw; it has {:?}",
                self.shown.len() - 1,
                postgres.wal.records.get(self.shown.len() - 1)
            )),
            _ => Ok(()),
        }
    }

    /// A takeover's timeline begins where its state says that the generation did, but for a record
    /// that had not come completely: what lies between them readers of the new primary would see, and
    /// the next one need not have.
    pub(super) fn check_fork(&self, host: usize, timeline: u32, fork: Lsn) -> Result<(), String> {
        match self.promotions.get(&timeline) {
            Some((peer, init)) if *peer == peer_id(host) && (init.0 < fork.0 || init.0 >= fork.0 + RECORD) => {
                Err(format!("p{host} begins timeline {timeline} at {fork}, its generation began at {init} (rule 4)"))
            }
            _ => Ok(()),
        }
    }

    /// Whether `host` lets readers in as a primary that it is not any more, though its sitter runs.
    pub(super) fn watch_stale(&mut self, now: u64, host: usize, stale: bool) -> Result<(), String> {
        if !stale {
            self.stale_since.remove(&host);
            return Ok(());
        }
        let since = *self.stale_since.entry(host).or_insert(now);
        if now - since > STALE_MS {
            return Err(format!("p{host} has served readers as an outdated primary since {since} (H7)"));
        }
        Ok(())
    }

    /// Whether settings that Manatee owns are not in force on `host`, though its sitter runs.
    pub(super) fn watch_loosened(&mut self, now: u64, host: usize, loosened: bool) -> Result<(), String> {
        if !loosened {
            self.loosened_since.remove(&host);
            return Ok(());
        }
        let since = *self.loosened_since.entry(host).or_insert(now);
        if now - since > LOOSENED_MS {
            return Err(format!("p{host} has acknowledged by loosened settings since {since} (rule 2)"));
        }
        Ok(())
    }

    /// Each state written is a lawful successor of the one before. Returns those that began a
    /// generation.
    pub(super) fn check_history(&mut self, fresh: &[HistoryEntry]) -> Result<Vec<ClusterState>, String> {
        let mut begun = Vec::new();
        for entry in fresh {
            match self.old_state {
                // A peer that does not know better may go about its part in it alone.
                Some(old) if entry.state.generation == old => continue,
                Some(_) => return Err(format!("an old state was gone on from (rule 8): {:?}", entry.state.reason)),
                None => {}
            }
            let violations = check_transition(self.last.as_ref(), &entry.state);
            if !violations.is_empty() {
                return Err(format!("unlawful state {:?}: {}", entry.state.reason, join(&violations)));
            }
            if self.last.as_ref().is_none_or(|last| last.generation != entry.state.generation) {
                begun.push(entry.state.clone());
                if let Some(promotion) = Promotion::of(&entry.state) {
                    let init = (entry.state.primary.id, entry.state.init_wal);
                    self.promotions.insert(promotion.timeline.0, init);
                }
            }
            self.last = Some(entry.state.clone());
        }
        self.seen_history += fresh.len();
        Ok(begun)
    }
}
