//! Opening a connection to a server, up to its first ReadyForQuery.

use manatee_shared::tls::HandshakeError;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::auth::identity::Identity;
use crate::auth::secret::{Secret, nonce};
use crate::cancel::CancelTarget;
use crate::error::{ProxyError, Result, ServerError};
use crate::tls::servers::{ServerStream, Servers};
use crate::topology::Node;
use crate::wire::scram::{Channel, ClientExchange, ClientProof, Credential, MECHANISM, MECHANISM_PLUS};
use crate::wire::startup::{encode_password, encode_sasl_initial, encode_startup};

/// A server says little before it is ready; more than this is not a PostgreSQL.
const MAX_START_BYTES: usize = 256 * 1024;
/// Unacknowledged data for so long means that the host is gone: a paused process still acknowledges.
const DEAD_HOST: Duration = Duration::from_secs(10);

/// A server connection, ready for queries.
#[derive(Debug)]
pub struct Upstream {
    /// The connection (TCP_NODELAY and keepalive set).
    pub stream: ServerStream,
    /// Node that it leads to.
    pub node: Node,
    /// For cancel requests.
    pub cancel: Arc<CancelTarget>,
    /// ParameterStatus values as last reported, in the order of their first report.
    pub parameters: Vec<(String, String)>,
    /// Bytes that arrived after ReadyForQuery, normally none.
    pub unread: BytesMut,
}

impl Upstream {
    /// The value of a reported parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Report of the server about itself when the connection began (PostgreSQL 14 and newer).
    pub fn in_hot_standby(&self) -> Option<bool> {
        self.parameter("in_hot_standby").map(|value| value == "on")
    }
}

/// Connects to `node` as `identity` with startup `parameters` (beyond user and database), within
/// `limit` altogether.
///
/// # Errors
/// [`ProxyError::Connect`], [`ProxyError::ConnectTimeout`], [`ProxyError::Server`] with the
/// server's own words, [`ProxyError::ServerProtocol`]. Ask [`ProxyError::is_server_unready`]
/// whether another try may help.
pub async fn connect(
    servers: &Servers,
    node: Node,
    identity: &Identity,
    parameters: &[(String, String)],
    limit: Duration,
) -> Result<Upstream> {
    // Dropping the attempt closes its socket; the server notices.
    match tokio::time::timeout(limit, with_any_secret(servers, node, identity, parameters)).await {
        Ok(result) => result,
        Err(_) => Err(ProxyError::ConnectTimeout { target: node.id.to_string(), waited: limit }),
    }
}

/// With the newest secret of the role; and with the client's own, should that be the right one after all:
/// what is proved last may have been proved to a standby that did not know better.
async fn with_any_secret(
    servers: &Servers,
    node: Node,
    identity: &Identity,
    parameters: &[(String, String)],
) -> Result<Upstream> {
    let (newest, own) = (identity.secrets.newest(), identity.secrets.own());
    match attempt(servers, node, identity, &newest, parameters).await {
        Err(error) if error.is_wrong_secret() && !Arc::ptr_eq(&newest, own) => {
            let upstream = attempt(servers, node, identity, own, parameters).await?;
            identity.secrets.prefer_own();
            Ok(upstream)
        }
        result => result,
    }
}

