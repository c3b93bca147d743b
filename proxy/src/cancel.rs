//! Cancel requests: from the key we gave a client to the server that runs its request now.
//!
//! The registry is shared by all threads, but a session touches only its own entry in it, whose
//! lock is uncontended. The entry says what a request is aimed at now: at the server that runs a statement of
//! the client's own; at a statement that waits for a server, which is told; or, between two statements and while
//! the proxy asks a server something for itself, at nothing, like a server that is idle. A server connection counts the cancels under way to it, so that the pool
//! does not give it to somebody else meanwhile: the signal would hit the wrong request. Keys of other
//! proxies' clients are theirs to look up: [`fleet`].

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use subtle::ConstantTimeEq as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::auth::identity::Identity;
use crate::auth::secret::random;
use crate::error::{ProxyError, Result};
use crate::wire::startup::encode_cancel;

pub mod fleet;

use fleet::{CLIENT_BITS, Fleet};

/// Cancels that may be under way at once; more are dropped, as a lost packet would be. The protocol
/// promises nothing (manual, section 55.2.8).
const MAX_IN_FLIGHT: u32 = 256;
/// The same for those that are passed on: their keys are not known here, so that anybody can send them.
const MAX_FORWARDED: u32 = 64;
/// Longest wait for a server to take a cancel.
const CANCEL_LIMIT: Duration = Duration::from_secs(3);
/// Interval of looking whether the cancels under way to a server have been taken.
const LANDING_PAUSE: Duration = Duration::from_millis(2);

/// Address and key for cancelling a server connection's request. One per server
/// connection; the pool keeps it beside the connection.
#[derive(Debug)]
pub struct CancelTarget {
    /// The server.
    pub address: SocketAddr,
    /// Process id from its BackendKeyData; 0 if it sent none.
    pub pid: u32,
    /// Secret from its BackendKeyData: 4 bytes in protocol 3.0, up to 256 from 3.2 on.
    pub secret: Bytes,
    /// Those whose delivery broke off half-way are counted for ever.
    in_flight: AtomicU32,
}

impl CancelTarget {
    /// Of a new server connection.
    pub fn new(address: SocketAddr, pid: u32, secret: Bytes) -> Arc<Self> {
        Arc::new(Self { address, pid, secret, in_flight: AtomicU32::new(0) })
    }

    /// Has the server cancel what it runs, and waits until it has taken it. In clear: a server checks
    /// neither TLS nor addresses here, and the key is good for this alone. False if it may still be on its
    /// way: in the server's backlog, for example.
    pub async fn deliver(&self) -> bool {
        let deliver = async {
            let mut stream = match TcpStream::connect(self.address).await {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::debug!(%error, server = %self.address, "no connection for a cancel");
                    // Nothing was asked of it.
                    return Ok(0);
                }
            };
            let mut request = BytesMut::with_capacity(16);
            encode_cancel(&mut request, self.pid, &self.secret);
            stream.write_all(&request).await?;
            // The server closes once it has sent the signal.
            stream.read(&mut [0; 1]).await
        };
        match tokio::time::timeout(CANCEL_LIMIT, deliver).await {
            Ok(Ok(_)) => return true,
            Ok(Err(error)) => tracing::debug!(%error, server = %self.address, "cancel not delivered"),
            Err(_) => tracing::debug!(server = %self.address, "cancel not delivered in time"),
        }
        false
    }

    /// Whether a cancel is under way to this server connection, or may be: it must not be given to
    /// another client.
    pub fn is_cancel_in_flight(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) > 0
    }

    /// Waits until the server has taken all that are under way; not longer than one may take. What it has
    /// taken while it is idle it ignores (`ProcessInterrupts`, postgres.c).
    pub async fn all_landed(&self) {
        let landing = async {
            while self.is_cancel_in_flight() {
                tokio::time::sleep(LANDING_PAUSE).await;
            }
        };
        let _ = tokio::time::timeout(CANCEL_LIMIT, landing).await;
    }

    fn take_off(self: &Arc<Self>) -> ServerFlight {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        ServerFlight(self.clone())
    }
}

/// A client's secret, and what its cancel requests are for. Every idle client has one: small.
#[derive(Debug)]
struct Entry {
    secret: Secret,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Role of the client, once it has logged in.
    owner: Option<Arc<Identity>>,
    aim: Aim,
}

/// The statement of a client that a cancel request is for. `asked`: one has come; kept as long as it is the same
/// statement, wherever that runs or waits.
#[derive(Debug, Default)]
enum Aim {
    /// There is none.
    #[default]
    Nothing,
    /// It waits, for a server or for what the proxy asks of its server first; who waits is woken.
    Held { asked: bool, waker: Option<Box<Waker>> },
    /// This server runs it.
    Server { asked: bool, server: Arc<CancelTarget> },
}

