//! The proxy's program: reads the configuration, checks what can be checked, runs.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser;
use manatee_proxy::auth::Policy;
use manatee_proxy::config::Config;
use manatee_proxy::metrics;
use manatee_proxy::own_role::OwnRole;
use manatee_proxy::server::Proxy;
use manatee_proxy::server::run::{Listeners, Start, run};
use manatee_proxy::tls::Certificates;
use manatee_proxy::tls::servers::Servers;
use manatee_proxy::topology::monitor;
use manatee_shared::telemetry;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// An idle client is a few small allocations of its own: with this allocator they take two fifths less memory than with
/// glibc's (proxy/design/0006-hot-path.md).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Speaks the PostgreSQL protocol, sends writes to the primary and reads to the standbys, and
/// carries clients through a failover.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file.
    #[arg(long, short, env = "MANATEE_PROXY_CONFIG", default_value = "/etc/manatee/proxy.toml")]
    config: PathBuf,
    /// Check the configuration and exit.
    #[arg(long)]
    check_config: bool,
    /// Private Unix socket over which listeners are handed to a successor (SIGQUIT).
    #[arg(long)]
    upgrade_socket: Option<PathBuf>,
    /// Take the listeners over from the running proxy with the same upgrade socket.
    #[arg(long, requires = "upgrade_socket")]
    upgrade: bool,
}

fn main() -> ExitCode {
    match start(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("manatee-proxy: {}", in_one_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> anyhow::Result<()> {
    // Two crypto providers may be linked; rustls must not have to guess.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let config = Config::load(&arguments.config)?;
    let own = OwnRole::load(&config.auth.user, &config.auth.password_file).context("`auth.password_file`")?;
    let certificates = Certificates::load(&config.tls).context("`tls`")?;
    let servers = Servers::load(&config.server_tls).context("`server_tls`")?;
    let policy = Policy::load(&config)?;
    if arguments.check_config {
        println!("{}: ok", arguments.config.display());
        return Ok(());
    }
    let start = if arguments.upgrade { Start::TakeOver } else { Start::Fresh };
    let listeners = Listeners::prepare(&config.listen, &start)?;
    telemetry::init(&config.log)?;
    let recorder = telemetry::install_recorder()?;
    metrics::describe();
    abort_on_panic();
    raise_file_limit(&config);
    let own = monitor::Settings {
        shard: config.shard.name.clone(),
        own: Arc::new(own),
        poll_interval: config.routing.poll_interval,
        max_lag: config.routing.max_lag,
        servers: Arc::new(servers),
    };
    let shard = config.shard.name.clone();
    let proxy = Proxy::new(config, own, certificates, policy, arguments.upgrade_socket.clone())?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), %shard, "starting");
    run(proxy, listeners, &start, arguments.upgrade_socket.as_deref(), recorder)
}

/// As many files as the system lets us have: each client is one, each server connection too.
fn raise_file_limit(config: &Config) {
    let wanted = config.pool.max_clients as u64 * 2;
    let limit = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        Ok(soft.max(hard))
    });
    match limit {
        Ok(limit) if limit < wanted => {
            tracing::warn!(limit, wanted, "too few file descriptors for `pool.max_clients`: raise LimitNOFILE");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the limit of file descriptors"),
    }
}

/// The error and its causes, each said once: many of ours already quote their cause.
fn in_one_line(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |line, cause| match line.contains(&cause) {
        true => line,
        false if line.is_empty() => cause,
        false => format!("{line}: {cause}"),
    })
}

/// A panic in a session ends that session: its task is gone, the thread lives on. Anywhere else
/// it would leave a process that looks alive and does not work.
fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed");
        tracing::error!(thread = name, %panic, "panic");
        if !name.starts_with("session-") {
            std::process::abort();
        }
    }));
}
