//! Whether a session may read from a standby (design, "Consistency"). Pure: moments are arguments.
//!
//! A session must see its own writes and never go back in time. After something it must not lose
//! sight of at moment *t* (a commit, or a read it has made), a standby will do once it has replayed
//! a position of the primary whose sampling began after *t*. Positions compare within one
//! [`Reign`]; a takeover replaces the requirement by the new generation's init_wal, which covers
//! everything that was acknowledged before.
//!
//! Reading again from the standby one read from last needs nothing more: replay only moves on.

use std::time::Instant;

use manatee_shared::ids::PeerId;
use manatee_shared::lsn::Lsn;

use super::snapshot::{Reign, Snapshot, Standby};

/// How strict a session is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// Sees its own writes, never goes back in time.
    #[default]
    Session,
    /// Everything is read from the primary.
    Strong,
    /// Any fit standby will do.
    Eventual,
}

impl Consistency {
    /// As in the configuration and `SET manatee.consistency`.
    pub fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "session" => Some(Self::Session),
            "strong" => Some(Self::Strong),
            "eventual" => Some(Self::Eventual),
            _ => None,
        }
    }

    /// As in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Strong => "strong",
            Self::Eventual => "eventual",
        }
    }
}

/// What a standby must have replayed before this session may read from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// Anything: nothing was read or written yet.
    Nothing,
    /// A position of the primary sampled after this moment.
    SampledAfter(Instant),
    /// This position.
    Replayed(Lsn),
}

/// A session's memory of what it has seen.
#[derive(Clone, Debug)]
pub struct Requirement {
    reign: Option<Reign>,
    /// For every standby.
    need: Need,
    /// The standby last read from, and what any *other* standby must have besides `need`.
    last_read: Option<(PeerId, Need)>,
}

impl Default for Requirement {
    fn default() -> Self {
        Self::new()
    }
}

impl Requirement {
    /// Of a session that has done nothing yet.
    pub fn new() -> Self {
        Self { reign: None, need: Need::Nothing, last_read: None }
    }

    /// Something was committed on, or read from, the primary; `now` is any moment after its
    /// answer arrived.
    pub fn used_primary(&mut self, now: Instant, snapshot: &Snapshot) {
        self.follow(snapshot);
        self.need = Need::SampledAfter(now);
        self.last_read = None;
    }

    /// Something was read from `standby`; `now` is any moment after its answer arrived.
    pub fn read_from(&mut self, standby: PeerId, now: Instant, snapshot: &Snapshot) {
        self.follow(snapshot);
        self.last_read = Some((standby, Need::SampledAfter(now)));
    }

    /// Whether the session may read from `standby` now.
    pub fn allows(&mut self, standby: &Standby, snapshot: &Snapshot) -> bool {
        self.follow(snapshot);
        let met = |need: Need| {
            matches!(need, Need::Nothing) || matches!(need, Need::Replayed(lsn) if standby.replayed.lsn >= lsn)
        };
        if !met(self.need) {
            return false;
        }
        // What every standby must have is met by this one for good once it was met by one that is
        // then stuck to; it stays for the others.
        match self.last_read {
            Some((id, need)) if id != standby.node.id => met(need),
            _ => true,
        }
    }

    /// The standby to read from, if one will do: the one last read from while it stays fit, else
    /// one of those allowed, spread by `seed` (any number, constant for a session).
    pub fn choose<'a>(&mut self, snapshot: &'a Snapshot, consistency: Consistency, seed: usize) -> Option<&'a Standby> {
        if consistency == Consistency::Strong {
            return None;
        }
        self.follow(snapshot);
        let sticky = self.last_read.and_then(|(id, _)| snapshot.fit_standbys().find(|standby| standby.node.id == id));
        let any = consistency == Consistency::Eventual;
        if let Some(standby) = sticky
            && (any || self.allows(standby, snapshot))
        {
            return Some(standby);
        }
        let count = snapshot.standbys.len();
        (0..count)
            .map(|step| &snapshot.standbys[(seed.wrapping_add(step)) % count])
            .find(|standby| standby.fit && (any || self.allows(standby, snapshot)))
    }

    /// Brings the requirement up to a snapshot: a new reign resets it, a fresh sample resolves it.
    fn follow(&mut self, snapshot: &Snapshot) {
        if snapshot.reign.is_some() && self.reign != snapshot.reign {
            if self.reign.is_some() {
                let reset = |need: Need| match need {
                    Need::Nothing => Need::Nothing,
                    _ => Need::Replayed(snapshot.init_wal),
                };
                self.need = reset(self.need);
                self.last_read = self.last_read.map(|(id, need)| (id, reset(need)));
            }
            self.reign = snapshot.reign;
        }
        let resolve = |need: Need| match need {
            Need::SampledAfter(moment) => snapshot.position_after(moment).map_or(need, Need::Replayed),
            other => other,
        };
        self.need = resolve(self.need);
        self.last_read = self.last_read.map(|(id, need)| (id, resolve(need)));
    }
}
