//! From states and polls to snapshots. Pure: moments are arguments.
//!
//! Rules: a poll counts for the primary only if it was *sent* after the state that names it was
//! learned, so an answer from an earlier reign confirms nothing. A new generation under the same
//! primary and timeline does not unconfirm it. Silence of a standby takes it out of service
//! quickly; silence of the primary a little later, because all writes then wait; a refused or broken
//! connection says that the server is down and counts at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use manatee_shared::cluster::Role;
use manatee_shared::ids::PeerId;
use manatee_shared::lsn::{Lsn, Timeline};
use manatee_shared::topology::Topology as State;

use super::snapshot::{Node, Primary, Reign, Sample, Snapshot, Standby};

/// Positions of the primary that are remembered. Older ones are thinned out, never the newest half.
const MAX_POSITIONS: usize = 128;
/// A standby that did not answer for so long serves nothing. A machine with more work than cores
/// answers late: much less would take healthy standbys out of service just when they are needed.
pub const STANDBY_SILENCE: Duration = Duration::from_millis(700);
/// A primary that did not answer for so long gets no new transactions until it does. A takeover
/// does not wait for this: the state names the next primary.
pub const PRIMARY_SILENCE: Duration = Duration::from_millis(2000);

/// Answer of a node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    /// `pg_is_in_recovery()`.
    pub in_recovery: bool,
    /// Insert position of a primary, replay position of a standby.
    pub lsn: Lsn,
    /// Timeline of a primary.
    pub timeline: Option<Timeline>,
    /// Delay that a standby reports, by its last replayed commit; zero if it has
    /// replayed all it received.
    pub reported_lag: Duration,
    /// Up to where everything that a standby can show is acknowledged by a primary, if it can say.
    pub acknowledged: Option<Lsn>,
    /// Commits of a primary wait for its synchronous standbys, which have not even flushed what
    /// it had at the answer before: something is wrong with them.
    pub commits_wait: bool,
}

/// End of a poll.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Answered.
    Answer(Answer),
    /// No answer in time.
    Silent,
    /// Refused, reset or an error: the server is not serving.
    Down(String),
}

/// A node's newest poll results.
#[derive(Clone, Debug)]
struct Known {
    answer: Option<(Instant, Answer)>,
    down: bool,
}

impl Known {
    /// Its newest answer, if it is not down and the question was sent no longer than `silence` ago.
    fn heard(&self, silence: Duration, now: Instant) -> Option<(Instant, Answer)> {
        let recent = |(started, _): &(Instant, Answer)| now.saturating_duration_since(*started) <= silence;
        self.answer.filter(recent).filter(|_| !self.down)
    }
}

/// Longest time that a primary about to be succeeded as planned gets no new transactions. The promotion
/// takes a fraction of that; without one, this is what clients wait for nothing.
pub const HAND_OVER_LIMIT: Duration = Duration::from_secs(3);

/// Everything known about the shard.
#[derive(Debug)]
pub struct Knowledge {
    max_lag: Duration,
    state: Option<State>,
    reign: Option<Reign>,
    /// Moment at which the present reign became known.
    reign_known_since: Instant,
    timeline: Option<Timeline>,
    positions: Vec<Sample>,
    /// Position known to have been acknowledged in this reign.
    acknowledged: Lsn,
    /// Whether commits beyond that wait.
    commits_wait: bool,
    nodes: HashMap<PeerId, Known>,
    /// Since when the primary is being succeeded as planned.
    handing_over_since: Option<Instant>,
    sequence: u64,
    /// The primary last published, and since when it is missing.
    served: Option<Reign>,
    lost_at: Option<Instant>,
    taken_over_from: Option<Instant>,
}

impl Knowledge {
    /// Nothing known.
    pub fn new(max_lag: Duration, now: Instant) -> Self {
        Self {
            max_lag,
            state: None,
            reign: None,
            reign_known_since: now,
            timeline: None,
            positions: Vec::new(),
            acknowledged: Lsn::ZERO,
            commits_wait: false,
            nodes: HashMap::new(),
            handing_over_since: None,
            sequence: 0,
            served: None,
            lost_at: None,
            taken_over_from: None,
        }
    }

