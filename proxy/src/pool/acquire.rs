//! Acquisition of a server for a unit: chooses the node, takes or opens a connection, waits in
//! turn, and holds the session while no node will do.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Grant, Place, Server, Worker};
use crate::auth::Identity;
use crate::error::ProxyError;
use crate::session::{Mark, Need, ServedBy, Shared};
use crate::topology::consistency::{Consistency, Requirement};
use crate::topology::{Node, Snapshot};
use crate::upstream;

/// A node that refused is asked again after this, if the topology does not change before.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// A server's process ends a moment after its connection is closed: only then another one finds room.
const ROOM_AFTER: Duration = Duration::from_millis(20);
/// Attempts at making room for one session, before it waits as for a node that is not ready: others may be quicker.
const ROOM_ATTEMPTS: usize = 16;

/// Hold of a session that was held in vain just before: pools that try again, or clean up after themselves,
/// would wait for the whole time once more before anybody hears of it.
const HOLD_AGAIN: Duration = Duration::from_secs(1);

/// Longest waits of a session that is stuck on the primary for positions taken for it, altogether
/// and between two questions.
const CATCH_UP_LIMIT: Duration = Duration::from_millis(30);
const CATCH_UP_PAUSE: Duration = Duration::from_millis(5);

/// Demand of a session for a server.
pub struct Wanted<'a> {
    /// Identity of the connection.
    pub identity: &'a Arc<Identity>,
    /// Classifier, statements and settings of the database.
    pub shared: &'a Rc<RefCell<Shared>>,
    /// Primary or standby.
    pub need: Need,
    /// Position that a standby must have replayed.
    pub requirement: &'a mut Requirement,
    /// Strictness of the session.
    pub consistency: Consistency,
    /// Number by which reads are spread.
    pub seed: usize,
    /// Mark by which servers know the session.
    pub mark: &'a Mark,
    /// Bytes of the client that wait with it.
    pub bytes: usize,
    /// It has waited in vain just before: it is not to wait for as long again.
    pub waited_in_vain: bool,
}

/// Counts a held session while it exists.
struct Held<'a> {
    worker: &'a Worker,
    bytes: usize,
    since: Instant,
}

impl<'a> Held<'a> {
    fn new(worker: &'a Worker, bytes: usize) -> Result<Self, ProxyError> {
        let (settings, totals) = (worker.settings(), worker.held_totals());
        // Counted first, so that threads that look at the same moment cannot exceed the limit together; dropped, and
        // so not counted, where it is refused.
        let clients = totals.clients.fetch_add(1, Ordering::Relaxed) + 1;
        let all_bytes = totals.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        worker.held_clients.set(worker.held_clients.get() + 1);
        worker.metrics.held.increment(1.0);
        let held = Self { worker, bytes, since: Instant::now() };
        if clients > settings.hold_max_clients {
            return Err(ProxyError::HoldFull("the queue of waiting clients is full (hold.max_clients)"));
        }
        if all_bytes > settings.hold_max_bytes {
            return Err(ProxyError::HoldFull("the buffer for waiting clients is full (hold.max_bytes)"));
        }
        Ok(held)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.worker.held_clients.set(self.worker.held_clients.get() - 1);
        let totals = self.worker.held_totals();
        totals.clients.fetch_sub(1, Ordering::Relaxed);
        totals.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.worker.metrics.held.decrement(1.0);
        self.worker.metrics.hold_seconds.record(self.since.elapsed().as_secs_f64());
    }
}

/// Reason why a node cannot be used just now.
enum Refusal {
    /// Another try, or another node, may do.
    Later(ProxyError),
    /// The client has to know.
    Final(ProxyError),
}

impl Worker {
    /// A server without waiting, if there is one: the usual case.
    pub(crate) fn try_acquire(&self, wanted: &mut Wanted<'_>, now: Instant) -> Option<Box<Server>> {
        if self.is_paused(&wanted.identity.database) {
            return None;
        }
        let (node, served_by) = choose(wanted, self.newest.borrow_mut().load(), &[])?;
        match (wanted.need, served_by) {
            (Need::Primary, _) => wanted.requirement.note_write(),
            (Need::Standby, _) if wanted.consistency == Consistency::Strong => {}
            (_, served_by) => wanted.requirement.note_read(served_by == ServedBy::Standby, now),
        }
        if wanted.requirement.is_stuck(now) {
            return None;
        }
        let pool = self.pool(wanted.identity, node);
        match pool.try_take(wanted.mark, self.settings().server_lifetime, now)? {
            Grant::Server(server) => {
                server.served_by.set(served_by);
                Some(server)
            }
            Grant::Unclean(server) => {
                pool.put(server, now);
                None
            }
            Grant::Place(place) => {
                drop(place);
                None
            }
        }
    }

