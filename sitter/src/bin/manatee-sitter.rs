//! `manatee-sitter`: one per database host. Only wiring: what it does is in the library.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use manatee_shared::config::Secret;
use manatee_shared::service::Watchdog;
use manatee_shared::zk::Coordination;
use manatee_shared::zk::client::ZkCoordination;
use manatee_shared::{service, shutdown, telemetry};
use manatee_sitter::api::{self, Api};
use manatee_sitter::config::{Config, StorageKind, environment};
use manatee_sitter::data::LocalData;
use manatee_sitter::driver::{Driver, Parts};
use manatee_sitter::execute::Executor;
use manatee_sitter::heartbeat::Heartbeats;
use manatee_sitter::machine::local::Data;
use manatee_sitter::newest_generation;
use manatee_sitter::postgres::{self, Postgres};
use manatee_sitter::replay_limit;
use manatee_sitter::snapshotter::Snapshotter;
use manatee_sitter::supervise::{self, End, Supervised, Task};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// Beyond `stop_timeout`, for what an orderly stop does besides stopping PostgreSQL.
const STOP_SLACK: Duration = Duration::from_secs(20);

/// Longest time that a port may still be held by the sitter that this one replaces.
const PORT_PATIENCE: Duration = Duration::from_secs(2);

/// Keeps one host's PostgreSQL in the role that its shard gives it.
#[derive(Parser)]
#[command(name = "manatee-sitter", version)]
struct Args {
    /// Configuration file (TOML).
    #[arg(long, short, default_value = "/etc/manatee/sitter.toml", env = "MANATEE_SITTER_CONFIG")]
    config: PathBuf,
    /// Check the configuration and this host's fitness for it, then exit.
    #[arg(long)]
    check_config: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("manatee-sitter: {}", supervise::one_line(&problem));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let (config, settings, token) = prepare(&args.config)?;
    if args.check_config {
        check_host(&config, settings)?;
        println!("{}: good", args.config.display());
        return Ok(());
    }
    telemetry::init(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start a runtime")?;
    let result = runtime.block_on(serve(config, settings, token, &args.config));
    // Blocking work, such as a copy, must not hold up the end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Reads the configuration and what it names, and checks what can be checked without changing anything.
fn prepare(path: &Path) -> anyhow::Result<(Config, postgres::Settings, Option<Secret>)> {
    let config = Config::load(path)?;
    let bin_dir = environment::find_programs(config.postgres.bin_dir.as_deref(), &config.peer.dir)?;
    environment::check_user(&config.postgres.os_user)?;
    if config.storage.kind == StorageKind::Zfs {
        environment::check_zfs()?;
    }
    let settings = config.postgres(bin_dir)?;
    settings.check(config.id())?;
    let token = config.api_token()?;
    Ok((config, settings, token))
}

/// Checks what a running sitter finds out or puts up with, and an operator wants to know before: this host's address
/// and folder, secrets that are open to all, and settings that PostgreSQL refuses.
fn check_host(config: &Config, mut settings: postgres::Settings) -> anyhow::Result<()> {
    environment::check_address(config.peer.ip)?;
    environment::check_folder(&config.peer.dir, &config.shard, config.id())?;
    environment::check_secrets(&config.secret_files())?;
    let refused = postgres::leave_out(&mut settings)?;
    if !refused.is_empty() {
        let told: Vec<_> = refused.iter().map(|refused| format!("`{}`: {}", refused.key, refused.problem)).collect();
        bail!("PostgreSQL refuses {}; correct or remove it", told.join("; "));
    }
    Ok(())
}

async fn serve(config: Config, settings: postgres::Settings, token: Option<Secret>, path: &Path) -> anyhow::Result<()> {
    let prometheus = telemetry::install_recorder()?;
    let me = config.me();
    let _lock = environment::lock(&config.peer.dir, &config.shard, me.id)?;
    info!(peer = %me.id, shard = config.shard.as_str(), version = env!("CARGO_PKG_VERSION"), "starting");

    let stop = shutdown::on_signals().context("cannot listen for signals")?;
    let postgres = Arc::new(Postgres::new(settings, me.id)?);
    let data = Arc::new(LocalData::new(postgres.clone(), &config.data()?));
    let listeners = bind(&config).await?;
    let adopted = data.adopt().await.context("cannot take over what is in `peer.dir`")?;
    if !adopted {
        environment::check_postgres_port(SocketAddr::new(config.peer.ip, config.peer.pg_port))?;
    }
    if let Data::Unusable(problem) = &postgres.local().borrow().data {
        bail!("`peer.dir`: the data directory in {} cannot be used: {problem}", config.peer.dir.display());
    }

    // In a statement of its own: what is borrowed of `local` locks it, and the driver looks at it as well.
    let newest_generation = newest_generation::recall(&config.peer.dir, &postgres.local().borrow().data);
    let zookeeper = config.zookeeper.clone();
    let zk = Arc::new(ZkCoordination::connect(&zookeeper, &config.shard)?);
    let driver = Driver::new(Parts {
        me: me.clone(),
        shard: config.shard.clone(),
        settings: config.machine(),
        zk: zk.clone(),
        local: postgres.local(),
        condition: postgres.condition(),
        outside: data.outside(),
        heartbeats: Heartbeats::new(config.timing()),
        execute: Arc::new(Executor::new(me, zk.clone(), postgres.clone(), data.clone())),
        newest_generation,
        standbys: postgres.standbys(),
        stop: stop.clone(),
        watchdog: Watchdog::of_environment(),
    });
    let rendering = prometheus.clone();
    let status = driver.status();
    let router = api::router(Api {
        status: status.clone(),
        metrics: Arc::new(move || rendering.render()),
        progress: data.progress(),
        control: data.clone(),
        token,
        transfers: Api::transfers(),
    });

    let snapshotter = Snapshotter::new(data.clone(), driver.status(), config.snapshotter());
    let local = postgres.local();
    service::ready();
    let upkeep: Vec<(&'static str, Task)> = vec![
        ("the upkeep of metrics", Box::pin(telemetry::keep_up(prometheus, CancellationToken::new()))),
        ("the task that watches for a lost state", Box::pin(supervise::survey_when_lost(zk.clone(), data.clone()))),
        ("the snapshotter", Box::pin(snapshotter.run())),
        ("the memory of generations", Box::pin(newest_generation::keep(config.peer.dir.clone(), status.clone()))),
        ("the limit of replay", Box::pin(async move { match replay_limit::keep(postgres, status).await {} })),
    ];
    let supervised = Supervised {
        driver: Box::pin(driver.run()),
        api: Box::pin(supervise::serve_api(listeners, router)),
        foreign_data: Box::pin(supervise::foreign_data(zk.view(), local.clone())),
        no_zookeeper: Box::pin(supervise::no_zookeeper(zk.view(), local, &zookeeper)),
        hangups: Box::pin(watch_hangups(path)),
        leave: Box::pin(shutdown::told_to_leave()),
        upkeep,
        stop,
        stop_bound: config.postgres.stop_timeout + STOP_SLACK,
    };
    let result = match supervise::until_the_end(supervised, service::stopping).await {
        End::Stopped => Ok(()),
        End::Left => {
            info!("leaving, as told by SIGUSR2: PostgreSQL stays as it is for the next sitter");
            // Not even the session is closed: others are to notice nothing before the next one is here.
            std::process::exit(0);
        }
        End::Failed(problem) => Err(problem),
    };
    zk.close().await;
    match &result {
        Ok(()) => info!("stopped"),
        Err(problem) => error!("{}", supervise::one_line(problem)),
    }
    result
}

/// Opens the API's ports before anything else happens, so that a busy one changes nothing.
async fn bind(config: &Config) -> anyhow::Result<Vec<tokio::net::TcpListener>> {
    let mut listeners = Vec::new();
    let status = config.status_port().filter(|port| *port != config.peer.backup_port);
    for (key, port) in [("peer.backup_port", Some(config.peer.backup_port)), ("peer.status_port", status)] {
        let Some(port) = port else { continue };
        let address = SocketAddr::new(config.peer.ip, port);
        let listener = api::bind(address, PORT_PATIENCE).await;
        listeners.push(listener.map_err(|source| environment::port_problem(key, address, source))?);
    }
    Ok(listeners)
}

/// SIGHUP: takes over a changed configuration by starting this very process anew, in its place. PostgreSQL, which outlives
/// sitters, goes on, and so does the session with ZooKeeper until the new one is there: as with SIGUSR2, nobody notices. What
/// changes by reload is given to PostgreSQL by the new one at once; what needs a restart is shown as pending. A
/// configuration that is not good changes nothing. Returns why it does not go on.
async fn watch_hangups(path: &Path) -> anyhow::Error {
    let mut hangups = match shutdown::Hangups::listen() {
        Ok(hangups) => hangups,
        Err(problem) => return anyhow::Error::from(problem).context("cannot listen for SIGHUP"),
    };
    loop {
        hangups.next().await;
        if let Err(problem) = prepare(path) {
            error!("SIGHUP: the configuration stays as it was: {}", supervise::one_line(&problem));
            continue;
        }
        info!("SIGHUP: starting anew with the configuration as it is now; PostgreSQL goes on");
        // Only returns if it fails. Descriptors are closed on exec.
        let problem = std::process::Command::new(own_program()).args(std::env::args_os().skip(1)).exec();
        error!("SIGHUP: cannot start anew: {problem}; the configuration stays as it was");
    }
}

/// This program's file; one that was replaced meanwhile is still to be had as what runs.
fn own_program() -> PathBuf {
    let link = PathBuf::from("/proc/self/exe");
    std::fs::read_link(&link).ok().filter(|program| program.is_file()).unwrap_or(link)
}
