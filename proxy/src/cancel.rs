//! Cancel requests: from the key we gave a client to the server that runs its request now.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Where and with which key a server connection's request is cancelled. One per server
/// connection; the pool keeps it beside the connection.
#[derive(Debug)]
pub struct CancelTarget {
    /// The server.
    pub address: SocketAddr,
    /// Process id from its BackendKeyData.
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

/// A client's entry in the registry; dropping it removes the entry.
#[derive(Debug)]
pub struct Registration {
    /// What the client was told in BackendKeyData.
    pub pid: u32,
    /// What the client was told in BackendKeyData.
    pub secret: [u8; 4],
    slot: Arc<Mutex<Option<Arc<CancelTarget>>>>,
}

impl Registration {
    /// Says which server runs this client's requests from now on.
    pub fn attach(&self, server: &Arc<CancelTarget>) {
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(server.clone());
    }

    /// Says that none does. Afterwards look at [`CancelTarget::is_cancel_in_flight`].
    pub fn detach(&self) {
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
