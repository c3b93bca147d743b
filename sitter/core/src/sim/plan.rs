//! Plan of a run, as data: made from a seed, written to a replay file, shrunk.

use serde::{Deserialize, Serialize};

use super::mutation::Mutation;
use crate::machine::action::ActionKind;

/// A peer, as a fault means it; resolved when the fault happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The state's primary.
    Primary,
    /// The state's sync.
    Sync,
    /// The state's first async.
    Async,
    /// The state's second async.
    SecondAsync,
    /// This one (modulo their number).
    Peer(usize),
}

/// Part that ends when a host reaches a step of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Crash {
    /// The sitter's process.
    Sitter,
    /// The postmaster.
    Postgres,
    /// The host loses its power.
    Power,
}

/// Packets that a host loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// All of them.
    Both,
    /// Those sent to it.
    Incoming,
    /// Those that it sends.
    Outgoing,
}

/// Operation of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// `freeze`.
    Freeze,
    /// `unfreeze`.
    Unfreeze,
    /// `promote` of this peer, in the role it has.
    Promote(Target),
    /// `clear-promote`.
    ClearPromote,
    /// `reap` of a deposed peer.
    Reap(Target),
    /// `set-onwm -m on`, for the primary.
    EnterOneNodeWriteMode,
    /// `set-onwm -m off`.
    LeaveOneNodeWriteMode,
}

/// A setting that Manatee owns, as somebody makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Looser {
    /// `synchronous_standby_names = ''`.
    Names,
    /// `synchronous_commit = local`.
    Commit,
}

/// Loss of the answer to a write of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// It is carried out; nothing comes any more, which is noticed late.
    Silence,
    /// It is carried out, and the connection is reset.
    Reset,
    /// It is carried out, and the client library fails with an error that is not the server's.
    Error,
    /// The connection is gone before the server has it.
    Request,
    /// The connection is lost, and the server gets it later, if the session has not moved on.
    Late,
}

impl Loss {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Silence, Self::Reset, Self::Error, Self::Request, Self::Late];
}

/// Kind of a write to ZooKeeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Writing {
    /// The first state.
    FirstSetup,
    /// A state with another primary.
    Takeover,
    /// Another sync, or none.
    Replacement,
    /// The same generation: who is listed, requests.
    Listing,
    /// By `manatee-adm`.
    Operator,
    /// An election node comes or goes.
    Registration,
}

impl Writing {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::FirstSetup, Self::Takeover, Self::Replacement, Self::Listing, Self::Operator, Self::Registration];
}

