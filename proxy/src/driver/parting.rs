//! A client that sends nothing more: how long it is served, and how it is found out whether it still listens.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Sleep;

use super::READ_AHEAD_BYTES;
use super::sockets::{poll_fill, poll_write};
use crate::session::Session;
use crate::session::buffers::Buffers;

/// Time after which a client that sends nothing more, while a read of its runs, is first written to in order to find
/// out whether it still listens: most reads are answered before. After each try the next one is twice as far.
pub(super) const PROD_AFTER: Duration = Duration::from_millis(200);
/// Longest pause between two of these tries.
pub(super) const PROD_AT_LEAST_EVERY: Duration = Duration::from_secs(30);
/// Longest wait for a server of what a client that is gone has sent. It would have run at once without the
/// proxy; but the client may have left because it waited too long, and has perhaps sent the same again since.
pub(super) const ABANDONED_WAIT: Duration = Duration::from_secs(5);
/// Longest time that a client that is gone keeps its server until what it sent has been done. After that the connection
/// is closed, which the server notices when it has finished the statement.
pub(super) const ABANDONED_RUN: Duration = Duration::from_secs(60);

/// A client that has closed its side of the connection.
#[derive(Debug)]
pub(super) struct Parting {
    /// Nobody reads what is written either.
    pub(super) gone: bool,
    /// Until the next try to find that out; for one that is gone, until it is given up.
    pub(super) timer: Pin<Box<Sleep>>,
    pause: Duration,
}

impl Parting {
    pub(super) fn of(gone: bool, limit: Duration) -> Box<Self> {
        let pause = if gone { limit } else { PROD_AFTER };
        Box::new(Self { gone, timer: Box::pin(tokio::time::sleep(pause)), pause })
    }

    /// The next try, after another pause.
    pub(super) fn go_on(&mut self) {
        self.pause = (self.pause * 2).min(PROD_AT_LEAST_EVERY);
        self.timer.as_mut().reset(tokio::time::Instant::now() + self.pause);
    }
}

/// Whether a connection ended in order, or by a TLS peer that did not say so first.
pub(super) fn is_end(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
}

/// While a session waits for a server: ready when the client is gone, and what it sent is dropped.
pub(super) fn poll_waiting<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    rx: &mut BytesMut,
    session: &mut Session,
    flush: &mut bool,
    parting: &mut Option<Box<Parting>>,
    buffers: &mut Buffers,
    cx: &mut Context<'_>,
) -> Poll<io::Error> {
    loop {
        if parting.as_ref().is_some_and(|parting| parting.gone) {
            break;
        }
        let error = match poll_listener(stream, rx, session, flush, parting, buffers, cx) {
            Poll::Ready(error) => error,
            Poll::Pending => return Poll::Pending,
        };
        if session.only_reads(rx) {
            return Poll::Ready(error);
        }
        session.client_ended();
        session.to_client().clear();
        *flush = false;
        *parting = Some(Parting::of(true, ABANDONED_WAIT));
    }
    if session.only_reads(rx) {
        return Poll::Ready(io::ErrorKind::BrokenPipe.into());
    }
    match parting {
        Some(parting) => parting.timer.as_mut().poll(cx).map(|()| io::ErrorKind::TimedOut.into()),
        None => Poll::Pending,
    }
}

/// Ready when nobody reads any more what is written to the client.
pub(super) fn poll_listener<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    rx: &mut BytesMut,
    session: &mut Session,
    flush: &mut bool,
    parting: &mut Option<Box<Parting>>,
    buffers: &mut Buffers,
    cx: &mut Context<'_>,
) -> Poll<io::Error> {
    loop {
        if let Poll::Ready(Err(error)) = poll_write(stream, session.to_client(), flush, cx) {
            return Poll::Ready(error);
        }
        if let Some(parting) = parting {
            if parting.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            parting.go_on();
            if !session.prod_client() {
                return Poll::Ready(io::ErrorKind::UnexpectedEof.into());
            }
        } else if rx.len() < READ_AHEAD_BYTES {
            match poll_fill(stream, rx, buffers, &mut false, cx) {
                Poll::Ready(Ok(0)) => *parting = Some(Parting::of(false, ABANDONED_WAIT)),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) if is_end(&error) => *parting = Some(Parting::of(false, ABANDONED_WAIT)),
                Poll::Ready(Err(error)) => return Poll::Ready(error),
                Poll::Pending => return Poll::Pending,
            }
            if parting.is_some() {
                session.client_ended();
            }
        } else {
            return Poll::Pending;
        }
    }
}
