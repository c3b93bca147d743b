//! Single faults with what users may expect of each: how soon it is over, and what must not happen.
//! The numbers are rows of the list of faults that a shard must survive.

use super::plan::{CRASH_POINTS, Crash, Direction, Fault, Operation, Plan, Target, steps};
use super::run::{report, run};
use super::world::World;
use crate::machine::action::ActionKind;

/// Seeds per scenario: the same with other delays.
const SEEDS: std::ops::Range<u64> = 0..8;

/// Moment of the fault of a scenario: the shard has long been well.
const AT: u64 = 6_000;

/// Without a fault the clients may have nothing to write, or a step just fails, for this long, ms. Times
/// here are upper bounds under bad luck of the model's own; the lab measures them.
const NOTHING_MS: u64 = 1_200;

/// A shard of three that is well, at the time of the fault.
fn shard(plan: &Plan) -> World {
    let mut world = World::new(plan, false);
    let settled = world.go_on_until(AT - 20).and_then(|()| world.is_well());
    settled.unwrap_or_else(|problem| panic!("before the fault: {problem}\n{}", report(plan)));
    world
}

/// Changes of the (primary, sync) pair since the fault: (time, primary).
fn changes(world: &World) -> Vec<(u64, usize)> {
    world.generations.iter().filter(|(at, ..)| *at >= AT).map(|(at, _, primary)| (*at, *primary)).collect()
}

fn primary(world: &World) -> usize {
    world.generations.last().map_or(0, |(.., primary)| *primary)
}

/// Runs `fault` on shards of `peers` until `end_ms` after it.
fn play(peers: usize, end_ms: u64, faults: &[(u64, Fault)], check: impl Fn(&mut World, usize)) {
    for seed in SEEDS {
        let mut plan = Plan::quiet(seed, peers, AT + end_ms);
        for (after, fault) in faults {
            plan = plan.with(AT + after, *fault);
        }
        let mut world = shard(&plan);
        let before = primary(&world);
        world.go_on_until(AT + end_ms).unwrap_or_else(|problem| panic!("seed {seed}: {problem}"));
        check(&mut world, before);
        run(&plan, false).unwrap_or_else(|_| panic!("{}", report(&plan)));
    }
}

/// The longest time without an acknowledged write since the fault, ms.
fn longest_gap(world: &World) -> u64 {
    let mut last = AT;
    let mut longest = 0;
    for &at in world.oracle.times().iter().filter(|at| **at >= AT) {
        longest = longest.max(at - last);
        last = at;
    }
    longest.max(world.now - last)
}

#[track_caller]
fn writable_again_within(world: &World, ms: u64) {
    let gap = longest_gap(world);
    assert!(gap <= ms, "no write for {gap} ms; generations {:?}", world.generations);
}

#[test]
fn row_7_power_loss_is_over_soon() {
    play(3, 8_000, &[(0, Fault::PowerOff { who: Target::Primary, for_ms: 20_000 })], |world, before| {
        assert_ne!(primary(world), before);
        writable_again_within(world, 4_000);
    });
}

#[test]
fn row_1_and_3_dead_processes_are_noticed_at_once() {
    play(3, 5_000, &[(0, Fault::KillBoth { who: Target::Primary, for_ms: 3_000 })], |world, before| {
        assert_ne!(primary(world), before);
        writable_again_within(world, 3_000);
    });
    play(3, 8_000, &[(0, Fault::KillPostgres { who: Target::Primary })], |world, _| {
        writable_again_within(world, 2_500)
    });
}

#[test]
fn row_2_and_5_a_dead_or_stopped_sitter_changes_nothing() {
    for fault in [
        Fault::KillSitter { who: Target::Primary, for_ms: 2_000 },
        Fault::PauseSitter { who: Target::Primary, for_ms: 3_000 },
        Fault::KillSitter { who: Target::Sync, for_ms: 2_000 },
    ] {
        play(3, 10_000, &[(0, fault)], |world, _| {
            assert_eq!(changes(world), [], "{fault:?}");
            writable_again_within(world, NOTHING_MS);
        });
    }
}

#[test]
fn row_4_and_32_a_postgresql_that_can_not_commit_yields() {
    for fault in [
        Fault::PausePostgres { who: Target::Primary, for_ms: Some(20_000) },
        Fault::DiskFull { who: Target::Primary, for_ms: 20_000 },
    ] {
        play(3, 10_000, &[(0, fault)], |world, before| {
            assert_ne!(primary(world), before, "{fault:?}");
            writable_again_within(world, 5_000);
            assert_eq!(changes(world).len(), 1, "no flapping");
        });
    }
}

