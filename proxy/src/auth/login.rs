//! A client's way from its first byte to its first ReadyForQuery.
//!
//! Exactly as many bytes are read as a message has, so nothing is left in a buffer when TLS begins
//! or when the session takes over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::greeting::{Greeting, Greetings};
use super::secret::{Secret, nonce, random};
use super::users::Users;
use super::verifier::{Role, Stored, Verifiers};
use super::{Access, Client, Identity};
use crate::admin::{self, Console, Rights};
use crate::cancel::Registry;
use crate::config::Config;
use crate::error::{ProxyError, Result};
use crate::tls::{Certificates, ClientStream};
use crate::wire::scram::{Channel, MECHANISM, MECHANISM_PLUS, Proven, ScramError, ServerExchange, Verifier};
use crate::wire::startup::{
    ALPN, Authentication, HEADER_BYTES, Header, Startup, TLS_HANDSHAKE, encode_backend_key, encode_negotiate,
    encode_parameter_status, encode_ready, parse_cancel, parse_sasl_initial,
};

/// Longest password or SASL message taken from somebody unknown (PG_MAX_AUTH_TOKEN_LENGTH is 65535;
/// we know no mechanism that needs more than this).
const MAX_PASSWORD_BYTES: usize = 4096;
/// What is kept of the login time to tell the client why it failed.
const FAREWELL: Duration = Duration::from_millis(500);

/// Everything a login needs. Shared by all threads.
pub struct Gatekeeper {
    config: Arc<ArcSwap<Config>>,
    verifiers: Verifiers,
    greetings: Greetings,
    cancels: Arc<Registry>,
    certificates: Certificates,
    users: Users,
    console: Arc<Console>,
    mock_secret: [u8; 32],
}

/// What became of a connection.
// One per connection and moved at once: no use in boxing.
#[allow(clippy::large_enum_variant)]
pub enum Admission {
    /// A session begins.
    Session(ClientStream, Client),
    /// A console begins.
    Console(ClientStream, Rights),
    /// Nothing more to do: a cancel request, or the other side left.
    Done,
}

impl Gatekeeper {
    /// # Errors
    /// When there is no randomness to be had.
    pub fn new(
        config: Arc<ArcSwap<Config>>,
        verifiers: Verifiers,
        greetings: Greetings,
        cancels: Arc<Registry>,
        certificates: Certificates,
        users: Users,
        console: Arc<Console>,
    ) -> Result<Self> {
        let mock_secret = random()?;
        Ok(Self { config, verifiers, greetings, cancels, certificates, users, console, mock_secret })
    }

    /// Roles from a file.
    pub fn users(&self) -> &Users {
        &self.users
    }

    /// The certificates clients see.
    pub fn certificates(&self) -> &Certificates {
        &self.certificates
    }
}

/// Takes a new connection through its login. `room` says whether another client is admitted; cancel
/// requests are served either way.
///
/// # Errors
/// Why the login failed; the client has been told.
pub async fn login(
    socket: TcpStream,
    address: SocketAddr,
    access: Access,
    room: bool,
    gate: &Gatekeeper,
    stop: &CancellationToken,
) -> Result<Admission> {
    let limit = gate.config.load().auth.login_timeout;
    let deadline = Instant::now() + limit;
    // What is kept back is for telling the client why.
    let entering = Entering { address, access, room, gate, stop, deadline: deadline - FAREWELL.min(limit / 2) };
    // Dropping a login closes the connection; nothing outlives it.
    match tokio::time::timeout_at(deadline.into(), attempt(socket, &entering)).await {
        Ok(result) => result,
        Err(_) => Err(ProxyError::LoginTimeout(limit)),
    }
}

