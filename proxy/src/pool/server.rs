//! One server connection, and its place in a bounded pool.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::time::Sleep;

use super::quota::Quota;
use crate::cancel::CancelTarget;
use crate::error::ProxyError;
use crate::session::bound::Crowd;
use crate::session::{Cleanup, Mark, ServedBy, ServerState, Shared};
use crate::tls::servers::ServerStream;
use crate::topology::Node;
use crate::upstream::Upstream;
use crate::wire::{backend, complete};

/// Longest time for DISCARD ALL before the server is closed instead.
const CLEAN_LIMIT: Duration = Duration::from_secs(5);

/// Pause in which no connection is opened after a server did not take the secret.
const LOCKED_OUT_FOR: Duration = Duration::from_secs(1);

/// Lets somebody else end the use of a server: the topology, when its node is no longer what it was.
#[derive(Debug, Default)]
pub struct Recall {
    recalled: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Recall {
    /// Ends the use at once.
    pub fn recall(&self) {
        self.recalled.set(true);
        self.wake();
    }

    /// Lets whoever polls look again.
    pub(super) fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Whether that has happened; wakes when it does.
    pub fn poll(&self, cx: &Context<'_>) -> bool {
        if !self.recalled.get() {
            let mut waker = self.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
        }
        self.recalled.get()
    }

    /// Whether that has happened.
    pub fn is_recalled(&self) -> bool {
        self.recalled.get()
    }
}

/// A place in a pool; given back when dropped.
#[derive(Debug)]
pub struct Place {
    pool: Option<Rc<NodePool>>,
    /// A session is bound to the connection here.
    bound: Cell<bool>,
}

impl Place {
    fn of(pool: Option<Rc<NodePool>>) -> Self {
        Self { pool, bound: Cell::new(false) }
    }

    fn set_bound(&self, bound: bool) {
        if let Some(pool) = &self.pool
            && self.bound.replace(bound) != bound
        {
            let count = pool.bound.get();
            pool.bound.set(if bound { count + 1 } else { count - 1 });
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.set_bound(false);
        if let Some(pool) = &self.pool {
            pool.open.set(pool.open.get() - 1);
            pool.quotas.iter().for_each(|quota| quota.give_back());
            pool.offer_places();
        }
    }
}

/// Notes on the use of a server while a session has it.
#[derive(Debug)]
pub struct Lease {
    /// Among the servers in use.
    pub number: usize,
    /// Moment at which the session was given it.
    pub since: Instant,
    /// Moment at which what is outstanding was sent.
    pub asked: Option<Instant>,
    /// Runs while the session keeps it for a moment only.
    pub linger: Option<Pin<Box<Sleep>>>,
    /// The last read brought a buffer full.
    pub long: bool,
}

impl Lease {
    /// From now on.
    pub fn new(number: usize, since: Instant) -> Self {
        Self { number, since, asked: None, linger: None, long: false }
    }
}

/// A server connection.
#[derive(Debug)]
pub struct Server {
    /// Connection.
    pub stream: ServerStream,
    /// Something was written and not flushed (TLS keeps what the socket did not take).
    pub flush: bool,
    /// Received and not yet looked at.
    pub rx: BytesMut,
    /// State for its sessions; away while a session has it.
    pub state: Option<Box<ServerState>>,
    /// For cancel requests.
    pub cancel: Arc<CancelTarget>,
    /// Node that it leads to.
    pub node: Node,
    /// Handle by which its use is ended.
    pub recall: Rc<Recall>,
    /// Kind of server to the session that has it.
    pub served_by: Cell<ServedBy>,
    /// Progress of the session that has it.
    pub lease: Lease,
    opened: Instant,
    idle_since: Instant,
    place: Place,
}

impl Server {
    /// A connection that was just opened, in the place kept for it.
    pub fn new(upstream: Upstream, place: Place, shared: &Shared, now: Instant) -> Self {
        let Upstream { stream, node, cancel, parameters, unread } = upstream;
        Self {
            stream,
            flush: false,
            rx: unread,
            state: Some(ServerState::new(parameters, shared)),
            cancel,
            node,
            recall: Rc::default(),
            served_by: Cell::new(ServedBy::Standby),
            lease: Lease::new(0, now),
            opened: now,
            idle_since: now,
            place,
        }
    }

    /// A connection of one client's own, beside the pools.
    pub fn beside(upstream: Upstream, served_by: ServedBy, now: Instant) -> Self {
        let Upstream { stream, node, cancel, unread, .. } = upstream;
        Self {
            stream,
            flush: false,
            rx: unread,
            state: None,
            cancel,
            node,
            recall: Rc::default(),
            served_by: Cell::new(served_by),
            lease: Lease::new(0, now),
            opened: now,
            idle_since: now,
            place: Place::of(None),
        }
    }