#[test]
fn row_8_and_17_zookeeper_out_of_reach_changes_nothing() {
    play(3, 60_000, &[(0, Fault::ZooKeeperDown { for_ms: 55_000 })], |world, _| {
        assert_eq!(changes(world), []);
        writable_again_within(world, NOTHING_MS);
    });
    play(3, 10_000, &[(0, Fault::CutZooKeeper { who: Target::Primary, for_ms: 9_000 })], |world, _| {
        writable_again_within(world, 2_500);
    });
}

#[test]
fn row_18_writes_resume_with_the_sync_while_zookeeper_is_away() {
    let faults = [(0, Fault::ZooKeeperDown { for_ms: 30_000 }), (1_000, Fault::KillPostgres { who: Target::Sync })];
    play(3, 20_000, &faults, |world, _| {
        assert_eq!(changes(world), []);
        writable_again_within(world, 6_000);
    });
}

#[test]
fn row_8_of_the_holes_a_primary_restarted_without_zookeeper_accepts_writes_again() {
    for fault in [
        Fault::KillPostgres { who: Target::Primary },
        Fault::KillSitter { who: Target::Primary, for_ms: 1_000 },
        Fault::KillPostgres { who: Target::Sync },
    ] {
        play(3, 25_000, &[(0, Fault::ZooKeeperDown { for_ms: 30_000 }), (1_000, fault)], |world, _| {
            assert_eq!(changes(world), []);
            writable_again_within(world, 6_000);
        });
    }
    // With both gone, the sitter does not know its role until ZooKeeper is back; then it goes on.
    let faults = [
        (0, Fault::ZooKeeperDown { for_ms: 10_000 }),
        (1_000, Fault::KillBoth { who: Target::Primary, for_ms: 1_000 }),
    ];
    play(3, 25_000, &faults, |world, _| assert!(world.now - world.oracle.last_acknowledged_at < 500));
}

#[test]
fn row_10_an_isolated_primary_is_replaced_and_returns_by_itself() {
    let isolated = Fault::Isolate { who: Target::Primary, direction: Direction::Both, zk: true, for_ms: 10_000 };
    play(3, 30_000, &[(0, isolated)], |world, before| {
        assert_ne!(primary(world), before);
        assert_eq!(changes(world).len(), 1);
        writable_again_within(world, 4_000);
        assert_eq!(world.is_well(), Ok(()));
    });
}

#[test]
fn row_11_and_34_a_lost_or_slow_sync_is_replaced() {
    let isolated = Fault::Isolate { who: Target::Sync, direction: Direction::Both, zk: true, for_ms: 10_000 };
    play(3, 8_000, &[(0, isolated)], |world, before| {
        assert_eq!(primary(world), before);
        assert_eq!(changes(world).len(), 1);
        writable_again_within(world, 4_000);
    });
    play(3, 12_000, &[(0, Fault::SlowDisk { who: Target::Sync, for_ms: 20_000 })], |world, before| {
        assert_eq!(primary(world), before);
        writable_again_within(world, 9_000);
    });
    // Each flush ends, too late: progress all the time.
    let slow = Fault::SlowFlushes { who: Target::Sync, each_ms: 2_500, for_ms: 60_000 };
    play(3, 40_000, &[(0, slow)], |world, before| {
        assert_eq!(primary(world), before);
        assert_eq!(changes(world).len(), 1, "{:?}", world.generations);
        assert!(changes(world)[0].0 < AT + 25_000, "{:?}", world.generations);
    });
}

#[test]
fn row_12_one_way_loss_converges() {
    for who in [Target::Primary, Target::Sync] {
        for direction in [Direction::Incoming, Direction::Outgoing] {
            for zk in [true, false] {
                let lost = Fault::Isolate { who, direction, zk, for_ms: 20_000 };
                play(3, 15_000, &[(0, lost)], |world, _| {
                    assert!(changes(world).len() <= 2, "{lost:?}: {:?}", world.generations);
                    writable_again_within(world, 4_000);
                });
            }
        }
    }
}

#[test]
fn row_13_a_flapping_link_is_no_ping_pong() {
    for who in [Target::Primary, Target::Sync, Target::Async] {
        for (up_ms, down_ms) in [(3_000, 3_000), (1_000, 1_500), (500, 500)] {
            for zk in [true, false] {
                let flap = Fault::Flap { who, zk, up_ms, down_ms, for_ms: 60_000 };
                play(4, 60_000, &[(0, flap)], |world, _| {
                    let changes = changes(world);
                    assert!(changes.len() <= 2, "{flap:?}: {changes:?}");
                });
            }
        }
    }
}