    /// A server, waiting for it as long as the configuration allows. May be dropped at any time:
    /// places and turns are given back.
    pub(crate) async fn acquire(&self, mut wanted: Wanted<'_>) -> Result<Box<Server>, ProxyError> {
        self.wait_for_resume(&wanted).await?;
        let began = Instant::now();
        let mut held: Option<Held<'_>> = None;
        let mut refused: Vec<Node> = Vec::new();
        let mut last_refusal = None;
        if wanted.requirement.is_stuck(began) {
            self.catch_up(&mut wanted, began).await;
        }
        loop {
            let snapshot = self.snapshot();
            if let Some((node, served_by)) = choose(&mut wanted, &snapshot, &refused) {
                match self.open_at(&wanted, node, served_by).await {
                    Ok(server) => return Ok(server),
                    Err(Refusal::Final(error)) => return Err(error),
                    Err(Refusal::Later(error)) => {
                        tracing::debug!(node = %node.id, %error, "node does not take connections now");
                        last_refusal = Some(error);
                        refused.push(node);
                        continue;
                    }
                }
            }
            if held.is_none() {
                held = Some(Held::new(self, wanted.bytes)?);
            }
            // A primary comes back; a shard may well go on without any standby.
            let no_standby = wanted.need == Need::StandbyOnly && snapshot.fit_standbys().next().is_none();
            let limit = match no_standby {
                true => self.settings().hold_standby_timeout,
                false => self.settings().hold_timeout,
            };
            let limit = if wanted.waited_in_vain { limit.min(HOLD_AGAIN) } else { limit };
            let left = limit.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Err(match last_refusal {
                    // Which says more than that there was none.
                    Some(error @ ProxyError::Server { .. }) => error,
                    _ if no_standby => ProxyError::NoStandby(limit),
                    _ => ProxyError::HoldTimeout(limit),
                });
            }
            // After the wait every node gets another chance.
            let pause = if refused.is_empty() { left } else { left.min(RETRY_AFTER) };
            refused.clear();
            // Cancel-safe: only the moment is waited for, the snapshot is read afterwards.
            let _ = tokio::time::timeout(pause, self.changed.notified()).await;
        }
    }

    /// Waits while an administrator keeps the database's transactions back.
    async fn wait_for_resume(&self, wanted: &Wanted<'_>) -> Result<(), ProxyError> {
        let limit = self.settings().query_wait_timeout;
        let deadline = tokio::time::Instant::now() + limit;
        while self.is_paused(&wanted.identity.database) {
            // Cancel-safe: only the moment is waited for.
            if tokio::time::timeout_at(deadline, self.changed.notified()).await.is_err() {
                return Err(ProxyError::PoolTimeout(limit));
            }
        }
        Ok(())
    }

    /// Has the primary and the standbys asked for their positions until one of the standbys will do,
    /// for a short while.
    async fn catch_up(&self, wanted: &mut Wanted<'_>, began: Instant) {
        wanted.requirement.note_try(began);
        while began.elapsed() < CATCH_UP_LIMIT {
            let snapshot = self.snapshot();
            if wanted.requirement.choose(&snapshot, wanted.consistency, wanted.seed).is_some() {
                return;
            }
            let standbys = snapshot.fit_standbys().map(|standby| standby.node);
            let asked = snapshot.primary().into_iter().chain(standbys).map(|node| self.suspect(node)).count();
            if asked < 2 {
                return;
            }
            // Cancel-safe: only the moment is waited for.
            let _ = tokio::time::timeout(CATCH_UP_PAUSE, self.changed.notified()).await;
        }
    }

    async fn open_at(&self, wanted: &Wanted<'_>, node: Node, served_by: ServedBy) -> Result<Box<Server>, Refusal> {
        let pool = self.pool(wanted.identity, node);
        let deadline = tokio::time::Instant::now() + self.settings().query_wait_timeout;
        let mut waiting = None;
        let mut room_attempts = 0;
        loop {
            let at_once = match waiting {
                None => pool.try_take(wanted.mark, self.settings().server_lifetime, Instant::now()),
                Some(_) => None,
            };
            let granted = match at_once {
                Some(granted) => granted,
                None => {
                    let turn = waiting.get_or_insert_with(|| pool.wait());
                    // Dropping a turn passes on what was granted in the meantime.
                    tokio::select! {
                        granted = tokio::time::timeout_at(deadline, turn.granted()) => match granted {
                            Ok(Some(granted)) => granted,
                            Ok(None) => return Err(Refusal::Final(ProxyError::Internal("pool closed".to_owned()))),
                            Err(_) => {
                                return Err(Refusal::Final(ProxyError::PoolTimeout(self.settings().query_wait_timeout)));
                            }
                        },
                        () = pool.lockout_ends() => {
                            pool.offer_places();
                            continue;
                        }
                        () = self.changed.notified() => {
                            if self.is_still(node, served_by) {
                                continue;
                            }
                            return Err(Refusal::Later(ProxyError::HoldTimeout(Duration::ZERO)));
                        }
                    }
                }
            };
            return match granted {
                Grant::Server(server) => {
                    server.served_by.set(served_by);
                    Ok(server)
                }
                Grant::Unclean(mut server) => {
                    // Dropping it half-way closes the server.
                    if let Err(error) = server.clean(wanted.shared).await {
                        tracing::debug!(%error, node = %node.id, "server closed instead of cleaned");
                        continue;
                    }
                    server.served_by.set(served_by);
                    Ok(server)
                }
                Grant::Place(place) => match self.open(wanted, node, served_by, place).await {
                    Err(Refusal::Final(error)) if error.is_wrong_secret() && pool.lock_out(Instant::now()) => {
                        tracing::info!(%error, "server rejected the role's credential; waiting for an existing connection");
                        waiting = None;
                        continue;
                    }
                    Err(Refusal::Later(error))
                        if room_attempts < ROOM_ATTEMPTS && self.make_room_at(node, wanted.identity, &error).await =>
                    {
                        tracing::debug!(%error, "idle servers make room at a full node");
                        room_attempts += 1;
                        waiting = None;
                        // Cancel-safe: nothing is held meanwhile.
                        tokio::time::sleep(ROOM_AFTER).await;
                        continue;
                    }
                    opened => opened,
                },
            };
        }
    }

    async fn open(
        &self,
        wanted: &Wanted<'_>,
        node: Node,
        served_by: ServedBy,
        place: Place,
    ) -> Result<Box<Server>, Refusal> {
        let connect = upstream::connect(&self.servers, node, wanted.identity, &[], self.settings().connect_timeout);
        tokio::pin!(connect);
        let opened = loop {
            // Dropping the attempt closes its socket.
            tokio::select! {
                opened = &mut connect => break opened,
                () = self.changed.notified() => {
                    if !self.is_still(node, served_by) {
                        return Err(Refusal::Later(ProxyError::HoldTimeout(Duration::ZERO)));
                    }
                }
            }
        };
        let upstream = match opened {
            Ok(upstream) => {
                self.metrics.opens_ok.increment(1);
                upstream
            }
            Err(error) => {
                self.metrics.opens_failed.increment(1);
                if !error.is_server_unready() {
                    // A standby may not have replayed yet that the database, the role or its
                    // password was created: the primary has the last word.
                    let appeal = served_by == ServedBy::Standby && wanted.need != Need::StandbyOnly;
                    return Err(if appeal { Refusal::Later(error) } else { Refusal::Final(error) });
                }
                self.suspect(node);
                return Err(Refusal::Later(error));
            }
        };
        if served_by == ServedBy::Primary && upstream.in_hot_standby() == Some(true) {
            return Err(Refusal::Later(ProxyError::ServerProtocol {
                target: node.id.to_string(),
                problem: "the primary says that it is a standby".to_owned(),
            }));
        }
        let server = Server::new(upstream, place, &wanted.shared.borrow(), Instant::now());
        server.served_by.set(served_by);
        Ok(Box::new(server))
    }

    /// Whether the node is still what it was chosen for.
    fn is_still(&self, node: Node, served_by: ServedBy) -> bool {
        let snapshot = self.snapshot();
        match served_by {
            ServedBy::Primary => snapshot.primary() == Some(node),
            ServedBy::Standby => snapshot.standby(node.id).is_some(),
        }
    }
}

