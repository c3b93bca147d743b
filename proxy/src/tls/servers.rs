//! TLS towards PostgreSQL servers: what is asked for, and the connections of the proxy's own role.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwapOption;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{TlsError, authorities, certificate, fail, identity};
use crate::config::{ServerTls, ServerTlsMode};
use crate::wire::startup::{ALPN, SSL_REQUEST};

/// How servers are connected to, replaceable while serving. Shared by all threads.
#[derive(Debug, Default)]
pub struct Servers {
    current: ArcSwapOption<Wanted>,
}

/// What is asked of servers.
#[derive(Debug)]
struct Wanted {
    config: Arc<ClientConfig>,
    /// Those that have no TLS will do.
    optional: bool,
}

/// Why a connection to a server has not become what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The socket, or TLS itself.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It has no TLS, or says something else.
    #[error("the server does not offer TLS, which `server_tls.mode` asks for")]
    NotOffered,
}

impl Servers {
    /// Reads what the configuration names.
    ///
    /// # Errors
    /// [`TlsError`]
    pub fn load(settings: &ServerTls) -> Result<Self, TlsError> {
        Ok(Self { current: ArcSwapOption::new(wanted(settings)?.map(Arc::new)) })
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
        wanted.secure(stream).await
    }
}

impl Wanted {
    async fn secure(&self, mut stream: TcpStream) -> Result<ServerStream, HandshakeError> {
        stream.write_all(&SSL_REQUEST).await?;
        // Exactly one byte: what else is there before the handshake was not said by the server.
        match stream.read_u8().await? {
            b'S' => {}
            b'N' if self.optional => return Ok(ServerStream::Plain(stream)),
            _ => return Err(HandshakeError::NotOffered),
        }
        let name = ServerName::IpAddress(stream.peer_addr()?.ip().to_canonical().into());
        let stream = TlsConnector::from(self.config.clone()).connect(name, stream).await?;
        Ok(ServerStream::Tls(Box::new(stream)))
    }
}

fn wanted(settings: &ServerTls) -> Result<Option<Wanted>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = || -> Result<Arc<RootCertStore>, TlsError> {
        // The configuration was checked: these modes have a file.
        settings
            .ca_file
            .as_deref()
            .map_or_else(|| Ok(Arc::new(RootCertStore::empty())), |file| authorities(file).map(Arc::new))
    };
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| fail("server_tls".as_ref(), error.to_string()))?;
    let builder = match settings.mode {
        ServerTlsMode::Disable => return Ok(None),
        ServerTlsMode::VerifyFull => builder.with_root_certificates(roots()?),
        ServerTlsMode::Prefer | ServerTlsMode::Require | ServerTlsMode::VerifyCa => {
            let chain = match settings.mode {
                ServerTlsMode::VerifyCa => {
                    let verifier = WebPkiServerVerifier::builder_with_provider(roots()?, provider.clone()).build();
                    Some(verifier.map_err(|error| fail("server_tls.ca_file".as_ref(), error.to_string()))?)
                }
                _ => None,
            };
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Lenient { chain, provider }))
        }
    };
    let mut config = match (&settings.certificate_file, &settings.key_file) {
        (Some(certificate), Some(key)) => {
            let (chain, private) = identity(certificate, key)?;
            builder.with_client_auth_cert(chain, private).map_err(|error| fail(key, error.to_string()))?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Some(Wanted { config: Arc::new(config), optional: settings.mode == ServerTlsMode::Prefer }))
}

/// Modes that do not look at the name, or at nothing. The handshake itself is always checked, so that
/// whoever listens in learns nothing.
#[derive(Debug)]
struct Lenient {
    /// Checks the chain, for verify-ca.
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is looked at last: everything else is right.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
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

    /// What a login at this server can be bound to; none without TLS.
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