#[test]
fn row_14_a_bad_network_is_no_reason_for_a_failover() {
    for seed in 0..5 {
        let bad = Fault::BadNetwork { delay_ms: 200, loss_percent: 5, for_ms: 600_000 };
        let plan = Plan::quiet(seed, 3, AT + 600_000).with(AT, bad);
        let mut world = shard(&plan);
        let before = primary(&world);
        world.go_on_until(AT + 600_000).unwrap_or_else(|problem| panic!("seed {seed}: {problem}"));
        assert_eq!(primary(&world), before, "seed {seed}");
        // Several packets lost in a row are silence: in 2 of 40 such runs of ten minutes a sync is replaced.
        assert!(changes(&world).len() <= 1, "seed {seed}: {:?}", changes(&world));
    }
}

#[test]
fn row_38_the_wall_clock_means_nothing() {
    for by_ms in [3_600_000, -3_600_000] {
        for who in [Target::Primary, Target::Sync] {
            play(3, 5_000, &[(0, Fault::JumpClock { who, by_ms })], |world, _| {
                assert_eq!(changes(world), []);
                writable_again_within(world, NOTHING_MS);
            });
        }
    }
}

#[test]
fn row_44_a_frozen_shard_stays_and_the_pending_change_happens_once() {
    let faults = [
        (0, Fault::Operate { operation: Operation::Freeze }),
        (500, Fault::PowerOff { who: Target::Primary, for_ms: 30_000 }),
    ];
    play(3, 8_000, &faults, |world, _| assert_eq!(changes(world), []));
    let thawed = [faults[0], faults[1], (8_000, Fault::Operate { operation: Operation::Unfreeze })];
    play(3, 15_000, &thawed, |world, before| {
        assert_ne!(primary(world), before);
        assert_eq!(changes(world).len(), 1);
    });
}

#[test]
fn planned_stops_and_promotions_hand_over_at_once() {
    for fault in [
        Fault::StopSitter { who: Target::Primary, for_ms: 20_000 },
        Fault::Operate { operation: Operation::Promote(Target::Sync) },
    ] {
        play(3, 5_000, &[(0, fault)], |world, before| {
            assert_ne!(primary(world), before, "{fault:?}");
            // The coming sync may turn out to be ahead of the one before, and have to be rejoined first.
            assert!(changes(world).len() <= 2, "{fault:?}: {:?}", world.generations);
            let rejoins = changes(world).len() == 2;
            writable_again_within(world, if rejoins { 5_000 } else { 3_500 });
        });
    }
}

/// Row 46, and row 24 among them: a crash after every step of every action.
#[test]
fn row_46_a_crash_at_every_step_of_every_action() {
    for action in CRASH_POINTS {
        for step in 0..steps(action) {
            for crash in [Crash::Sitter, Crash::Postgres, Crash::Power] {
                let mut torn = 0;
                for seed in 0..4 {
                    let plan = torn_plan(seed, action, step, crash);
                    match run(&plan, false) {
                        Ok(counts) => torn += counts.torn,
                        Err(_) => panic!("{action:?} step {step}, {crash:?}:\n{}", report(&plan)),
                    }
                }
                assert!(torn > 0, "{action:?} step {step} was never reached");
            }
        }
    }
}

/// Brings about `action` after the shard was set up (or during that).
fn torn_plan(seed: u64, action: ActionKind, step: usize, crash: Crash) -> Plan {
    let begin = if action == ActionKind::Initialise { 20 } else { AT };
    let plan = Plan::quiet(seed, 4, AT + 14_000).with(begin, Fault::CrashAt { action, step, crash, for_ms: 1_500 });
    match action {
        // Comes about by itself; or is no point for a crash.
        ActionKind::Initialise | ActionKind::Wait | ActionKind::Exit => plan,
        ActionKind::Promote | ActionKind::Configure | ActionKind::WriteState | ActionKind::Drain => {
            let who = if seed.is_multiple_of(2) { Target::Sync } else { Target::Async };
            let who = if matches!(action, ActionKind::Promote | ActionKind::Drain) { Target::Sync } else { who };
            plan.with(AT + 20, Fault::Operate { operation: Operation::Promote(who) })
        }
        ActionKind::Rejoin => plan.with(
            AT + 20,
            Fault::Isolate { who: Target::Primary, direction: Direction::Both, zk: true, for_ms: 4_000 },
        ),
        ActionKind::Start | ActionKind::Survey => plan.with(AT + 20, Fault::KillPostgres { who: Target::Primary }),
        ActionKind::Bootstrap => plan.with(AT + 20, Fault::DiskLost { who: Target::Async, for_ms: 500 }),
        ActionKind::Stop | ActionKind::LeaveElection => {
            plan.with(AT + 20, Fault::StopSitter { who: Target::Primary, for_ms: 1_000 })
        }
        ActionKind::JoinElection => plan.with(AT + 20, Fault::KillSitter { who: Target::Primary, for_ms: 5_000 }),
    }
}
