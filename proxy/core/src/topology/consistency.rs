//! Whether a session may read from a standby (design, "Consistency"). Pure: moments are arguments.
//!
//! A session must see its own writes and never go back in time. After something it must not lose
//! sight of at moment *t* (a commit, or a read it has made), a standby will do once it has replayed
//! a position of the primary whose sampling began after *t*. Positions compare within one
//! [`Reign`]; a takeover replaces the requirement by the new generation's init_wal, which covers
//! everything that was acknowledged before.
//!
//! Reading again from the standby one read from last needs nothing more: replay only moves on.
//!
//! Readers that never pause would never leave the primary: each read asks for a newer
//! position than was sampled. Such a session is [`Requirement::is_stuck`], and now and then waits
//! for positions taken just for it.

use std::time::{Duration, Instant};

use manatee_shared::ids::PeerId;
use manatee_shared::lsn::Lsn;

use super::snapshot::{Reign, Snapshot, Standby};

/// Reading from the primary for want of a standby for so long, without writing, is being stuck. It
/// should outlast the ordinary wait for the next samples.
const STUCK_AFTER: Duration = Duration::from_millis(500);
/// A stuck session waits for positions of its own no more often than this.
const TRY_EVERY: Duration = Duration::from_secs(1);

/// Strictness of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
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

/// Position that a standby must have replayed before this session may read from it.
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
    /// Since when reads go to the primary although there are fit standbys.
    stuck_since: Option<Instant>,
    /// Last attempt to end that.
    tried_at: Option<Instant>,
}

impl Default for Requirement {
    fn default() -> Self {
        Self::new()
    }
}

impl Requirement {
    /// Of a session that has done nothing yet.
    pub fn new() -> Self {
        Self { reign: None, need: Need::Nothing, last_read: None, stuck_since: None, tried_at: None }
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
        self.is_met_by(standby)
    }

