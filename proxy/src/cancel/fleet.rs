//! Cancels for clients of another proxy: the key says which one, so nothing is shared between them.
//!
//! A proxy's number is in the upper bits of the process ids it gives out. A cancel for another number
//! goes to the peer of that number as a message of our own, which is not passed on again: a mistake in
//! the configuration makes no circles. Processes of one number, an old one that drains and the new one
//! that took its listeners, find each other by sockets beside the one for upgrades.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixListener, UnixStream};

use super::{CANCEL_LIMIT, Registry};
use crate::session::signal::LOWEST_CLIENT_PID;
use crate::wire::startup::{HEADER_BYTES, Header, encode_forwarded_cancel, parse_cancel};

/// Bits of a process id that say which client of a proxy it is; 12 more say which proxy.
pub const CLIENT_BITS: u32 = 19;
/// Nobody who takes a process id of ours for that of a server process shall hit a stranger's. So many numbers are
/// left out.
const REAL: u32 = LOWEST_CLIENT_PID >> CLIENT_BITS;
/// The highest number of a proxy.
pub const MAX_NUMBER: u32 = (1 << (31 - CLIENT_BITS)) - 1 - REAL;
/// Processes of one number at once: more than two only if upgrades follow quickly.
const MAX_NEIGHBOURS: usize = 8;
/// Before accepting is tried again after a failure.
const PAUSE: Duration = Duration::from_millis(50);

/// The other proxies.
#[derive(Debug, Default)]
pub struct Fleet {
    /// Our own number; 0 if there are no others.
    pub number: u32,
    /// Addresses of the other proxies for clients, by number.
    pub peers: HashMap<u32, SocketAddr>,
    /// The socket for upgrades, beside which those of our own number are.
    pub upgrade_socket: Option<PathBuf>,
}

impl Fleet {
    /// The number of the proxy that gave out this process id.
    pub(super) fn number_of(pid: u32) -> u32 {
        (pid >> CLIENT_BITS).wrapping_sub(REAL)
    }

    /// The process id that our client of this number is told.
    pub(super) fn pid_of(&self, client: u32) -> u32 {
        (self.number + REAL) << CLIENT_BITS | client
    }

    /// Hands a cancel to whoever may know the client, if that is not us.
    pub(super) async fn forward(&self, pid: u32, secret: &[u8]) {
        let number = Self::number_of(pid);
        if number == self.number {
            return self.ask_neighbours(pid, secret).await;
        }
        let Some(peer) = self.peers.get(&number) else {
            return tracing::debug!(number, "cancel for a proxy that is not among our peers");
        };
        let send = async { speak(TcpStream::connect(peer).await?, pid, secret).await };
        match tokio::time::timeout(CANCEL_LIMIT, send).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(number, %peer, %error, "cancel not forwarded"),
            Err(_) => tracing::debug!(number, %peer, "cancel not forwarded in time"),
        }
    }

    async fn ask_neighbours(&self, pid: u32, secret: &[u8]) {
        let Some(socket) = &self.upgrade_socket else { return };
        let own = path_of(socket, std::process::id());
        for path in neighbours(socket).into_iter().filter(|path| *path != own) {
            let send = async { speak(UnixStream::connect(&path).await?, pid, secret).await };
            if let Ok(Err(error)) = tokio::time::timeout(CANCEL_LIMIT, send).await
                && error.kind() == std::io::ErrorKind::ConnectionRefused
            {
                // Its process is gone.
                let _ = std::fs::remove_file(&path);
            }
        }
    }
}

/// Sends a cancel on, and waits until it is taken.
async fn speak<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, pid: u32, secret: &[u8]) -> std::io::Result<()> {
    let mut request = BytesMut::with_capacity(64);
    encode_forwarded_cancel(&mut request, pid, secret);
    stream.write_all(&request).await?;
    stream.read(&mut [0; 1]).await.map(drop)
}

fn path_of(socket: &Path, process: u32) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(format!(".cancel.{process}"));
    name.into()
}

/// The sockets of all processes with this socket for upgrades.
fn neighbours(socket: &Path) -> Vec<PathBuf> {
    let (Some(folder), Some(name)) = (socket.parent(), socket.file_name()) else { return Vec::new() };
    let prefix = format!("{}.cancel.", name.to_string_lossy());
    let Ok(entries) = std::fs::read_dir(if folder.as_os_str().is_empty() { ".".as_ref() } else { folder }) else {
        return Vec::new();
    };
    let ours = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    ours.map(|entry| entry.path()).take(MAX_NEIGHBOURS).collect()
}

/// Takes cancels from processes of our own number until dropped. A failure is no reason not to serve.
pub async fn serve_neighbours(registry: std::sync::Arc<Registry>) {
    let Some(socket) = registry.fleet().upgrade_socket.clone() else { return };
    let path = path_of(&socket, std::process::id());
    let _ = std::fs::remove_file(&path);
    let listener = match UnixListener::bind(&path) {
        Ok(listener) => listener,
        Err(error) => {
            return tracing::warn!(path = %path.display(), %error, "cancels cannot reach us after an upgrade");
        }
    };
    loop {
        // One at a time: each is short, and there are few.
        let Ok((stream, _)) = listener.accept().await else {
            // No file descriptors to be had, for example.
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let _ = tokio::time::timeout(CANCEL_LIMIT, take(stream, &registry)).await;
    }
}

async fn take(mut stream: UnixStream, registry: &Registry) -> std::io::Result<()> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let Ok(Header::ForwardedCancel { rest }) = Header::parse(header) else { return Ok(()) };
    let mut body = vec![0; rest];
    stream.read_exact(&mut body).await?;
    if let Some((pid, secret)) = parse_cancel(&body) {
        registry.cancel(pid, secret).await;
    }
    Ok(())
}