/// Something that breaks, or that somebody does. Durations in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names say it; `who` is the peer concerned, `for_ms` how long it lasts")]
pub enum Fault {
    /// SIGKILL to the sitter; it is started again after `for_ms`.
    KillSitter {
        who: Target,
        for_ms: u64,
    },
    /// SIGKILL to the postmaster.
    KillPostgres {
        who: Target,
    },
    /// SIGKILL to both.
    KillBoth {
        who: Target,
        for_ms: u64,
    },
    /// No RST, no FIN; comes back after `for_ms`.
    PowerOff {
        who: Target,
        for_ms: u64,
    },
    /// The link between two peers.
    Cut {
        from: Target,
        to: Target,
        both_ways: bool,
        for_ms: u64,
    },
    /// All links of a peer, to ZooKeeper too if `zk`.
    Isolate {
        who: Target,
        direction: Direction,
        zk: bool,
        for_ms: u64,
    },
    /// The peers `0..first` and the others do not reach each other; the first group or the second
    /// reaches ZooKeeper.
    Split {
        first: usize,
        zk_with_first: bool,
        for_ms: u64,
    },
    /// The link of a peer to all others is down for `down_ms` and up for `up_ms` in turn.
    Flap {
        who: Target,
        zk: bool,
        up_ms: u64,
        down_ms: u64,
        for_ms: u64,
    },
    /// Every packet takes this much longer, and this share is lost (and sent again by TCP).
    BadNetwork {
        delay_ms: u64,
        loss_percent: u8,
        for_ms: u64,
    },
    CutZooKeeper {
        who: Target,
        for_ms: u64,
    },
    ZooKeeperDown {
        for_ms: u64,
    },
    /// State and history are removed; an operator restores the state after `for_ms`.
    WipeZooKeeper {
        for_ms: u64,
    },
    /// A state of so many generations ago is put there; an operator notices and restores the right one
    /// after `for_ms`.
    RestoreOldState {
        generations: u64,
        for_ms: u64,
    },
    /// The state is garbage until an operator repairs it after `for_ms`.
    CorruptState {
        for_ms: u64,
    },
    ExpireSession {
        who: Target,
    },
    /// Changes in ZooKeeper are heard of late.
    LateViews {
        who: Target,
        for_ms: u64,
    },
    /// SIGSTOP to the sitter, SIGCONT after `for_ms`.
    PauseSitter {
        who: Target,
        for_ms: u64,
    },
    /// SIGSTOP to PostgreSQL; None: for ever.
    PausePostgres {
        who: Target,
        for_ms: Option<u64>,
    },
    PauseBoth {
        who: Target,
        for_ms: u64,
    },
    /// Nothing is flushed.
    SlowDisk {
        who: Target,
        for_ms: u64,
    },
    /// Each flush takes this long.
    SlowFlushes {
        who: Target,
        each_ms: u64,
        for_ms: u64,
    },
    /// PostgreSQL panics as soon as it writes, and does not start.
    DiskFull {
        who: Target,
        for_ms: u64,
    },
    /// Little space is left, less than the reserve.
    DiskLow {
        who: Target,
        for_ms: u64,
    },
    /// The data directory is gone (a new disk), with the host, for `for_ms`. Only of a peer that is neither primary nor sync.
    DiskLost {
        who: Target,
        for_ms: u64,
    },
    /// Power is lost, and the disk comes back as it was `states` saved states ago (about half a second each), and
    /// without the last `records` of its WAL. Only of one peer at a time, and only back to where all others have more.
    DiskBack {
        who: Target,
        states: usize,
        records: usize,
        for_ms: u64,
    },
    StallReplay {
        who: Target,
        for_ms: u64,
    },
    /// Little WAL gets through to it.
    Lag {
        who: Target,
        for_ms: u64,
    },
    /// `pg_ctl promote` on a standby, by somebody who did not ask Manatee.
    PromoteByHand {
        who: Target,
    },
    /// WAL that nobody is streaming just now is removed.
    RecycleWal {
        who: Target,
    },
    /// SIGTERM to the sitter; it is started again after `for_ms`.
    StopSitter {
        who: Target,
        for_ms: u64,
    },
    JumpClock {
        who: Target,
        by_ms: i64,
    },
    /// The next peer that becomes primary loses its power so soon after its state is written.
    Doom {
        after_ms: u64,
        for_ms: u64,
    },
    /// The next peer that has taken step `step` of action `action` ends there.
    CrashAt {
        action: ActionKind,
        step: usize,
        crash: Crash,
        for_ms: u64,
    },
    /// `ALTER SYSTEM` of a setting that Manatee owns, and a reload, by somebody.
    Loosen {
        who: Target,
        what: Looser,
    },
    /// The next write of this kind loses its answer.
    LoseAnswer {
        write: Writing,
        loss: Loss,
    },
    Operate {
        operation: Operation,
    },
}

/// Actions during which a crash can come.
pub const CRASH_POINTS: [ActionKind; 12] = [
    ActionKind::Initialise,
    ActionKind::WriteState,
    ActionKind::Survey,
    ActionKind::Start,
    ActionKind::Configure,
    ActionKind::Stop,
    ActionKind::Promote,
    ActionKind::Bootstrap,
    ActionKind::Rejoin,
    ActionKind::Drain,
    ActionKind::LeaveElection,
    ActionKind::JoinElection,
];

/// Steps of an action in the model, after each of which a crash can come.
pub fn steps(action: ActionKind) -> usize {
    match action {
        ActionKind::Promote => 4,
        ActionKind::Start | ActionKind::Configure | ActionKind::Rejoin => 3,
        _ => 2,
    }
}

/// A fault and its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timed {
    /// Virtual time, ms.
    pub at_ms: u64,
    /// Fault.
    pub fault: Fault,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Of everything that is not planned: delays, the order of things, what just fails.
    pub seed: u64,
    /// Number of peers.
    pub peers: usize,
    /// The first setup takes no time worth mentioning.
    pub quick_setup: bool,
    /// After this time everything heals, and the shard must become well.
    pub faults_ms: u64,
    /// In the order of their times.
    pub faults: Vec<Timed>,
    /// A bug planted on purpose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mutation: Option<Mutation>,
}

