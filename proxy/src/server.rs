//! The process: listeners, session threads, background work, stopping.
//!
//! pingora supplies the frame: one runtime per service, hand-over of listeners to a new binary
//! (SIGQUIT), the order of the end. Sessions run on threads of their own, each with a
//! single-threaded runtime; an accepted socket is handed to the thread with the fewest clients before
//! a byte is read, so that it is registered with that thread's reactor. ZooKeeper, polling and
//! HTTP have another runtime and never wait for sessions.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::{LocalOptions, LocalRuntime};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use arc_swap::ArcSwap;
use manatee_shared::ids::ShardName;

use crate::admin::{self, console::Console};
use crate::auth::{Admission, Client, Gatekeeper, ListenerRole, Opened, Policy, Progress, login, random};
use crate::cancel::Registry;
use crate::cancel::fleet::Fleet;
use crate::config::Config;
use crate::context::ProxyContext;
use crate::error::ProxyError;
use crate::pool::Worker;
use crate::session_threads::{SessionTarget, SessionThreads, ThreadAction, ThreadCommand};
use crate::shards::{self, Background, Shard, Shards};
use crate::tls::{Certificates, ClientStream};
use crate::topology::monitor;
use crate::{driver, metrics, relay};

pub mod background;
pub mod listen;
mod login_queue;
mod neighbours;
mod reload;
pub mod run;
mod shard_discovery;
mod share;
mod successor;

use listen::{Accepted, Incoming};
use login_queue::{LoginQueue, LoginSlotGuard};
use share::settings;

/// Accepted sockets that may wait for one thread.
const MAX_WAITING: usize = 1024;
/// Stack of a session thread: PostgreSQL's parser recurses.
const STACK_BYTES: usize = 16 * 1024 * 1024;
/// Longest time for opening a server connection within a session.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// A proxy put together, not yet running.
pub struct Proxy {
    /// For the session threads.
    pub shared: Arc<ProxyContext>,
    /// The default shard's, for the background runtime.
    pub background: Background,
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
        policy: Policy,
        upgrade_socket: Option<PathBuf>,
    ) -> Result<Self, ProxyError> {
        let (servers, own_role) = (own.servers.clone(), own.own.clone());
        let (first, background) = shards::prepare(own, config.auth.verifier_max_age);
        let shards = Arc::new(Shards::new(first));
        let fleet = Fleet { number: config.fleet.number, peers: config.fleet.peers(), upgrade_socket };
        let cancels = Registry::of_fleet(fleet);
        let config = Arc::new(ArcSwap::from_pointee(config));
        let console = Arc::<Console>::default();
        let gate = Gatekeeper::new(config.clone(), shards.clone(), cancels, certificates, policy, console.clone())?;
        let shared = Arc::new(ProxyContext {
            config,
            shards,
            gate,
            servers,
            own: own_role,
            console,
            closed: CancellationToken::new(),
            drain: CancellationToken::new(),
            handed_over: CancellationToken::new(),
            held: Arc::default(),
            answers: TaskTracker::new(),
            connections: AtomicUsize::new(0),
        });
        Ok(Self { shared, background })
    }
}

/// An accepted connection on its way to a thread.
struct Arrival {
    socket: Accepted,
    address: SocketAddr,
    entrance: ListenerRole,
    place: Place,
}

/// A connection's place in the counts, given back when dropped.
struct Place {
    shared: Arc<ProxyContext>,
    thread: Arc<AtomicUsize>,
}

