//! `manatee-sim`: the simulation of a shard, for as many seeds as one likes.
//!
//! Built only with the feature `sim`; not installed anywhere.

#![allow(clippy::disallowed_methods, reason = "the program around the simulation")]

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use manatee_sitter_core::sim::mutation::Mutation;
use manatee_sitter_core::sim::plan::Plan;
use manatee_sitter_core::sim::run::{replay, report, run_seeds};

/// Runs a simulated shard under faults, and says whether any rule of safety was broken.
#[derive(Parser)]
struct Arguments {
    /// Number of seeds to run.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first seed; without it, a fresh one.
    #[arg(long)]
    first: Option<u64>,
    /// Number of threads that run them.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// After how many failures to stop.
    #[arg(long, default_value_t = 1)]
    failures: usize,
    /// Plant this bug: the runs are meant to fail.
    #[arg(long, value_parser = mutation)]
    mutation: Option<Mutation>,
    /// Repeat the run in this file, and show its events.
    #[arg(long)]
    replay: Option<std::path::PathBuf>,
}

fn mutation(name: &str) -> Result<Mutation, String> {
    let names = || Mutation::ALL.map(Mutation::name).join(", ");
    Mutation::ALL.into_iter().find(|known| known.name() == name).ok_or_else(|| format!("known are: {}", names()))
}

/// Number of failures that are shown with their events.
const MOST_REPORTS: usize = 8;

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(file) = &arguments.replay {
        let plan = Plan::parse(&std::fs::read_to_string(file)?)?;
        let (events, result) = replay(&plan);
        println!("{}", events.join("\n"));
        return Ok(match result {
            Ok(counts) => {
                println!("it passes: {counts:?}");
                ExitCode::SUCCESS
            }
            Err(failure) => {
                println!("{}", failure.problem);
                ExitCode::FAILURE
            }
        });
    }
    let first = arguments.first.unwrap_or_else(|| fastrand::u64(..1 << 40));
    println!("{} seeds from {first} on {} threads", arguments.seeds, arguments.threads);
    let began = Instant::now();
    let plan = |seed| arguments.mutation.map_or_else(|| Plan::from_seed(seed), |mutation| mutation.plan(seed));
    let (counts, failures) = run_seeds(first, arguments.seeds, arguments.threads, arguments.failures, &plan);
    let took = began.elapsed();
    for (plan, _) in failures.iter().take(MOST_REPORTS) {
        println!("{}\n", report(plan));
    }
    for (plan, problem) in &failures {
        println!("seed {} failed: {problem}", plan.seed);
    }
    println!("{counts:?}");
    println!("{:.1} s, {:.0} seeds a minute", took.as_secs_f64(), counts.runs as f64 * 60.0 / took.as_secs_f64());
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
