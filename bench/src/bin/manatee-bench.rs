//! `manatee-bench`: everybody side by side in front of one shard. `make bench` runs it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use manatee_bench::contender::{Kind, POOL_SIZE, Programs};
use manatee_bench::failover::{self, Fault};
use manatee_bench::measure::{Field, bulk, crowd, goals, load, syscalls};
use manatee_bench::pgbench::{Load, Workload};
use manatee_bench::report::Report;
use manatee_bench::shard::Shard;
use manatee_bench::{growth, raise_file_limit};
use manatee_shared::shutdown;
use manatee_tests::lab::Options;

/// Measures Manatee beside its peers. Only ratios within one run mean anything
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Proxies side by side in front of one primary and two standbys, in interleaved rounds: medians
    Proxies(Box<Proxies>),
    /// Growth of CPU per query and memory of manatee-proxy with clients, pool, prepared statements and shards
    Growth(Common),
    /// Time without writes and without reads when a primary goes; beside Patroni with HAProxy
    Failover {
        /// Fault of the primary
        #[arg(long, value_enum, value_delimiter = ',', default_values_t = Fault::ALL)]
        faults: Vec<Fault>,
        /// Rounds of each against Manatee
        #[arg(long, default_value_t = 20)]
        rounds: u32,
        /// Rounds of each against Patroni, which take a minute each
        #[arg(long, default_value_t = 5)]
        patroni_rounds: u32,
        /// Folder of Manatee's programs; default: target/debug beside this program's
        #[arg(long)]
        bin_dir: Option<PathBuf>,
        /// File for everything as JSON
        #[arg(long, default_value = "failover.json")]
        json: PathBuf,
    },
}

#[derive(Args)]
struct Proxies {
    /// Parts to measure
    #[arg(value_enum, default_values_t = [Part::Load, Part::Syscalls, Part::Bulk, Part::Logins, Part::Idle, Part::Crowd])]
    parts: Vec<Part>,
    /// Proxies to measure
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Kind::ALL)]
    targets: Vec<Kind>,
    /// Workloads to run
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Workload::Simple, Workload::Extended, Workload::Prepared, Workload::Writes])]
    workloads: Vec<Workload>,
    /// Concurrent clients
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64, 1000])]
    clients: Vec<u32>,
    /// With TLS or without
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Tls::Off, Tls::On])]
    tls: Vec<Tls>,
    /// Interleaved rounds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    #[command(flatten)]
    common: Common,
}

/// Options that every run of proxies takes.
#[derive(Args)]
struct Common {
    /// Seconds of a round that count; one more warms up
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Session threads of manatee-proxy and of the relay; one is what PgBouncer has. 0: as they choose
    #[arg(long, default_value_t = 1)]
    threads: u32,
    /// Folder of manatee-sitter and manatee-adm; default: target/debug beside this program's
    #[arg(long)]
    sitters: Option<PathBuf>,
    /// A manatee-proxy other than the one beside this program
    #[arg(long)]
    proxy: Option<PathBuf>,
    /// A PgBouncer other than Debian's
    #[arg(long, env = "MANATEE_BENCH_PGBOUNCER", default_value = "/usr/sbin/pgbouncer")]
    pgbouncer: PathBuf,
    /// File for everything as JSON
    #[arg(long, default_value = "bench.json")]
    json: PathBuf,
}

/// Parts that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Throughput, CPU per query and latencies under pgbench
    Load,
    /// System calls per query
    Syscalls,
    /// Large answers and COPY
    Bulk,
    /// Logins
    Logins,
    /// Memory of idle clients
    Idle,
    /// 64 clients beside 10,000 idle ones
    Crowd,
}

/// Whether clients use TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Tls {
    Off,
    On,
}

impl Proxies {
    /// All combinations asked for; where there are several numbers of clients, those that say something new.
    fn loads(&self) -> Vec<Load> {
        let mut loads = Vec::new();
        for &workload in &self.workloads {
            for &clients in &self.clients {
                for &tls in &self.tls {
                    let load = Load { workload, clients, tls: tls == Tls::On };
                    if self.clients.len() == 1 || is_telling(load) {
                        loads.push(load);
                    }
                }
            }
        }
        loads
    }

    /// Whether `kind` is to run `load`: everybody runs what is usual, the rest is for those that count.
    fn is_for(&self, kind: Kind, load: Load) -> bool {
        let beside = matches!(kind, Kind::DirectStandby | Kind::Pgpool | Kind::ManateeNosplit);
        kind.takes(load) && (self.clients.len() == 1 || load.clients == USUAL_CLIENTS || !beside)
    }
}