async fn attempt(
    servers: &Servers,
    node: Node,
    identity: &Identity,
    secret: &Secret,
    parameters: &[(String, String)],
) -> Result<Upstream> {
    let failed = |source| ProxyError::Connect { target: node.id.to_string(), source };
    let stream = TcpStream::connect(node.address).await.map_err(failed)?;
    tune(&stream).map_err(failed)?;
    let stream = servers.secure(stream).await.map_err(|error| match error {
        // The other side went: another try may do. Everything else stays as it is.
        HandshakeError::Io(source) if is_loss(&source) => failed(source),
        HandshakeError::Io(source) => ProxyError::ServerTls { target: node.id.to_string(), source },
        HandshakeError::NotOffered => {
            let source = std::io::Error::other(HandshakeError::NotOffered.to_string());
            ProxyError::ServerTls { target: node.id.to_string(), source }
        }
    })?;
    let mut opening = Opening {
        stream,
        node,
        user: &identity.user,
        secret,
        input: BytesMut::with_capacity(2048),
        received: 0,
        exchange: Exchange::None,
        parameters: Vec::with_capacity(16),
        key: None,
    };
    let mut hello = BytesMut::with_capacity(128);
    encode_startup(&mut hello, &identity.user, &identity.database, parameters);
    opening.send(&hello).await?;
    while opening.step().await? == Progress::Continue {}
    let (pid, secret) = opening.key.unwrap_or_default();
    Ok(Upstream {
        stream: opening.stream,
        node,
        cancel: CancelTarget::new(node.address, pid, secret),
        parameters: opening.parameters,
        unread: opening.input,
    })
}

/// Whether the other side went, rather than said something wrong.
fn is_loss(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | TimedOut | UnexpectedEof)
}

/// Settings every connection of ours has: no Nagle, and dead hosts are noticed.
pub(crate) fn tune(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(1)).with_retries(5);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(DEAD_HOST))
}

#[derive(PartialEq, Eq)]
enum Progress {
    Continue,
    Ready,
}

/// Stage of the authentication.
enum Exchange {
    None,
    First(ClientExchange),
    Proved(ClientProof),
    Verified,
}

/// A connection being opened.
struct Opening<'a> {
    stream: ServerStream,
    node: Node,
    user: &'a str,
    secret: &'a Secret,
    input: BytesMut,
    received: usize,
    exchange: Exchange,
    parameters: Vec<(String, String)>,
    key: Option<(u32, Bytes)>,
}

