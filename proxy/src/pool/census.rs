//! Census of the clients of one thread and of what was counted for them: for the console and the metrics.
//!
//! Written on the hot path with plain cells; read only when somebody asks ([`Worker::report`]).

use std::cell::Cell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::control::Scope;
use super::{Mode, Recall, Server, Worker};
use crate::auth::{Client, Identity};
use crate::cancel::CancelTarget;
use crate::route::Effects;
use crate::session::ServedBy;
use crate::session::bound::CAUSES;
use crate::topology::Node;

/// Upper bounds of the buckets of query times, in microseconds.
pub const BUCKETS_US: [u64; 14] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000];

/// Counts of one role's clients on one database. Times in microseconds.
#[derive(Debug, Default)]
pub struct Tally {
    /// Times a client was given a server.
    pub assignments: Cell<u64>,
    /// Transactions, single statements included.
    pub transactions: Cell<u64>,
    /// Requests: each Query, and each series of extended messages up to its Sync.
    pub queries: Cell<u64>,
    /// Bytes from clients.
    pub received: Cell<u64>,
    /// Bytes from servers.
    pub sent: Cell<u64>,
    /// Time that clients had servers.
    pub transaction_us: Cell<u64>,
    /// Time that requests were under way at servers.
    pub query_us: Cell<u64>,
    /// Time that clients waited for a server.
    pub wait_us: Cell<u64>,
    /// Logins.
    pub logins: Cell<u64>,
}

/// A [`Tally`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "as in Tally")]
pub struct Counts {
    pub assignments: u64,
    pub transactions: u64,
    pub queries: u64,
    pub received: u64,
    pub sent: u64,
    pub transaction_us: u64,
    pub query_us: u64,
    pub wait_us: u64,
    pub logins: u64,
}

impl Counts {
    /// Applies `f` to each count and its like in `other`.
    pub fn with(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            assignments: f(self.assignments, other.assignments),
            transactions: f(self.transactions, other.transactions),
            queries: f(self.queries, other.queries),
            received: f(self.received, other.received),
            sent: f(self.sent, other.sent),
            transaction_us: f(self.transaction_us, other.transaction_us),
            query_us: f(self.query_us, other.query_us),
            wait_us: f(self.wait_us, other.wait_us),
            logins: f(self.logins, other.logins),
        }
    }

    /// Growth since `before`; 0 for counts that began anew meanwhile.
    pub fn since(self, before: Self) -> Self {
        self.with(before, u64::saturating_sub)
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        *self = self.with(other, u64::wrapping_add);
    }
}

/// Adds to a counter.
pub(crate) fn add(cell: &Cell<u64>, amount: u64) {
    cell.set(cell.get().wrapping_add(amount));
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Durations of requests, by kind of server.
#[derive(Debug, Default)]
pub struct Timings {
    primary: Buckets,
    standby: Buckets,
}

/// A histogram in plain cells.
#[derive(Debug, Default)]
struct Buckets {
    counts: [Cell<u64>; BUCKETS_US.len() + 1],
    sum_us: Cell<u64>,
}

/// A histogram as it is at one moment; the last count is of what is above all bounds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Histogram {
    /// Per bucket, not accumulated.
    pub counts: [u64; BUCKETS_US.len() + 1],
    /// Of all samples.
    pub sum_us: u64,
}

impl Histogram {
    /// Adds another thread's.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts) {
            *mine += theirs;
        }
        self.sum_us += other.sum_us;
    }
}

impl Buckets {
    fn record(&self, us: u64) {
        let index = BUCKETS_US.partition_point(|bound| *bound < us);
        if let Some(count) = self.counts.get(index) {
            add(count, 1);
        }
        add(&self.sum_us, us);
    }

    fn read(&self) -> Histogram {
        let mut counts = [0; BUCKETS_US.len() + 1];
        for (count, cell) in counts.iter_mut().zip(&self.counts) {
            *count = cell.get();
        }
        Histogram { counts, sum_us: self.sum_us.get() }
    }
}

/// Activity of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Nothing that needs a server.
    Idle,
    /// It waits for a server.
    Waiting(Instant),
    /// It has a server.
    Served {
        /// Process id of the server.
        server: u32,
    },
}