impl Aim {
    fn is_asked(&self) -> bool {
        matches!(self, Self::Held { asked: true, .. } | Self::Server { asked: true, .. })
    }
}

/// Bytes of a secret in protocol 3.0, where there is room for no more, and from 3.2 on.
const SECRET_BYTES: usize = 4;
const LONG_SECRET_BYTES: usize = 32;

/// By its protocol.
#[derive(Debug)]
enum Secret {
    Short([u8; SECRET_BYTES]),
    Long(Box<[u8; LONG_SECRET_BYTES]>),
}

impl Secret {
    fn new(long: bool) -> Result<Self> {
        Ok(if long { Self::Long(Box::new(random()?)) } else { Self::Short(random()?) })
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Short(secret) => secret,
            Self::Long(secret) => &**secret,
        }
    }
}

/// All clients that can be cancelled.
#[derive(Debug, Default)]
pub struct Registry {
    clients: Mutex<HashMap<u32, Arc<Entry>>>,
    in_flight: AtomicU32,
    forwarded: AtomicU32,
    fleet: Fleet,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds these locks can panic half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    /// Without clients.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// One of several proxies.
    pub fn of_fleet(fleet: Fleet) -> Arc<Self> {
        Arc::new(Self { fleet, ..Self::default() })
    }

    /// The other proxies.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Gives a new client its key: our number, and the rest random. `long` if its protocol allows for it.
    ///
    /// # Errors
    /// When there is no randomness to be had.
    pub fn register(self: &Arc<Self>, long: bool) -> Result<Registration> {
        let entry = Arc::new(Entry { secret: Secret::new(long)?, state: Mutex::default() });
        let mut clients = lock(&self.clients);
        if clients.len() >= 1 << (CLIENT_BITS - 1) {
            return Err(ProxyError::TooManyClients);
        }
        // At most half are taken: this ends.
        let pid = loop {
            let client = u32::from_be_bytes(random::<4>()?) & ((1 << CLIENT_BITS) - 1);
            let pid = self.fleet.pid_of(client);
            if !clients.contains_key(&pid) {
                break pid;
            }
        };
        clients.insert(pid, entry.clone());
        Ok(Registration { pid, entry, registry: self.clone() })
    }

    /// Clients registered.
    pub fn len(&self) -> usize {
        lock(&self.clients).len()
    }

    /// Whether there is no client.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A client's request: for one of ours, or for another proxy's. Whoever asked is told nothing.
    pub async fn cancel_anywhere(&self, pid: u32, secret: &[u8]) {
        if Fleet::number_of(pid) == self.fleet.number && self.is_key(pid, secret) {
            return self.cancel(pid, secret).await;
        }
        let Some(_flight) = Flight::take_off(&self.forwarded, MAX_FORWARDED) else { return };
        self.fleet.forward(pid, secret).await;
    }

    /// Whether this is the key of a client of ours.
    fn is_key(&self, pid: u32, secret: &[u8]) -> bool {
        lock(&self.clients).get(&pid).is_some_and(|entry| bool::from(entry.secret.bytes().ct_eq(secret)))
    }

    /// Forwards a cancel request to the server that runs this client's request, if any, and waits
    /// until the server has taken it. A wrong key does nothing. Whoever asked is told nothing.
    pub async fn cancel(&self, pid: u32, secret: &[u8]) {
        self.deliver(self.find(pid, secret)).await;
    }

    async fn deliver(&self, found: Option<Found<'_>>) {
        let Some(Found { server, flight: (_total, flight) }) = found else { return };
        // Dropped before it is over, or in doubt, it stays in flight: the pool closes such servers.
        if server.deliver().await {
            flight.land();
        }
    }

    fn find(&self, pid: u32, secret: &[u8]) -> Option<Found<'_>> {
        let entry = {
            let clients = lock(&self.clients);
            let entry = clients.get(&pid)?;
            bool::from(entry.secret.bytes().ct_eq(secret)).then(|| entry.clone())?
        };
        self.aim(&entry)
    }

    fn aim(&self, entry: &Entry) -> Option<Found<'_>> {
        let total = Flight::take_off(&self.in_flight, MAX_IN_FLIGHT)?;
        // Counted under the entry's lock: after `detach` the pool sees every cancel that was found.
        match &mut lock(&entry.state).aim {
            Aim::Nothing => None,
            Aim::Held { asked, waker } => {
                *asked = true;
                if let Some(waker) = waker.take() {
                    waker.wake();
                }
                None
            }
            Aim::Server { server, .. } if server.pid == 0 => None,
            Aim::Server { server, asked } => {
                *asked = true;
                Some(Found { flight: (total, server.take_off()), server: server.clone() })
            }
        }
    }
}

