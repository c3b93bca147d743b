//! The process: listeners, session threads, background work, stopping.
//!
//! pingora supplies the frame: one runtime per service, hand-over of listeners to a new binary
//! (SIGQUIT), the order of the end. Sessions run on threads of their own, each with a
//! single-threaded runtime; an accepted socket is handed to the thread with the fewest clients before
//! a byte is read, so that it is registered with that thread's reactor. ZooKeeper, polling and
//! HTTP have another runtime and never wait for sessions.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

use arc_swap::ArcSwap;
use manatee_shared::ids::ShardName;

use crate::admin::{self, Console};
use crate::auth::users::Users;
use crate::auth::{Access, Admission, Gatekeeper, Greetings, login, random, verifier};
use crate::cancel::Registry;
use crate::config::Config;
use crate::error::ProxyError;
use crate::pool::{Catalogs, Settings, Worker};
use crate::tls::Certificates;
use crate::topology::{self, Topology, monitor};
use crate::{catalog, driver, metrics};

pub mod background;
pub mod crew;
pub mod listen;
mod reload;
pub mod run;

use crew::{Action, Crew, Order, Target};

/// Accepted sockets that may wait for one thread.
const MAX_WAITING: usize = 1024;
/// Stack of a session thread: PostgreSQL's parser recurses.
const STACK_BYTES: usize = 16 * 1024 * 1024;
/// How long opening a server connection may take within a session.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// What all threads share. Nothing in it is written on the hot path.
pub struct Shared {
    /// The configuration, as last read.
    pub config: Arc<ArcSwap<Config>>,
    /// The shard.
    pub topology: Topology,
    /// Logins.
    pub gate: Gatekeeper,
    /// Functions of each database.
    pub catalogs: Arc<dyn Catalogs>,
    /// What consoles share.
    pub console: Arc<Console>,
    /// Cancelled when nobody new is let in any more.
    pub closed: CancellationToken,
    /// Cancelled when the proxy stops, `closed` before it: idle clients are sent away.
    pub drain: CancellationToken,
    /// Connections, logins included.
    connections: AtomicUsize,
}

impl Shared {
    /// Connections, logins included.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Begins the end: nobody new is let in, idle clients are sent away.
    pub fn stop(&self) {
        self.closed.cancel();
        self.drain.cancel();
    }
}

/// A proxy put together, not yet running.
pub struct Proxy {
    /// For the session threads.
    pub shared: Arc<Shared>,
    /// For the background runtime.
    pub background: background::Background,
}

impl Proxy {
    /// Puts the parts together.
    ///
    /// # Errors
    /// When there is no randomness to be had.
    pub fn new(
        config: Config,
        own: monitor::Settings,
        certificates: Certificates,
        users: Users,
    ) -> Result<Self, ProxyError> {
        let (publisher, topology, suspicions) = topology::channel();
        let cancels = Registry::new();
        let max_age = config.auth.verifier_max_age;
        let (verifiers, questions) = verifier::Verifiers::new(topology.clone(), max_age);
        let (catalogs, wanted) = catalog::Loader::new();
        let greetings = Greetings::new(topology.clone(), max_age);
        let config = Arc::new(ArcSwap::from_pointee(config));
        let console = Arc::<Console>::default();
        let gate =
            Gatekeeper::new(config.clone(), verifiers, greetings, cancels, certificates, users, console.clone())?;
        let shared = Arc::new(Shared {
            config,
            topology,
            gate,
            catalogs: Arc::new(catalogs),
            console,
            closed: CancellationToken::new(),
            drain: CancellationToken::new(),
            connections: AtomicUsize::new(0),
        });
        let background = background::Background::new(shared.clone(), own, publisher, suspicions, questions, wanted);
        Ok(Self { shared, background })
    }
}

/// An accepted connection on its way to a thread.
struct Arrival {
    socket: std::net::TcpStream,
    address: SocketAddr,
    access: Access,
    room: bool,
    place: Place,
}

/// A connection's place in the counts, given back when dropped.
struct Place {
    shared: Arc<Shared>,
    thread: Arc<AtomicUsize>,
}

impl Place {
    fn take(shared: &Arc<Shared>, thread: &Arc<AtomicUsize>) -> Self {
        shared.connections.fetch_add(1, Ordering::Relaxed);
        thread.fetch_add(1, Ordering::Relaxed);
        metrics::clients().increment(1.0);
        Self { shared: shared.clone(), thread: thread.clone() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
        self.thread.fetch_sub(1, Ordering::Relaxed);
        metrics::clients().decrement(1.0);
    }
}

/// The session threads. Each ends when this is dropped and its sessions with it.
#[derive(Clone)]
pub struct Workers {
    threads: Arc<[(mpsc::Sender<Arrival>, Arc<AtomicUsize>)]>,
}

impl Workers {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the operating system gives none.
    pub fn start(shared: &Arc<Shared>) -> anyhow::Result<Self> {
        let count = shared.config.load().worker_count();
        let mut members = Vec::with_capacity(count);
        let mut threads = Vec::with_capacity(count);
        for index in 0..count {
            let (sender, arrivals) = mpsc::channel(MAX_WAITING);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (member, orders) = Crew::channel();
            members.push(member);
            let seed = u64::from_ne_bytes(random()?);
            let shared = shared.clone();
            std::thread::Builder::new()
                .name(format!("session-{index}"))
                .stack_size(STACK_BYTES)
                .spawn(move || LocalSet::new().block_on(&runtime, work(shared, arrivals, orders, seed)))?;
            threads.push((sender, Arc::new(AtomicUsize::new(0))));
        }
        shared.console.set_crew(Crew::new(members));
        Ok(Self { threads: threads.into() })
    }