    /// Says whether a session is bound to it beyond a transaction.
    pub(crate) fn set_bound(&self, bound: bool) {
        self.place.set_bound(bound);
    }

    /// Number of other bound sessions, if they are so many that no other session may bind itself to this one.
    pub(crate) fn crowd(&self) -> Option<Crowd> {
        let pool = self.place.pool.as_ref()?;
        let is_free = self.place.bound.get() || pool.bound.get() < pool.most_bound();
        (!is_free).then(|| Crowd { bound: pool.bound.get(), size: pool.size() })
    }

    /// Moment at which it was opened.
    pub(super) fn opened(&self) -> Instant {
        self.opened
    }

    /// Whether nothing speaks against another use: a byte nobody asked for, a closed connection and
    /// a cancel under way all do.
    fn is_fit(&self, lifetime: Duration, now: Instant) -> bool {
        self.stream.is_silent()
            && self.rx.is_empty()
            && !self.recall.is_recalled()
            && !self.cancel.is_cancel_in_flight()
            && now.duration_since(self.opened) < lifetime
    }

    fn is_of(&self, mark: &Mark) -> bool {
        self.state.as_ref().is_some_and(|state| state.is_of(mark))
    }

    fn is_owned(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.is_owned())
    }

    fn is_clean(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.cleanup == Cleanup::None)
    }

    /// DISCARD ALL.
    ///
    /// # Errors
    /// The server did not do it in time: it has to be closed.
    pub async fn clean(&mut self, shared: &RefCell<Shared>) -> Result<(), ProxyError> {
        let failed = |problem: &str| ProxyError::ServerProtocol {
            target: "server".to_owned(),
            problem: format!("DISCARD ALL: {problem}"),
        };
        let mut request = BytesMut::new();
        match &mut self.state {
            Some(state) => state.discard_all(&mut request),
            None => return Err(failed("it belongs to a session")),
        }
        let talk = async {
            self.stream.write_all(&request).await.map_err(|error| failed(&error.to_string()))?;
            self.stream.flush().await.map_err(|error| failed(&error.to_string()))?;
            loop {
                while let Some((header, body)) = complete(&self.rx).map_err(|error| failed(&error.to_string()))? {
                    let (tag, idle) = (header.tag, body == b"I");
                    if tag == backend::PARAMETER_STATUS
                        && let Ok((name, value)) = backend::parameter_status(body)
                        && let Some(state) = &mut self.state
                    {
                        state.set_parameter(&String::from_utf8_lossy(name), &String::from_utf8_lossy(value));
                    }
                    self.rx.advance(header.size);
                    match tag {
                        backend::ERROR_RESPONSE => return Err(failed("refused")),
                        backend::READY_FOR_QUERY if idle => return Ok(()),
                        _ => {}
                    }
                }
                match self.stream.read_buf(&mut self.rx).await {
                    Ok(0) => return Err(failed("connection closed")),
                    Ok(_) => {}
                    Err(error) => return Err(failed(&error.to_string())),
                }
            }
        };
        tokio::time::timeout(CLEAN_LIMIT, talk).await.unwrap_or_else(|_| Err(failed("no answer")))?;
        if let Some(state) = &mut self.state {
            state.discarded(&shared.borrow().profiles);
        }
        Ok(())
    }
}

/// Grant to a waiting session.
#[derive(Debug)]
pub enum Grant {
    /// A server.
    Server(Box<Server>),
    /// A server that another session left something on: it must be cleaned first.
    Unclean(Box<Server>),
    /// The right to open one.
    Place(Place),
}

/// The server connections of one identity to one node.
#[derive(Debug)]
pub struct NodePool {
    size: Cell<usize>,
    /// Connections opened before this are not used again.
    renewed: Cell<Option<Instant>>,
    /// Settings that the role gets at its login, as far as is known.
    defaults: RefCell<Option<Vec<Box<str>>>>,
    /// Idle, in use and being opened.
    open: Cell<usize>,
    /// Of these, how many a session is bound to beyond a transaction.
    bound: Cell<usize>,
    /// Of all there may be, the part in a hundred that no session may be bound to.
    unbound_percent: Cell<usize>,
    /// No connection is opened before this, as long as there is one.
    locked_out_until: Cell<Option<Instant>>,
    // Boxed because they travel: to a session, to the next one in the queue, back.
    #[allow(clippy::vec_box, reason = "the boxes are handed on as they are")]
    idle: RefCell<Vec<Box<Server>>>,
    /// First come, first served; and since when they wait.
    waiting: RefCell<VecDeque<(Instant, oneshot::Sender<Grant>)>>,
    /// Quotas that it shares with other pools.
    quotas: Vec<Rc<Quota>>,
}