impl Place {
    fn take(shared: &Arc<ProxyContext>, thread: &Arc<AtomicUsize>) -> Self {
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
    pub fn start(shared: &Arc<ProxyContext>) -> anyhow::Result<Self> {
        let count = shared.config.load().worker_count();
        let mut members = Vec::with_capacity(count);
        let mut threads = Vec::with_capacity(count);
        for index in 0..count {
            let (sender, arrivals) = mpsc::channel(MAX_WAITING);
            let (member, orders) = SessionThreads::channel();
            members.push(member);
            let seed = u64::from_ne_bytes(random()?);
            let shared = shared.clone();
            // It cannot leave the thread that it was made on.
            let (built, is_built) = std::sync::mpsc::sync_channel(1);
            std::thread::Builder::new().name(format!("session-{index}")).stack_size(STACK_BYTES).spawn(move || {
                // Nobody waits any more if the receiver is gone.
                match runtime() {
                    Ok(runtime) => {
                        let _ = built.send(Ok(()));
                        runtime.block_on(work(index, shared, arrivals, orders, seed));
                    }
                    Err(error) => drop(built.send(Err(error))),
                }
            })?;
            is_built.recv()??;
            threads.push((sender, Arc::new(AtomicUsize::new(0))));
        }
        shared.console.set_threads(SessionThreads::new(members));
        Ok(Self { threads: threads.into() })
    }

    /// Hands a connection to the thread with the fewest, or to another if that one is behind. Waits if
    /// all are: what is not accepted stays in the backlog, and nobody is turned away.
    async fn hand_over(
        &self,
        shared: &Arc<ProxyContext>,
        socket: Accepted,
        address: SocketAddr,
        entrance: ListenerRole,
    ) {
        let mut threads: Vec<_> = self.threads.iter().collect();
        threads.sort_by_key(|(_, count)| count.load(Ordering::Relaxed));
        let with_room = threads.iter().find(|(sender, _)| sender.capacity() > 0);
        let Some((sender, count)) = with_room.or_else(|| threads.first()) else { return };
        let arrival = Arrival { socket, address, entrance, place: Place::take(shared, count) };
        if sender.send(arrival).await.is_err() {
            tracing::warn!(%address, "connection dropped: a session thread is gone");
        }
    }
}

/// Runtime of a session thread. Not a `LocalSet`: that is a scheduler within a scheduler, and each
/// event goes through both.
fn runtime() -> std::io::Result<LocalRuntime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default())
}

/// A session thread: for each shard that its clients use, pools of its own.
struct Thread {
    /// Number of the thread, from 0.
    index: usize,
    shared: Arc<ProxyContext>,
    workers: RefCell<BTreeMap<ShardName, Rc<Worker>>>,
    pending: Rc<LoginQueue>,
    seed: u64,
}

impl Thread {
    /// Worker of this thread for a shard.
    fn worker(&self, shard: &Shard) -> Rc<Worker> {
        if let Some(worker) = self.workers.borrow().get(&shard.name) {
            return worker.clone();
        }
        let worker = Worker::new(
            shard.name.as_str(),
            settings(&self.shared.config.load(), self.index),
            shard.topology.clone(),
            self.shared.servers.clone(),
            shard.catalogs.clone(),
            self.seed,
        );
        let threads = neighbours::ThreadsOf { console: self.shared.console.clone(), shard: shard.name.clone() };
        let threads = Arc::new(threads);
        shard.parameters.join(threads.clone());
        worker.join(threads, self.shared.held.clone());
        let maintenance = tokio::task::spawn_local(worker.clone().maintain());
        tokio::task::spawn_local(async move {
            if maintenance.await.is_err_and(|error| error.is_panic()) {
                tracing::error!("the maintenance of a session thread failed: aborting");
                std::process::abort();
            }
        });
        let (stopped, drain) = (worker.clone(), self.shared.drain.clone());
        tokio::task::spawn_local(async move {
            drain.cancelled().await;
            stopped.stop();
        });
        self.workers.borrow_mut().insert(shard.name.clone(), worker.clone());
        worker
    }
}

/// The life of a session thread.
async fn work(
    index: usize,
    shared: Arc<ProxyContext>,
    mut arrivals: mpsc::Receiver<Arrival>,
    mut orders: mpsc::Receiver<ThreadCommand>,
    seed: u64,
) {
    let thread = Rc::new(Thread { index, shared, workers: RefCell::default(), pending: Rc::default(), seed });
    // So that whoever looks sees the default shard, with or without clients.
    let default = thread.shared.config.load().shard.name.clone();
    if let Some(shard) = thread.shared.shards.get(&default) {
        thread.worker(&shard);
    }
    let mut waiting = None;
    loop {
        let most = {
            let config = thread.shared.config.load();
            config.auth.max_logins.div_ceil(config.worker_count())
        };
        // All are cancel-safe: what is not received stays queued, and room that was made stays.
        tokio::select! {
            arrival = arrivals.recv(), if waiting.is_none() => match arrival {
                Some(arrival) => waiting = Some(arrival),
                None => return,
            },
            () = thread.pending.wait_for_slot(most), if waiting.is_some() => {
                if let Some(arrival) = waiting.take() {
                    let ticket = thread.pending.enter(Instant::now());
                    tokio::task::spawn_local(receive(arrival, ticket, thread.clone()));
                }
            }
            Some(order) = orders.recv() => handle_command(order, index, &thread.workers.borrow()),
        }
    }
}