async fn attempt(socket: TcpStream, entering: &Entering<'_>) -> Result<Admission> {
    let gate = entering.gate;
    crate::upstream::tune(&socket).map_err(ProxyError::ClientGone)?;
    let (mut stream, request) = match negotiate(socket, &gate.certificates).await {
        Ok(negotiated) => negotiated,
        Err((stream, error)) => return Err(farewell(stream, error).await),
    };
    let startup = match request {
        Request::Nothing => return Ok(Admission::Done),
        Request::Cancel(body) => {
            if let Some((pid, secret)) = parse_cancel(&body) {
                gate.cancels.cancel(pid, secret).await;
            }
            return Ok(Admission::Done);
        }
        Request::Startup(startup) => startup,
    };
    match entering.enter(&mut stream, startup).await {
        Ok(Entered::Client(client)) => Ok(Admission::Session(stream, client)),
        Ok(Entered::Console(rights)) => Ok(Admission::Console(stream, rights)),
        Err(error) => Err(farewell(Some(stream), error).await),
    }
}

/// Tells the client why, as well as it can be told.
async fn farewell(stream: Option<ClientStream>, error: ProxyError) -> ProxyError {
    if let Some(mut stream) = stream
        && !matches!(error, ProxyError::ClientGone(_))
    {
        let mut out = BytesMut::new();
        error.as_fatal(&mut out);
        // Bounded by the login's own limit. A failure changes nothing: the connection ends anyway.
        let _ = stream.write_all(&out).await;
        let _ = stream.shutdown().await;
    }
    error
}

/// What a client wants, once encryption is settled.
enum Request {
    Startup(Startup),
    Cancel(Vec<u8>),
    Nothing,
}

type Refusal = (Option<ClientStream>, ProxyError);

/// Settles encryption and reads what the client wants.
async fn negotiate(
    socket: TcpStream,
    certificates: &Certificates,
) -> std::result::Result<(ClientStream, Request), Refusal> {
    let mut first = [0; 1];
    match socket.peek(&mut first).await {
        Ok(0) => return Ok((ClientStream::Plain(socket), Request::Nothing)),
        Ok(_) => {}
        Err(error) => return Err((None, ProxyError::ClientGone(error))),
    }
    let mut stream = ClientStream::Plain(socket);
    if first[0] == TLS_HANDSHAKE {
        // Direct TLS: the client must have named the protocol, or it may be somebody's browser.
        stream = start_tls(stream, certificates).await?;
        if stream.alpn() != Some(ALPN) {
            return Err((Some(stream), ProxyError::Protocol("direct TLS without ALPN \"postgresql\"".to_owned())));
        }
    }
    // Each may be asked for once (`ProcessStartupPacket`).
    let (mut asked_tls, mut asked_gss) = (false, false);
    loop {
        let header = match read_header(&mut stream).await {
            Ok(Some(header)) => header,
            Ok(None) => return Ok((stream, Request::Nothing)),
            Err(error) => return Err((Some(stream), error)),
        };
        match header {
            Header::Ssl if !asked_tls && !stream.is_tls() => {
                asked_tls = true;
                let answer = if certificates.is_available() { b"S" } else { b"N" };
                if let Err(error) = stream.write_all(answer).await {
                    return Err((None, ProxyError::ClientGone(error)));
                }
                if certificates.is_available() {
                    stream = start_tls(stream, certificates).await?;
                }
            }
            Header::GssEnc if !asked_gss && !stream.is_tls() => {
                asked_gss = true;
                if let Err(error) = stream.write_all(b"N").await {
                    return Err((None, ProxyError::ClientGone(error)));
                }
            }
            Header::Ssl | Header::GssEnc => {
                return Err((Some(stream), ProxyError::Protocol("encryption was asked for twice".to_owned())));
            }
            Header::Cancel { rest } => {
                return match read_rest(&mut stream, rest).await {
                    Ok(body) => Ok((stream, Request::Cancel(body))),
                    Err(error) => Err((None, error)),
                };
            }
            Header::Startup { minor, rest } => {
                let startup = match read_rest(&mut stream, rest).await {
                    Ok(body) => Startup::parse(minor, &body),
                    Err(error) => Err(error),
                };
                return match startup {
                    Ok(_) if certificates.required() && !stream.is_tls() => {
                        let text = "connection requires TLS; connect with sslmode=require".to_owned();
                        Err((Some(stream), ProxyError::NotAllowed(text)))
                    }
                    Ok(startup) => Ok((stream, Request::Startup(startup))),
                    Err(error) => Err((Some(stream), error)),
                };
            }
        }
    }
}