impl NodePool {
    /// An empty pool for at most `size` connections, and for no more than the `quotas` allow.
    pub fn new(size: usize, quotas: Vec<Rc<Quota>>) -> Rc<Self> {
        let pool = Rc::new(Self {
            size: Cell::new(size),
            renewed: Cell::new(None),
            defaults: RefCell::new(None),
            open: Cell::new(0),
            bound: Cell::new(0),
            unbound_percent: Cell::new(0),
            locked_out_until: Cell::new(None),
            idle: RefCell::default(),
            waiting: RefCell::default(),
            quotas,
        });
        pool.quotas.iter().for_each(|quota| quota.enter(&pool));
        pool
    }

    /// A server or a place for this session, if there is one and nobody waits for it. Best is the
    /// server that it left something on; the others of that kind are taken last.
    pub fn try_take(self: &Rc<Self>, mark: &Mark, lifetime: Duration, now: Instant) -> Option<Grant> {
        if !self.waiting.borrow().is_empty() {
            return None;
        }
        loop {
            let room = self.has_room();
            // Not `while let`: the borrow must end before an unfit server is dropped.
            let server = take_idle(&mut self.idle.borrow_mut(), mark, room);
            match server {
                Some(server) if !server.is_fit(lifetime, now) || self.is_outdated(&server) => drop(server),
                Some(server) if server.is_clean() || server.is_of(mark) => return Some(Grant::Server(server)),
                Some(server) => return Some(Grant::Unclean(server)),
                None => return self.make_room().then(|| self.try_place()).flatten().map(Grant::Place),
            }
        }
    }

    /// Keeps this part of its connections, in a hundred, for sessions that are not bound to any.
    pub fn keep_unbound(&self, percent: usize) {
        self.unbound_percent.set(percent);
    }

    /// Number of sessions that may be bound to connections. Where there is only one, one.
    fn most_bound(&self) -> usize {
        let size = self.size.get();
        let kept = (size * self.unbound_percent.get()).div_ceil(100);
        (size - kept.min(size)).max(usize::from(size == 1))
    }

    /// Number of connections that there may be: as configured. Where that is only one, and a session is bound to it,
    /// there is one more for everybody else.
    fn most(&self) -> usize {
        let size = self.size.get();
        size + usize::from(size == 1 && self.bound.get() > 0 && self.unbound_percent.get() > 0)
    }

    /// Whether another connection may be opened.
    fn has_room(&self) -> bool {
        self.may_grow() && self.quotas.iter().all(|quota| quota.has_room())
    }

    /// Whether nothing of its own keeps it from opening another connection.
    fn may_grow(&self) -> bool {
        let open = self.open.get();
        let is_locked_out = || self.locked_out_until.get().is_some_and(|until| Instant::now() < until);
        open < self.most() && (open == 0 || !is_locked_out())
    }

    /// A server did not take the secret: the connections that there are have to do for a moment. False if
    /// there is none.
    pub(super) fn lock_out(&self, now: Instant) -> bool {
        self.locked_out_until.set(Some(now + LOCKED_OUT_FOR));
        self.open.get() > 0
    }

    /// The moment from which on another attempt may be made, for those who wait. Never, if there is none.
    pub(super) async fn lockout_ends(&self) {
        match self.locked_out_until.get() {
            Some(until) => {
                tokio::time::sleep_until(until.into()).await;
                self.locked_out_until.set(None);
            }
            None => std::future::pending().await,
        }
    }

    /// Has idle connections of other pools closed until another one may be opened here. False if that
    /// does not help, or if somebody waits for the same already.
    fn make_room(&self) -> bool {
        while !self.has_room() {
            if !self.may_grow() {
                return false;
            }
            let Some(full) = self.quotas.iter().find(|quota| !quota.has_room()) else { return false };
            let pools = full.pools();
            let under_it = std::slice::from_ref(full);
            if pools.iter().any(|pool| pool.waits_since().is_some() && pool.is_held_up_only_by(under_it)) {
                return false;
            }
            let idlest =
                pools.iter().filter_map(|pool| Some((pool.idle_longest()?, pool))).min_by_key(|(since, _)| *since);
            let Some((_, pool)) = idlest else { return false };
            pool.close_idlest();
        }
        true
    }

