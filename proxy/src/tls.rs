//! TLS towards clients: rustls by SSLRequest or direct, certificates reloaded without a restart.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwapOption;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::Tls;
use crate::error::{ProxyError, Result};
use crate::wire::startup::ALPN;

/// Why certificate and key cannot be used. One line, with the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {problem}")]
pub struct TlsError {
    file: String,
    problem: String,
}

/// The certificate clients see, replaceable while serving.
#[derive(Debug)]
pub struct Certificates {
    current: ArcSwapOption<ServerConfig>,
    settings: Tls,
}

impl Certificates {
    /// Reads what the configuration names; without certificate TLS is not offered.
    ///
    /// # Errors
    /// [`TlsError`]
    pub fn load(settings: &Tls) -> std::result::Result<Self, TlsError> {
        let certificates = Self { current: ArcSwapOption::empty(), settings: settings.clone() };
        certificates.reload()?;
        Ok(certificates)
    }

    /// Reads the files again. New connections use what is there now; on an error the old stays.
    ///
    /// # Errors
    /// [`TlsError`]
    pub fn reload(&self) -> std::result::Result<(), TlsError> {
        if let (Some(certificate), Some(key)) = (&self.settings.certificate_file, &self.settings.key_file) {
            self.current.store(Some(Arc::new(server_config(certificate, key)?)));
        }
        Ok(())
    }

    /// Whether TLS can be offered.
    pub fn is_available(&self) -> bool {
        self.current.load().is_some()
    }

    /// Whether clients without TLS are refused.
    pub fn required(&self) -> bool {
        self.settings.required
    }

    /// Does the handshake.
    ///
    /// # Errors
    /// [`ProxyError::NotAllowed`] without a certificate, [`ProxyError::ClientGone`] if it fails:
    /// rustls has sent its alert by then.
    pub async fn accept(&self, socket: TcpStream) -> Result<ClientStream> {
        let Some(config) = self.current.load_full() else {
            return Err(ProxyError::NotAllowed("TLS is not configured".to_owned()));
        };
        let stream = TlsAcceptor::from(config).accept(socket).await.map_err(ProxyError::ClientGone)?;
        Ok(ClientStream::Tls(Box::new(stream)))
    }
}

fn server_config(certificate: &Path, key: &Path) -> std::result::Result<ServerConfig, TlsError> {
    let fail = |file: &Path, problem: String| TlsError { file: file.display().to_string(), problem };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
        .map_err(|error| fail(certificate, format!("cannot read the certificate chain: {error}; it must be PEM")))?;
    if chain.is_empty() {
        return Err(fail(certificate, "has no certificate; it must be PEM, the server's own first".to_owned()));
    }
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| fail(key, format!("cannot read the private key: {error}; it must be PEM, unencrypted")))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private))
        .map_err(|error| fail(key, format!("cannot be used with {}: {error}", certificate.display())))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// A client's connection.
#[derive(Debug)]
pub enum ClientStream {
    /// Without TLS.
    Plain(TcpStream),
    /// With TLS. Boxed: its state is about a kilobyte.
    Tls(Box<TlsStream<TcpStream>>),
}

impl ClientStream {
    /// Whether it is encrypted.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// The protocol agreed on by ALPN.
    pub fn alpn(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol(),
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ClientStream {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_files_are_named() {
        let folder = tempfile::tempdir().expect("folder");
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("empty.crt"), "").expect("write");
        let load = |name: &str| {
            let settings = Tls { certificate_file: Some(path(name)), key_file: Some(path("key")), required: false };
            Certificates::load(&settings).expect_err("unusable").to_string()
        };
        assert!(load("missing.crt").contains("missing.crt"));
        assert!(load("empty.crt").contains("no certificate"));
        assert!(!Certificates::load(&Tls::default()).expect("none").is_available());
    }
}