impl Opening<'_> {
    /// Handles one message.
    async fn step(&mut self) -> Result<Progress> {
        let (tag, body) = self.read_message().await?;
        match tag {
            b'R' => self.authenticate(body).await?,
            b'S' => self.take_parameter(&body)?,
            b'K' if body.len() >= 8 => {
                let mut body = body;
                self.key = Some((body.get_u32(), body));
            }
            b'E' => {
                return Err(ProxyError::Server { target: self.node.id.to_string(), error: ServerError::parse(&body) });
            }
            // Notices; and an older protocol, of which we need no more than of the newest.
            b'N' | b'v' => {}
            b'Z' if body.as_ref() == b"I" => return Ok(Progress::Ready),
            other => return Err(self.unexpected(&format!("message {:?} while connecting", char::from(other)))),
        }
        Ok(Progress::Continue)
    }

    async fn authenticate(&mut self, mut body: Bytes) -> Result<()> {
        if body.len() < 4 {
            return Err(self.unexpected("authentication message too short"));
        }
        let kind = body.get_u32();
        let mut answer = BytesMut::new();
        match (kind, std::mem::replace(&mut self.exchange, Exchange::None)) {
            // A server that asked for SCRAM must have proved that it knows the verifier.
            (0, Exchange::None | Exchange::Verified) => return Ok(()),
            (3, Exchange::None) => match self.secret {
                Secret::Password(password) => encode_password(&mut answer, &zero_terminated(password)),
                _ => return Err(self.no_secret("a clear-text password")),
            },
            (5, Exchange::None) => {
                let salt = <[u8; 4]>::try_from(body.as_ref()).map_err(|_| self.unexpected("md5 salt"))?;
                let hash = match self.secret {
                    Secret::Md5(hash) => hash.clone(),
                    Secret::Password(password) => crate::auth::Md5Hash::of(password, self.user),
                    _ => return Err(self.no_secret("md5")),
                };
                encode_password(&mut answer, &zero_terminated(&hash.response(salt)));
            }
            (10, Exchange::None) => {
                let offered = |wanted: &str| body.split(|&byte| byte == 0).any(|name| name == wanted.as_bytes());
                let end_point = self.stream.end_point();
                let (mechanism, channel) = match &end_point {
                    Some(end_point) if offered(MECHANISM_PLUS) => (MECHANISM_PLUS, Channel::Bound(end_point)),
                    Some(_) if offered(MECHANISM) => (MECHANISM, Channel::Declined),
                    None if offered(MECHANISM) => (MECHANISM, Channel::Unbound),
                    _ => return Err(self.unexpected("no SASL mechanism in common")),
                };
                let (exchange, message) = ClientExchange::begin(&nonce()?, channel);
                encode_sasl_initial(&mut answer, mechanism, message.as_bytes());
                self.exchange = Exchange::First(exchange);
            }
            (11, Exchange::First(exchange)) => {
                let proved = match self.secret {
                    Secret::Scram { client_key, server_key } => {
                        exchange.prove(&body, &Credential::Keys { client_key, server_key })
                    }
                    Secret::Password(password) => {
                        let password = password.clone();
                        // Thousands of hashes: not on a session thread.
                        tokio::task::spawn_blocking(move || exchange.prove(&body, &Credential::Password(&password)))
                            .await
                            .map_err(|error| ProxyError::Internal(error.to_string()))?
                    }
                    _ => return Err(self.no_secret("SCRAM")),
                };
                let (proof, message) = proved.map_err(|error| self.unexpected(&error.to_string()))?;
                encode_password(&mut answer, message.as_bytes());
                self.exchange = Exchange::Proved(proof);
            }
            (12, Exchange::Proved(proof)) => {
                proof.verify(&body).map_err(|error| self.unexpected(&error.to_string()))?;
                self.exchange = Exchange::Verified;
                return Ok(());
            }
            (kind, _) => return Err(self.unexpected(&format!("authentication request {kind} out of place"))),
        }
        self.send(&answer).await
    }

    fn take_parameter(&mut self, body: &[u8]) -> Result<()> {
        let mut texts = body.split(|&byte| byte == 0);
        let (Some(name), Some(value)) = (texts.next(), texts.next()) else {
            return Err(self.unexpected("malformed ParameterStatus"));
        };
        let (name, value) = (String::from_utf8_lossy(name), String::from_utf8_lossy(value).into_owned());
        match self.parameters.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => self.parameters.push((name.into_owned(), value)),
        }
        Ok(())
    }

    async fn read_message(&mut self) -> Result<(u8, Bytes)> {
        loop {
            if let Some(&[tag, a, b, c, d]) = self.input.first_chunk::<5>() {
                let length = u32::from_be_bytes([a, b, c, d]) as usize;
                if !(4..=MAX_START_BYTES).contains(&length) {
                    return Err(self.unexpected("it does not speak the PostgreSQL protocol"));
                }
                if self.input.len() > length {
                    let mut message = self.input.split_to(length + 1).freeze();
                    message.advance(5);
                    return Ok((tag, message));
                }
            }
            let count = self.stream.read_buf(&mut self.input).await.map_err(|source| self.broken(source))?;
            self.received += count;
            if count == 0 {
                return Err(self.broken(std::io::ErrorKind::UnexpectedEof.into()));
            }
            if self.received > MAX_START_BYTES {
                return Err(self.unexpected("too much data while connecting"));
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await.map_err(|source| self.broken(source))?;
        // TLS keeps what the socket did not take.
        self.stream.flush().await.map_err(|source| self.broken(source))
    }

    fn broken(&self, source: std::io::Error) -> ProxyError {
        ProxyError::Connect { target: self.node.id.to_string(), source }
    }

    fn no_secret(&self, wanted: &'static str) -> ProxyError {
        ProxyError::NoSecret { target: self.node.id.to_string(), user: self.user.to_owned(), wanted }
    }

    fn unexpected(&self, problem: &str) -> ProxyError {
        ProxyError::ServerProtocol { target: self.node.id.to_string(), problem: problem.to_owned() }
    }
}

fn zero_terminated(text: &str) -> zeroize::Zeroizing<Vec<u8>> {
    let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(text.len() + 1));
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes
}
