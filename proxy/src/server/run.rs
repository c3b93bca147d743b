//! pingora's frame around it: services, signals, the end.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use manatee_shared::service;
use manatee_shared::telemetry::PrometheusHandle;
use manatee_shared::topology::TopologyWatcher;
use pingora_core::server::configuration::{Opt, ServerConf};
use pingora_core::server::{ListenFds, RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora_core::services::Service;
use tokio::process::Child;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::background::{reload_on_hangup, serve_http};
use super::listen::{Address, ListenError, Listener};
use super::shard_discovery::discover_shards;
use super::successor::Successor;
use super::{Proxy, Workers, accept};
use crate::admin;
use crate::admin::command::Ending;
use crate::auth::{Access, ListenerRole};
use crate::cancel::fleet::serve_neighbours;
use crate::context::ProxyContext;
use crate::shards::Background;

/// Longest time for transactions after SIGTERM or a hand-over.
pub(crate) const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// Interval of looking whether everybody has left.
const DRAIN_INTERVAL: Duration = Duration::from_millis(20);
/// Longest wait at the end for HTTP answers that are under way at a hand-over.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// Begin of the process.
#[derive(Clone, Debug)]
pub enum Start {
    /// With sockets of its own.
    Fresh,
    /// With the sockets of the process it replaces, over this private Unix socket.
    TakeOver,
}

/// The listeners of a proxy.
pub struct Listeners {
    sessions: Vec<(Listener, ListenerRole)>,
    http: Option<Listener>,
}

impl Listeners {
    /// Binds everything, or prepares to take it over.
    ///
    /// # Errors
    /// [`ListenError`]
    pub fn prepare(listen: &crate::config::Listen, start: &Start) -> Result<Self, ListenError> {
        let prepare = |key, address: Address| match start {
            Start::Fresh => Listener::bind(key, address),
            Start::TakeOver => Ok(Listener::inherit(key, address)),
        };
        let tcp = |key, address| prepare(key, Address::Tcp(address));
        let mut sessions = vec![(tcp("listen.address", listen.address)?, Access::ReadWrite.into())];
        if let Some(address) = listen.read_only {
            sessions.push((tcp("listen.read_only", address)?, Access::ReadOnly.into()));
        }
        if let Some(address) = listen.primary_only {
            sessions.push((tcp("listen.primary_only", address)?, Access::PrimaryOnly.into()));
        }
        if let Some(path) = listen.unix_socket() {
            sessions.push((prepare("listen.unix_directory", Address::Unix(path))?, Access::ReadWrite.into()));
        }
        for listen in &listen.shards {
            let entrance = ListenerRole { access: listen.access, shard: Some(listen.shard.clone()) };
            sessions.push((tcp("listen.shards", listen.address)?, entrance));
        }
        let http = listen.http.map(|address| tcp("listen.http", address)).transpose()?;
        Ok(Self { sessions, http })
    }
}

/// Runs until told to stop by a signal: SIGTERM drains, SIGINT does not wait, SIGQUIT hands the
/// listeners to a successor that waits for them and drains, SIGUSR2 starts that successor first.
///
/// # Errors
/// When threads cannot be started.
pub fn run(
    proxy: Proxy,
    listeners: Listeners,
    start: &Start,
    upgrade_socket: Option<&std::path::Path>,
    metrics: PrometheusHandle,
) -> anyhow::Result<()> {
    let Proxy { shared, background } = proxy;
    let workers = Workers::start(&shared)?;
    // After a hand-over; the sessions' service ends the process before that.
    let grace = shared.config.load().listen.upgrade_drain + 2 * DRAIN_LIMIT;
    let mut conf = ServerConf { grace_period_seconds: Some(grace.as_secs()), ..ServerConf::default() };
    conf.graceful_shutdown_timeout_seconds = Some(1);
    conf.threads = 1;
    if let Some(path) = upgrade_socket {
        conf.upgrade_sock = path.display().to_string();
    }
    let options = Opt { upgrade: matches!(start, Start::TakeOver), ..Opt::default() };
    let mut server = Server::new_with_opt_and_conf(options, conf);
    server.bootstrap();
    let successor = upgrade_socket.map(Successor::of_this_process).transpose()?;
    let ready = match start {
        Start::Fresh => service::ready,
        Start::TakeOver => service::ready_as_successor,
    };
    server.add_service(Sessions { listeners: listeners.sessions, shared: shared.clone(), workers, ready });
    server.add_service(BackgroundService {
        http: listeners.http,
        parts: Mutex::new(Some((background, metrics))),
        shared: shared.clone(),
    });
    server.run(RunArgs { shutdown_signal: Box::new(Signals { shared, successor }) });
    Ok(())
}

/// Ends the process: a service that cannot do its work must not leave a proxy that looks alive.
fn give_up(problem: &dyn std::fmt::Display) -> ! {
    tracing::error!(%problem, "cannot serve");
    eprintln!("manatee-proxy: {problem}");
    std::process::exit(1)
}

/// Accepts clients.
struct Sessions {
    listeners: Vec<(Listener, ListenerRole)>,
    shared: Arc<ProxyContext>,
    workers: Workers,
    /// Tells the service manager that the listeners are open.
    ready: fn(),
}

impl Sessions {
    /// Until there are no clients, or the time is over.
    async fn wait_until_empty(&self, limit: Duration) {
        let begun = Instant::now();
        while self.shared.connections() > 0 && begun.elapsed() < limit {
            tokio::time::sleep(DRAIN_INTERVAL).await;
        }
    }
}

#[async_trait]
impl Service for Sessions {
    async fn start_service(&mut self, fds: Option<ListenFds>, mut shutdown: ShutdownWatch, _per_fd: usize) {
        let mut tasks = Vec::new();
        for (listener, entrance) in &mut self.listeners {
            match listener.open(fds.as_ref()) {
                Ok(socket) => {
                    tracing::info!(address = listener.name(), ?entrance, "listening");
                    tasks.push(tokio::spawn(accept(
                        socket,
                        entrance.clone(),
                        self.shared.clone(),
                        self.workers.clone(),
                    )));
                }
                Err(error) => give_up(&error),
            }
        }
        (self.ready)();
        // A hand-over: the successor accepts from now on. An error means that pingora is gone.
        let _ = shutdown.wait_for(|stop| *stop).await;
        self.shared.closed.cancel();
        self.shared.handed_over.cancel();
        self.shared.answers.close();
        for task in tasks {
            let _ = task.await;
        }
        // Nobody is cut off at once: those who stay are sent away at the end of their time.
        let stay = self.shared.config.load().listen.upgrade_drain;
        tracing::info!(clients = self.shared.connections(), ?stay, "handed over: clients may stay for a while");
        self.wait_until_empty(stay).await;
        self.shared.stop();
        self.wait_until_empty(DRAIN_LIMIT).await;
        // Whoever is still being answered then reads too slowly.
        let _ = tokio::time::timeout(ANSWER_LIMIT, self.shared.answers.wait()).await;
        tracing::info!(clients = self.shared.connections(), "stopped");
        // pingora would sleep through all of its own time.
        std::process::exit(0)
    }

    fn name(&self) -> &str {
        "sessions"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }

    fn listen_addresses(&self) -> Option<Vec<String>> {
        Some(self.listeners.iter().map(|(listener, _)| listener.name()).collect())
    }
}

/// Everything beside the sessions.
struct BackgroundService {
    http: Option<Listener>,
    parts: Mutex<Option<(Background, PrometheusHandle)>>,
    shared: Arc<ProxyContext>,
}

#[async_trait]
impl Service for BackgroundService {
    async fn start_service(&mut self, fds: Option<ListenFds>, mut shutdown: ShutdownWatch, _per_fd: usize) {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((background, metrics)) = parts else { return };
        let config = self.shared.config.load_full();
        let watcher = match TopologyWatcher::spawn(&config.zookeeper, &config.shard.name) {
            Ok(watcher) => watcher,
            Err(error) => give_up(&error),
        };
        let stop = CancellationToken::new();
        tokio::spawn(reload_on_hangup(self.shared.clone()));
        tokio::spawn(admin::sample(self.shared.clone()));
        tokio::spawn(serve_neighbours(self.shared.gate.cancels().clone()));
        if let Some(http) = &mut self.http {
            match http.open_tcp(fds.as_ref()) {
                Ok(listener) => {
                    let stop = self.shared.handed_over.clone();
                    let serve = serve_http(listener, self.shared.clone(), metrics, stop);
                    tokio::spawn(self.shared.answers.track_future(serve));
                }
                Err(error) => give_up(&error),
            }
        }
        let (state, own) = (watcher.topology(), background.settings().clone());
        tokio::spawn(discover_shards(self.shared.clone(), own, watcher, stop.clone()));
        // Sessions that are being drained still need to know who is primary: this goes on to the end.
        tokio::select! {
            () = background.run(state, stop.clone()) => {}
            () = async {
                let _ = shutdown.wait_for(|stop| *stop).await;
                std::future::pending::<()>().await;
            } => {}
        }
    }

    fn name(&self) -> &str {
        "background"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }

    fn listen_addresses(&self) -> Option<Vec<String>> {
        Some(self.http.iter().map(Listener::name).collect())
    }
}

/// End that was asked for. The drain is ours: pingora would sleep through all of it.
struct Signals {
    shared: Arc<ProxyContext>,
    /// Program that SIGUSR2 starts; None without an upgrade socket.
    successor: Option<Successor>,
}

impl Signals {
    /// Waits for a SIGUSR2 whose successor is ready for the listeners. One that cannot be started changes nothing.
    async fn wait_for_successor(&self, signals: &mut Signal) -> Child {
        loop {
            if signals.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
            let Some(successor) = &self.successor else {
                tracing::error!("SIGUSR2: no hand-over without --upgrade-socket; go on serving");
                continue;
            };
            tracing::info!("SIGUSR2: starting a successor");
            match successor.start().await {
                Ok(child) => return child,
                Err(error) => tracing::error!(%error, "no hand-over; go on serving"),
            }
        }
    }
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let listen = |kind| signal(kind).unwrap_or_else(|error| give_up(&error));
        let mut terminate = listen(SignalKind::terminate());
        let mut interrupt = listen(SignalKind::interrupt());
        let mut quit = listen(SignalKind::quit());
        let mut upgrade = listen(SignalKind::user_defined2());
        let mut ending = self.shared.console.ending();
        // Signals are cancel-safe: a pending one is not lost; so is the wait for a value.
        let limit = tokio::select! {
            _ = quit.recv() => return ShutdownSignal::GracefulUpgrade,
            // A successor under way when another signal comes finds nobody who hands over, and ends.
            child = self.wait_for_successor(&mut upgrade) => {
                tracing::info!(pid = child.id(), "handing the listeners over");
                return ShutdownSignal::GracefulUpgrade;
            }
            _ = interrupt.recv() => return ShutdownSignal::FastShutdown,
            _ = terminate.recv() => Some(DRAIN_LIMIT),
            ordered = wait_for_ending(&mut ending) => match ordered {
                // Its own answer gets out first.
                Ending::Immediate => Some(Duration::ZERO),
                Ending::WaitForServers => Some(DRAIN_LIMIT),
                Ending::WaitForClients => None,
            },
        };
        match limit {
            Some(_) => {
                tracing::info!(clients = self.shared.connections(), "stopping: waiting for transactions to end");
                self.shared.stop();
            }
            None => {
                tracing::info!(clients = self.shared.connections(), "stopping: waiting for clients to leave");
                self.shared.closed.cancel();
            }
        }
        let begun = Instant::now();
        loop {
            tokio::select! {
                () = tokio::time::sleep(DRAIN_INTERVAL) => {}
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
            }
            if self.shared.connections() == 0 || limit.is_some_and(|limit| begun.elapsed() >= limit) {
                break;
            }
        }
        self.shared.send_everybody_away().await;
        tracing::info!(clients = self.shared.connections(), "stopped");
        ShutdownSignal::FastShutdown
    }
}

/// Until an administrator says how to end.
async fn wait_for_ending(ending: &mut watch::Receiver<Option<Ending>>) -> Ending {
    loop {
        if let Some(ending) = *ending.borrow_and_update() {
            return ending;
        }
        if ending.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