    /// Takes a newer state.
    pub fn handle_state(&mut self, state: State, now: Instant) {
        if self.reign.is_none_or(|reign| reign.primary != state.primary.id) {
            self.begin_reign(state.primary.id, state.generation, now);
            self.acknowledged = state.init_wal;
        }
        let listed: Vec<PeerId> = state.chain().map(|peer| peer.id).collect();
        self.nodes.retain(|id, _| listed.contains(id));
        for id in listed {
            self.nodes.entry(id).or_insert(Known { answer: None, down: false });
        }
        self.handing_over_since = state.handing_over.then(|| self.handing_over_since.unwrap_or(now));
        self.state = Some(state);
    }

    /// Takes the outcome of a poll that was sent at `started`.
    pub fn handle_poll(&mut self, id: PeerId, started: Instant, outcome: &Outcome, now: Instant) {
        let Some(known) = self.nodes.get_mut(&id) else { return };
        match outcome {
            Outcome::Silent => return,
            Outcome::Down(_) => {
                known.down = true;
                return;
            }
            Outcome::Answer(answer) => {
                if known.answer.is_some_and(|(earlier, _)| earlier > started) {
                    return;
                }
                known.down = false;
                known.answer = Some((started, *answer));
            }
        }
        if let Outcome::Answer(answer) = outcome
            && !answer.in_recovery
            && self.reign.is_some_and(|reign| reign.primary == id)
            && started >= self.reign_known_since
        {
            // The same peer on another timeline has been deposed and promoted again unseen.
            if let (Some(before), Some(after)) = (self.timeline, answer.timeline)
                && before != after
            {
                let generation = self.state.as_ref().map_or(0, |state| state.generation);
                self.begin_reign(id, generation, now);
            }
            self.timeline = answer.timeline.or(self.timeline);
            self.acknowledged = self.acknowledged.max(answer.acknowledged.unwrap_or(Lsn::ZERO));
            self.commits_wait = answer.commits_wait;
            self.remember(Sample { started, lsn: answer.lsn });
        }
    }

    /// The named primary while it is not confirmed: it is to be asked in quick succession.
    pub fn awaited_primary(&self, now: Instant) -> Option<PeerId> {
        let primary = self.state.as_ref()?.primary.id;
        self.confirmed_primary(now).is_none().then_some(primary)
    }

    /// All nodes worth polling.
    pub fn nodes(&self) -> impl Iterator<Item = PeerId> {
        self.nodes.keys().copied()
    }

    /// The newest state.
    pub fn state(&self) -> Option<&State> {
        self.state.as_ref()
    }

    /// Snapshot to publish at `now`.
    pub fn snapshot(&mut self, now: Instant) -> Snapshot {
        self.sequence += 1;
        let primary = self.confirmed_primary(now);
        self.note_takeover(primary.is_some(), now);
        Snapshot {
            sequence: self.sequence,
            generation: self.state.as_ref().map_or(0, |state| state.generation),
            reign: self.reign,
            init_wal: self.state.as_ref().map_or(Lsn::ZERO, |state| state.init_wal),
            primary,
            taken_over_from: self.taken_over_from,
            positions: Arc::from(self.positions.as_slice()),
            // Without its sync the next commit will wait, before the primary was asked again.
            unacknowledged_from: (self.commits_wait || !self.sync_answers(now)).then_some(self.acknowledged),
            standbys: self.standbys(now),
            state_is_current: self.state.as_ref().is_some_and(State::is_fresh),
        }
    }

    fn sync_answers(&self, now: Instant) -> bool {
        let Some(sync) = self.state.as_ref().and_then(|state| state.sync_peer.as_ref()) else { return true };
        self.nodes.get(&sync.id).is_some_and(|known| known.heard(STANDBY_SILENCE, now).is_some())
    }

    fn note_takeover(&mut self, served: bool, now: Instant) {
        match (served, self.served) {
            (false, Some(_)) => {
                self.lost_at.get_or_insert(now);
            }
            (true, before) => {
                if before.is_some() && before != self.reign {
                    self.taken_over_from = Some(self.lost_at.unwrap_or(now));
                }
                self.served = self.reign;
                self.lost_at = None;
            }
            (false, None) => {}
        }
    }

    fn begin_reign(&mut self, primary: PeerId, generation: u64, now: Instant) {
        self.reign = Some(Reign { primary, since_generation: generation });
        self.reign_known_since = now;
        self.timeline = None;
        self.positions.clear();
        (self.acknowledged, self.commits_wait) = (Lsn::ZERO, false);
    }

