//! Cancel requests: from the key we gave a client to the server that runs its request now.
//!
//! The registry is shared by all threads, but a session touches only its own slot in it, whose
//! lock is uncontended. A server connection counts the cancels under way to it, so that the pool
//! does not give it to somebody else meanwhile: the signal would hit the wrong request.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use subtle::ConstantTimeEq as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::auth::random;
use crate::error::Result;
use crate::wire::startup::encode_cancel;

/// Cancels that may be under way at once; more are dropped, as a lost packet would be. The protocol
/// promises nothing (manual, section 55.2.8).
const MAX_IN_FLIGHT: u32 = 256;
/// Longest wait for a server to take a cancel.
const CANCEL_LIMIT: Duration = Duration::from_secs(3);

/// Where and with which key a server connection's request is cancelled. One per server
/// connection; the pool keeps it beside the connection.
#[derive(Debug)]
pub struct CancelTarget {
    /// The server.
    pub address: SocketAddr,
    /// Process id from its BackendKeyData; 0 if it sent none.
    pub pid: u32,
    /// Secret from its BackendKeyData: 4 bytes in protocol 3.0.
    pub secret: Bytes,
    in_flight: AtomicU32,
}

impl CancelTarget {
    /// Of a new server connection.
    pub fn new(address: SocketAddr, pid: u32, secret: Bytes) -> Arc<Self> {
        Arc::new(Self { address, pid, secret, in_flight: AtomicU32::new(0) })
    }

    /// Whether a cancel is under way to this server connection: it must not be given to another
    /// client before that is over (or at all).
    pub fn is_cancel_in_flight(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) > 0
    }
}

type Slot = Arc<Mutex<Option<Arc<CancelTarget>>>>;

/// All clients that can be cancelled.
#[derive(Debug, Default)]
pub struct Registry {
    clients: Mutex<HashMap<u32, ([u8; 4], Slot)>>,
    in_flight: AtomicU32,
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

    /// Gives a new client its key: both halves are random, so neither tells anything.
    ///
    /// # Errors
    /// When there is no randomness to be had.
    pub fn register(self: &Arc<Self>) -> Result<Registration> {
        let secret = random::<4>()?;
        let mut clients = lock(&self.clients);
        // At most a few ten thousand of two thousand million are taken: this ends.
        let pid = loop {
            let pid = u32::from_be_bytes(random::<4>()?) & 0x7FFF_FFFF;
            if pid != 0 && !clients.contains_key(&pid) {
                break pid;
            }
        };
        let slot = Slot::default();
        clients.insert(pid, (secret, slot.clone()));
        Ok(Registration { pid, secret, slot, registry: self.clone() })
    }

    /// Clients registered.
    pub fn len(&self) -> usize {
        lock(&self.clients).len()
    }

    /// Whether there is no client.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forwards a cancel request to the server that runs this client's request, if any, and waits
    /// until the server has taken it. A wrong key does nothing. Whoever asked is told nothing.
    pub async fn cancel(&self, pid: u32, secret: &[u8]) {
        let Some(target) = self.find(pid, secret) else { return };
        let _flight = target.flight;
        let server = &target.server;
        let deliver = async {
            let mut stream = TcpStream::connect(server.address).await?;
            let mut request = BytesMut::with_capacity(16);
            encode_cancel(&mut request, server.pid, &server.secret);
            stream.write_all(&request).await?;
            // The server closes once it has sent the signal.
            stream.read(&mut [0; 1]).await
        };
        // Dropping it half-way leaves the cancel in doubt, which is why the pool closes such servers.
        match tokio::time::timeout(CANCEL_LIMIT, deliver).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, server = %server.address, "cancel not delivered"),
            Err(_) => tracing::debug!(server = %server.address, "cancel not delivered in time"),
        }
    }

    fn find(&self, pid: u32, secret: &[u8]) -> Option<Found<'_>> {
        let slot = {
            let clients = lock(&self.clients);
            let (expected, slot) = clients.get(&pid)?;
            bool::from(expected.as_slice().ct_eq(secret)).then(|| slot.clone())?
        };
        if self.in_flight.fetch_add(1, Ordering::AcqRel) >= MAX_IN_FLIGHT {
            self.in_flight.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        let total = Flight(&self.in_flight);
        // Counted under the slot's lock: after `detach` the pool sees every cancel that was found.
        let server = {
            let server = lock(&slot);
            let server = server.as_ref().filter(|server| server.pid != 0)?.clone();
            server.in_flight.fetch_add(1, Ordering::AcqRel);
            server
        };
        Some(Found { flight: (total, ServerFlight(server.clone())), server })
    }
}

/// A cancel under way.
struct Found<'a> {
    server: Arc<CancelTarget>,
    flight: (Flight<'a>, ServerFlight),
}

struct Flight<'a>(&'a AtomicU32);

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

struct ServerFlight(Arc<CancelTarget>);

impl Drop for ServerFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A client's entry in the registry; dropping it removes the entry.
#[derive(Debug)]
pub struct Registration {
    /// What the client was told in BackendKeyData.
    pub pid: u32,
    /// What the client was told in BackendKeyData.
    pub secret: [u8; 4],
    slot: Slot,
    registry: Arc<Registry>,
}

impl Registration {
    /// Says which server runs this client's requests from now on.
    pub fn attach(&self, server: &Arc<CancelTarget>) {
        *lock(&self.slot) = Some(server.clone());
    }

    /// Says that none does. Afterwards look at [`CancelTarget::is_cancel_in_flight`].
    pub fn detach(&self) {
        *lock(&self.slot) = None;
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
        let client = registry.register().expect("registered");
        client.attach(&target);
        let cancel = tokio::spawn({
            let (registry, pid, secret) = (registry.clone(), client.pid, client.secret);
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
    async fn wrong_keys_and_idle_clients_do_nothing() {
        let target = CancelTarget::new("127.0.0.1:1".parse().expect("address"), 7, Bytes::new());
        let registry = Registry::new();
        let client = registry.register().expect("registered");
        assert!(registry.find(client.pid, &client.secret).is_none(), "idle");
        client.attach(&target);
        let mut wrong = client.secret;
        wrong[0] ^= 1;
        assert!(registry.find(client.pid, &wrong).is_none());
        assert!(registry.find(client.pid, &client.secret[..3]).is_none());
        assert!(registry.find(client.pid, &client.secret).is_some());
    }
}