    /// As [`Requirement::allows`], once the snapshot has been followed.
    fn is_met_by(&self, standby: &Standby) -> bool {
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

    /// Whether the primary shows all that the session has seen on a standby. It does, unless commits
    /// wait for the sync: a standby that is fed by the primary itself shows them before they are
    /// acknowledged, and the primary only afterwards. Then the session waits until what the primary
    /// had when the session last read is acknowledged; what it wants to write would wait as long.
    pub fn allows_primary(&mut self, snapshot: &Snapshot) -> bool {
        self.follow(snapshot);
        match (snapshot.unacknowledged_from, self.last_read) {
            (Some(acknowledged), Some((_, Need::Replayed(seen)))) => seen <= acknowledged,
            (Some(_), Some((_, Need::SampledAfter(_)))) => false,
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
            && (any || self.is_met_by(standby))
        {
            return Some(standby);
        }
        let count = snapshot.standbys.len();
        (0..count)
            .map(|step| &snapshot.standbys[(seed.wrapping_add(step)) % count])
            .find(|standby| standby.fit && (any || self.is_met_by(standby)))
    }

    /// A unit that may run on a standby found none that would do, or one that would.
    pub fn note_read(&mut self, found: bool, now: Instant) {
        self.stuck_since = if found { None } else { self.stuck_since.or(Some(now)) };
    }

    /// A unit that needs the primary runs: what comes next has good reason to be there too.
    pub fn note_write(&mut self) {
        self.stuck_since = None;
    }

    /// Whether it is time to wait for positions sampled after the last read.
    pub fn is_stuck(&self, now: Instant) -> bool {
        let long = |since: Option<Instant>, limit| since.map(|since| now.saturating_duration_since(since) >= limit);
        long(self.stuck_since, STUCK_AFTER) == Some(true) && long(self.tried_at, TRY_EVERY) != Some(false)
    }

    /// Notes that it was waited.
    pub fn note_try(&mut self, now: Instant) {
        self.tried_at = Some(now);
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

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "tests need a moment to count from")]
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::snapshot::{Node, Primary, Sample};
    use manatee_shared::cluster::Role;

    fn id(number: u8) -> PeerId {
        format!("10.0.0.{number}:5432:12345").parse().expect("id")
    }

    /// Primary 1 with `positions` (ms, lsn); standbys 2, 3, … at the given replay positions.
    fn snapshot(start: Instant, positions: &[(u64, u64)], replayed: &[u64]) -> Snapshot {
        let at = |ms: u64| start + Duration::from_millis(ms);
        let sample = |&(ms, lsn): &(u64, u64)| Sample { started: at(ms), lsn: Lsn(lsn) };
        Snapshot {
            generation: 1,
            reign: Some(Reign { primary: id(1), since_generation: 1 }),
            primary: Some(Primary { node: Node::of(id(1)), timeline: None }),
            positions: positions.iter().map(sample).collect::<Arc<[_]>>(),
            standbys: replayed
                .iter()
                .zip(2..)
                .map(|(&lsn, number)| Standby {
                    node: Node::of(id(number)),
                    role: Role::Async(0),
                    replayed: Sample { started: start, lsn: Lsn(lsn) },
                    lag: Duration::ZERO,
                    fit: true,
                })
                .collect(),
            ..Snapshot::unknown()
        }
    }

    fn chosen(requirement: &mut Requirement, snapshot: &Snapshot) -> Option<PeerId> {
        requirement.choose(snapshot, Consistency::Session, 0).map(|standby| standby.node.id)
    }

    #[test]
    fn own_writes_are_seen() {
        let start = Instant::now();
        let commit = start + Duration::from_millis(50);
        let mut session = Requirement::new();
        let before = snapshot(start, &[(0, 10)], &[10, 10]);
        assert_eq!(chosen(&mut session, &before), Some(id(2)), "nothing done yet");
        session.used_primary(commit, &before);
        assert_eq!(chosen(&mut session, &before), None, "no position sampled since");
        assert_eq!(chosen(&mut session, &snapshot(start, &[(0, 10), (100, 20)], &[19, 10])), None);
        assert_eq!(chosen(&mut session, &snapshot(start, &[(0, 10), (100, 20)], &[19, 20])), Some(id(3)));
        // The first position after the commit counts, not a later one.
        assert_eq!(chosen(&mut session, &snapshot(start, &[(100, 20), (200, 30)], &[20, 10])), Some(id(2)));
    }

    #[test]
    fn a_sample_begun_before_the_commit_covers_nothing() {
        let start = Instant::now();
        let mut session = Requirement::new();
        let now = snapshot(start, &[(100, 20)], &[99]);
        session.used_primary(start + Duration::from_millis(100), &now);
        assert_eq!(chosen(&mut session, &now), None);
    }

    #[test]
    fn reads_never_go_back_in_time() {
        let start = Instant::now();
        let read = start + Duration::from_millis(50);
        let mut session = Requirement::new();
        let early = snapshot(start, &[(0, 10)], &[20, 10]);
        session.read_from(id(2), read, &early);
        assert_eq!(chosen(&mut session, &early), Some(id(2)), "sticks to what it read from");
        let mut gone = snapshot(start, &[(0, 10)], &[20, 15]);
        gone.standbys[0].fit = false;
        assert_eq!(chosen(&mut session, &gone), None, "3 may be behind what 2 showed");
        let mut later = snapshot(start, &[(0, 10), (100, 22)], &[30, 22]);
        later.standbys[0].fit = false;
        assert_eq!(chosen(&mut session, &later), Some(id(3)));
    }

    #[test]
    fn the_primary_must_show_what_a_standby_has_shown() {
        let start = Instant::now();
        let read = start + Duration::from_millis(50);
        let mut session = Requirement::new();
        let mut now = snapshot(start, &[(0, 10)], &[20]);
        now.unacknowledged_from = Some(Lsn(10));
        assert!(session.allows_primary(&now), "nothing was read yet");
        session.read_from(id(2), read, &now);
        assert!(!session.allows_primary(&now), "what was read may not be acknowledged");
        let mut later = snapshot(start, &[(0, 10), (100, 20)], &[20]);
        later.unacknowledged_from = Some(Lsn(19));
        assert!(!session.allows_primary(&later));
        later.unacknowledged_from = Some(Lsn(20));
        assert!(session.allows_primary(&later), "all that could be read is acknowledged, newer commits wait");
        later.unacknowledged_from = None;
        assert!(session.allows_primary(&later), "nothing waits");
        later.unacknowledged_from = Some(Lsn(10));
        session.used_primary(start + Duration::from_millis(150), &later);
        assert!(session.allows_primary(&later), "the primary shows what it has shown");
    }

    #[test]
    fn the_last_commit_stays_required_while_sticking() {
        let start = Instant::now();
        let mut session = Requirement::new();
        let now = snapshot(start, &[(0, 10)], &[10]);
        session.read_from(id(2), start, &now);
        session.used_primary(start + Duration::from_millis(10), &now);
        assert_eq!(chosen(&mut session, &now), None);
    }

    #[test]
    fn a_takeover_resets_to_init_wal() {
        let start = Instant::now();
        let mut session = Requirement::new();
        session.used_primary(start, &snapshot(start, &[], &[10]));
        let mut new = snapshot(start, &[], &[40, 39]);
        new.reign = Some(Reign { primary: id(9), since_generation: 2 });
        new.generation = 2;
        new.init_wal = Lsn(40);
        new.primary = None;
        assert_eq!(chosen(&mut session, &new), Some(id(2)), "readable before the new primary is up");
        let mut fresh = Requirement::new();
        assert!(chosen(&mut fresh, &new).is_some());
    }

    #[test]
    fn a_change_of_sync_resets_nothing() {
        let start = Instant::now();
        let mut session = Requirement::new();
        session.used_primary(start, &snapshot(start, &[], &[10]));
        let mut new = snapshot(start, &[], &[40]);
        new.generation = 2;
        new.init_wal = Lsn(5);
        assert_eq!(chosen(&mut session, &new), None);
    }

    #[test]
    fn who_reads_without_pause_is_stuck_and_who_writes_is_not() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut session = Requirement::new();
        session.note_read(false, at(0));
        session.note_read(false, at(400));
        assert!(!session.is_stuck(at(499)));
        assert!(session.is_stuck(at(500)));
        session.note_try(at(500));
        assert!(!session.is_stuck(at(1499)));
        assert!(session.is_stuck(at(1500)));
        session.note_write();
        assert!(!session.is_stuck(at(1600)));
        session.note_read(false, at(1600));
        session.note_read(true, at(1700));
        assert!(!session.is_stuck(at(9000)));
    }

    #[test]
    fn modes() {
        let start = Instant::now();
        let mut session = Requirement::new();
        let now = snapshot(start, &[], &[1, 1]);
        session.used_primary(start, &now);
        assert!(session.choose(&now, Consistency::Strong, 0).is_none());
        assert_eq!(session.choose(&now, Consistency::Eventual, 1).map(|s| s.node.id), Some(id(3)));
        assert_eq!(session.choose(&snapshot(start, &[], &[]), Consistency::Eventual, 7).map(|s| s.node.id), None);
    }
}