    fn confirmed_primary(&self, now: Instant) -> Option<Primary> {
        let id = self.state.as_ref()?.primary.id;
        let (started, answer) = self.nodes.get(&id)?.heard(PRIMARY_SILENCE, now)?;
        let leaves = self.handing_over_since.is_some_and(|since| now < since + HAND_OVER_LIMIT);
        let confirmed = !leaves && !answer.in_recovery && started >= self.reign_known_since;
        confirmed.then(|| Primary { node: Node::of(id), timeline: answer.timeline })
    }

    fn standbys(&self, now: Instant) -> Vec<Standby> {
        let Some(state) = &self.state else { return Vec::new() };
        let usable = |id: PeerId| {
            let heard = self.nodes.get(&id)?.heard(STANDBY_SILENCE, now);
            heard.filter(|(_, answer)| answer.in_recovery)
        };
        // The named primary, while it is still a standby about to be promoted, can be read like one.
        state
            .chain()
            .filter_map(|peer| {
                let (started, answer) = usable(peer.id)?;
                let replayed = Sample { started, lsn: answer.lsn };
                let lag = self.lag(replayed, answer.reported_lag);
                Some(Standby {
                    node: Node::of(peer.id),
                    role: match state.role_of(peer.id) {
                        Role::Primary => Role::Sync,
                        role => role,
                    },
                    replayed,
                    lag,
                    fit: lag <= self.max_lag,
                })
            })
            .collect()
    }

    /// Age of the oldest position of the primary that the standby had not replayed. Without a
    /// primary the clock stands still: a standby does not become unfit because nobody writes.
    fn lag(&self, replayed: Sample, reported: Duration) -> Duration {
        let Some(newest) = self.positions.last() else { return reported };
        let missing = self.positions.partition_point(|position| position.lsn <= replayed.lsn);
        let Some(oldest_missing) = self.positions.get(missing) else { return Duration::ZERO };
        let age = replayed.started.min(newest.started).saturating_duration_since(oldest_missing.started);
        // Older than all we remember: the standby's own word, if it is worse.
        if missing == 0 { age.max(reported) } else { age }
    }

