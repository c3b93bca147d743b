//! State that the sessions of one thread share: server connections by node and identity, the classifiers,
//! the newest topology. Everything here belongs to one thread: `Rc` and `RefCell`, no locks.

use std::cell::{Cell, OnceCell, RefCell, RefMut};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use slab::Slab;
use tokio::sync::Notify;

use crate::auth::Identity;
use crate::metrics::SessionMetrics;
use crate::room::Threads;
use crate::route::{Catalog, Classifier};
use crate::session::{ServedBy, Shared};
use crate::tls::servers::Servers;
use crate::topology::consistency::Consistency;
use crate::topology::{Node, Reader, Reign, Snapshot, Topology};
use crate::upstream::Upstream;

mod acquire;
pub mod census;
pub mod control;
mod quota;
mod room;
mod server;

pub use acquire::Wanted;
pub use manatee_proxy_core::terms::Mode;
pub use quota::{Limits, Quota};
pub use server::{Grant, Lease, NodePool, Place, Recall, Server, Waiting, clean_and_put, give_back};

/// The part of the configuration that sessions need, for one thread.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `pool.mode`
    pub mode: Mode,
    /// Server connections per identity and node on this thread: its share of `pool.size`.
    pub size: usize,
    /// `pool.unbound_percent`
    pub unbound_percent: usize,
    /// `pool.max_servers_…`, divided alike.
    pub limits: Limits,
    /// `pool.query_wait_timeout`
    pub query_wait_timeout: Duration,
    /// `pool.server_idle_timeout`
    pub server_idle_timeout: Duration,
    /// `pool.server_lifetime`
    pub server_lifetime: Duration,
    /// Longest time for opening one server connection.
    pub connect_timeout: Duration,
    /// `routing.split`: send reads to standbys.
    pub split: bool,
    /// `routing.consistency`
    pub consistency: Consistency,
    /// `hold.timeout`
    pub hold_timeout: Duration,
    /// `hold.standby_timeout`
    pub hold_standby_timeout: Duration,
    /// `hold.max_clients`, of the whole process.
    pub hold_max_clients: usize,
    /// `hold.max_bytes`, of the whole process.
    pub hold_max_bytes: usize,
}

/// Source of knowledge about a database's functions. Shared by all threads.
pub trait Catalogs: Send + Sync {
    /// The place where the catalog of this database is, or will be once it has been read.
    fn of(&self, database: &str) -> Arc<ArcSwapOption<Catalog>>;

    /// Whether the database is known not to exist any more.
    fn is_gone(&self, database: &str) -> bool {
        let _ = database;
        false
    }
}

/// Totals of the clients that wait for a server of their shard, in the whole process.
#[derive(Debug, Default)]
pub struct HeldTotals {
    clients: AtomicUsize,
    bytes: AtomicUsize,
}

/// State that the sessions of one thread share.
pub struct Worker {
    settings: RefCell<Rc<Settings>>,
    /// Counters.
    pub metrics: SessionMetrics,
    topology: Topology,
    servers: Arc<Servers>,
    newest: RefCell<Reader>,
    /// Told after every change of the topology.
    changed: Notify,
    catalogs: Arc<dyn Catalogs>,
    seed: u64,
    sessions: Cell<usize>,
    stopping: Cell<bool>,
    pools: RefCell<Pools>,
    quotas: quota::Quotas,
    databases: RefCell<HashMap<Arc<str>, Rc<RefCell<Shared>>>>,
    /// Servers that sessions have, to be recalled when the topology changes.
    in_use: RefCell<Slab<census::InUse>>,
    /// Clients.
    present: RefCell<Slab<Rc<census::Present>>>,
    tallies: RefCell<Tallies>,
    /// Counts on databases that do not exist any more.
    departed: census::Tally,
    timings: census::Timings,
    paused: RefCell<control::Paused>,
    is_any_paused: Cell<bool>,
    held_clients: Cell<usize>,
    held_totals: OnceCell<Arc<HeldTotals>>,
    /// None before [`Worker::join`]: this is the only thread.
    threads: OnceCell<Arc<dyn Threads>>,
    /// Last time that the other threads were asked to make room at a node that is full.
    asked_for_room: Cell<Option<Instant>>,
    /// The reign whose primary was used last.
    used_reign: Cell<Option<Reign>>,
}

/// Counts, by role and database.
type Tallies = HashMap<(Arc<str>, Arc<str>), Rc<census::Tally>>;

/// Pools, by identity and node.
type Pools = HashMap<(Arc<Identity>, Node), Rc<NodePool>, foldhash::fast::RandomState>;

/// Classes of texts remembered per database and thread.
const CLASSIFIER_CAPACITY: usize = 8192;

/// Time for which a node may be missing among those that answer before reads under way on it are given
/// up: one lost poll is not the end of it.
const MISSING_LIMIT: Duration = Duration::from_secs(1);

/// Interval of looking through idle servers.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