async fn start_tls(stream: ClientStream, certificates: &Certificates) -> std::result::Result<ClientStream, Refusal> {
    match stream {
        ClientStream::Plain(socket) => certificates.accept(socket).await.map_err(|error| (None, error)),
        ClientStream::Tls(..) => Err((Some(stream), ProxyError::Protocol("TLS within TLS".to_owned()))),
    }
}

/// None: the other side left without a word, as health checks do.
async fn read_header(stream: &mut ClientStream) -> Result<Option<Header>> {
    let mut bytes = [0; HEADER_BYTES];
    let count = stream.read(&mut bytes).await.map_err(ProxyError::ClientGone)?;
    if count == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut bytes[count..]).await.map_err(ProxyError::ClientGone)?;
    Header::parse(bytes).map(Some)
}

async fn read_rest(stream: &mut ClientStream, count: usize) -> Result<Vec<u8>> {
    let mut body = vec![0; count];
    stream.read_exact(&mut body).await.map_err(ProxyError::ClientGone)?;
    Ok(body)
}

/// Who has logged in.
// One per connection and moved at once: no use in boxing.
#[allow(clippy::large_enum_variant)]
enum Entered {
    Client(Client),
    Console(Rights),
}

/// A login whose startup message is known.
struct Entering<'a> {
    address: SocketAddr,
    access: Access,
    room: bool,
    gate: &'a Gatekeeper,
    stop: &'a CancellationToken,
    deadline: Instant,
}