/// Facts about a client that do not change while it is connected.
#[derive(Clone, Debug)]
pub struct ClientFacts {
    /// Role and database.
    pub identity: Arc<Identity>,
    /// Address of the client.
    pub address: SocketAddr,
    /// Address of the listener.
    pub local: Option<SocketAddr>,
    /// Version of TLS, if any.
    pub tls: Option<&'static str>,
    /// As it named itself when it connected.
    pub application: Box<str>,
    /// The process id it was told.
    pub id: u32,
    /// Moment of its connection.
    pub connected: SystemTime,
}

/// A client of this thread.
#[derive(Debug)]
pub struct Present {
    /// Facts about it.
    pub facts: ClientFacts,
    /// Handle by which its connection is ended.
    pub end: Recall,
    /// Counters of its role and database.
    pub tally: Rc<Tally>,
    activity: Cell<Activity>,
    /// Effects that bind it to the server it has.
    bound: Cell<Effects>,
}

impl Present {
    /// Effects that bind it to its server.
    pub(crate) fn bound_by(&self) -> Effects {
        self.bound.get()
    }

    /// Says by what it is bound to its server. Whether that has changed.
    pub(crate) fn is_bound_by(&self, causes: Effects) -> bool {
        self.bound.replace(causes) != causes
    }

    /// Says what it does now.
    pub(crate) fn is_now(&self, activity: Activity) {
        self.activity.set(activity);
    }
}

/// A client's place in the list; given back when dropped.
pub(crate) struct Seat {
    /// Of the thread.
    pub(crate) worker: Rc<Worker>,
    number: usize,
    /// The client.
    pub(crate) present: Rc<Present>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.worker.present.borrow_mut().try_remove(self.number);
    }
}

/// A server that a session has.
#[derive(Debug)]
pub(super) struct InUse {
    pub(super) node: Node,
    pub(super) served_by: ServedBy,
    pub(super) recall: Rc<Recall>,
    cancel: Arc<CancelTarget>,
    opened: Instant,
    client: Rc<Present>,
}

impl InUse {
    /// Whether it serves a client that `scope` includes.
    pub(super) fn is_of(&self, scope: &Scope) -> bool {
        scope.includes(&self.client.facts.identity.database)
    }

    /// Time since it was opened.
    pub(super) fn age(&self) -> Duration {
        self.opened.elapsed()
    }
}

/// Connections of one role to one database, on one thread: for the console.
#[derive(Clone, Debug)]
pub struct PoolReport {
    /// Role.
    pub user: Arc<str>,
    /// Database.
    pub database: Arc<str>,
    /// Clients that have a server or nothing to do.
    pub clients_active: usize,
    /// Clients that wait for a server.
    pub clients_waiting: usize,
    /// Longest wait of these.
    pub longest_wait: Duration,
    /// Clients that are bound to the server they have.
    pub clients_bound: usize,
    /// The same by each of [`CAUSES`]; some are bound by several.
    pub bound_by: [usize; CAUSES.len()],
    /// Server connections in use with a cancel request under way to them.
    pub canceled_in_use: usize,
    /// The same of those that wait to be used.
    pub canceled_idle: usize,
    /// The counters.
    pub counted: Counts,
    /// Per node.
    pub nodes: Vec<NodeReport>,
}

/// One role's connections to one database of one node.
#[derive(Clone, Debug)]
pub struct NodeReport {
    /// Its node.
    pub node: Node,
    /// Connections at most.
    pub size: usize,
    /// That a client has.
    pub in_use: usize,
    /// That wait to be used.
    pub idle: usize,
    /// That are being opened, cleaned or closed.
    pub opening: usize,
}

/// A client, as the console shows it.
#[derive(Clone, Debug)]
pub struct ClientReport {
    /// Facts about it.
    pub facts: ClientFacts,
    /// Time it has waited for a server, if it does.
    pub waited: Option<Duration>,
    /// Process id of the server it has.
    pub server: Option<u32>,
}

/// A server connection, as the console shows it.
#[derive(Clone, Debug)]
pub struct ServerReport {
    /// Role.
    pub user: Arc<str>,
    /// Database.
    pub database: Arc<str>,
    /// Its node.
    pub node: Node,
    /// Process id of the server.
    pub pid: u32,
    /// Its age.
    pub age: Duration,
    /// Process id of the client that has it.
    pub client: Option<u32>,
    /// Whether a cancel is under way to it.
    pub being_cancelled: bool,
}