    fn remember(&mut self, sample: Sample) {
        if self.positions.last().is_some_and(|last| last.started >= sample.started) {
            return;
        }
        if self.positions.len() >= MAX_POSITIONS {
            let mut index = 0;
            self.positions.retain(|_| {
                index += 1;
                index > MAX_POSITIONS / 2 || index % 2 == 0
            });
        }
        // Nobody needs to know positions much older than the greatest lag that matters.
        let horizon = self.max_lag * 2 + PRIMARY_SILENCE;
        let start =
            self.positions.partition_point(|old| sample.started.saturating_duration_since(old.started) > horizon);
        self.positions.drain(..start);
        self.positions.push(sample);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "tests need a moment to count from")]
    use super::*;
    use manatee_shared::cluster::Peer;
    use manatee_shared::topology::Freshness;

    fn id(number: u8) -> PeerId {
        format!("10.0.0.{number}:5432:12345").parse().expect("id")
    }

    fn state(generation: u64, chain: &[u8]) -> State {
        let peer = |number: &u8| Peer::new(id(*number), number.to_string());
        State {
            shard: "demo".parse().expect("name"),
            version: 1,
            generation,
            primary: peer(&chain[0]),
            sync_peer: chain.get(1).map(peer),
            async_peers: chain.iter().skip(2).map(peer).collect(),
            deposed: Vec::new(),
            init_wal: Lsn(100),
            init_wal_timeline: None,
            active: Vec::new(),
            frozen: false,
            one_node_write_mode: false,
            handing_over: false,
            zookeeper: Freshness::Fresh,
        }
    }

    fn answer(in_recovery: bool, lsn: u64, timeline: u32) -> Outcome {
        Outcome::Answer(Answer {
            in_recovery,
            lsn: Lsn(lsn),
            timeline: (!in_recovery).then_some(Timeline(timeline)),
            reported_lag: Duration::ZERO,
            acknowledged: (!in_recovery).then_some(Lsn(lsn)),
            commits_wait: false,
        })
    }

    struct Bench {
        knowledge: Knowledge,
        start: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let start = Instant::now();
            Self { knowledge: Knowledge::new(Duration::from_secs(10), start), start }
        }
        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }
        fn state(&mut self, ms: u64, generation: u64, chain: &[u8]) {
            let now = self.at(ms);
            self.knowledge.handle_state(state(generation, chain), now);
        }
        fn poll(&mut self, ms: u64, node: u8, outcome: &Outcome) {
            let now = self.at(ms);
            self.knowledge.handle_poll(id(node), now, outcome, now);
        }
        fn snapshot(&mut self, ms: u64) -> Snapshot {
            let now = self.at(ms);
            self.knowledge.snapshot(now)
        }
    }

    #[test]
    fn a_primary_needs_the_state_and_its_own_word() {
        let mut bench = Bench::new();
        assert!(bench.snapshot(0).primary().is_none(), "nothing known");
        bench.poll(1, 1, &answer(false, 10, 1));
        assert!(bench.snapshot(1).primary().is_none(), "nobody named it");
        bench.state(2, 1, &[1, 2, 3]);
        assert!(bench.snapshot(2).primary().is_none(), "it has not said so itself");
        bench.poll(3, 1, &answer(false, 10, 1));
        bench.poll(3, 2, &answer(false, 10, 1));
        let snapshot = bench.snapshot(3);
        assert_eq!(snapshot.primary().map(|node| node.id), Some(id(1)));
        assert!(snapshot.standbys.is_empty(), "2 is not in recovery and not named: neither");
    }

    #[test]
    fn a_takeover_waits_for_the_promotion_and_reads_go_on() {
        let mut bench = Bench::new();
        bench.state(0, 1, &[1, 2, 3]);
        bench.poll(1, 1, &answer(false, 50, 1));
        bench.poll(1, 2, &answer(true, 50, 1));
        bench.poll(1, 3, &answer(true, 50, 1));
        let before = bench.snapshot(2);
        assert_eq!(before.fit_standbys().count(), 2);
        bench.poll(10, 1, &Outcome::Down("refused".to_owned()));
        let during = bench.snapshot(10);
        assert!(during.primary().is_none());
        assert_eq!(during.fit_standbys().count(), 2);
        bench.state(20, 2, &[2, 3]);
        let named = bench.snapshot(20);
        assert!(named.primary().is_none(), "in recovery still");
        assert_ne!(named.reign, before.reign);
        assert_eq!(bench.knowledge.awaited_primary(bench.at(20)), Some(id(2)));
        bench.poll(30, 2, &answer(false, 120, 2));
        let after = bench.snapshot(30);
        assert_eq!(after.primary().map(|node| node.id), Some(id(2)));
        assert_eq!(after.fit_standbys().map(|standby| standby.node.id).collect::<Vec<_>>(), [id(3)]);
        assert_eq!((before.taken_over_from, after.taken_over_from), (None, Some(bench.at(10))));
        assert_eq!(bench.knowledge.awaited_primary(bench.at(30)), None);
    }

    #[test]
    fn commits_that_wait_for_the_sync_are_known_of() {
        let mut bench = Bench::new();
        bench.state(0, 1, &[1, 2, 3]);
        bench.poll(1, 1, &answer(false, 150, 1));
        assert_eq!(bench.snapshot(1).unacknowledged_from, Some(Lsn(150)), "nothing was heard of the sync");
        bench.poll(2, 2, &answer(true, 150, 1));
        assert_eq!(bench.snapshot(2).unacknowledged_from, None);
        bench.poll(3, 3, &Outcome::Down("refused".to_owned()));
        assert_eq!(bench.snapshot(3).unacknowledged_from, None, "an async acknowledges nothing");
        let waiting = |acknowledged| {
            let Outcome::Answer(answer) = answer(false, 170, 1) else { panic!("an answer") };
            Outcome::Answer(Answer { acknowledged, commits_wait: true, ..answer })
        };
        bench.poll(5, 1, &waiting(None));
        assert_eq!(bench.snapshot(5).unacknowledged_from, Some(Lsn(150)), "as far as was known");
        bench.poll(6, 1, &waiting(Some(Lsn(165))));
        assert_eq!(bench.snapshot(6).unacknowledged_from, Some(Lsn(165)));
        bench.poll(7, 1, &answer(false, 170, 1));
        assert_eq!(bench.snapshot(7).unacknowledged_from, None);
        bench.poll(8, 2, &Outcome::Down("refused".to_owned()));
        assert_eq!(bench.snapshot(8).unacknowledged_from, Some(Lsn(170)), "the next commit will wait");
        bench.poll(9, 2, &answer(true, 170, 1));
        assert_eq!(bench.snapshot(9).unacknowledged_from, None);
        assert_eq!(bench.snapshot(710).unacknowledged_from, Some(Lsn(170)), "silence");
        bench.state(720, 2, &[2, 3]);
        assert_eq!(bench.snapshot(720).unacknowledged_from, Some(Lsn(100)), "a takeover: counted anew");
    }

    #[test]
    fn a_primary_about_to_be_succeeded_gets_nothing_new_for_a_while() {
        let mut bench = Bench::new();
        bench.state(0, 1, &[1, 2, 3]);
        bench.poll(1, 1, &answer(false, 50, 1));
        let requested = State { handing_over: true, ..state(1, &[1, 2, 3]) };
        let (asked, said) = (bench.at(2), bench.at(40));
        bench.knowledge.handle_state(requested.clone(), asked);
        bench.knowledge.handle_state(requested, said);
        let during = bench.snapshot(50);
        assert!(during.primary().is_none(), "held");
        assert_eq!(during.reign.map(|reign| reign.primary), Some(id(1)), "what runs there goes on");
        bench.poll(3_001, 1, &answer(false, 50, 1));
        assert!(bench.snapshot(3_001).primary().is_none());
        assert!(bench.snapshot(3_002).primary().is_some(), "nothing came of it");
        bench.state(3_010, 1, &[1, 2, 3]);
        assert!(bench.snapshot(3_010).primary().is_some(), "the request is gone");
    }

    #[test]
    fn an_answer_from_before_the_state_confirms_nothing() {
        let mut bench = Bench::new();
        bench.state(0, 1, &[1, 2]);
        bench.poll(1, 1, &answer(false, 10, 1));
        bench.state(5, 2, &[2, 1]);
        bench.state(6, 3, &[1, 2]);
        assert!(bench.snapshot(6).primary().is_none());
        let (sent, arrived) = (bench.at(4), bench.at(7));
        bench.knowledge.handle_poll(id(1), sent, &answer(false, 11, 1), arrived);
        assert!(bench.snapshot(7).primary().is_none());
        bench.poll(8, 1, &answer(false, 12, 3));
        assert!(bench.snapshot(8).primary().is_some());
    }

    #[test]
    fn a_new_sync_leaves_the_reign_and_a_new_timeline_ends_it() {
        let mut bench = Bench::new();
        bench.state(0, 1, &[1, 2, 3]);
        bench.poll(1, 1, &answer(false, 10, 1));
        let before = bench.snapshot(1);
        bench.state(2, 2, &[1, 3]);
        let after = bench.snapshot(2);
        assert_eq!((after.reign, after.primary().is_some()), (before.reign, true));
        assert_eq!(after.generation, 2);
        bench.state(3, 6, &[1, 3]);
        bench.poll(4, 1, &answer(false, 20, 5));
        let again = bench.snapshot(4);
        assert_ne!(again.reign, before.reign);
        bench.poll(5, 1, &answer(false, 21, 5));
        assert!(bench.snapshot(5).primary().is_some());
    }

    #[test]
    fn silence_takes_nodes_out_of_service() {
        let mut bench = Bench::new();
        bench.state(0, 1, &[1, 2]);
        bench.poll(1, 1, &answer(false, 10, 1));
        bench.poll(1, 2, &answer(true, 10, 1));
        bench.poll(600, 2, &Outcome::Silent);
        assert_eq!(bench.snapshot(701).standbys.len(), 1);
        assert_eq!(bench.snapshot(702).standbys.len(), 0);
        assert!(bench.snapshot(2001).primary().is_some());
        assert!(bench.snapshot(2002).primary().is_none());
    }

    #[test]
    fn lag_is_the_age_of_what_is_missing() {
        let mut bench = Bench::new();
        bench.state(0, 1, &[1, 2]);
        for step in 0..300 {
            bench.poll(step * 100, 1, &answer(false, 1000 + step, 1));
        }
        bench.poll(29_900, 2, &answer(true, 1299, 1));
        assert_eq!(bench.snapshot(29_900).standbys[0].lag, Duration::ZERO);
        bench.poll(29_901, 2, &answer(true, 1289, 1));
        let standby = bench.snapshot(29_901).standbys[0].clone();
        assert_eq!((standby.lag, standby.fit), (Duration::from_millis(900), true));
        bench.poll(29_902, 2, &answer(true, 1150, 1));
        let standby = bench.snapshot(29_902).standbys[0].clone();
        assert!(!standby.fit && standby.lag > Duration::from_secs(10), "{:?}", standby.lag);
        assert!(bench.knowledge.positions.len() <= MAX_POSITIONS);
    }
}
