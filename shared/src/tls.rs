//! TLS towards PostgreSQL servers, by rustls: what is asked for by libpq's names, the handshake, and the files of
//! certificates, keys and authorities.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// SSLRequest: its length and the code 1234.5679 (manual, section 55.7).
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x2F];
/// ALPN protocol of PostgreSQL; direct TLS must name it.
pub const ALPN: &[u8] = b"postgresql";

/// Demand on servers' TLS, by libpq's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerTlsMode {
    /// No TLS.
    #[default]
    Disable,
    /// TLS if the server has it.
    Prefer,
    /// TLS, whoever it is.
    Require,
    /// TLS with a certificate of our authorities.
    VerifyCa,
    /// And it must name the address that is connected to.
    VerifyFull,
}

impl ServerTlsMode {
    /// As libpq's `sslmode` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }

    /// Whether there is no connection without TLS.
    pub fn is_required(self) -> bool {
        matches!(self, Self::Require | Self::VerifyCa | Self::VerifyFull)
    }

    /// Whether the server's certificate has to be somebody's whom we trust.
    pub fn verifies(self) -> bool {
        matches!(self, Self::VerifyCa | Self::VerifyFull)
    }
}

/// TLS towards servers: the table `[server_tls]` of the proxy, `[postgres.replication_tls]` of the sitter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerTls {
    /// Demand on the server.
    pub mode: ServerTlsMode,
    /// Authorities of the servers' certificates, PEM.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate chain, PEM.
    pub certificate_file: Option<PathBuf>,
    /// Its key, PEM.
    pub key_file: Option<PathBuf>,
}

impl ServerTls {
    /// Whether the keys fit together, without looking at the files. `table` is its name in the configuration.
    ///
    /// # Errors
    /// The key, in full, and what is wrong with it.
    pub fn check(&self, table: &str) -> Result<(), (String, &'static str)> {
        if self.certificate_file.is_some() != self.key_file.is_some() {
            return Err((table.to_owned(), "needs both certificate_file and key_file, or neither"));
        }
        let mode = |problem| Err((format!("{table}.mode"), problem));
        let files = [&self.ca_file, &self.certificate_file, &self.key_file];
        if self.mode == ServerTlsMode::Disable && files.into_iter().any(Option::is_some) {
            return mode("is \"disable\", so the files would not be used; set it, or remove them");
        }
        if self.mode.verifies() && self.ca_file.is_none() {
            return mode("verifies certificates; set ca_file");
        }
        Ok(())
    }
}

/// Reason why certificate and key cannot be used. One line, with the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {problem}")]
pub struct TlsError {
    file: String,
    problem: String,
}

impl TlsError {
    /// `problem` with what is in `file`.
    pub fn new(file: &Path, problem: String) -> Self {
        Self { file: file.display().to_string(), problem }
    }
}

/// Certificates of authorities.
///
/// # Errors
/// [`TlsError`] if the file has none, or one that cannot be used.
pub fn authorities(file: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| TlsError::new(file, format!("cannot read the authorities: {error}; it must be PEM")))?;
    for certificate in certificates {
        roots.add(certificate).map_err(|error| TlsError::new(file, format!("has an unusable certificate: {error}")))?;
    }
    if roots.is_empty() {
        return Err(TlsError::new(file, "has no certificate; it must be PEM".to_owned()));
    }
    Ok(roots)
}

/// A certificate chain, and its key.
///
/// # Errors
/// [`TlsError`] if a file cannot be read or has nothing of the kind.
pub fn identity(
    certificate_file: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = CertificateDer::pem_file_iter(certificate_file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| {
            TlsError::new(certificate_file, format!("cannot read the certificate chain: {error}; it must be PEM"))
        })?;
    if chain.is_empty() {
        let problem = "has no certificate; it must be PEM, the server's own first".to_owned();
        return Err(TlsError::new(certificate_file, problem));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| {
        TlsError::new(key, format!("cannot read the private key: {error}; it must be PEM, unencrypted"))
    })?;
    Ok((chain, private))
}

/// Demand on servers, with the files read.
#[derive(Clone, Debug)]
pub struct Wanted {
    config: Arc<ClientConfig>,
    /// Those that have no TLS will do.
    optional: bool,
}

/// A connection to a server, made what was asked for.
#[derive(Debug)]
pub enum Secured {
    /// Without TLS.
    Plain(TcpStream),
    /// With TLS. Boxed: its state is about a kilobyte.
    Tls(Box<TlsStream<TcpStream>>),
}

/// Reason why a connection to a server does not meet the demand.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The socket, or TLS itself.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It has no TLS, or says something else.
    #[error("the server does not offer TLS, which the configured mode asks for")]
    NotOffered,
}

impl Wanted {
    /// Reads what the configuration names; none without TLS.
    ///
    /// # Errors
    /// [`TlsError`]
    pub fn load(settings: &ServerTls) -> Result<Option<Self>, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        // The configuration was checked: the modes that verify have a file.
        let ca_file = settings.ca_file.as_deref().unwrap_or(Path::new("ca_file"));
        let roots = || authorities(ca_file).map(Arc::new);
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::new(ca_file, error.to_string()))?;
        let lenient = |chain| Arc::new(Lenient { chain, provider: provider.clone() });
        let builder = match settings.mode {
            ServerTlsMode::Disable => return Ok(None),
            ServerTlsMode::VerifyFull => builder.with_root_certificates(roots()?),
            ServerTlsMode::VerifyCa => {
                let verifier = WebPkiServerVerifier::builder_with_provider(roots()?, provider.clone()).build();
                let verifier = verifier.map_err(|error| TlsError::new(ca_file, error.to_string()))?;
                builder.dangerous().with_custom_certificate_verifier(lenient(Some(verifier)))
            }
            ServerTlsMode::Prefer | ServerTlsMode::Require => {
                builder.dangerous().with_custom_certificate_verifier(lenient(None))
            }
        };
        let mut config = match (&settings.certificate_file, &settings.key_file) {
            (Some(certificate), Some(key)) => {
                let (chain, private) = identity(certificate, key)?;
                builder.with_client_auth_cert(chain, private).map_err(|error| TlsError::new(key, error.to_string()))?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Some(Self { config: Arc::new(config), optional: settings.mode == ServerTlsMode::Prefer }))
    }

    /// Makes of a new connection what is asked for. Nothing has been sent on it yet.
    ///
    /// # Errors
    /// [`HandshakeError`]
    pub async fn secure(&self, mut stream: TcpStream) -> Result<Secured, HandshakeError> {
        stream.write_all(&SSL_REQUEST).await?;
        // Exactly one byte: what else is there before the handshake was not said by the server.
        match stream.read_u8().await? {
            b'S' => {}
            b'N' if self.optional => return Ok(Secured::Plain(stream)),
            _ => return Err(HandshakeError::NotOffered),
        }
        let name = ServerName::IpAddress(stream.peer_addr()?.ip().to_canonical().into());
        let stream = TlsConnector::from(self.config.clone()).connect(name, stream).await?;
        Ok(Secured::Tls(Box::new(stream)))
    }
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
