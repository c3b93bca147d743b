//! Clients that replicate (manual, section 55.4): base backups, WAL streams, logical decoding. They are
//! bound to one server by nature, so each has a connection of its own and everything is passed on as it
//! is. It ends with either side, and when its node is no longer what it was: a slot's position is the
//! node's, and only the client knows where to go on.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy_bidirectional_with_sizes};

use crate::auth::{Access, Client};
use crate::pool::census::add;
use crate::pool::{Server, Worker};
use crate::session::ServedBy;
use crate::upstream::Upstream;

/// Read from the client at once: little but its progress comes from there.
const FROM_CLIENT_BYTES: usize = 8 << 10;
/// Read from the server at once.
const FROM_SERVER_BYTES: usize = 64 << 10;

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
        passed = pass(&mut stream, &mut server) => match passed {
            Ok((received, sent)) => {
                add(&seat.present.tally.received, received);
                add(&seat.present.tally.sent, sent);
            }
            Err(error) => tracing::debug!(address = %client.address, %error, "replication ended"),
        },
        reason = given_up => tracing::info!(address = %client.address, node = %server.node.id, reason, "replication ended"),
    }
    client.cancel.detach();
    worker.forget_use(number);
}

/// Both ways until both sides have closed. Says how much went to the server and to the client.
async fn pass<S>(stream: &mut S, server: &mut Server) -> io::Result<(u64, u64)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let unread = server.rx.split();
    stream.write_all(&unread).await?;
    copy_bidirectional_with_sizes(stream, &mut server.stream, FROM_CLIENT_BYTES, FROM_SERVER_BYTES).await
}
