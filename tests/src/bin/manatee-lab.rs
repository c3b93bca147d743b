//! `manatee-lab`: a whole shard on one machine, to look at, to break, and to test.

use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use manatee_tests::console::{self, Next};
use manatee_tests::lab::{APP, Lab, Options, SHARD};
use manatee_tests::{conformance, equivalence, fault, runfile, smoke, suites};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// A whole shard on this machine: real PostgreSQL, real ZooKeeper, the real programs
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Bring a shard up and keep it until Ctrl-C; commands are read from the terminal
    Up(Options),
    /// The main job unattended: bring up, kill the primary, check that nothing was lost
    Smoke(Options),
    /// Rows of the list of faults, with an oracle of clients; prints a line of JSON for each
    Fault {
        /// Numbers of the rows; none: all that are built
        rows: Vec<u32>,
        /// Number of times
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
        /// Judge the times too, by the limits of the list of faults: on a machine that does nothing else
        #[arg(long)]
        strict: bool,
        #[command(flatten)]
        options: Options,
    },
    /// PostgreSQL's regression suite, straight and through the proxy; lists results that differ
    Conformance(conformance::Options),
    /// Suites of others (PostgreSQL's, drivers'), straight and through the proxy; lists results that differ
    Suites(suites::Options),
    /// Random conversations, straight and through the proxy, which must be the same; prints what differs
    Equivalence(equivalence::Options),
    /// Bring a shard up, run a command against its first proxy (PGHOST, PGPORT, PGUSER, PGPASSWORD
    /// and PGDATABASE are set for it), and end
    Run {
        /// Command and arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
        #[command(flatten)]
        options: Options,
    },
    /// Remove what killed labs left behind
    Clean,
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| "warn,manatee_tests=info,zookeeper_client=error".into()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let arguments = Arguments::parse();
    // Whatever is going on owns the lab; ending it drops the lab, which cleans up.
    let result = tokio::select! {
        result = run(arguments.command) => result,
        name = told_to_stop() => match name {
            Ok(name) => { eprintln!("{name}: ending"); Ok(ExitCode::from(130)) }
            Err(error) => Err(error),
        },
    };
    result.unwrap_or_else(|error| {
        eprintln!("manatee-lab: {error:#}");
        ExitCode::FAILURE
    })
}

/// Waits for a signal to end. Dropping `run` half way is what it is for: see [`Lab`].
async fn told_to_stop() -> Result<&'static str> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => "interrupted",
        _ = terminate.recv() => "terminated",
        _ = hangup.recv() => "hung up",
    })
}

