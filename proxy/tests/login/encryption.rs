//! Encryption is settled in any order, and nothing said before it is taken for said under it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use manatee_proxy::wire::startup::encode_startup;
use manatee_shared::tls::SSL_REQUEST as SSL;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::Bench;

const PATIENCE: Duration = Duration::from_secs(20);
const GSS: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x30];

/// Any certificate will do here.
#[derive(Debug)]
struct Anybody(CryptoProvider);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

async fn handshake(socket: TcpStream, alpn: &[&str]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(aws_lc_rs::default_provider())))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config)).connect("localhost".try_into().expect("name"), socket).await
}

fn startup() -> BytesMut {
    let mut bytes = BytesMut::new();
    encode_startup(&mut bytes, "alice", "postgres", &[]);
    bytes
}

/// Says it, and reads what comes back: `count` bytes, or until the end.
async fn say(socket: &mut TcpStream, bytes: &[u8], count: usize) -> Vec<u8> {
    socket.write_all(bytes).await.expect("write");
    let mut answer = vec![0; count];
    let read = tokio::time::timeout(PATIENCE, socket.read_exact(&mut answer)).await.expect("an answer in time");
    read.expect("an answer");
    answer
}

/// The first byte that answers a startup message under TLS: `R` if a login begins.
async fn first_answer(stream: &mut TlsStream<TcpStream>) -> Option<u8> {
    stream.write_all(&startup()).await.ok()?;
    tokio::time::timeout(PATIENCE, stream.read_u8()).await.expect("an answer or an end").ok()
}

async fn socket(proxy: SocketAddr) -> TcpStream {
    TcpStream::connect(proxy).await.expect("connect")
}

pub(crate) async fn encryption(bench: &Bench) {
    in_any_order(bench).await;
    plain_text_before(bench).await;
    direct(bench).await;
}

async fn in_any_order(bench: &Bench) {
    // GSSAPI is not to be had; TLS may be asked for after that.
    let mut stream = socket(bench.proxy).await;
    assert_eq!(say(&mut stream, &GSS, 1).await, b"N");
    assert_eq!(say(&mut stream, &SSL, 1).await, b"S");
    let mut stream = handshake(stream, &[]).await.expect("handshake");
    assert_eq!(first_answer(&mut stream).await, Some(b'R'));

    // Without TLS in the end.
    let mut stream = socket(bench.proxy).await;
    assert_eq!(say(&mut stream, &GSS, 1).await, b"N");
    assert_eq!(say(&mut stream, &startup(), 1).await, b"R");

    // The other order: within TLS there is nothing to ask for, as PostgreSQL sees it too.
    for again in [GSS, SSL] {
        let mut stream = socket(bench.proxy).await;
        assert_eq!(say(&mut stream, &SSL, 1).await, b"S");
        let mut stream = handshake(stream, &[]).await.expect("handshake");
        stream.write_all(&again).await.expect("write");
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
        assert!(read.is_ok() && answer.first() == Some(&b'E'), "{answer:?}");
    }
    // Each is answered once.
    let mut stream = socket(bench.proxy).await;
    assert_eq!(say(&mut stream, &GSS, 1).await, b"N");
    assert_eq!(say(&mut stream, &GSS, 1).await, b"E");

    // Where TLS is not to be had, both in either order, and then in clear.
    let folder = bench.postgres.folder().join(format!(".s.PGSQL.{}", bench.proxy.port()));
    for order in [[SSL, GSS], [GSS, SSL]] {
        let mut stream = tokio::net::UnixStream::connect(&folder).await.expect("connect");
        for request in [&order[0][..], &order[1][..], &startup()[..]] {
            stream.write_all(request).await.expect("write");
            let answer = tokio::time::timeout(PATIENCE, stream.read_u8()).await.expect("in time").expect("an answer");
            assert_eq!(answer, if request.len() == 8 { b'N' } else { b'R' });
        }
    }
}

/// Bytes that somebody between puts before the handshake are never taken for what the client says under TLS.
async fn plain_text_before(bench: &Bench) {
    let mut stream = socket(bench.proxy).await;
    assert_eq!(say(&mut stream, &GSS, 1).await, b"N");
    let injected = [&SSL[..], &startup()].concat();
    assert_eq!(say(&mut stream, &injected, 1).await, b"S");
    let mut answer = Vec::new();
    let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
    assert!(end.is_err() || !answer.contains(&b'R'), "no login may begin: {answer:?}");
    // Nor before direct TLS.
    let mut stream = socket(bench.proxy).await;
    stream.write_all(&startup()).await.expect("write");
    assert!(handshake(stream, &["postgresql"]).await.is_err());
}

/// TLS from the first byte on, as libpq 17 does with `sslnegotiation=direct`: whoever does not name the
/// protocol is somebody else's client (`ProcessSSLStartup`).
async fn direct(bench: &Bench) {
    for alpn in [&["postgresql"][..], &["h2", "postgresql"]] {
        let mut stream = handshake(socket(bench.proxy).await, alpn).await.expect("handshake");
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"postgresql"[..]));
        assert_eq!(first_answer(&mut stream).await, Some(b'R'), "{alpn:?}");
    }
    let mut stream = handshake(socket(bench.proxy).await, &[]).await.expect("handshake");
    assert_ne!(first_answer(&mut stream).await, Some(b'R'), "no ALPN");
    if let Ok(mut stream) = handshake(socket(bench.proxy).await, &["http/1.1"]).await {
        assert_ne!(first_answer(&mut stream).await, Some(b'R'), "another protocol");
    }
}