/// All of one thread.
#[derive(Clone, Debug)]
pub struct Report {
    /// Mode of the pools.
    pub mode: Mode,
    /// By role and database.
    pub pools: Vec<PoolReport>,
    /// Counters of databases that do not exist any more.
    pub departed: Counts,
    /// Clients; empty unless asked for.
    pub clients: Vec<ClientReport>,
    /// Server connections; empty unless asked for.
    pub servers: Vec<ServerReport>,
    /// Clients that wait because no node will do.
    pub held: usize,
    /// Durations of requests on the primary.
    pub on_primary: Histogram,
    /// The same on standbys.
    pub on_standby: Histogram,
}

impl Worker {
    /// The proxy stops: clients are sent away as soon as they are idle.
    pub fn stop(&self) {
        self.stopping.set(true);
        for (_, client) in self.present.borrow().iter() {
            client.end.wake();
        }
    }

    /// Whether that has happened. Who polls [`Present::end`] is woken when it does.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// Enters a client that has logged in.
    pub(crate) fn seat(self: &Rc<Self>, client: &Client) -> Seat {
        let identity = client.identity.clone();
        let key = (identity.user.clone(), identity.database.clone());
        let tally = self.tallies.borrow_mut().entry(key).or_default().clone();
        add(&tally.logins, 1);
        let application = client.startup.iter().find(|(name, _)| name.eq_ignore_ascii_case("application_name"));
        let present = Rc::new(Present {
            facts: ClientFacts {
                identity,
                address: client.address,
                local: client.local,
                tls: client.tls,
                application: application.map(|(_, value)| value.as_str().into()).unwrap_or_default(),
                id: client.cancel.pid,
                connected: SystemTime::now(),
            },
            end: Recall::default(),
            tally,
            activity: Cell::new(Activity::Idle),
            bound: Cell::new(Effects::NONE),
        });
        let number = self.present.borrow_mut().insert(present.clone());
        Seat { worker: self.clone(), number, present }
    }

    /// Enters a server that a client has from now on; its number.
    pub(crate) fn note_use(&self, server: &Server, client: &Rc<Present>) -> usize {
        client.is_now(Activity::Served { server: server.cancel.pid });
        add(&client.tally.assignments, 1);
        self.in_use.borrow_mut().insert(InUse {
            node: server.node,
            served_by: server.served_by.get(),
            recall: server.recall.clone(),
            cancel: server.cancel.clone(),
            opened: server.opened(),
            client: client.clone(),
        })
    }

    /// The client has it no more.
    pub(crate) fn forget_use(&self, number: usize) {
        if let Some(used) = self.in_use.borrow_mut().try_remove(number) {
            used.client.is_now(Activity::Idle);
        }
    }

    /// Counts a request that was answered.
    pub(crate) fn note_query(&self, client: &Present, served_by: ServedBy, took: Duration) {
        let us = micros(took);
        add(&client.tally.queries, 1);
        add(&client.tally.query_us, us);
        match served_by {
            ServedBy::Primary => self.timings.primary.record(us),
            ServedBy::Standby => self.timings.standby.record(us),
        }
    }

    /// Report of what there is, now. `all`: with every client and server.
    pub fn report(&self, all: bool, now: Instant) -> Report {
        Report {
            mode: self.settings().mode,
            pools: self.report_pools(now),
            departed: self.departed.read(),
            clients: if all { self.report_clients(now) } else { Vec::new() },
            servers: if all { self.report_servers(now) } else { Vec::new() },
            held: self.held_clients.get(),
            on_primary: self.timings.primary.read(),
            on_standby: self.timings.standby.read(),
        }
    }