/// Takes one connection from its first byte to its end; a session goes on by itself, for a login takes
/// more memory than an idle client should have.
async fn receive(arrival: Arrival, ticket: LoginSlotGuard, thread: Rc<Thread>) {
    let Arrival { socket, address, entrance, place } = arrival;
    let socket = match socket {
        Accepted::Tcp(socket) => TcpStream::from_std(socket).map(ClientStream::Plain),
        Accepted::Unix(socket) => UnixStream::from_std(socket).map(ClientStream::Unix),
    };
    let socket = match socket {
        Ok(socket) => socket,
        Err(error) => return tracing::warn!(%error, "cannot use an accepted connection"),
    };
    let shared = thread.shared.clone();
    let outcome = {
        ticket.set_silent(true);
        let progress = |progress| match progress {
            Progress::Spoke => ticket.set_silent(false),
            Progress::Judged => ticket.release(),
        };
        // Dropping a login closes its connection; nothing outlives it.
        tokio::select! {
            outcome = login(socket, address, entrance, &shared.gate, &progress) => outcome,
            () = ticket.evicted() => return metrics::count_connection("evicted"),
        }
    };
    drop(ticket);
    match outcome {
        Ok(Admission::Session(stream, mut client, entered)) => {
            let worker = thread.worker(&entered.shard);
            match std::mem::take(&mut client.opened) {
                Opened::Relay(upstream) => {
                    metrics::count_connection("replication");
                    relay::run(stream, client, upstream, worker).await;
                    drop(entered);
                }
                opened => {
                    metrics::count_connection("session");
                    let client = Client { opened, ..client };
                    tokio::task::spawn_local(driver::run(stream, client, worker, (entered, place)));
                    return;
                }
            }
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
fn handle_command(order: ThreadCommand, index: usize, workers: &BTreeMap<ShardName, Rc<Worker>>) {
    // Whoever asked may not wait any more.
    match order {
        ThreadCommand::Report { all, reply } => {
            let report =
                |(shard, worker): (&ShardName, &Rc<Worker>)| (shard.clone(), worker.report(all, Instant::now()));
            let _ = reply.send(workers.iter().map(report).collect());
        }
        ThreadCommand::Do(action, reply) => {
            let done = workers.iter().map(|(shard, worker)| apply_action(action.clone(), index, shard, worker));
            let _ = reply.send(done.sum());
        }
    }
}

fn apply_action(action: ThreadAction, index: usize, shard: &ShardName, worker: &Worker) -> usize {
    let meant = |target: &SessionTarget| target.shard.as_ref().is_none_or(|wanted| wanted == shard);
    match action {
        ThreadAction::Pause(target) if meant(&target) => worker.pause(&target.scope),
        ThreadAction::Resume(target) if meant(&target) => return usize::from(worker.resume(&target.scope)),
        ThreadAction::Release(target) if meant(&target) => return worker.close_idle_and_count_used(&target.scope),
        ThreadAction::CountUsed(target, age) if meant(&target) => return worker.count_used(&target.scope, age),
        ThreadAction::Reconnect(target) if meant(&target) => worker.reconnect(&target.scope),
        ThreadAction::Kill(target) if meant(&target) => worker.kill(&target.scope),
        ThreadAction::KillClient(id) => return usize::from(worker.kill_client(id)),
        ThreadAction::MakeRoom(wanted, scarce) if wanted == *shard => return usize::from(worker.close_idlest(&scarce)),
        ThreadAction::Reconfigure(config) => worker.reconfigure(settings(&config, index)),
        // Another shard's.
        _ => {}
    }
    0
}

/// Accepts until the proxy stops.
pub async fn accept(listener: Incoming, entrance: ListenerRole, shared: Arc<ProxyContext>, workers: Workers) {
    /// While there are no file descriptors to be had.
    const PAUSE: Duration = Duration::from_millis(50);
    // `accept` is cancel-safe: a connection not taken stays in the backlog.
    while let Some(accepted) = shared.closed.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((socket, address)) => workers.hand_over(&shared, socket, address, entrance.clone()).await,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
