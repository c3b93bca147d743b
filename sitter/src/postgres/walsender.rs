//! Sessions of the replication role that take a walsender's slot instead of an ordinary
//! connection's, so that there is room for them when clients have taken every connection.
//!
//! With `replication=database` among the parameters of the startup message (manual, section 55.4) the
//! server makes a walsender that runs SQL as well, by the simple protocol only. The client library
//! has no setting for it: what is written here puts the parameter into the message on its way out.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The parameter, as the message spells it.
const PARAMETER: &[u8] = b"replication\0database\0";

/// A connection whose first message, the startup message, gets [`PARAMETER`].
pub(super) struct AsWalsender<S> {
    stream: S,
    /// The first message, and how much of it is written; None: it was not sent yet.
    first: Option<(Vec<u8>, usize)>,
}

impl<S> AsWalsender<S> {
    /// Around a connection on which nothing was said yet.
    pub(super) fn new(stream: S) -> Self {
        Self { stream, first: None }
    }
}

/// `message` with the parameter. Length (4 bytes), protocol (4), pairs of texts, a zero byte.
fn with_parameter(message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(message.len() + PARAMETER.len()).map_err(io::Error::other)?;
    match message {
        [a, b, c, d, rest @ .., 0]
            if u32::from_be_bytes([*a, *b, *c, *d]) as usize == message.len() && rest.len() >= 4 =>
        {
            Ok([&length.to_be_bytes()[..], rest, PARAMETER, &[0]].concat())
        }
        _ => Err(io::Error::other("the first message is not a whole startup message")),
    }
}

impl<S: AsyncWrite + Unpin> AsWalsender<S> {
    fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some((message, written)) = &mut self.first {
            while *written < message.len() {
                match ready!(Pin::new(&mut self.stream).poll_write(cx, &message[*written..]))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    count => *written += count,
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AsWalsender<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.first.is_none() {
            self.first = Some((with_parameter(bytes)?, 0));
            // Taken; written with the next write or flush, which follows at once.
            return Poll::Ready(Ok(bytes.len()));
        }
        ready!(self.poll_first(cx))?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_first(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_first(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AsWalsender<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const STARTUP: &[u8] = b"\0\0\0\x10\0\x03\0\0user\0x\0\0";

    #[test]
    fn the_parameter_goes_before_the_end() {
        let message = with_parameter(STARTUP).unwrap();
        assert_eq!(message, b"\0\0\0\x25\0\x03\0\0user\0x\0replication\0database\0\0");
        for broken in [&STARTUP[..9], b"", b"\0\0\0\x04", b"\0\0\0\x11\0\x03\0\0user\0x\0\0"] {
            assert!(with_parameter(broken).is_err());
        }
    }

    #[tokio::test]
    async fn what_follows_the_first_message_is_left_alone() {
        let (ours, mut theirs) = tokio::io::duplex(7);
        let mut ours = AsWalsender::new(ours);
        let writing = tokio::spawn(async move {
            ours.write_all(STARTUP).await.unwrap();
            ours.flush().await.unwrap();
            ours.write_all(b"password").await.unwrap();
            ours.flush().await.unwrap();
        });
        let mut read = Vec::new();
        theirs.read_to_end(&mut read).await.unwrap();
        writing.await.unwrap();
        assert_eq!(read, [&with_parameter(STARTUP).unwrap()[..], b"password"].concat());
    }
}