/// A cancel under way.
struct Found<'a> {
    server: Arc<CancelTarget>,
    flight: (Flight<'a>, ServerFlight),
}

struct Flight<'a>(&'a AtomicU32);

impl<'a> Flight<'a> {
    /// Counts one more, if there are not too many.
    fn take_off(count: &'a AtomicU32, most: u32) -> Option<Self> {
        let before = count.fetch_add(1, Ordering::AcqRel);
        let flight = Self(count);
        (before < most).then_some(flight)
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Counted at the server until it has landed.
#[must_use]
struct ServerFlight(Arc<CancelTarget>);

impl ServerFlight {
    fn land(self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A client's entry in the registry; dropping it removes the entry.
#[derive(Debug)]
pub struct Registration {
    /// Process id in the BackendKeyData of the client.
    pub pid: u32,
    entry: Arc<Entry>,
    registry: Arc<Registry>,
}

impl Registration {
    /// Secret in the BackendKeyData of the client.
    pub fn secret(&self) -> &[u8] {
        self.entry.secret.bytes()
    }

    /// Says that this server runs the client's statement from now on. What was asked while that waited is
    /// sent after it, by the runtime's local tasks.
    pub fn attach(&self, server: &Arc<CancelTarget>) {
        let mut state = lock(&self.entry.state);
        let late = matches!(state.aim, Aim::Held { asked: true, .. }) && server.pid != 0;
        state.aim = Aim::Server { asked: late, server: server.clone() };
        if late {
            let (server, flight) = (server.clone(), server.take_off());
            tokio::task::spawn_local(async move {
                if server.deliver().await {
                    flight.land();
                }
            });
        }
    }

    /// Says that the client's statement waits. Whether it is to be cancelled, [`Registration::poll_asked`] says.
    pub fn hold(&self) {
        let mut state = lock(&self.entry.state);
        state.aim = Aim::Held { asked: state.aim.is_asked(), waker: None };
    }

    /// Whether the client has asked for the statement at hand to be cancelled.
    pub fn is_asked(&self) -> bool {
        lock(&self.entry.state).aim.is_asked()
    }

    /// The same; wakes when it does, while the statement is held.
    pub fn poll_asked(&self, cx: &Context<'_>) -> bool {
        let mut state = lock(&self.entry.state);
        if let Aim::Held { waker, .. } = &mut state.aim
            && !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            *waker = Some(Box::new(cx.waker().clone()));
        }
        state.aim.is_asked()
    }

    /// Says in whose name the client is connected.
    pub fn belongs_to(&self, identity: &Arc<Identity>) {
        lock(&self.entry.state).owner = Some(identity.clone());
    }

    /// Has another client's statement cancelled, in the background. False if there is no client of this number
    /// here, or if it is connected as another role: who may do that to whom only a server knows (`pg_signal_backend`).
    pub fn cancel_other(&self, pid: u32) -> bool {
        let role = |entry: &Entry| lock(&entry.state).owner.as_ref().map(|owner| (owner.user.clone(), owner.role));
        let other = lock(&self.registry.clients).get(&pid).cloned();
        let Some(other) = other.filter(|other| role(other).is_some_and(|other| Some(other) == role(&self.entry)))
        else {
            return false;
        };
        let registry = self.registry.clone();
        tokio::task::spawn_local(async move { registry.deliver(registry.aim(&other)).await });
        true
    }

    /// Says that there is no statement, or none any more. Afterwards look at
    /// [`CancelTarget::is_cancel_in_flight`].
    pub fn detach(&self) {
        lock(&self.entry.state).aim = Aim::Nothing;
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        lock(&self.registry.clients).remove(&self.pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_cancel_reaches_the_server_and_is_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let target = CancelTarget::new(listener.local_addr().expect("address"), 7, Bytes::from_static(b"abcd"));
        let registry = Registry::new();
        let client = registry.register(false).expect("registered");
        client.attach(&target);
        let cancel = tokio::spawn({
            let (registry, pid, secret) = (registry.clone(), client.pid, client.secret().to_vec());
            async move { registry.cancel(pid, &secret).await }
        });
        let (mut socket, _) = listener.accept().await.expect("accepted");
        let mut request = [0; 16];
        socket.read_exact(&mut request).await.expect("request");
        assert_eq!(&request[8..], b"\0\0\0\x07abcd");
        client.detach();
        assert!(target.is_cancel_in_flight());
        drop(socket);
        cancel.await.expect("done");
        assert!(!target.is_cancel_in_flight());
        drop(client);
        assert!(registry.is_empty());
    }

    #[tokio::test]
    async fn a_cancel_reaches_a_statement_that_waits_and_no_other() {
        let target = CancelTarget::new("127.0.0.1:1".parse().expect("address"), 7, Bytes::new());
        let registry = Registry::new();
        let client = registry.register(false).expect("registered");
        registry.cancel(client.pid, client.secret()).await;
        client.hold();
        assert!(!client.is_asked(), "it came before the statement");
        let woken = std::future::poll_fn(|cx| match client.poll_asked(cx) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        });
        tokio::join!(woken, registry.cancel(client.pid, client.secret()));
        client.detach();
        client.hold();
        assert!(!client.is_asked(), "that was another statement");
        client.attach(&target);
        registry.cancel(client.pid, client.secret()).await;
        client.hold();
        assert!(client.is_asked(), "it shall not run again");
    }

    #[tokio::test]
    async fn wrong_keys_and_idle_clients_do_nothing() {
        let target = CancelTarget::new("127.0.0.1:1".parse().expect("address"), 7, Bytes::new());
        let registry = Registry::new();
        let client = registry.register(false).expect("registered");
        assert!(registry.find(client.pid, client.secret()).is_none(), "idle");
        client.attach(&target);
        let mut wrong = client.secret().to_vec();
        wrong[0] ^= 1;
        assert!(registry.find(client.pid, &wrong).is_none());
        assert!(registry.find(client.pid, &client.secret()[..3]).is_none());
        assert!(registry.find(client.pid, client.secret()).is_some());
    }

    #[tokio::test]
    async fn a_cancel_that_may_be_under_way_still_is_never_over() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let target = CancelTarget::new(listener.local_addr().expect("address"), 7, Bytes::from_static(b"abcd"));
        let registry = Registry::new();
        let client = registry.register(false).expect("registered");
        client.attach(&target);
        // It waits in the server's backlog when whoever sent it gives up.
        let cancel = registry.cancel(client.pid, client.secret());
        assert!(tokio::time::timeout(Duration::from_millis(50), cancel).await.is_err());
        client.detach();
        assert!(target.is_cancel_in_flight(), "the server may take it at any time");
        drop(listener);
        // Nobody listens any more: that one is over.
        let next = CancelTarget::new(target.address, 8, Bytes::from_static(b"abcd"));
        client.attach(&next);
        registry.cancel(client.pid, client.secret()).await;
        assert!(!next.is_cancel_in_flight());
    }

    #[tokio::test]
    async fn another_proxys_client_is_cancelled_by_that_proxy() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let peer = listener.local_addr().expect("address");
        let one = Registry::of_fleet(Fleet { number: 1, ..Fleet::default() });
        let two = Registry::of_fleet(Fleet { number: 2, peers: [(1, peer)].into(), upgrade_socket: None });
        let client = one.register(true).expect("registered");
        assert_eq!((client.secret().len(), Fleet::number_of(client.pid)), (LONG_SECRET_BYTES, 1));
        assert!(client.pid >= 4_194_304, "no process has such an id");
        let cancel = tokio::spawn({
            let (pid, secret) = (client.pid, client.secret().to_vec());
            async move { two.cancel_anywhere(pid, &secret).await }
        });
        let (mut socket, _) = listener.accept().await.expect("accepted");
        let mut request = [0; 12 + LONG_SECRET_BYTES];
        socket.read_exact(&mut request).await.expect("request");
        assert_eq!(request[8..12], client.pid.to_be_bytes());
        assert_eq!(request[12..], *client.secret());
        drop(socket);
        cancel.await.expect("done");
    }

    #[tokio::test]
    async fn the_process_before_us_is_asked() {
        let folder = tempfile::tempdir().expect("folder");
        let upgrade_socket = Some(folder.path().join("upgrade"));
        let before = Registry::of_fleet(Fleet { upgrade_socket: upgrade_socket.clone(), ..Fleet::default() });
        let client = before.register(false).expect("registered");
        // As another process would have it: in this one both have the same number.
        let socket = folder.path().join("upgrade.cancel.1");
        let listener = tokio::net::UnixListener::bind(socket).expect("bind");
        let after = Registry::of_fleet(Fleet { upgrade_socket, ..Fleet::default() });
        let cancel = tokio::spawn({
            let (pid, secret) = (client.pid, client.secret().to_vec());
            async move { after.cancel_anywhere(pid, &secret).await }
        });
        let (mut socket, _) = listener.accept().await.expect("accepted");
        let mut request = [0; 16];
        socket.read_exact(&mut request).await.expect("request");
        assert_eq!(request[12..], *client.secret());
        drop(socket);
        cancel.await.expect("done");
    }
}