impl Plan {
    /// Nothing happens for `faults_ms`.
    pub fn quiet(seed: u64, peers: usize, faults_ms: u64) -> Self {
        Self { seed, peers, quick_setup: true, faults_ms, faults: Vec::new(), mutation: None }
    }

    /// The same with `fault` at `at_ms`.
    pub fn with(mut self, at_ms: u64, fault: Fault) -> Self {
        self.faults.push(Timed { at_ms, fault });
        self.faults.sort_by_key(|timed| timed.at_ms);
        self
    }

    /// A run that a seed stands for.
    pub fn from_seed(seed: u64) -> Self {
        Maker::new(seed).make()
    }

    /// Reads a replay file.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// Whether a disk comes back older in it.
    pub(super) fn has_old_disks(&self) -> bool {
        self.faults.iter().any(|timed| matches!(timed.fault, Fault::DiskBack { .. }))
    }

    /// For a replay file.
    pub fn to_json(&self) -> String {
        // Numbers, enums and vectors always serialise.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

struct Maker {
    seed: u64,
    rng: fastrand::Rng,
    peers: usize,
}

impl Maker {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let peers = [3, 3, 3, 4, 4, 5][rng.usize(0..6)];
        Self { seed, rng, peers }
    }

    fn make(mut self) -> Plan {
        let quick_setup = self.rng.u8(..) < 230;
        let mut now = if quick_setup { 1_000 } else { 0 } + self.rng.u64(200..2_500);
        let end = now + self.rng.u64(3_000..12_000);
        let mut plan = Plan { quick_setup, ..Plan::quiet(self.seed, self.peers, end) };
        while now < end {
            if self.rng.u8(..) < 30 {
                for (after_ms, fault) in self.pattern() {
                    plan.faults.push(Timed { at_ms: now + after_ms, fault });
                }
            } else {
                let fault = self.fault();
                plan.faults.push(Timed { at_ms: now, fault });
                let undone_by = match fault {
                    Fault::Operate { operation: Operation::Freeze } => Some(Operation::Unfreeze),
                    Fault::Operate { operation: Operation::EnterOneNodeWriteMode } => {
                        Some(Operation::LeaveOneNodeWriteMode)
                    }
                    _ => None,
                };
                if let Some(operation) = undone_by {
                    let fault = Fault::Operate { operation };
                    plan.faults.push(Timed { at_ms: now + self.rng.u64(300..4_000), fault });
                }
            }
            // Bursts, and quiet times between them.
            now += if self.rng.bool() { self.rng.u64(20..600) } else { self.rng.u64(400..3_500) };
        }
        plan.faults.retain(|timed| timed.at_ms < end);
        plan.faults.sort_by_key(|timed| timed.at_ms);
        plan
    }

    fn target(&mut self) -> Target {
        match self.rng.u8(0..10) {
            0..4 => Target::Primary,
            4..6 => Target::Sync,
            6 => Target::Async,
            _ => self.any(),
        }
    }

    fn any(&mut self) -> Target {
        Target::Peer(self.rng.usize(0..self.peers))
    }

    /// Pattern of faults: one alone seldom brings about what they do together.
    fn pattern(&mut self) -> Vec<(u64, Fault)> {
        let long = 3_000 + self.rng.u64(0..4_000);
        let die = |who| Fault::PowerOff { who, for_ms: long };
        let doom = Fault::Doom { after_ms: self.rng.u64(0..600), for_ms: long };
        match self.rng.u8(0..12) {
            // The sync's replay lags behind what it acknowledged, the async behind both (H1).
            0 => vec![
                (0, Fault::StallReplay { who: Target::Sync, for_ms: 2_500 }),
                (0, Fault::Lag { who: Target::Async, for_ms: 2_500 }),
                (700, die(Target::Primary)),
                (700, doom),
            ],
            // The sync is replaced, and the primary dies in the middle of it (rule 3).
            1 => vec![
                (0, Fault::Cut { from: Target::Primary, to: Target::Sync, both_ways: true, for_ms: long }),
                (900 + self.rng.u64(0..1_500), die(Target::Primary)),
            ],
            // A takeover whose new primary dies at once.
            2 => vec![(0, die(Target::Primary)), (0, doom)],
            // A primary comes back without its sync (rule 7).
            3 => vec![
                (0, Fault::Operate { operation: Operation::Freeze }),
                (50, Fault::Lag { who: Target::Sync, for_ms: 2_000 }),
                (600, Fault::Cut { from: Target::Primary, to: Target::Sync, both_ways: true, for_ms: 1_500 }),
                (800, Fault::KillPostgres { who: Target::Primary }),
                (2_600, Fault::Operate { operation: Operation::Unfreeze }),
                (2_700, die(Target::Primary)),
            ],
            // An operator swaps peers while one of them dies at some step.
            4 => {
                let who = if self.rng.bool() { Target::Sync } else { Target::Async };
                let kind = [ActionKind::Configure, ActionKind::WriteState, ActionKind::Promote][self.rng.usize(0..3)];
                let step = self.rng.usize(0..steps(kind));
                vec![
                    (0, Fault::CrashAt { action: kind, step, crash: self.crash(), for_ms: long }),
                    (10, Fault::Operate { operation: Operation::Promote(who) }),
                ]
            }
            // Somebody promotes a standby while its sitter is away, or just after a step of the takeover.
            5 => vec![
                (0, Fault::CrashAt { action: ActionKind::Configure, step: 2, crash: Crash::Sitter, for_ms: long }),
                (0, die(Target::Primary)),
                (1_000 + self.rng.u64(0..2_500), Fault::PromoteByHand { who: Target::Sync }),
                (3_000 + self.rng.u64(0..3_000), Fault::PromoteByHand { who: Target::Async }),
            ],
            6 => {
                let who = if self.rng.bool() { Target::Sync } else { Target::Async };
                let other = self.any();
                vec![
                    (0, Fault::KillSitter { who, for_ms: self.rng.u64(200..4_000) }),
                    (self.rng.u64(0..300), Fault::PromoteByHand { who }),
                    (self.rng.u64(300..4_000), Fault::PromoteByHand { who: other }),
                    (self.rng.u64(300..5_000), die(Target::Primary)),
                ]
            }
            // An old state comes back while those are away who know better, and one that it names has
            // lost its disk.
            7 => vec![
                (0, die(Target::Primary)),
                (1_500, Fault::PowerOff { who: Target::Primary, for_ms: 1_500 }),
                (2_500, Fault::DiskLost { who: self.any(), for_ms: 300 }),
                (4_500, Fault::RestoreOldState { generations: self.rng.u64(1..3), for_ms: long }),
                (4_600, Fault::KillBoth { who: Target::Primary, for_ms: 1_000 }),
            ],
            // All lose power, one disk comes back older, and they return in any order, frozen or not.
            8 | 9 => {
                let (states, records) = (self.rng.usize(0..4), self.rng.usize(0..60));
                let who = [Target::Primary, Target::Primary, Target::Sync, Target::Async][self.rng.usize(0..4)];
                let mut faults = vec![(10, Fault::DiskBack { who, states, records, for_ms: self.rng.u64(300..4_000) })];
                for peer in 0..self.peers {
                    if self.rng.bool() {
                        let away = Fault::PowerOff { who: Target::Peer(peer), for_ms: self.rng.u64(300..4_000) };
                        faults.push((20 + self.rng.u64(0..60), away));
                    }
                }
                if self.rng.bool() {
                    faults.push((0, Fault::Operate { operation: Operation::Freeze }));
                    faults.push((self.rng.u64(1_000..6_000), Fault::Operate { operation: Operation::Unfreeze }));
                }
                faults
            }
            // A replacement or a takeover whose answer is lost, and which an operator replaces before it is found out.
            10 => {
                let loss = Loss::ALL[self.rng.usize(0..Loss::ALL.len())];
                let mut faults = vec![
                    (0, Fault::LoseAnswer { write: Writing::Replacement, loss }),
                    (0, Fault::LoseAnswer { write: Writing::Takeover, loss }),
                    (10, Fault::Operate { operation: Operation::Promote(Target::Async) }),
                    (900 + self.rng.u64(0..1_500), Fault::Operate { operation: Operation::Freeze }),
                    (2_500, Fault::Operate { operation: Operation::Unfreeze }),
                ];
                if self.rng.bool() {
                    faults.push((self.rng.u64(500..2_500), die(Target::Primary)));
                }
                faults
            }
            // Nothing is known of the shard any more, and a peer without data comes.
            _ => vec![
                (0, Fault::WipeZooKeeper { for_ms: long }),
                (
                    self.rng.u64(0..500),
                    Fault::DiskLost { who: Target::Peer(self.rng.usize(0..self.peers)), for_ms: 300 },
                ),
            ],
        }
    }

    fn crash(&mut self) -> Crash {
        [Crash::Sitter, Crash::Postgres, Crash::Power][self.rng.usize(0..3)]
    }

    fn fault(&mut self) -> Fault {
        let (who, for_ms) = (self.target(), self.rng.u64(200..7_000));
        let other = self.any();
        match self.rng.u8(0..55) {
            0 | 1 => Fault::KillSitter { who, for_ms },
            2 | 3 => Fault::KillPostgres { who },
            4 | 5 => Fault::KillBoth { who, for_ms },
            6..=9 => Fault::PowerOff { who, for_ms: for_ms + 1_000 },
            10 => Fault::Cut { from: who, to: other, both_ways: true, for_ms },
            11 => Fault::Cut { from: who, to: other, both_ways: false, for_ms },
            12 | 13 => Fault::Isolate { who, direction: Direction::Both, zk: self.rng.bool(), for_ms },
            14 => {
                let direction = if self.rng.bool() { Direction::Incoming } else { Direction::Outgoing };
                Fault::Isolate { who, direction, zk: self.rng.bool(), for_ms }
            }
            15 => Fault::Split { first: self.rng.usize(1..self.peers), zk_with_first: self.rng.bool(), for_ms },
            16 => Fault::Flap {
                who,
                zk: self.rng.bool(),
                up_ms: self.rng.u64(200..2_000),
                down_ms: self.rng.u64(200..2_500),
                for_ms: for_ms * 2,
            },
            17 => Fault::BadNetwork { delay_ms: self.rng.u64(10..250), loss_percent: self.rng.u8(0..30), for_ms },
            18 => Fault::CutZooKeeper { who, for_ms },
            19 => Fault::ZooKeeperDown { for_ms },
            20 => Fault::WipeZooKeeper { for_ms },
            21 if self.rng.bool() => Fault::RestoreOldState { generations: self.rng.u64(1..4), for_ms },
            21 => Fault::CorruptState { for_ms },
            22 => Fault::ExpireSession { who },
            23 | 24 => Fault::LateViews { who, for_ms: for_ms / 4 },
            25 => Fault::PauseSitter { who, for_ms },
            26 => Fault::PausePostgres { who, for_ms: self.rng.bool().then_some(for_ms) },
            27 => Fault::PauseBoth { who, for_ms },
            28 if self.rng.bool() => Fault::SlowFlushes { who, each_ms: self.rng.u64(100..3_000), for_ms },
            28 => Fault::SlowDisk { who, for_ms },
            29 if self.rng.bool() => Fault::DiskLow { who, for_ms },
            29 => Fault::DiskFull { who, for_ms },
            30 if self.rng.bool() => Fault::DiskLost { who: other, for_ms },
            30 => Fault::DiskBack { who, states: self.rng.usize(0..6), records: self.rng.usize(0..80), for_ms },
            31 | 32 => Fault::StallReplay { who, for_ms },
            33 | 34 => Fault::Lag { who: other, for_ms },
            35 => Fault::RecycleWal { who },
            53 | 54 => {
                let what = if self.rng.bool() { Looser::Names } else { Looser::Commit };
                Fault::Loosen { who, what }
            }
            50..=52 => Fault::LoseAnswer {
                write: Writing::ALL[self.rng.usize(0..Writing::ALL.len())],
                loss: Loss::ALL[self.rng.usize(0..Loss::ALL.len())],
            },
            48 | 49 => Fault::PromoteByHand { who: other },
            36 | 37 => Fault::StopSitter { who, for_ms },
            38 => {
                let by_ms = if self.rng.bool() { 3_600_000 } else { -3_600_000 };
                Fault::JumpClock { who: other, by_ms }
            }
            39 => Fault::Doom { after_ms: self.rng.u64(0..1_000), for_ms: for_ms + 1_000 },
            40..=43 => {
                let action = CRASH_POINTS[self.rng.usize(0..CRASH_POINTS.len())];
                let step = self.rng.usize(0..steps(action));
                Fault::CrashAt { action, step, crash: self.crash(), for_ms }
            }
            44 => Fault::Operate { operation: Operation::Freeze },
            45 if self.rng.bool() => Fault::Operate { operation: Operation::EnterOneNodeWriteMode },
            45 => Fault::Operate { operation: Operation::Unfreeze },
            46 => Fault::Operate {
                operation: if self.rng.bool() { Operation::ClearPromote } else { Operation::Reap(other) },
            },
            _ => Fault::Operate { operation: Operation::Promote(who) },
        }
    }
}