    fn report_pools(&self, now: Instant) -> Vec<PoolReport> {
        let mut reports: Vec<PoolReport> = self
            .tallies
            .borrow()
            .iter()
            .map(|((user, database), tally)| PoolReport {
                user: user.clone(),
                database: database.clone(),
                clients_active: 0,
                clients_waiting: 0,
                longest_wait: Duration::ZERO,
                clients_bound: 0,
                bound_by: [0; CAUSES.len()],
                canceled_in_use: 0,
                canceled_idle: 0,
                counted: tally.read(),
                nodes: Vec::new(),
            })
            .collect();
        reports.sort_by(|a, b| (&a.database, &a.user).cmp(&(&b.database, &b.user)));
        let places: HashMap<(Arc<str>, Arc<str>), usize> = reports
            .iter()
            .enumerate()
            .map(|(index, report)| ((report.user.clone(), report.database.clone()), index))
            .collect();
        let find = |identity: &Identity| places.get(&(identity.user.clone(), identity.database.clone())).copied();
        let mut clients: Vec<(usize, Option<Duration>, Effects)> = Vec::new();
        for (_, client) in self.present.borrow().iter() {
            if let Some(index) = find(&client.facts.identity) {
                clients.push((index, client.waited(now), client.bound.get()));
            }
        }
        let mut nodes: Vec<(usize, NodeReport)> = Vec::new();
        let mut used: HashMap<(usize, Node), usize> = HashMap::new();
        for (_, server) in self.in_use.borrow().iter() {
            if let Some(index) = find(&server.client.facts.identity) {
                *used.entry((index, server.node)).or_default() += 1;
                if let Some(report) = reports.get_mut(index).filter(|_| server.cancel.is_cancel_in_flight()) {
                    report.canceled_in_use += 1;
                }
            }
        }
        for ((identity, node), pool) in self.pools.borrow().iter() {
            let Some(index) = find(identity) else { continue };
            if let Some(report) = reports.get_mut(index) {
                pool.each_idle(|server| report.canceled_idle += usize::from(server.cancel.is_cancel_in_flight()));
            }
            let (idle, open, _) = pool.counts();
            let in_use = used.get(&(index, *node)).copied().unwrap_or(0);
            let opening = open.saturating_sub(idle + in_use);
            nodes.push((index, NodeReport { node: *node, size: pool.size(), in_use, idle, opening }));
        }
        for (index, waited, bound) in clients {
            let Some(report) = reports.get_mut(index) else { continue };
            report.clients_bound += usize::from(!bound.is_empty());
            for (count, (cause, _)) in report.bound_by.iter_mut().zip(CAUSES) {
                *count += usize::from(bound.intersects(cause));
            }
            match waited {
                Some(waited) => {
                    report.clients_waiting += 1;
                    report.longest_wait = report.longest_wait.max(waited);
                }
                None => report.clients_active += 1,
            }
        }
        for (index, node) in nodes {
            if let Some(report) = reports.get_mut(index) {
                report.nodes.push(node);
            }
        }
        reports
    }

    fn report_clients(&self, now: Instant) -> Vec<ClientReport> {
        let describe = |client: &Present| ClientReport {
            facts: client.facts.clone(),
            waited: client.waited(now),
            server: match client.activity.get() {
                Activity::Served { server } => Some(server),
                Activity::Idle | Activity::Waiting(_) => None,
            },
        };
        self.present.borrow().iter().map(|(_, client)| describe(client)).collect()
    }

    fn report_servers(&self, now: Instant) -> Vec<ServerReport> {
        let in_use = self.in_use.borrow();
        let used = in_use.iter().map(|(_, used)| ServerReport {
            user: used.client.facts.identity.user.clone(),
            database: used.client.facts.identity.database.clone(),
            node: used.node,
            pid: used.cancel.pid,
            age: now.saturating_duration_since(used.opened),
            client: Some(used.client.facts.id),
            being_cancelled: used.cancel.is_cancel_in_flight(),
        });
        let mut servers: Vec<ServerReport> = used.collect();
        for ((identity, node), pool) in self.pools.borrow().iter() {
            pool.each_idle(|server| {
                servers.push(ServerReport {
                    user: identity.user.clone(),
                    database: identity.database.clone(),
                    node: *node,
                    pid: server.cancel.pid,
                    age: now.saturating_duration_since(server.opened()),
                    client: None,
                    being_cancelled: server.cancel.is_cancel_in_flight(),
                });
            });
        }
        servers
    }
}

impl Present {
    fn waited(&self, now: Instant) -> Option<Duration> {
        match self.activity.get() {
            Activity::Waiting(since) => Some(now.saturating_duration_since(since)),
            Activity::Idle | Activity::Served { .. } => None,
        }
    }
}

impl Tally {
    /// Adds another one's numbers.
    pub(super) fn add(&self, other: &Self) {
        let other = other.read();
        add(&self.assignments, other.assignments);
        add(&self.transactions, other.transactions);
        add(&self.queries, other.queries);
        add(&self.received, other.received);
        add(&self.sent, other.sent);
        add(&self.transaction_us, other.transaction_us);
        add(&self.query_us, other.query_us);
        add(&self.wait_us, other.wait_us);
        add(&self.logins, other.logins);
    }

    fn read(&self) -> Counts {
        Counts {
            assignments: self.assignments.get(),
            transactions: self.transactions.get(),
            queries: self.queries.get(),
            received: self.received.get(),
            sent: self.sent.get(),
            transaction_us: self.transaction_us.get(),
            query_us: self.query_us.get(),
            wait_us: self.wait_us.get(),
            logins: self.logins.get(),
        }
    }
}