    /// Closes the connection that has been idle for longest. Whether there was one.
    pub(super) fn close_idlest(&self) -> bool {
        let mut idle = self.idle.borrow_mut();
        let closed = (!idle.is_empty()).then(|| idle.remove(0));
        // Dropped outside of the borrow: its place goes to whoever waits, in any pool.
        drop(idle);
        closed.is_some()
    }

    /// Whether nothing but some of these limits keeps it from opening another connection.
    fn is_held_up_only_by(&self, quotas: &[Rc<Quota>]) -> bool {
        let among = |quota: &Rc<Quota>| quotas.iter().any(|one| Rc::ptr_eq(one, quota));
        self.may_grow() && self.quotas.iter().all(|quota| quota.has_room() || among(quota))
    }

    /// Since when the connection that comes first in the list is idle: the one unused longest.
    pub(super) fn idle_longest(&self) -> Option<Instant> {
        self.idle.borrow().first().map(|server| server.idle_since)
    }

    /// Since when the first in the queue waits.
    fn waits_since(&self) -> Option<Instant> {
        let mut waiting = self.waiting.borrow_mut();
        while waiting.front().is_some_and(|(_, waiter)| waiter.is_closed()) {
            waiting.pop_front();
        }
        waiting.front().map(|(since, _)| *since)
    }

    /// Whether somebody has waited longer in another pool, and could be served if one connection less
    /// were open here.
    fn is_needed_elsewhere(&self) -> bool {
        let full = || self.quotas.iter().filter(|quota| !quota.has_room());
        if full().next().is_none() {
            return false;
        }
        let own = self.waits_since();
        let would_do = |other: &Rc<Self>| {
            !std::ptr::eq(Rc::as_ptr(other), self)
                && other.waits_since().is_some_and(|since| own.is_none_or(|own| since < own))
                && other.is_held_up_only_by(&self.quotas)
        };
        full().any(|quota| quota.pools().iter().any(would_do))
    }

    /// Takes out what sessions that are gone left something on.
    pub fn take_orphans(&self) -> Vec<Box<Server>> {
        let mut idle = self.idle.borrow_mut();
        if idle.iter().all(|server| server.is_clean() || server.is_owned()) {
            return Vec::new();
        }
        let (orphans, kept) =
            std::mem::take(&mut *idle).into_iter().partition(|server| !server.is_clean() && !server.is_owned());
        *idle = kept;
        orphans
    }

    /// Waits for a server or a place, in turn.
    pub fn wait(self: &Rc<Self>) -> Waiting {
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().push_back((Instant::now(), sender));
        Waiting { pool: self.clone(), receiver }
    }

    /// A place, if one is free.
    pub fn try_place(self: &Rc<Self>) -> Option<Place> {
        self.has_room().then(|| {
            self.open.set(self.open.get() + 1);
            self.quotas.iter().for_each(|quota| quota.take());
            Place::of(Some(self.clone()))
        })
    }

    /// Connections at most.
    pub fn size(&self) -> usize {
        self.size.get()
    }

    /// Another limit from now on. Those above it are closed as they come back and grow old.
    pub fn resize(&self, size: usize) {
        self.size.set(size);
    }

    /// Connections opened up to `now` are not used again.
    pub fn renew(&self, now: Instant) {
        self.renewed.set(Some(now));
        self.close_idle(|_, _, _| true, now);
    }

    /// Notes the settings that the role gets at its login now: connections that were given others are not used again.
    pub(super) fn note_defaults(&self, defaults: Vec<Box<str>>, now: Instant) {
        let before = self.defaults.replace(Some(defaults));
        if before.is_some() && before != *self.defaults.borrow() {
            self.renew(now);
        }
    }

    fn is_outdated(&self, server: &Server) -> bool {
        self.renewed.get().is_some_and(|renewed| server.opened <= renewed)
            || self.open.get() > self.most()
            || self.quotas.iter().any(|quota| quota.is_exceeded())
    }

    /// Looks at every idle connection.
    pub fn each_idle(&self, look: impl FnMut(&Server)) {
        self.idle.borrow().iter().map(AsRef::as_ref).for_each(look);
    }

    /// Takes a server back that needs no cleaning.
    pub(super) fn put(&self, mut server: Box<Server>, now: Instant) {
        // Closing it gives its place to whoever has waited longest.
        if self.is_outdated(&server) || self.is_needed_elsewhere() {
            return;
        }
        server.idle_since = now;
        loop {
            let next = self.waiting.borrow_mut().pop_front();
            let Some((_, waiter)) = next else { break };
            match waiter.send(Grant::Server(server)) {
                Err(Grant::Server(returned)) => server = returned,
                Ok(()) | Err(Grant::Unclean(_) | Grant::Place(_)) => return,
            }
        }
        self.idle.borrow_mut().push(server);
    }