/// The node to ask, if any will do.
fn choose(wanted: &mut Wanted<'_>, snapshot: &Snapshot, refused: &[Node]) -> Option<(Node, ServedBy)> {
    let primary = |wanted: &mut Wanted<'_>| {
        let node = snapshot.primary().filter(|node| !refused.contains(node))?;
        let shows_enough = wanted.consistency == Consistency::Eventual || wanted.requirement.allows_primary(snapshot);
        shows_enough.then_some((node, ServedBy::Primary))
    };
    if wanted.need == Need::Primary {
        return primary(wanted);
    }
    let consistency = match (wanted.need, wanted.consistency) {
        // A read-only address has no primary to fall back on.
        (Need::StandbyOnly, Consistency::Strong) => Consistency::Session,
        (_, consistency) => consistency,
    };
    if let Some(standby) = wanted.requirement.choose(snapshot, consistency, wanted.seed) {
        if !refused.contains(&standby.node) {
            return Some((standby.node, ServedBy::Standby));
        }
        let any = consistency == Consistency::Eventual;
        let other = snapshot
            .fit_standbys()
            .find(|other| !refused.contains(&other.node) && (any || wanted.requirement.allows(other, snapshot)));
        if let Some(other) = other {
            return Some((other.node, ServedBy::Standby));
        }
    }
    if wanted.need == Need::StandbyOnly { None } else { primary(wanted) }
}
