//! Asking one peer for its heartbeat, over and over.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use manatee_shared::ids::PeerId;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::table::Refusal;
use super::{Shared, Timing};
use crate::status::Heartbeat;

/// Pause before a refused connection is tried once more: the second refusal is what counts.
const RETRY_AFTER_REFUSAL: Duration = Duration::from_millis(20);

/// An answer is a few hundred bytes; more than this is not one.
const MOST_ANSWER_BYTES: usize = 64 * 1024;

/// Reason why one question got no answer.
enum Failure {
    /// Nobody listens, or the connection was reset: the host is there, the process is not.
    Refused,
    /// Anything else; only time tells what it means.
    Other,
}

/// A kept-alive connection. Its task ends when the peer closes it, which the kernel of a host
/// whose sitter was killed does at once.
struct Connection {
    sender: http1::SendRequest<Empty<Bytes>>,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Polls `peer` until aborted. It holds nothing that an abort could leave half done.
pub(super) async fn poll(peer: PeerId, timing: Timing, shared: Arc<Shared>) {
    loop {
        let patience = shared.table().patience(peer);
        let pause = match connect(peer, patience).await {
            // Reconnect at once: whether that is refused tells a dead process from a dead host. But
            // not when it never answered, lest a port that closes each connection is hammered.
            Ok(mut connection) => match ask_until_failure(&mut connection, peer, &shared).await {
                0 => timing.interval,
                _ => Duration::ZERO,
            },
            Err(Failure::Refused) => {
                let refusal = shared.table().refused(peer, Instant::now());
                match refusal {
                    Refusal::AskAgain => RETRY_AFTER_REFUSAL,
                    Refusal::Gone => {
                        shared.wake();
                        timing.interval
                    }
                    Refusal::StillGone => timing.interval,
                }
            }
            Err(Failure::Other) => {
                shared.table().failed(peer);
                timing.interval
            }
        };
        sleep(pause).await;
    }
}

/// Asks once per interval until the connection fails; returns how many answers came.
async fn ask_until_failure(connection: &mut Connection, peer: PeerId, shared: &Shared) -> u64 {
    let mut answers = 0;
    let mut news = shared.news.subscribe();
    loop {
        // An answer later than that changes nothing any more. A timed-out request leaves the
        // connection unusable, and it is dropped.
        let patience = shared.table().patience(peer);
        let asked = Instant::now();
        match timeout(patience, ask(&mut connection.sender, peer)).await {
            Ok(Ok(answer)) => shared.update(|table, now| table.answered(peer, answer, asked, now)),
            Ok(Err(Failure::Refused)) => return answers,
            Ok(Err(Failure::Other)) | Err(_) => {
                shared.table().failed(peer);
                return answers;
            }
        }
        answers += 1;
        let pause = shared.table().pause(Instant::now());
        // All may be lost without harm: a sleep, the wait for the connection's end, and a reason to
        // hear at once what this peer thinks of what just happened to another one.
        tokio::select! {
            () = sleep(pause) => {}
            _ = news.changed() => {}
            _ = &mut connection.task => return answers,
        }
    }
}

async fn connect(peer: PeerId, patience: Duration) -> Result<Connection, Failure> {
    let address = SocketAddr::new(peer.ip, peer.backup_port);
    let stream = match timeout(patience, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(classify(&error)),
        Err(_) => return Err(Failure::Other),
    };
    // Without it a second small write could wait for an acknowledgement.
    stream.set_nodelay(true).map_err(|_| Failure::Other)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|_| Failure::Other)?;
    let task = tokio::spawn(async move {
        // How it ended shows in the next request.
        let _ = connection.await;
    });
    Ok(Connection { sender, task })
}

async fn ask(sender: &mut http1::SendRequest<Empty<Bytes>>, peer: PeerId) -> Result<Heartbeat, Failure> {
    let host = SocketAddr::new(peer.ip, peer.backup_port).to_string();
    let request = hyper::Request::get("/heartbeat")
        .header(hyper::header::HOST, host)
        .body(Empty::new())
        .map_err(|_| Failure::Other)?;
    // A connection that ended meanwhile: reconnecting tells whether anybody is there.
    let response = sender.send_request(request).await.map_err(|_| Failure::Refused)?;
    if !response.status().is_success() {
        return Err(Failure::Other);
    }
    let body = Limited::new(response.into_body(), MOST_ANSWER_BYTES).collect().await.map_err(|_| Failure::Other)?;
    let answer: Heartbeat = serde_json::from_slice(&body.to_bytes()).map_err(|_| Failure::Other)?;
    if answer.id == peer { Ok(answer) } else { Err(Failure::Other) }
}

fn classify(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Failure::Refused,
        _ => Failure::Other,
    }
}