    /// Hands a connection to the thread with the fewest.
    fn hand_over(&self, shared: &Arc<Shared>, socket: std::net::TcpStream, address: SocketAddr, access: Access) {
        let Some((sender, count)) = self.threads.iter().min_by_key(|(_, count)| count.load(Ordering::Relaxed)) else {
            return;
        };
        let room = shared.connections() < shared.config.load().pool.max_clients;
        let arrival = Arrival { socket, address, access, room, place: Place::take(shared, count) };
        if sender.try_send(arrival).is_err() {
            tracing::warn!(%address, "connection dropped: too many are waiting to log in");
        }
    }
}

/// The life of a session thread.
async fn work(
    shared: Arc<Shared>,
    mut arrivals: mpsc::Receiver<Arrival>,
    mut orders: mpsc::Receiver<Order>,
    seed: u64,
) {
    let settings = settings(&shared.config.load());
    let worker = Worker::new(settings, shared.topology.clone(), shared.catalogs.clone(), seed);
    let maintenance = tokio::task::spawn_local(worker.clone().maintain());
    tokio::task::spawn_local(async move {
        if maintenance.await.is_err_and(|error| error.is_panic()) {
            tracing::error!("the maintenance of a session thread failed: aborting");
            std::process::abort();
        }
    });
    let shard = shared.config.load().shard.name.clone();
    loop {
        // Both are cancel-safe: what is not received stays queued.
        tokio::select! {
            arrival = arrivals.recv() => match arrival {
                Some(arrival) => drop(tokio::task::spawn_local(receive(arrival, shared.clone(), worker.clone()))),
                None => return,
            },
            Some(order) = orders.recv() => obey(order, &shard, &worker),
        }
    }
}

/// Takes one connection from its first byte to its end.
async fn receive(arrival: Arrival, shared: Arc<Shared>, worker: Rc<Worker>) {
    let Arrival { socket, address, access, room, place } = arrival;
    let socket = match TcpStream::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => return tracing::warn!(%error, "cannot use an accepted connection"),
    };
    match login(socket, address, access, room, &shared.gate, &shared.drain).await {
        Ok(Admission::Session(stream, client)) => {
            metrics::count_connection("session");
            driver::run(stream, client, worker).await;
        }
        Ok(Admission::Console(stream, rights)) => {
            metrics::count_connection("console");
            drop(place);
            if let Some(_open) = admin::open(&shared) {
                admin::session::serve(stream, rights, shared).await;
            }
            return;
        }
        Ok(Admission::Done) => metrics::count_connection("done"),
        Err(error) => {
            metrics::count_connection("refused");
            metrics::count_error(&error);
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::info!(%address, %error, cause, sqlstate = %error.sqlstate(), "login refused");
        }
    }
    drop(place);
}

/// Carries out what the thread is told.
fn obey(order: Order, shard: &ShardName, worker: &Worker) {
    // Whoever asked may not wait any more.
    match order {
        Order::Report { all, reply } => {
            let _ = reply.send(vec![(shard.clone(), worker.report(all, Instant::now()))]);
        }
        Order::Do(action, reply) => {
            let _ = reply.send(act(action, shard, worker));
        }
    }
}

fn act(action: Action, shard: &ShardName, worker: &Worker) -> usize {
    let meant = |target: &Target| target.shard.as_ref().is_none_or(|wanted| wanted == shard);
    match action {
        Action::Pause(target) if meant(&target) => worker.pause(&target.scope),
        Action::Resume(target) if meant(&target) => return usize::from(worker.resume(&target.scope)),
        Action::Release(target) if meant(&target) => return worker.close_idle_and_count_used(&target.scope),
        Action::CountUsed(target, age) if meant(&target) => return worker.count_used(&target.scope, age),
        Action::Reconnect(target) if meant(&target) => worker.reconnect(&target.scope),
        Action::Kill(target) if meant(&target) => worker.kill(&target.scope),
        Action::KillClient(id) => return usize::from(worker.kill_client(id)),
        Action::Reconfigure(settings) => worker.reconfigure(settings),
        // Another shard's.
        _ => {}
    }
    0
}

/// The part of the configuration for one thread.
pub(crate) fn settings(config: &Config) -> Settings {
    Settings {
        mode: config.pool.mode,
        size: (config.pool.size / config.worker_count()).max(1),
        query_wait_timeout: config.pool.query_wait_timeout,
        server_idle_timeout: config.pool.server_idle_timeout,
        server_lifetime: config.pool.server_lifetime,
        connect_timeout: CONNECT_LIMIT,
        split: config.routing.split,
        consistency: config.routing.consistency,
        hold_timeout: config.hold.timeout,
        hold_max_clients: config.hold.max_clients,
        hold_max_bytes: usize::try_from(config.hold.max_bytes.bytes()).unwrap_or(usize::MAX),
    }
}

/// Accepts until the proxy stops.
pub async fn accept(listener: TcpListener, access: Access, shared: Arc<Shared>, workers: Workers) {
    /// While there are no file descriptors to be had.
    const PAUSE: Duration = Duration::from_millis(50);
    // `accept` is cancel-safe: a connection not taken stays in the backlog.
    while let Some(accepted) = shared.closed.run_until_cancelled(listener.accept()).await {
        match accepted.and_then(|(socket, address)| Ok((socket.into_std()?, address))) {
            Ok((socket, address)) => workers.hand_over(&shared, socket, address, access),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
