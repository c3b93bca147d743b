//! `manatee-bench`: pgbench against several addresses, side by side.

use std::collections::BTreeMap;

use anyhow::Result;
use clap::Parser;
use manatee_bench::median;
use manatee_bench::pgbench::{self, Load, Mode, Round};
use manatee_bench::target::Target;

/// Runs the same pgbench load against each target in turn, several rounds, and prints medians.
/// The database must have been initialised (`pgbench -i`). Only ratios within one run mean anything.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// NAME=HOST:PORT[:PID]; with the proxy's process id, its CPU per query is measured.
    #[arg(long = "target", required = true)]
    targets: Vec<Target>,
    /// Query modes.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["simple", "extended", "prepared"])]
    modes: Vec<Mode>,
    /// Concurrent clients.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// Seconds per round.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    /// Interleaved rounds.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Writes (pgbench -N) instead of reads (-S).
    #[arg(long)]
    writes: bool,
    /// Database.
    #[arg(long, default_value = "app")]
    database: String,
    /// Role; its password comes from PGPASSWORD.
    #[arg(long, default_value = "app")]
    user: String,
    /// The pgbench program.
    #[arg(long, default_value = "pgbench")]
    pgbench: String,
    /// One JSON object per line instead of a table.
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut rounds: BTreeMap<(usize, usize), Vec<Round>> = BTreeMap::new();
    for _ in 0..arguments.rounds {
        for (mode_index, &mode) in arguments.modes.iter().enumerate() {
            for (target_index, target) in arguments.targets.iter().enumerate() {
                let load = Load {
                    mode,
                    clients: arguments.clients,
                    seconds: arguments.seconds,
                    script: if arguments.writes { "-N" } else { "-S" },
                    database: arguments.database.clone(),
                    user: arguments.user.clone(),
                };
                let round = pgbench::run(&arguments.pgbench, target, &load)?;
                rounds.entry((mode_index, target_index)).or_default().push(round);
            }
        }
    }
    if !arguments.json {
        println!("{:<10} {:<16} {:>10} {:>14}", "mode", "target", "tps", "cpu us/query");
    }
    for ((mode, target), rounds) in &rounds {
        let (mode, target) = (arguments.modes[*mode].name(), &arguments.targets[*target].name);
        let tps = median(rounds.iter().map(|round| round.tps).collect());
        let cpu_us = median(rounds.iter().filter_map(|round| round.cpu_us).collect());
        if arguments.json {
            println!("{}", serde_json::json!({ "mode": mode, "target": target, "tps": tps, "cpu_us": cpu_us }));
        } else {
            let cell = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1}"));
            println!("{mode:<10} {target:<16} {:>10} {:>14}", cell(tps), cell(cpu_us));
        }
    }
    Ok(())
}