impl Entering<'_> {
    async fn enter(&self, stream: &mut ClientStream, startup: Startup) -> Result<Entered> {
        if startup.replication {
            return Err(ProxyError::Unsupported("replication connections through the proxy".to_owned()));
        }
        let config = self.gate.config.load_full();
        let for_console = startup.database == config.admin.database;
        if !self.room && !for_console {
            return Err(ProxyError::TooManyClients);
        }
        if startup.needs_negotiation() {
            let mut out = BytesMut::new();
            encode_negotiate(&mut out, &startup.protocol_options);
            send(stream, &out).await?;
        }
        let mut out = BytesMut::with_capacity(1024);
        let secret = self.authenticate(stream, &startup.user, &mut out).await?;
        if for_console {
            let Some(rights) = Rights::of(&config.admin, &startup.user) else {
                return Err(ProxyError::NotAllowed(format!("role \"{}\" may not use the console", startup.user)));
            };
            admin::session::welcome(&mut out);
            send(stream, &out).await?;
            return Ok(Entered::Console(rights));
        }
        if self.gate.console.is_disabled(&startup.database) {
            return Err(ProxyError::DatabaseDisabled(startup.database));
        }
        let identity = Arc::new(Identity { user: startup.user.into(), database: startup.database.into(), secret });
        let Greeting { parameters, opened } =
            self.gate.greetings.greet(&identity, &startup.settings, self.access, self.deadline).await?;
        let cancel = self.gate.cancels.register()?;
        Authentication::Ok.encode(&mut out);
        for (name, value) in &parameters {
            encode_parameter_status(&mut out, name, value);
        }
        encode_backend_key(&mut out, cancel.pid, cancel.secret);
        encode_ready(&mut out);
        send(stream, &out).await?;
        Ok(Entered::Client(Client {
            address: self.address,
            local: stream.local_addr(),
            tls: stream.tls_version(),
            access: self.access,
            identity,
            startup: startup.settings,
            reported: parameters,
            stop: self.stop.clone(),
            cancel,
            opened,
        }))
    }

    /// Lets the client prove itself. What is to be sent before AuthenticationOk is left in `out`.
    async fn authenticate(&self, stream: &mut ClientStream, user: &str, out: &mut BytesMut) -> Result<Secret> {
        let role = match self.gate.users.role(user).await? {
            Some(role) => Some(Arc::new(role)),
            None => self.gate.verifiers.lookup(user, self.deadline).await?,
        };
        let failed = |cause| {
            self.gate.verifiers.doubt(user);
            ProxyError::PasswordFailed { user: user.to_owned(), cause }
        };
        let stored = role.as_deref().map_or(&Stored::Nothing, |role| &role.stored);
        let secret = match stored {
            Stored::Md5(hash) => {
                let salt = random::<4>()?;
                let response = ask(stream, Authentication::Md5(salt)).await?;
                let response = response.strip_suffix(b"\0").unwrap_or(&response);
                hash.accepts(salt, response).then(|| Secret::Md5(hash.clone()))
            }
            Stored::Scram(verifier) => self.exchange(stream, verifier.clone(), out).await?,
            // Strangers get the same questions as everybody.
            Stored::Nothing => {
                self.exchange(stream, Verifier::mock(user, &self.gate.mock_secret), out).await?;
                None
            }
        };
        match (role.as_deref(), secret) {
            (None, _) => Err(failed("role does not exist")),
            (Some(Role { stored: Stored::Nothing, .. }), _) => Err(failed("role has no usable password")),
            (Some(_), None) => Err(failed("wrong password")),
            (Some(role), Some(_)) if role.is_expired(SystemTime::now()) => Err(failed("password has expired")),
            (Some(role), Some(_)) if !role.can_login => {
                self.gate.verifiers.doubt(user);
                Err(ProxyError::NoLogin(user.to_owned()))
            }
            (Some(Role { password: Some(password), .. }), Some(_)) => Ok(Secret::Password(password.clone())),
            (Some(_), Some(secret)) => Ok(secret),
        }
    }

    /// SCRAM; None if the proof is wrong.
    async fn exchange(
        &self,
        stream: &mut ClientStream,
        verifier: Verifier,
        out: &mut BytesMut,
    ) -> Result<Option<Secret>> {
        let end_point = stream.end_point();
        let request = if end_point.is_some() { Authentication::SaslPlus } else { Authentication::Sasl };
        let initial = ask(stream, request).await?;
        let malformed = || ProxyError::Protocol("malformed SASL message".to_owned());
        let (mechanism, first) = parse_sasl_initial(&initial).ok_or_else(malformed)?;
        let channel = match (std::str::from_utf8(mechanism), &end_point) {
            (Ok(MECHANISM), None) => Channel::Unbound,
            (Ok(MECHANISM), Some(_)) => Channel::Declined,
            (Ok(MECHANISM_PLUS), Some(end_point)) => Channel::Bound(end_point),
            _ => {
                return Err(ProxyError::Protocol(
                    "client selected an invalid SASL authentication mechanism".to_owned(),
                ));
            }
        };
        let (exchange, message) = ServerExchange::begin(verifier, first, &nonce()?, channel).map_err(refused)?;
        let last = ask(stream, Authentication::SaslContinue(message.as_bytes())).await?;
        match exchange.finish(&last) {
            Ok(Proven { server_final, client_key, server_key }) => {
                Authentication::SaslFinal(server_final.as_bytes()).encode(out);
                Ok(Some(Secret::Scram { client_key, server_key }))
            }
            Err(ScramError::WrongProof) => Ok(None),
            Err(error) => Err(refused(error)),
        }
    }
}

fn refused(error: ScramError) -> ProxyError {
    match error {
        ScramError::Unsupported(_) => ProxyError::Unsupported(error.to_string()),
        ScramError::Malformed(_) | ScramError::WrongProof => ProxyError::Protocol(error.to_string()),
    }
}

/// Sends an authentication request and reads the answer.
async fn ask(stream: &mut ClientStream, request: Authentication<'_>) -> Result<Vec<u8>> {
    let mut out = BytesMut::with_capacity(128);
    request.encode(&mut out);
    send(stream, &out).await?;
    let mut header = [0; 5];
    stream.read_exact(&mut header).await.map_err(ProxyError::ClientGone)?;
    let [tag, a, b, c, d] = header;
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if tag != b'p' {
        return Err(ProxyError::Protocol(format!("expected password response, got message type {tag}")));
    }
    if !(4..=MAX_PASSWORD_BYTES).contains(&length) {
        return Err(ProxyError::Protocol("invalid length of password response".to_owned()));
    }
    read_rest(stream, length - 4).await
}

async fn send(stream: &mut ClientStream, bytes: &[u8]) -> Result<()> {
    stream.write_all(bytes).await.map_err(ProxyError::ClientGone)?;
    // TLS keeps what the socket did not take.
    stream.flush().await.map_err(ProxyError::ClientGone)
}