impl Worker {
    /// For one shard's sessions on one thread. `seed` is random; it keys hashes and spreads reads.
    pub fn new(
        shard: &str,
        settings: Settings,
        topology: Topology,
        servers: Arc<Servers>,
        catalogs: Arc<dyn Catalogs>,
        seed: u64,
    ) -> Rc<Self> {
        let newest = RefCell::new(topology.reader());
        Rc::new(Self {
            settings: RefCell::new(Rc::new(settings)),
            topology,
            servers,
            newest,
            metrics: SessionMetrics::new(shard),
            changed: Notify::new(),
            catalogs,
            seed,
            sessions: Cell::new(0),
            stopping: Cell::new(false),
            pools: RefCell::default(),
            quotas: quota::Quotas::default(),
            databases: RefCell::default(),
            in_use: RefCell::default(),
            present: RefCell::default(),
            tallies: RefCell::default(),
            departed: census::Tally::default(),
            timings: census::Timings::default(),
            paused: RefCell::default(),
            is_any_paused: Cell::new(false),
            held_clients: Cell::new(0),
            held_totals: OnceCell::new(),
            threads: OnceCell::new(),
            asked_for_room: Cell::new(None),
            used_reign: Cell::new(None),
        })
    }

    /// Says which threads there are besides, and with whom the limits of held clients are shared. Once.
    pub fn join(&self, threads: Arc<dyn Threads>, held: Arc<HeldTotals>) {
        let _ = (self.threads.set(threads), self.held_totals.set(held));
    }

    fn held_totals(&self) -> &HeldTotals {
        self.held_totals.get_or_init(Arc::default)
    }