    /// Places that have become free go to those who have waited longest, here and under the same limits.
    pub(super) fn offer_places(self: &Rc<Self>) {
        loop {
            let mut pools: Vec<Rc<Self>> = self.quotas.iter().flat_map(|quota| quota.pools()).collect();
            pools.push(self.clone());
            let oldest = |pool: &Rc<Self>| pool.has_room().then(|| pool.waits_since()).flatten();
            let waits =
                pools.into_iter().filter_map(|pool| Some((oldest(&pool)?, pool))).min_by_key(|(since, _)| *since);
            let Some((_, pool)) = waits else { return };
            let Some(place) = pool.try_place() else { return };
            let next = pool.waiting.borrow_mut().pop_front();
            match next.map(|(_, waiter)| waiter.send(Grant::Place(place))) {
                // Without its Drop, which would come back here.
                Some(Err(Grant::Place(mut place))) => {
                    place.pool = None;
                    pool.open.set(pool.open.get() - 1);
                    pool.quotas.iter().for_each(|quota| quota.give_back());
                }
                Some(Ok(())) => {}
                _ => return,
            }
        }
    }

    /// Closes idle servers for which `unwanted` holds.
    pub fn close_idle(&self, mut unwanted: impl FnMut(&Server, Duration, Duration) -> bool, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        let is_unwanted = |server: &mut Box<Server>| {
            unwanted(server, now.duration_since(server.idle_since), now.duration_since(server.opened))
        };
        let closed: Vec<Box<Server>> = idle.extract_if(.., is_unwanted).collect();
        // Dropped outside of the borrow: their places go to whoever waits, in any pool.
        drop(idle);
        drop(closed);
    }

    /// Idle and open connections, and sessions that wait.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.idle.borrow().len(), self.open.get(), self.waiting.borrow().len())
    }
}

/// The one of the idle servers that fits a session best. `room`: one more may be opened.
#[allow(clippy::vec_box, reason = "the boxes are handed on as they are")]
fn take_idle(idle: &mut Vec<Box<Server>>, mark: &Mark, room: bool) -> Option<Box<Server>> {
    // Most sessions have left nothing anywhere: then only the server last used is looked at.
    let own = mark.is_left().then(|| idle.iter().rposition(|server| server.is_of(mark))).flatten();
    let at = own
        .or_else(|| idle.iter().rposition(|server| !server.is_owned()))
        // Of the others the one unused longest.
        .or_else(|| (!room && !idle.is_empty()).then_some(0))?;
    Some(idle.remove(at))
}

/// A session's turn in the queue.
#[derive(Debug)]
pub struct Waiting {
    pool: Rc<NodePool>,
    receiver: oneshot::Receiver<Grant>,
}

impl Waiting {
    /// The turn has come. `None` cannot happen while the pool lives.
    pub async fn granted(&mut self) -> Option<Grant> {
        (&mut self.receiver).await.ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.receiver.close();
        // Granted in the moment the session gave up: for the next one.
        match self.receiver.try_recv() {
            Ok(Grant::Server(server)) => self.pool.put(server, Instant::now()),
            Ok(Grant::Place(place)) => drop(place),
            Ok(Grant::Unclean(server)) => drop(server),
            Err(_) => {}
        }
    }
}

/// Gives a server back, cleaned if it needs that; closes it on any doubt.
pub fn give_back(mut server: Box<Server>, state: Box<ServerState>, shared: &Rc<RefCell<Shared>>, now: Instant) {
    let cleanup = state.cleanup;
    server.set_bound(false);
    server.state = Some(state);
    let doubtful = !server.rx.is_empty() || server.cancel.is_cancel_in_flight() || server.recall.is_recalled();
    if doubtful || cleanup == Cleanup::Close {
        return;
    }
    let Some(pool) = server.place.pool.clone() else { return };
    // What a session left is cleaned away when another one needs the server.
    if cleanup == Cleanup::None || (server.is_owned() && pool.waiting.borrow().is_empty()) {
        return pool.put(server, now);
    }
    clean_and_put(server, shared);
}

/// Cleans a server in the background and gives it back.
pub fn clean_and_put(mut server: Box<Server>, shared: &Rc<RefCell<Shared>>) {
    let Some(pool) = server.place.pool.clone() else { return };
    let shared = shared.clone();
    tokio::task::spawn_local(async move {
        match server.clean(&shared).await {
            Ok(()) => {
                if !server.recall.is_recalled() {
                    pool.put(server, Instant::now());
                }
            }
            Err(error) => tracing::debug!(%error, node = %server.node.id, "server closed instead of cleaned"),
        }
    });
}
