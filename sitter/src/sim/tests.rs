//! Runs of many seeds.

use super::world::World;

/// Seeds that `cargo test` runs.
const SEEDS: u64 = 200;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Runs `seeds` on all cores; the first failures' reports.
fn run(seeds: impl Iterator<Item = u64>) -> (usize, Vec<String>) {
    let seeds: Vec<u64> = seeds.collect();
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let share = seeds.len().div_ceil(threads).max(1);
    let workers: Vec<_> = seeds
        .chunks(share)
        .map(|chunk| {
            let chunk = chunk.to_vec();
            std::thread::spawn(move || {
                let result = |seed: u64| match World::new(seed, false).run() {
                    Ok(summary) => Ok(summary),
                    Err(report) => Err(format!("{report}\nseed {seed}")),
                };
                chunk.into_iter().map(result).collect::<Vec<_>>()
            })
        })
        .collect();
    let results: Vec<_> = workers.into_iter().flat_map(|worker| worker.join().expect("worker")).collect();
    let acknowledged: usize = results.iter().flatten().map(|summary| summary.acknowledged).sum();
    let generations: u64 = results.iter().flatten().map(|summary| summary.generations).sum();
    eprintln!("{} runs, {acknowledged} writes acknowledged, {generations} generations", results.len());
    (acknowledged, results.into_iter().filter_map(Result::err).collect())
}

#[test]
fn no_fault_loses_a_write_and_every_shard_recovers() {
    if let Some(seed) = number("MANATEE_SIM_SEED") {
        let summary = World::new(seed, true).run().expect("the run");
        eprintln!("{summary:?}");
        return;
    }
    let (acknowledged, failures) = match number("MANATEE_SIM_SEEDS") {
        Some(count) => {
            let first = fastrand::u64(..1 << 40);
            run((first..).take(usize::try_from(count).expect("a count")))
        }
        None => run(0..SEEDS),
    };
    if let Some(first) = failures.first() {
        let ends: Vec<_> =
            failures.iter().map(|report| report.lines().rev().take(2).collect::<Vec<_>>().join(": ")).collect();
        panic!("{first}\n\n{} runs failed:\n{}", failures.len(), ends.join("\n"));
    }
    assert!(acknowledged > 1_000, "the clients hardly got anything written");
}