async fn run(command: Action) -> Result<ExitCode> {
    match command {
        Action::Up(options) => up(options).await,
        Action::Smoke(options) => {
            let (mut lab, writable) = Lab::up(&options).await?;
            let report = smoke::run(&mut lab, writable).await;
            finish(&mut lab, &serde_json::to_string(&report)?, &report.failures)
        }
        Action::Fault { rows, rounds, strict, options } => faults(&rows, rounds, strict, &options).await,
        Action::Conformance(options) => {
            let report = conformance::run(&options).await?;
            for (test, lines) in &report.differing {
                println!("{test:<24} {lines:>5} lines differ");
            }
            println!("{}", serde_json::to_string(&report)?);
            Ok(if report.unexplained.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Action::Suites(options) => run_suites(&options).await,
        Action::Equivalence(options) => {
            let report = equivalence::run(&options).await?;
            report.differing.iter().for_each(|text| println!("{text}"));
            println!("{}", serde_json::to_string(&report)?);
            Ok(if report.differing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Action::Run { command, options } => run_against(&command, &options).await,
        Action::Clean => {
            println!("{} removed", runfile::clean()?);
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Runs row after row; all of them, even after one has failed.
async fn faults(numbers: &[u32], rounds: u32, strict: bool, options: &Options) -> Result<ExitCode> {
    let rows = match numbers {
        [] => fault::rows().collect(),
        numbers => numbers.iter().map(|number| fault::row(*number)).collect::<Result<Vec<_>>>()?,
    };
    let labs = rows.iter().map(|row| row.needs.extend(options)).collect::<Result<Vec<_>>>()?;
    let mut code = ExitCode::SUCCESS;
    for (row, options) in rows.iter().zip(&labs) {
        let (mut lab, _) = Lab::up(options).await?;
        let report = fault::run(&mut lab, row, rounds, strict).await?;
        if finish(&mut lab, &serde_json::to_string(&report)?, &report.failures)? != ExitCode::SUCCESS {
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

/// Prints the figures; after a failure also the ends of the logs, and keeps the folder.
fn finish(lab: &mut Lab, json: &str, failures: &[String]) -> Result<ExitCode> {
    println!("{json}");
    if failures.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    lab.set_keep(true);
    let what = failures.join("\n  ");
    eprintln!("{:#}", lab.explain(anyhow::anyhow!("failed:\n  {what}")));
    eprintln!("Everything is kept in {}", lab.dir().display());
    Ok(ExitCode::FAILURE)
}

async fn up(mut options: Options) -> Result<ExitCode> {
    options.port = options.port.or(Some(6432));
    let (mut lab, writable) = Lab::up(&options).await?;
    print!("{}", greeting(&lab, writable.as_secs_f64()));
    let interactive = std::io::stdin().is_terminal();
    let mut lines = read_lines();
    loop {
        if interactive {
            print!("lab> ");
            std::io::stdout().flush()?;
        }
        // Nothing more to read: the terminal was closed, or there never was one.
        let Some(line) = lines.recv().await else { break };
        match console::command(&mut lab, &line).await {
            Ok(Next::Go(answer)) if answer.is_empty() => {}
            Ok(Next::Go(answer)) => println!("{answer}"),
            Ok(Next::Quit) => break,
            Err(error) => println!("error: {error:#}"),
        }
    }
    if options.dir.is_some() {
        lab.shut_down().await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs suite after suite; all of them, even after one has failed.
async fn run_suites(options: &suites::Options) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for suite in suites::named(&options.suites)? {
        let report = match suites::run(options, suite).await {
            Ok(report) => report,
            Err(error) => {
                eprintln!("{error:#}");
                code = ExitCode::FAILURE;
                continue;
            }
        };
        for difference in &report.differing {
            let outcome = |outcome: &Option<String>| outcome.clone().unwrap_or_else(|| "not run".to_owned());
            println!(
                "{}{}: {} directly, {} through the proxy",
                if difference.explained { "" } else { "UNEXPLAINED " },
                difference.test,
                outcome(&difference.direct),
                outcome(&difference.proxied)
            );
        }
        println!("{}", serde_json::to_string(&report)?);
        if report.unexplained().next().is_some() {
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

async fn run_against(command: &[String], options: &Options) -> Result<ExitCode> {
    let (mut lab, _) = Lab::up(options).await?;
    lab.whole(Duration::from_secs(60)).await?;
    let proxy = lab.proxies.first().context("a proxy is needed")?;
    let status = tokio::process::Command::new(&command[0])
        .args(&command[1..])
        .envs([("PGHOST", "127.0.0.1"), ("PGUSER", APP), ("PGDATABASE", APP), ("PGPASSWORD", &lab.password)])
        .env("PGPORT", proxy.port.to_string())
        .kill_on_drop(true)
        .status()
        .await
        .with_context(|| format!("cannot run {}", command[0]))?;
    lab.check()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Lines of the standard input. The thread that reads them cannot be told to stop; it ends with
/// the process.
fn read_lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

fn greeting(lab: &Lab, writable_s: f64) -> String {
    let proxies: String = lab
        .proxies
        .iter()
        .map(|proxy| {
            format!(
                "  PGPASSWORD={} psql -h 127.0.0.1 -p {} -U {APP} {APP}\n  curl http://127.0.0.1:{}/topology\n",
                lab.password, proxy.port, proxy.http_port
            )
        })
        .collect();
    let network = if lab.network.has_namespaces() {
        "each host in a network namespace of its own"
    } else {
        "no network namespaces (they need root): hosts can be killed, paused and stopped, not cut off"
    };
    format!(
        "Shard `{SHARD}` is writable through the proxy after {writable_s:.1} s; {network}.\n\
         Through the proxies:\n{proxies}\
         The operator's tool:\n  {} -z {} -s {SHARD} pg-status\n\
         Data and logs: {}\n\
         Commands:\n{}\n",
        lab.binaries.adm.display(),
        lab.zookeeper.addresses().join(","),
        lab.dir().display(),
        console::HELP
    )
}
