//! Large answers and COPY, both ways: what a proxy costs when it only has to keep out of the way.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use manatee_tests::lab::APP;

use super::{Field, of};
use crate::contender::Kind;
use crate::cpu;
use crate::pgbench::Pgbench;
use crate::report::{Of, Report};

/// Bytes of a COPY.
const COPY_BYTES: u32 = 100_000_000;
/// Rows of it, of a thousand bytes with their newline.
const COPY_ROWS: u32 = COPY_BYTES / 1000;
/// Answers of a megabyte in a row.
const WIDE_ANSWERS: u32 = 64;

/// A transfer.
#[derive(Clone, Copy)]
struct Transfer {
    name: &'static str,
    megabytes: f64,
    script: fn(&str) -> String,
}

const TRANSFERS: [Transfer; 3] = [
    Transfer { name: "answers of 1 MB", megabytes: WIDE_ANSWERS as f64 * 1.048_576, script: wide },
    Transfer { name: "COPY out of 100 MB", megabytes: COPY_BYTES as f64 / 1e6, script: copy_out },
    Transfer { name: "COPY in of 100 MB", megabytes: COPY_BYTES as f64 / 1e6, script: copy_in },
];

fn wide(_: &str) -> String {
    "select repeat('x', 1048576);\n".repeat(WIDE_ANSWERS as usize)
}

fn copy_out(_: &str) -> String {
    format!("copy (select repeat('x', 999) from generate_series(1, {COPY_ROWS})) to stdout;\n")
}

fn copy_in(file: &str) -> String {
    // Rolled back, and temporary: neither the WAL nor the standbys are what is measured.
    format!(
        "begin;\ncreate temporary table bench_copy (line text) on commit drop;\n\
         \\copy bench_copy from '{file}'\nrollback;\n"
    )
}

/// Runs every transfer through everybody, `rounds` times.
pub async fn run(field: &mut Field, report: &mut Report, rounds: u32) -> Result<()> {
    let data = field.shard.lab.dir().join("copy.txt");
    let line = format!("{}\n", "x".repeat(999));
    std::fs::write(&data, line.repeat(COPY_ROWS as usize))?;
    let data = data.display().to_string();
    for round in 1..=rounds {
        for transfer in TRANSFERS {
            eprintln!("round {round}: {}", transfer.name);
            let writes = transfer.name.starts_with("COPY in");
            for contender in &field.contenders {
                if writes && contender.kind == Kind::DirectStandby {
                    continue;
                }
                let address = contender.address;
                let before = address.pid.map(cpu::nanoseconds).transpose()?;
                let seconds = psql(&field.shard.pgbench, address.at, &(transfer.script)(&data)).await;
                let seconds = of(contender.kind, transfer.name, seconds)?;
                let after = address.pid.map(cpu::nanoseconds).transpose()?;
                let cell = Of { workload: transfer.name, clients: 1, tls: false, target: contender.kind.name() };
                report.add(cell, "MB_per_s", transfer.megabytes / seconds);
                if let Some((before, after)) = before.zip(after) {
                    let cpu_us = after.saturating_sub(before) as f64 / 1000.0;
                    report.add(cell, "cpu_us_per_MB", cpu_us / transfer.megabytes);
                }
            }
            field.check()?;
        }
    }
    Ok(())
}

/// Runs a script; its output is thrown away. Returns how long it took, in seconds.
async fn psql(pgbench: &Pgbench, at: SocketAddr, script: &str) -> Result<f64> {
    let file = pgbench.scratch.join("bulk.sql");
    std::fs::write(&file, script)?;
    let mut psql = pgbench.command("psql", at);
    psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f"]).arg(&file).arg(APP);
    psql.stdout(std::process::Stdio::null());
    let begin = Instant::now();
    let output = psql.output().await.context("running psql")?;
    let seconds = begin.elapsed().as_secs_f64();
    ensure!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr));
    Ok(seconds)
}
