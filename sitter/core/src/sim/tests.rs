//! Runs of many seeds, and the bugs that they must find.
#![allow(clippy::disallowed_methods, reason = "which seeds to run is not part of a run")]

use super::mutation::Mutation;
use super::plan::Plan;
use super::run::{report, run, run_seeds};

/// Seeds that `cargo test` always runs, and how many fresh ones.
const FIXED: u64 = 400;
const FRESH: u64 = 400;

/// Runs in which each planted bug must show at least once.
const ENOUGH: u64 = 400;

/// Runs made for each planted bug that must pass without it.
const CONTROL: u64 = 50;

fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn no_fault_loses_a_write_and_every_shard_recovers() {
    let fresh = number("MANATEE_SIM_SEED").unwrap_or_else(|| fastrand::u64(..1 << 40));
    eprintln!("fresh seeds begin at {fresh}; MANATEE_SIM_SEED={fresh} runs the same");
    for (first, count) in [(0, FIXED), (fresh, FRESH)] {
        let (counts, failures) = run_seeds(first, count, threads(), 1, &Plan::from_seed);
        if let Some((plan, _)) = failures.first() {
            panic!("{}", report(plan));
        }
        eprintln!("{counts:?}");
        assert!(counts.acknowledged > 50 * count, "the clients hardly got anything written");
        assert!(counts.takeovers > count / 3, "hardly anything happened");
    }
}

#[test]
fn every_planted_bug_is_found() {
    let mut missed = Vec::new();
    for mutation in Mutation::ALL {
        let (counts, failures) = run_seeds(0, ENOUGH, threads(), 1, &|seed| mutation.plan(seed));
        match failures.first() {
            Some((_, problem)) => eprintln!("{:28} after {:3} runs: {problem}", mutation.name(), counts.runs + 1),
            None => missed.push(mutation),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn without_a_planted_bug_the_same_runs_pass() {
    for mutation in Mutation::ALL {
        let plan = |seed| Plan { mutation: None, ..mutation.plan(seed) };
        let (_, failures) = run_seeds(0, CONTROL, threads(), 1, &plan);
        if let Some((plan, _)) = failures.first() {
            panic!("{}: {}", mutation.name(), report(plan));
        }
    }
}

#[test]
fn a_run_can_be_repeated_from_its_file() {
    let plan = Plan::from_seed(7);
    let read = Plan::parse(&plan.to_json()).expect("a replay file");
    assert_eq!(read, plan);
    assert_eq!(
        run(&read, true).map_err(|failure| failure.problem),
        run(&plan, false).map_err(|failure| failure.problem)
    );
}