/// Clients of a usual run.
const USUAL_CLIENTS: u32 = 16;

/// Whether a load is one that the goals are about, or the only one left of its kind.
fn is_telling(load: Load) -> bool {
    let usual = load.clients == USUAL_CLIENTS;
    match load.workload {
        Workload::Simple => usual || !load.tls,
        Workload::Prepared => usual || (!load.tls && load.clients == 64),
        Workload::Extended => !load.tls && (usual || load.clients == 64),
        Workload::Writes => !load.tls && usual,
    }
}

impl Common {
    fn programs(&self) -> Result<Programs> {
        let executable = std::env::current_exe().context("cannot tell where this program is")?;
        let beside = |name: &str| executable.with_file_name(name);
        let programs = Programs {
            proxy: self.proxy.clone().unwrap_or_else(|| beside("manatee-proxy")),
            relay: beside("manatee-relay"),
            pgbouncer: self.pgbouncer.clone(),
            pool_size: POOL_SIZE,
            threads: self.threads,
            all_shards: false,
        };
        for program in [&programs.proxy, &programs.relay] {
            anyhow::ensure!(program.is_file(), "{} is not there: run `make bench`", program.display());
        }
        Ok(programs)
    }

    fn sitters(&self) -> Option<PathBuf> {
        self.sitters.clone().or_else(debug_folder)
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new("error,zookeeper_client=off"))
        .with_writer(std::io::stderr)
        .init();
    // What runs owns the shard and everybody in front of it: dropping it ends them all.
    let stop = shutdown::on_signals()?;
    tokio::select! {
        result = run(Arguments::parse().command) => result,
        () = stop.cancelled() => anyhow::bail!("told to stop: ended everything"),
    }
}

async fn run(action: Action) -> Result<()> {
    match action {
        Action::Proxies(arguments) => proxies(&arguments).await,
        Action::Growth(arguments) => grow(&arguments).await,
        Action::Failover { faults, rounds, patroni_rounds, bin_dir, json } => {
            let options = Options { bin_dir: bin_dir.or_else(debug_folder), ..Options::default() };
            let mut report = Report::begin();
            let result = failover::run(&options, &mut report, &faults, rounds, patroni_rounds).await;
            finish(&report, &json)?;
            result
        }
    }
}

async fn proxies(arguments: &Proxies) -> Result<()> {
    raise_file_limit();
    let mut report = Report::begin();
    let programs = arguments.common.programs()?;
    let shard = Shard::up(arguments.common.sitters()).await?;
    let mut field = Field::start(shard, &arguments.targets, programs).await?;
    field.describe(&mut report);
    let result = measure(arguments, &mut field, &mut report).await;
    goals::judge(&mut report);
    finish(&report, &arguments.common.json)?;
    result
}

async fn grow(arguments: &Common) -> Result<()> {
    raise_file_limit();
    let mut report = Report::begin();
    let programs = arguments.programs()?;
    let shard = Shard::up(arguments.sitters()).await?;
    let result = growth::run(&shard, &programs, &mut report, arguments.seconds).await;
    finish(&report, &arguments.json)?;
    result
}

/// Prints and writes what there is, also of a run that failed.
fn finish(report: &Report, json: &Path) -> Result<()> {
    println!("{}", report.tables());
    let text = serde_json::to_string_pretty(report)?;
    std::fs::write(json, text).with_context(|| format!("writing {}", json.display()))
}

/// Folder with sitters of the usual build: target/debug beside this program's target/release.
fn debug_folder() -> Option<PathBuf> {
    let executable = std::env::current_exe().ok()?;
    Some(executable.parent()?.parent()?.join("debug"))
}

async fn measure(arguments: &Proxies, field: &mut Field, report: &mut Report) -> Result<()> {
    let loads = arguments.loads();
    let (seconds, rounds) = (arguments.common.seconds, arguments.rounds);
    for part in &arguments.parts {
        match part {
            Part::Load => {
                load::run(field, report, &loads, |kind, load| arguments.is_for(kind, load), seconds, rounds).await?;
            }
            Part::Syscalls => {
                let counted: Vec<Load> =
                    loads.iter().copied().filter(|load| load.clients == USUAL_CLIENTS && !load.tls).collect();
                syscalls::run(field, report, &counted).await?;
            }
            Part::Bulk => bulk::run(field, report, rounds).await?,
            Part::Logins => crowd::logins(field, report, rounds).await?,
            // Hardly varies, and takes its time.
            Part::Idle => crowd::idle(field, report, 1).await?,
            Part::Crowd => crowd::crowd(field, report, seconds.max(2), rounds).await?,
        }
    }
    Ok(())
}
