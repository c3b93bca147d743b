//! Clients that replicate (manual, section 55.4): base backups, WAL streams, logical decoding. They are
//! bound to one server by nature, so each has a connection of its own and everything is passed on as it
//! is. It ends with either side, and when its node is no longer what it was: a slot's position is the
//! node's, and only the client knows where to go on. None may call itself like a peer (`watch.rs`).

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

use crate::auth::{Access, Client};
use crate::error::{ProxyError, Result};
use crate::pool::census::{Present, add};
use crate::pool::{Server, Worker};
use crate::session::ServedBy;
use crate::upstream::Upstream;

mod watch;

use watch::Watch;

/// Read from the client at once: little but its progress comes from there.
const FROM_CLIENT_BYTES: usize = 8 << 10;
/// Read from the server at once.
const FROM_SERVER_BYTES: usize = 64 << 10;
/// Longest time for the last words to a client.
const FAREWELL: Duration = Duration::from_secs(5);

/// Serves such a client until it leaves. When the proxy stops, it may go on for as long as others may finish
/// their transactions: it cannot be seen from here whether a backup is under way.
pub async fn run<S>(mut stream: S, client: Client, upstream: Upstream, worker: Rc<Worker>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let seat = worker.seat(&client);
    let served_by = if client.access == Access::ReadOnly { ServedBy::Standby } else { ServedBy::Primary };
    let mut server = Server::beside(upstream, served_by, Instant::now());
    client.cancel.attach(&server.cancel);
    let number = worker.note_use(&server, &seat.present);
    let recall = server.recall.clone();
    let given_up = poll_fn(|cx| match (recall.poll(cx), seat.present.end.poll(cx)) {
        (true, _) => Poll::Ready("its node is not what it was"),
        (_, true) => Poll::Ready("ended by an administrator"),
        _ => Poll::Pending,
    });
    // Both ends close when this is left, whatever was under way.
    tokio::select! {
        passed = pass(&mut stream, &mut server, &seat.present) => if let Err(error) = passed {
            tracing::info!(address = %client.address, %error, "replication ended");
            tell(&mut stream, &error).await;
        },
        reason = given_up => tracing::info!(address = %client.address, node = %server.node.id, reason, "replication ended"),
    }
    client.cancel.detach();
    worker.forget_use(number);
}

/// Both ways until both sides have closed, counting.
async fn pass<S>(stream: &mut S, server: &mut Server, present: &Present) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let unread = server.rx.split();
    stream.write_all(&unread).await.map_err(ProxyError::ClientGone)?;
    let target = server.node.id.to_string();
    let lost = |source| ProxyError::Connect { target: target.clone(), source };
    let (watch, answered) = (RefCell::new(Watch::default()), Notify::new());
    let (mut client_rx, mut client_tx) = tokio::io::split(stream);
    let (mut server_rx, mut server_tx) = tokio::io::split(&mut server.stream);
    let to_server = async {
        let mut bytes = BytesMut::with_capacity(FROM_CLIENT_BYTES);
        while client_rx.read_buf(&mut bytes).await.map_err(ProxyError::ClientGone)? > 0 {
            add(&present.tally.received, bytes.len() as u64);
            loop {
                let admitted = watch.borrow_mut().admit(&bytes)?;
                server_tx.write_all(&bytes[..admitted]).await.map_err(&lost)?;
                server_tx.flush().await.map_err(&lost)?;
                bytes.advance(admitted);
                if bytes.is_empty() {
                    break;
                }
                answered.notified().await;
            }
            bytes.reserve(FROM_CLIENT_BYTES);
        }
        server_tx.shutdown().await.map_err(&lost)
    };
    let to_client = async {
        let mut bytes = BytesMut::with_capacity(FROM_SERVER_BYTES);
        while server_rx.read_buf(&mut bytes).await.map_err(&lost)? > 0 {
            add(&present.tally.sent, bytes.len() as u64);
            if watch.borrow_mut().hear(&bytes)? {
                answered.notify_one();
            }
            client_tx.write_all(&bytes).await.map_err(ProxyError::ClientGone)?;
            client_tx.flush().await.map_err(ProxyError::ClientGone)?;
            bytes.clear();
        }
        client_tx.shutdown().await.map_err(ProxyError::ClientGone)
    };
    tokio::try_join!(to_server, to_client).map(drop)
}

/// Last words, if somebody listens.
async fn tell<S: AsyncWrite + Unpin>(stream: &mut S, error: &ProxyError) {
    let mut words = BytesMut::new();
    error.as_fatal(&mut words);
    let _ = tokio::time::timeout(FAREWELL, stream.write_all(&words)).await;
    let _ = stream.flush().await;
}
