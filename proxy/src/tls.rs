//! TLS, by rustls. Towards clients in this file: by SSLRequest or direct, certificates reloaded without a restart.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use manatee_shared::tls::{ALPN, TlsError, authorities, identity};
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::Tls;
use crate::error::{ProxyError, Result};

pub mod certificate;
pub mod servers;

/// A certificate in use.
#[derive(Debug)]
struct Served {
    config: Arc<ServerConfig>,
    /// Hash that clients can bind their login to.
    end_point: Option<Arc<[u8]>>,
    expires: Option<SystemTime>,
}

/// The certificate clients see, replaceable while serving.
#[derive(Debug)]
pub struct Certificates {
    current: ArcSwapOption<Served>,
    required: AtomicBool,
}

impl Certificates {
    /// Reads what the configuration names; without certificate TLS is not offered.
    ///
    /// # Errors
    /// [`TlsError`]
    pub fn load(settings: &Tls) -> std::result::Result<Self, TlsError> {
        let config = match (&settings.certificate_file, &settings.key_file) {
            (Some(certificate), Some(key)) => Some(Arc::new(serve(certificate, key, settings)?)),
            _ => None,
        };
        Ok(Self { current: ArcSwapOption::new(config), required: AtomicBool::new(settings.required) })
    }

    /// Takes over what was read anew; connections that there are keep what they have.
    pub fn replace(&self, new: Self) {
        self.required.store(new.required(), Ordering::Relaxed);
        self.current.store(new.current.into_inner());
    }

    /// Whether TLS can be offered.
    pub fn is_available(&self) -> bool {
        self.current.load().is_some()
    }

    /// Expiry of the certificate.
    pub fn expires(&self) -> Option<SystemTime> {
        self.current.load().as_ref().and_then(|served| served.expires)
    }

    /// Whether clients without TLS are refused.
    pub fn required(&self) -> bool {
        self.required.load(Ordering::Relaxed)
    }

    /// Does the handshake.
    ///
    /// # Errors
    /// [`ProxyError::NotAllowed`] without a certificate, [`ProxyError::ClientGone`] if it fails:
    /// rustls has sent its alert by then.
    pub async fn accept(&self, socket: TcpStream) -> Result<ClientStream> {
        let Some(served) = self.current.load_full() else {
            return Err(ProxyError::NotAllowed("TLS is not configured".to_owned()));
        };
        let stream = TlsAcceptor::from(served.config.clone()).accept(socket).await.map_err(ProxyError::ClientGone)?;
        Ok(ClientStream::Tls(Box::new(stream), served.end_point.clone()))
    }
}

/// Verifier of client certificates; whoever has none is not turned away here.
fn client_verifier(ca: &Path, crl: Option<&Path>) -> std::result::Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let roots = Arc::new(authorities(ca)?);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut builder = WebPkiClientVerifier::builder_with_provider(roots, provider).allow_unauthenticated();
    if let Some(crl) = crl {
        let lists = CertificateRevocationListDer::pem_file_iter(crl)
            .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
            .map_err(|error| TlsError::new(crl, format!("cannot read the revocation list: {error}; it must be PEM")))?;
        builder = builder.with_crls(lists).allow_unknown_revocation_status();
    }
    builder.build().map_err(|error| TlsError::new(ca, format!("cannot be used: {error}")))
}

fn serve(certificate_file: &Path, key: &Path, settings: &Tls) -> std::result::Result<Served, TlsError> {
    let (chain, private) = identity(certificate_file, key)?;
    let own = chain.first().map(AsRef::as_ref).unwrap_or_default();
    let (end_point, expires) = (certificate::end_point(own).map(Arc::from), certificate::expires(own));
    let clients = match &settings.client_ca_file {
        Some(ca) => client_verifier(ca, settings.client_crl_file.as_deref())?,
        None => WebPkiClientVerifier::no_client_auth(),
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_client_cert_verifier(clients).with_single_cert(chain, private))
        .map_err(|error| TlsError::new(key, format!("cannot be used with {}: {error}", certificate_file.display())))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Served { config: Arc::new(config), end_point, expires })
}

/// A client's connection.
#[derive(Debug)]
pub enum ClientStream {
    /// Without TLS.
    Plain(TcpStream),
    /// Over a Unix socket, without TLS.
    Unix(UnixStream),
    /// With TLS, and what a login can be bound to. Boxed: its state is about a kilobyte.
    Tls(Box<TlsStream<TcpStream>>, Option<Arc<[u8]>>),
}

impl ClientStream {
    /// Whether it is encrypted.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(..))
    }

    /// The version of TLS.
    pub fn tls_version(&self) -> Option<&'static str> {
        match self {
            Self::Plain(_) | Self::Unix(_) => None,
            Self::Tls(stream, _) => Some(match stream.get_ref().1.protocol_version() {
                Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
                _ => "TLSv1.3",
            }),
        }
    }

    /// User at the other end of a Unix socket, according to the operating system.
    pub fn peer_uid(&self) -> Option<u32> {
        match self {
            Self::Unix(stream) => stream.peer_cred().ok().map(|credentials| credentials.uid()),
            Self::Plain(_) | Self::Tls(..) => None,
        }
    }

    /// The client's certificate, if it has one.
    pub fn client_certificate(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) | Self::Unix(_) => None,
            Self::Tls(stream, _) => stream.get_ref().1.peer_certificates()?.first().map(AsRef::as_ref),
        }
    }

    /// The address it came to.
    pub fn local_addr(&self) -> Option<std::net::SocketAddr> {
        match self {
            Self::Plain(stream) => stream.local_addr().ok(),
            Self::Unix(_) => None,
            Self::Tls(stream, _) => stream.get_ref().0.local_addr().ok(),
        }
    }

    /// The hash of our certificate, for channel binding.
    pub fn end_point(&self) -> Option<Arc<[u8]>> {
        match self {
            Self::Plain(_) | Self::Unix(_) => None,
            Self::Tls(_, end_point) => end_point.clone(),
        }
    }

    /// The protocol agreed on by ALPN.
    pub fn alpn(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) | Self::Unix(_) => None,
            Self::Tls(stream, _) => stream.get_ref().1.alpn_protocol(),
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream, _) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream, _) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream, _) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream, _) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream, _) => Pin::new(stream.as_mut()).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
            Self::Tls(stream, _) => stream.is_write_vectored(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_files_are_named() {
        let folder = tempfile::tempdir().expect("folder");
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("empty.crt"), "").expect("write");
        let load = |name: &str| {
            let settings = Tls { certificate_file: Some(path(name)), key_file: Some(path("key")), ..Tls::default() };
            Certificates::load(&settings).expect_err("unusable").to_string()
        };
        assert!(load("missing.crt").contains("missing.crt"));
        assert!(load("empty.crt").contains("no certificate"));
        assert!(!Certificates::load(&Tls::default()).expect("none").is_available());
    }
}
