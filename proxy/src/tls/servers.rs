//! TLS towards PostgreSQL servers: what is asked for, and the connections of the proxy's own role.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwapOption;
use manatee_shared::tls::{HandshakeError, Secured, ServerTls, TlsError, Wanted};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::certificate;

/// TLS towards servers, replaceable while serving. Shared by all threads.
#[derive(Debug, Default)]
pub struct Servers {
    current: ArcSwapOption<Wanted>,
}

impl Servers {
    /// Reads what the configuration names.
    ///
    /// # Errors
    /// [`TlsError`]
    pub fn load(settings: &ServerTls) -> Result<Self, TlsError> {
        Ok(Self { current: ArcSwapOption::new(Wanted::load(settings)?.map(Arc::new)) })
    }

    /// Takes over what was read anew, for new connections.
    pub fn replace(&self, new: Self) {
        self.current.store(new.current.into_inner());
    }

    /// Makes of a new connection what is asked for. Nothing has been sent on it yet.
    ///
    /// # Errors
    /// [`HandshakeError`]
    pub async fn secure(&self, stream: TcpStream) -> Result<ServerStream, HandshakeError> {
        let Some(wanted) = self.current.load_full() else { return Ok(ServerStream::Plain(stream)) };
        Ok(match wanted.secure(stream).await? {
            Secured::Plain(stream) => ServerStream::Plain(stream),
            Secured::Tls(stream) => ServerStream::Tls(stream),
        })
    }
}

/// A connection to a server.
#[derive(Debug)]
pub enum ServerStream {
    /// Without TLS.
    Plain(TcpStream),
    /// With TLS. Boxed: its state is about a kilobyte.
    Tls(Box<TlsStream<TcpStream>>),
}

impl ServerStream {
    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    /// Whether nothing has arrived that nobody asked for, and the other side has not closed. What has
    /// is lost: the connection is of no use any more.
    pub fn is_silent(&self) -> bool {
        let mut byte = [0];
        let nothing_decrypted = match self {
            Self::Plain(_) => true,
            // It wants more only when what it has was taken.
            Self::Tls(stream) => stream.get_ref().1.wants_read(),
        };
        nothing_decrypted
            && matches!(self.socket().try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Hash that a login at this server can be bound to; none without TLS.
    pub fn end_point(&self) -> Option<Vec<u8>> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => certificate::end_point(stream.get_ref().1.peer_certificates()?.first()?),
        }
    }

    /// Whether it is encrypted.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}

impl AsyncRead for ServerStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }
}

/// The connections of the proxy's own role go through tokio-postgres, which wants a stream that is
/// already what it shall be: TLS is settled before it begins (`sslmode` plays no part there).
impl Servers {
    /// A connection to `address`, with TLS if that is asked for.
    ///
    /// # Errors
    /// [`HandshakeError`]
    pub async fn connect(&self, address: std::net::SocketAddr) -> Result<ServerStream, HandshakeError> {
        let stream = TcpStream::connect(address).await?;
        crate::upstream::tune(&stream)?;
        self.secure(stream).await
    }
}
