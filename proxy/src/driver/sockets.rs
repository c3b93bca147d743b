//! Reading and writing as much as goes, without waiting.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::session::buffers::{BUFFER_BYTES, Buffers, consume};

/// Writes as much as goes.
pub(super) fn poll_write<W: AsyncWrite + Unpin>(
    stream: &mut W,
    out: &mut BytesMut,
    flush: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    while !out.is_empty() {
        match Pin::new(&mut *stream).poll_write(cx, out) {
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(written)) => {
                consume(out, written);
                *flush = true;
            }
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => return Poll::Pending,
        }
    }
    if *flush {
        match Pin::new(stream).poll_flush(cx) {
            Poll::Ready(Ok(())) => *flush = false,
            other => return other,
        }
    }
    Poll::Ready(Ok(()))
}

/// Reads once, at the end of the buffer, which it has only while there is something in it. `long`: the last
/// read brought a buffer full.
pub(super) fn poll_fill<R: AsyncRead + Unpin>(
    stream: &mut R,
    rx: &mut BytesMut,
    buffers: &mut Buffers,
    long: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    if rx.capacity() == 0 && !*long {
        // Mostly there is nothing to read: one asks in order to be woken.
        let reading = buffers.reading();
        let filled = poll_read(stream, reading, long, cx);
        if matches!(filled, Poll::Ready(Ok(1..))) {
            std::mem::swap(rx, reading);
        }
        return filled;
    }
    if *long {
        buffers.lend_long(rx);
    }
    if rx.capacity() - rx.len() < BUFFER_BYTES / 4 {
        rx.reserve(BUFFER_BYTES);
    }
    let filled = poll_read(stream, rx, long, cx);
    if filled.is_pending() {
        buffers.give_back(rx);
    }
    filled
}

/// Reads once, at the end of the buffer, which has room.
pub(super) fn poll_read<R: AsyncRead + Unpin>(
    stream: &mut R,
    rx: &mut BytesMut,
    long: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    let room = rx.capacity() - rx.len();
    // Holds no state between polls.
    let filled = pin!(stream.read_buf(rx)).poll(cx);
    if let Poll::Ready(Ok(count)) = filled {
        *long = count >= room.min(BUFFER_BYTES);
    }
    filled
}