    /// Follows the topology, closes what is idle too long or obsolete. To be spawned once per
    /// worker on its thread's runtime; never ends by itself and may be dropped at any time.
    pub async fn maintain(self: Rc<Self>) {
        let mut snapshots = self.topology.changes();
        let mut missing: HashMap<Node, Instant> = HashMap::new();
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // Both branches are cancel-safe: nothing is taken before one is chosen.
            tokio::select! {
                changed = snapshots.changed() => {
                    if changed.is_err() {
                        // Nobody feeds it any more; the last one stays.
                        std::future::pending::<()>().await;
                    }
                    snapshots.mark_unchanged();
                    self.changed.notify_waiters();
                }
                _ = sweep.tick() => self.sweep(Instant::now()),
            }
            self.recall_obsolete(&mut missing, Instant::now());
        }
    }

    /// The newest topology, to look at between two waits.
    pub(crate) fn newest(&self) -> RefMut<'_, Reader> {
        self.newest.borrow_mut()
    }

    /// The newest topology, to keep.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.newest.borrow_mut().load().clone()
    }

    /// Something was done on the primary: the first time after a takeover is what clients wait for.
    pub(crate) fn note_primary_use(&self, snapshot: &Snapshot, now: Instant) {
        self.metrics.on_primary.increment(1);
        if snapshot.reign == self.used_reign.get() {
            return;
        }
        self.used_reign.set(snapshot.reign);
        if let (Some(reign), Some(lost_at)) = (snapshot.reign, snapshot.taken_over_from)
            && self.topology.is_first_use(reign)
        {
            let waited = now.saturating_duration_since(lost_at);
            self.metrics.first_write_seconds.record(waited.as_secs_f64());
            tracing::info!(
                generation = snapshot.generation,
                waited_ms = waited.as_millis(),
                "first use of the new primary"
            );
        }
    }

    /// A connection to this node failed: it is asked how it is.
    pub(crate) fn suspect(&self, node: Node) {
        self.topology.suspect(node.id);
    }

    /// State that the sessions on this database share.
    pub fn shared(&self, database: &Arc<str>) -> Rc<RefCell<Shared>> {
        if let Some(known) = self.databases.borrow().get(database) {
            return known.clone();
        }
        let classifier = Classifier::new(self.seed, CLASSIFIER_CAPACITY, self.catalogs.of(database));
        let shared = Rc::new(RefCell::new(Shared::new(classifier)));
        self.databases.borrow_mut().insert(database.clone(), shared.clone());
        shared
    }

    /// A number for a new session, by which its reads are spread.
    pub(crate) fn session_seed(&self) -> usize {
        let number = self.sessions.get();
        self.sessions.set(number.wrapping_add(1));
        // Threads begin at different standbys.
        number.wrapping_add(usize::try_from(self.seed & 0xFFFF).unwrap_or(0))
    }

    /// The pool of an identity at a node.
    pub(crate) fn pool(&self, identity: &Arc<Identity>, node: Node) -> Rc<NodePool> {
        let key = (identity.clone(), node);
        if let Some(pool) = self.pools.borrow().get(&key) {
            return pool.clone();
        }
        let settings = self.settings();
        let pool = NodePool::new(settings.size, self.quotas.of(identity, node, settings.limits));
        pool.keep_unbound(settings.unbound_percent);
        self.pools.borrow_mut().insert(key, pool.clone());
        self.renew_outdated(identity, &pool, Instant::now());
        pool
    }

    /// A server has the defaults of its role and database (ALTER ROLE … SET) as they were when it was opened: sees
    /// to it that those opened before a change are not used again.
    fn renew_outdated(&self, identity: &Identity, pool: &NodePool, now: Instant) {
        let Some(shared) = self.databases.borrow().get(&identity.database).cloned() else { return };
        let Ok(mut shared) = shared.try_borrow_mut() else { return };
        if let Some(catalog) = shared.classifier.catalog() {
            pool.note_defaults(catalog.defaults_of(&identity.user), now);
        }
    }

    /// Puts a connection that the login opened into the pool, if there is room.
    pub(crate) fn adopt(&self, identity: &Arc<Identity>, upstream: Upstream, shared: &Rc<RefCell<Shared>>) {
        let pool = self.pool(identity, upstream.node);
        let Some(place) = pool.try_place() else { return };
        let now = Instant::now();
        let mut server = Box::new(Server::new(upstream, place, &shared.borrow(), now));
        if let Some(state) = server.state.take() {
            give_back(server, state, shared, now);
        }
    }

    /// Idle servers, open servers and waiting sessions, over all pools.
    pub fn counts(&self) -> (usize, usize, usize) {
        self.pools
            .borrow()
            .values()
            .map(|pool| pool.counts())
            .fold((0, 0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1, sum.2 + one.2))
    }

    /// A session of this identity is over: what it left on servers is cleaned away.
    pub(crate) fn clean_after(&self, identity: &Arc<Identity>, shared: &Rc<RefCell<Shared>>) {
        let pools = self.pools.borrow();
        let orphans: Vec<_> = pools
            .iter()
            .filter(|((owner, _), _)| owner == identity)
            .flat_map(|(_, pool)| pool.take_orphans())
            .collect();
        drop(pools);
        for server in orphans {
            clean_and_put(server, shared);
        }
    }

    fn sweep(&self, now: Instant) {
        let Settings { server_idle_timeout, server_lifetime, .. } = *self.settings();
        for ((identity, _), pool) in self.pools.borrow().iter() {
            pool.close_idle(|_, idle, age| idle > server_idle_timeout || age > server_lifetime, now);
            self.renew_outdated(identity, pool, now);
        }
        // A pool that is held by nobody else has nothing open: open places hold it.
        self.pools.borrow_mut().retain(|_, pool| Rc::strong_count(pool) > 1);
        self.quotas.sweep();
        self.forget_dropped_databases();
    }

    /// Forgets databases that were dropped once no client is on them: one that is made again under the name begins
    /// anew.
    fn forget_dropped_databases(&self) {
        let is_gone = |database: &str| self.catalogs.is_gone(database);
        let mut databases = self.databases.borrow_mut();
        let gone: Vec<Arc<str>> = databases
            .iter()
            .filter(|(name, shared)| Rc::strong_count(shared) == 1 && is_gone(name))
            .map(|(name, _)| name.clone())
            .collect();
        for database in gone {
            databases.remove(&database);
            for pool in self.pools_of(&database) {
                pool.close_idle(|_, _, _| true, Instant::now());
            }
            self.tallies.borrow_mut().retain(|(_, of), tally| {
                let goes = *of == database && Rc::strong_count(tally) == 1;
                if goes {
                    self.departed.add(tally);
                }
                !goes
            });
        }
    }

    fn pools_of(&self, database: &str) -> Vec<Rc<NodePool>> {
        let pools = self.pools.borrow();
        pools
            .iter()
            .filter(|((identity, _), _)| *identity.database == *database)
            .map(|(_, pool)| pool.clone())
            .collect()
    }

    /// Gives up connections to nodes that are no longer what they were taken for. A host that lost
    /// power says nothing: without this, clients would wait for TCP's timeouts.
    fn recall_obsolete(&self, missing: &mut HashMap<Node, Instant>, now: Instant) {
        let snapshot = self.snapshot();
        let reigns = |node: Node| snapshot.reign.is_some_and(|reign| reign.primary == node.id);
        let answers = |node: Node| snapshot.standby(node.id).is_some() || reigns(node);
        missing.retain(|node, _| !answers(*node));
        for used in self.in_use.borrow().iter().map(|(_, used)| used) {
            let obsolete = match used.served_by {
                ServedBy::Primary => snapshot.reign.is_some() && !reigns(used.node),
                ServedBy::Standby => {
                    !answers(used.node) && now.duration_since(*missing.entry(used.node).or_insert(now)) >= MISSING_LIMIT
                }
            };
            if obsolete {
                used.recall.recall();
            }
        }
        let pools = self.pools.borrow();
        for (_, pool) in pools.iter().filter(|((_, node), _)| snapshot.reign.is_some() && !answers(*node)) {
            pool.close_idle(|_, _, _| true, now);
        }
    }
}
