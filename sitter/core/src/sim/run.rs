//! Runs of plans: one, many, and smaller and smaller ones.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use super::plan::Plan;
use super::world::{Counts, Failure, World};

/// Most runs that shrinking a failure takes.
const SHRINKING_RUNS: u32 = 1_500;

/// Runs `plan`; the events are kept only if asked for.
pub fn run(plan: &Plan, events: bool) -> Result<Counts, Failure> {
    World::new(plan, events).run()
}

/// Runs `plan`; its last events, and how it ended.
pub fn replay(plan: &Plan) -> (Vec<String>, Result<Counts, Failure>) {
    let mut world = World::new(plan, true);
    let result = world.run();
    (world.take_events(), result)
}

/// Runs the plans of seeds `first..first + count` on `threads` threads; stops after `most` failures,
/// which it returns with what was run until then.
pub fn run_seeds(
    first: u64,
    count: u64,
    threads: usize,
    most: usize,
    plan: &(dyn Fn(u64) -> Plan + Sync),
) -> (Counts, Vec<(Plan, String)>) {
    let next = AtomicU64::new(0);
    let failed = AtomicUsize::new(0);
    let worker = || {
        let (mut counts, mut failures) = (Counts::default(), Vec::new());
        while failed.load(Relaxed) < most {
            let number = next.fetch_add(1, Relaxed);
            if number >= count {
                break;
            }
            let plan = plan(first.wrapping_add(number));
            match run(&plan, false) {
                Ok(run) => counts.add(&run),
                Err(failure) => {
                    failed.fetch_add(1, Relaxed);
                    failures.push((plan, failure.problem));
                }
            }
        }
        (counts, failures)
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(worker)).collect();
        let (mut counts, mut failures) = (Counts::default(), Vec::new());
        for (run, failed) in workers.into_iter().filter_map(|worker| worker.join().ok()) {
            counts.add(&run);
            failures.extend(failed);
        }
        (counts, failures)
    })
}

/// A smaller plan that still fails: without the faults that do not matter, and shorter.
pub fn shrink(plan: &Plan) -> Plan {
    let mut smallest = plan.clone();
    let mut runs = 0;
    let mut fails = |plan: &Plan| {
        runs += 1;
        runs <= SHRINKING_RUNS && run(plan, false).is_err()
    };
    // Halves first, then ever smaller parts.
    let mut part = smallest.faults.len().div_ceil(2).max(1);
    loop {
        let mut begin = 0;
        let before = smallest.faults.len();
        while begin < smallest.faults.len() {
            let mut candidate = smallest.clone();
            let end = (begin + part).min(candidate.faults.len());
            candidate.faults.drain(begin..end);
            if fails(&candidate) {
                smallest = candidate;
            } else {
                begin += part;
            }
        }
        match (part, smallest.faults.len() < before) {
            (1, false) => break,
            (1, true) => {}
            _ => part = part.div_ceil(2),
        }
    }
    let last = smallest.faults.last().map_or(0, |timed| timed.at_ms);
    for faults_ms in [last + 20, last + 1_000, last + 4_000] {
        let candidate = Plan { faults_ms, ..smallest.clone() };
        if faults_ms < smallest.faults_ms && fails(&candidate) {
            return candidate;
        }
    }
    smallest
}

/// Report about a failing plan: events, problem, and how to see it again. The plan is kept in
/// the directory for temporary files.
#[expect(clippy::disallowed_methods, reason = "keeps the plan of a failure")]
pub fn report(plan: &Plan) -> String {
    let small = shrink(plan);
    let failure = match run(&small, true) {
        Err(failure) => failure,
        Ok(_) => return format!("seed {} fails, but not a second time: not deterministic", plan.seed),
    };
    let file = std::env::temp_dir().join(format!("manatee-sim-{}.json", plan.seed));
    let kept = match std::fs::write(&file, small.to_json()) {
        Ok(()) => format!(
            "replay: cargo run --profile sim -p manatee-sitter-core --features sim --bin manatee-sim -- --replay {}",
            file.display()
        ),
        Err(error) => format!("the replay file {} cannot be written: {error}", file.display()),
    };
    let faults = small.faults.len();
    format!("{}\n{}\nseed {}, shrunk to {faults} faults\n{kept}", failure.events.join("\n"), failure.problem, plan.seed)
}
