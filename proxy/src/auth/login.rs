//! A client's way from its first byte to its first ReadyForQuery.
//!
//! Exactly as many bytes are read as a message has, so nothing is left in a buffer when TLS begins
//! or when the session takes over.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use bytes::BytesMut;
use manatee_shared::ids::ShardName;
use manatee_shared::tls::ALPN;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use zeroize::Zeroizing;

use super::client_limits::{ClientLimits, ClientMaxima, ClientSlotGuard};
use super::failures::{Failures, Limit};
use super::hba::{ClientCertificate, Method, Origin, Verdict};
use super::login_parameters::LoginParameters;
use super::policy::Policy;
use super::secret::{Md5Hash, Secret, nonce, random};
use super::usermap::UserMaps;
use super::verifier::{DatabaseAccess, Role, Stored};
use super::{Client, ListenerRole};
use crate::admin::console::Console;
use crate::admin::rights::Rights;
use crate::admin::welcome::welcome;
use crate::cancel::Registry;
use crate::config::{Auth, Config};
use crate::error::{ProxyError, Result};
use crate::shards::{Shard, Shards};
use crate::tls::{Certificates, ClientStream, certificate};
use crate::wire::proxy_protocol::{self, Next};
use crate::wire::scram::{Channel, MECHANISM, MECHANISM_PLUS, Proven, ScramError, ServerExchange, Verifier};
use crate::wire::startup::{
    Authentication, HEADER_BYTES, Header, LENGTH_BYTES, Replication, Startup, TLS_HANDSHAKE, encode_backend_key,
    encode_negotiate, encode_parameter_status, encode_ready, is_startup_length, parse_cancel, parse_sasl_initial,
};

/// Longest password or SASL message taken from somebody unknown (PG_MAX_AUTH_TOKEN_LENGTH is 65535;
/// we know no mechanism that needs more than this).
const MAX_PASSWORD_BYTES: usize = 4096;
/// Setting by which a client says which shard it means, in its startup message or `options`.
const SHARD_SETTING: &str = "manatee.shard";
/// Refused clients that wait for their answer at once, in the whole process; more are answered without delay.
/// Each is a socket and some kilobytes, and no longer counts as a login under way.
const MAX_DELAYED: usize = 4096;
/// Longest wait for a database's answer to what a role may do there, where the role proved itself without it.
const ACCESS_PATIENCE: Duration = Duration::from_millis(500);
/// Part of the login time that is kept for telling the client why it failed.
const FAREWELL: Duration = Duration::from_millis(500);

/// Everything a login needs. Shared by all threads.
pub struct Gatekeeper {
    config: Arc<ArcSwap<Config>>,
    shards: Arc<Shards>,
    cancels: Arc<Registry>,
    certificates: Certificates,
    policy: ArcSwap<Policy>,
    failures: Mutex<Failures>,
    delayed: AtomicUsize,
    client_limits: Arc<ClientLimits>,
    console: Arc<Console>,
    mock_secret: [u8; 32],
}

/// End of a connection's login.
// One per connection and moved at once: no use in boxing.
#[allow(clippy::large_enum_variant, reason = "one for each login, never in bulk")]
pub enum Admission {
    /// A session begins.
    Session(ClientStream, Client, ShardMembership),
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
        shards: Arc<Shards>,
        cancels: Arc<Registry>,
        certificates: Certificates,
        policy: Policy,
        console: Arc<Console>,
    ) -> Result<Self> {
        Ok(Self {
            config,
            shards,
            cancels,
            certificates,
            policy: ArcSwap::from_pointee(policy),
            failures: Mutex::default(),
            delayed: AtomicUsize::new(0),
            client_limits: Arc::default(),
            console,
            mock_secret: random()?,
        })
    }

    /// Other users, rules and maps from now on.
    pub fn replace_policy(&self, policy: Policy) {
        self.policy.store(Arc::new(policy));
    }

    /// Clients that can be cancelled.
    pub fn cancels(&self) -> &Arc<Registry> {
        &self.cancels
    }

    /// The certificates clients see.
    pub fn certificates(&self) -> &Certificates {
        &self.certificates
    }
}

/// Stage of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The client has said something that makes sense.
    Spoke,
    /// It is who it says it is, or it is not and was told so: what it waits for from now on is up to us.
    Judged,
}

/// Takes a new connection through its login, and tells of its `progress`.
///
/// # Errors
/// Why the login failed; the client has been told.
pub async fn login(
    socket: ClientStream,
    address: SocketAddr,
    entrance: ListenerRole,
    gate: &Gatekeeper,
    progress: &dyn Fn(Progress),
) -> Result<Admission> {
    let limit = gate.config.load().auth.login_timeout;
    let deadline = Instant::now() + limit;
    // What is kept back is for telling the client why.
    let reserve = FAREWELL.min(limit / 2);
    let mut entering = LoginAttempt { address, entrance, gate, progress, deadline: deadline - reserve };
    // Dropping a login closes the connection; nothing outlives it.
    match tokio::time::timeout_at(deadline.into(), attempt(socket, &mut entering)).await {
        Ok(result) => result,
        Err(_) => Err(ProxyError::LoginTimeout(limit)),
    }
}

async fn attempt(mut socket: ClientStream, entering: &mut LoginAttempt<'_>) -> Result<Admission> {
    let gate = entering.gate;
    if let ClientStream::Plain(socket) = &socket {
        crate::upstream::tune(socket).map_err(ProxyError::ClientGone)?;
    }
    if gate.config.load().listen.proxy_protocol_from.iter().any(|network| network.contains(entering.address.ip()))
        && !matches!(socket, ClientStream::Unix(_))
        && let Some(address) = read_proxy_header(&mut socket).await?
    {
        entering.address = address;
    }
    let (mut stream, request) = match negotiate(socket, &gate.certificates, entering.progress).await {
        Ok(negotiated) => negotiated,
        Err((stream, error)) => return Err(farewell(stream, error).await),
    };
    let startup = match request {
        Request::Nothing => return Ok(Admission::Done),
        Request::Cancel(body) => {
            if let Some((pid, secret)) = parse_cancel(&body) {
                gate.cancels.cancel_anywhere(pid, secret).await;
            }
            return Ok(Admission::Done);
        }
        Request::ForwardedCancel(body) => {
            if let Some((pid, secret)) = parse_cancel(&body) {
                gate.cancels.cancel(pid, secret).await;
            }
            return Ok(Admission::Done);
        }
        Request::Startup(startup) => startup,
    };
    match entering.enter(&mut stream, startup).await {
        Ok(LoggedIn::Client(client, entered)) => Ok(Admission::Session(stream, client, entered)),
        Ok(LoggedIn::Console(rights)) => Ok(Admission::Console(stream, rights)),
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

/// Request of a client, once encryption is settled.
enum Request {
    Startup(Startup),
    Cancel(Vec<u8>),
    ForwardedCancel(Vec<u8>),
    Nothing,
}

type Refusal = (Option<ClientStream>, ProxyError);

/// Settles encryption and reads what the client wants.
async fn negotiate(
    mut stream: ClientStream,
    certificates: &Certificates,
    progress: &dyn Fn(Progress),
) -> std::result::Result<(ClientStream, Request), Refusal> {
    let mut first = [0; 1];
    if let ClientStream::Plain(socket) = &stream {
        match socket.peek(&mut first).await {
            Ok(0) => return Ok((stream, Request::Nothing)),
            Ok(_) => {}
            Err(error) => return Err((None, ProxyError::ClientGone(error))),
        }
    }
    if first[0] == TLS_HANDSHAKE {
        progress(Progress::Spoke);
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
                progress(Progress::Spoke);
                // Over a Unix socket there is nothing to protect from, as PostgreSQL sees it.
                let available = certificates.is_available() && matches!(stream, ClientStream::Plain(_));
                let answer = if available { b"S" } else { b"N" };
                if let Err(error) = stream.write_all(answer).await {
                    return Err((None, ProxyError::ClientGone(error)));
                }
                if available {
                    stream = start_tls(stream, certificates).await?;
                }
            }
            Header::GssEnc if !asked_gss && !stream.is_tls() => {
                asked_gss = true;
                progress(Progress::Spoke);
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
            Header::ForwardedCancel { rest } => {
                return match read_rest(&mut stream, rest).await {
                    Ok(body) => Ok((stream, Request::ForwardedCancel(body))),
                    Err(error) => Err((None, error)),
                };
            }
            Header::Startup { minor, rest } => {
                let startup = match read_rest(&mut stream, rest).await {
                    Ok(body) => {
                        progress(Progress::Spoke);
                        Startup::parse(minor, &body)
                    }
                    Err(error) => Err(error),
                };
                return match startup {
                    Ok(_) if certificates.required() && matches!(stream, ClientStream::Plain(_)) => {
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
        ClientStream::Unix(_) | ClientStream::Tls(..) => {
            Err((Some(stream), ProxyError::Protocol("TLS within another".to_owned())))
        }
    }
}

/// Client that a balancer speaks for. Exactly the header is read.
async fn read_proxy_header(stream: &mut ClientStream) -> Result<Option<SocketAddr>> {
    let mut header = Vec::new();
    loop {
        match proxy_protocol::next(&header) {
            Ok(Next::Done(address)) => return Ok(address),
            Ok(Next::Read(count)) => {
                let start = header.len();
                header.resize(start + count, 0);
                stream.read_exact(&mut header[start..]).await.map_err(ProxyError::ClientGone)?;
            }
            Err(error) => return Err(ProxyError::Protocol(error.to_string())),
        }
    }
}

/// None: the other side left without a word, as health checks do, or with a Terminate, or speaks something else.
/// To that PostgreSQL says nothing either (`ProcessStartupPacket`: COMMERROR), and it looks no further than at the
/// length.
async fn read_header(stream: &mut ClientStream) -> Result<Option<Header>> {
    let mut bytes = [0; HEADER_BYTES];
    let mut count = 0;
    while count < LENGTH_BYTES {
        match stream.read(&mut bytes[count..]).await.map_err(ProxyError::ClientGone)? {
            0 => return Ok(None),
            more => count += more,
        }
    }
    if !is_startup_length(bytes) {
        tracing::debug!("invalid length of startup packet");
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

/// Place of a client that has entered; to be kept as long as it is there.
pub struct ShardMembership {
    /// Its shard.
    pub shard: Arc<Shard>,
    _taken: ClientSlotGuard,
}

/// Client that has logged in.
// One per connection and moved at once: no use in boxing.
#[allow(clippy::large_enum_variant, reason = "one for each login, never in bulk")]
enum LoggedIn {
    Client(Client, ShardMembership),
    Console(Rights),
}

/// Counts a refused client that waits for its answer.
struct Delayed<'a>(&'a AtomicUsize);

impl<'a> Delayed<'a> {
    /// None if there are too many.
    fn new(count: &'a AtomicUsize) -> Option<Self> {
        let counted = Self(count);
        (count.fetch_add(1, Ordering::Relaxed) < MAX_DELAYED).then_some(counted)
    }
}

impl Drop for Delayed<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A login whose startup message is known.
struct LoginAttempt<'a> {
    address: SocketAddr,
    entrance: ListenerRole,
    gate: &'a Gatekeeper,
    progress: &'a dyn Fn(Progress),
    deadline: Instant,
}

impl LoginAttempt<'_> {
    async fn enter(&self, stream: &mut ClientStream, mut startup: Startup) -> Result<LoggedIn> {
        let config = self.gate.config.load_full();
        let replication = startup.replication;
        let for_console = config.admin.is_console(&startup.database) && replication == Replication::No;
        if startup.needs_negotiation() {
            let mut out = BytesMut::new();
            encode_negotiate(&mut out, startup.spoken_minor(), &startup.protocol_options);
            send(stream, &out).await?;
        }
        let mut out = BytesMut::with_capacity(1024);
        let asked = startup.clone();
        let shard = self.find_shard(&mut startup, &config, for_console)?;
        let proved = self.authenticate(stream, &asked, &startup.database, &shard, &config.auth, &mut out).await?;
        (self.progress)(Progress::Judged);
        if for_console {
            let Some(rights) = Rights::of(&config.admin, &startup.user) else {
                return Err(ProxyError::NotAllowed(format!("role \"{}\" may not use the console", startup.user)));
            };
            welcome(&mut out);
            send(stream, &out).await?;
            return Ok(LoggedIn::Console(rights));
        }
        if self.gate.console.is_disabled(&asked.database) {
            return Err(ProxyError::DatabaseDisabled(asked.database));
        }
        let of_database = match (replication, proved.database) {
            (Replication::Physical, _) => None,
            (_, Some(known)) => Some(known),
            // It proved itself without the database being asked. Where none can be asked, the server has the word.
            (_, None) => {
                let deadline = self.deadline.min(Instant::now() + ACCESS_PATIENCE);
                let role = shard.verifiers.lookup(&startup.user, &startup.database, deadline).await;
                role.ok().flatten().and_then(|role| role.database)
            }
        };
        if let Some(database) = of_database {
            database.admits(&startup.database)?;
        }
        let has_long_key = startup.spoken_minor() >= 2;
        let (user, database): (Arc<str>, Arc<str>) = (startup.user.into(), startup.database.into());
        let any = |most: u32| (most > 0).then_some(most);
        let most = ClientMaxima {
            of_all: Some(config.pool.max_clients),
            of_role: [any(config.pool.max_clients_per_user), proved.connection_limit].into_iter().flatten().min(),
            of_database: [
                any(config.pool.max_clients_per_database),
                of_database.and_then(|database| database.connection_limit),
            ]
            .into_iter()
            .flatten()
            .min(),
        };
        let taken = self.gate.client_limits.take(&shard.name, &user, &database, most)?;
        let identity = shard.keys.identity(user, database, proved.role, proved.secret);
        let (parameters, access) = (&shard.parameters, self.entrance.access);
        let LoginParameters { parameters, opened } = match replication {
            Replication::No => parameters.parameters_for(&identity, &startup.settings, access, self.deadline).await?,
            _ => parameters.relay(&identity, &startup.settings, replication, access, self.deadline).await?,
        };
        let cancel = self.gate.cancels.register(has_long_key)?;
        Authentication::Ok.encode(&mut out);
        for (name, value) in &parameters {
            encode_parameter_status(&mut out, name, value);
        }
        encode_backend_key(&mut out, cancel.pid, cancel.secret());
        encode_ready(&mut out);
        send(stream, &out).await?;
        let client = Client {
            address: self.address,
            local: stream.local_addr(),
            tls: stream.tls_version(),
            access: self.entrance.access,
            identity,
            startup: startup.settings,
            reported: parameters,
            cancel,
            opened,
        };
        Ok(LoggedIn::Client(client, ShardMembership { shard, _taken: taken }))
    }

    /// The shard that the client means, by where it connected to, by what it says, or by the database;
    /// and the database's name there. The console, which has a say in all of them, believes nobody but the
    /// default shard's roles.
    fn find_shard(&self, startup: &mut Startup, config: &Config, for_console: bool) -> Result<Arc<Shard>> {
        let said = startup.settings.iter().position(|(name, _)| name == SHARD_SETTING);
        let said = said.map(|index| startup.settings.remove(index).1);
        let unknown = |name: &str| ProxyError::NoShard(name.to_owned());
        let said = said.map(|name| name.parse::<ShardName>().map_err(|_| unknown(&name))).transpose()?;
        let listened = self.entrance.shard.clone();
        if for_console {
            // The table has had it from the beginning.
            let name = &config.shard.name;
            return self.gate.shards.get(name).ok_or_else(|| unknown(name.as_str()));
        }
        let mapped = config.databases.get(&startup.database);
        let name = listened
            .or(said)
            .or_else(|| mapped.map(|mapped| mapped.shard.clone()))
            .unwrap_or_else(|| config.shard.name.clone());
        if let Some(mapped) = mapped.filter(|mapped| mapped.shard == name)
            && let Some(database) = &mapped.database
        {
            startup.database.clone_from(database);
        }
        self.gate.shards.get(&name).ok_or_else(|| unknown(name.as_str()))
    }

    /// Lets the client prove itself as the rules say. What is to be sent before AuthenticationOk is left
    /// in `out`.
    async fn authenticate(
        &self,
        stream: &mut ClientStream,
        startup: &Startup,
        database: &str,
        shard: &Shard,
        settings: &Auth,
        out: &mut BytesMut,
    ) -> Result<Proved> {
        let user = &startup.user;
        let policy = self.gate.policy.load_full();
        let verdict = self.rule(stream, startup, &policy)?;
        let limit = Limit { burst: settings.failure_burst, forgiven_after: settings.failure_forgiven_after };
        let (from, role) = (self.address.ip(), (shard.name.as_str(), user.as_str()));
        let result = self.prove(stream, (user, database), shard, &verdict, &policy, out).await;
        if let Err(ProxyError::PasswordFailed { .. } | ProxyError::CertificateFailed { .. }) = &result {
            // Judged first, counted then: whoever has the right proof gets in, whatever others who share its
            // address do.
            let note = || {
                let mut failures = self.gate.failures.lock().unwrap_or_else(PoisonError::into_inner);
                failures.note(from, role, limit, Instant::now())
            };
            let delay = note();
            self.hold_back(delay).await;
        }
        result
    }

    /// Lets a refused client wait for its answer. It gives up its place among the logins under way first.
    async fn hold_back(&self, delay: Duration) {
        if delay.is_zero() {
            return;
        }
        (self.progress)(Progress::Judged);
        let delayed = Delayed::new(&self.gate.delayed);
        if delayed.is_some() {
            // Dropping it closes the connection, as everywhere in a login.
            tokio::time::sleep_until((Instant::now() + delay).min(self.deadline).into()).await;
        }
    }

    /// The rule for this client.
    fn rule(&self, stream: &ClientStream, startup: &Startup, policy: &Policy) -> Result<Verdict> {
        let tls = stream.is_tls();
        let origin = match stream {
            ClientStream::Unix(_) => Origin::Local,
            _ => Origin::Host { address: self.address.ip(), tls },
        };
        let (user, database, address) = (&startup.user, &startup.database, self.address.ip());
        let host = if origin == Origin::Local { "[local]".to_owned() } else { address.to_string() };
        let encryption = if tls { "SSL encryption" } else { "no encryption" };
        let wanted = (startup.replication != Replication::Physical).then_some(database.as_str());
        match policy.rules.find(origin, wanted, user) {
            Some(verdict) if verdict.method == Method::Reject => Err(ProxyError::NotAllowed(format!(
                "pg_hba.conf rejects connection for host \"{host}\", user \"{user}\", database \"{database}\", {encryption}"
            ))),
            Some(verdict) => Ok(verdict.clone()),
            None => Err(ProxyError::NotAllowed(format!(
                "no pg_hba.conf entry for host \"{host}\", user \"{user}\", database \"{database}\", {encryption}"
            ))),
        }
    }

    async fn prove(
        &self,
        stream: &mut ClientStream,
        (user, database): (&str, &str),
        shard: &Shard,
        verdict: &Verdict,
        policy: &Policy,
        out: &mut BytesMut,
    ) -> Result<Proved> {
        check_certificate(stream, user, verdict, &policy.maps)?;
        let own = policy.users.role(user).await?.map(Arc::new);
        if verdict.method == Method::Peer {
            check_peer(stream, user, verdict, &policy.maps).await?;
        }
        if matches!(verdict.method, Method::Trust | Method::Certificate | Method::Peer) {
            // Servers are persuaded by the file's password, or trust us.
            let password = own.and_then(|role| role.password.clone());
            let secret = password.map_or(Secret::None, Secret::Password);
            return Ok(Proved { secret, role: None, connection_limit: None, database: None });
        }
        let role = match own {
            Some(role) => Some(role),
            None => shard.verifiers.lookup(user, database, self.deadline).await?,
        };
        let failed = |cause| ProxyError::PasswordFailed { user: user.to_owned(), cause };
        let stored = role.as_deref().map_or(&Stored::Nothing, |role| &role.stored);
        let secret = match (verdict.method, stored) {
            (Method::Password, stored) => self.clear_text(stream, user, stored).await?,
            (Method::Md5, Stored::Md5(hash)) => {
                let salt = random::<4>()?;
                let response = ask(stream, Authentication::Md5(salt)).await?;
                let response = response.strip_suffix(b"\0").unwrap_or(&response);
                hash.accepts(salt, response).then(|| Secret::Md5(hash.clone()))
            }
            (_, Stored::Scram(verifier)) => self.exchange(stream, verifier.clone(), out).await?,
            // Strangers get the same questions as everybody.
            (_, Stored::Nothing | Stored::Md5(_)) => {
                self.exchange(stream, Verifier::mock(user, &self.gate.mock_secret), out).await?;
                None
            }
        };
        match (role.as_deref(), secret) {
            (None, _) => Err(failed("role does not exist")),
            (Some(Role { stored: Stored::Nothing, .. }), _) => Err(failed("role has no usable password")),
            (Some(_), None) => Err(failed("wrong password, or of another kind than the rules ask for")),
            (Some(role), Some(_)) if role.is_expired(SystemTime::now()) => Err(failed("password has expired")),
            (Some(role), Some(_)) if !role.can_login => Err(ProxyError::NoLogin(user.to_owned())),
            (Some(role), Some(secret)) => Ok(Proved {
                secret: role.password.clone().map_or(secret, Secret::Password),
                role: role.number,
                connection_limit: role.connection_limit,
                database: role.database,
            }),
        }
    }

    /// A password in clear; None if it is wrong.
    async fn clear_text(&self, stream: &mut ClientStream, user: &str, stored: &Stored) -> Result<Option<Secret>> {
        let response = ask(stream, Authentication::Cleartext).await?;
        let text = response.strip_suffix(b"\0").unwrap_or(&response);
        let Ok(password) = std::str::from_utf8(text).map(|text| Zeroizing::new(text.to_owned())) else {
            return Ok(None);
        };
        let right = match stored {
            Stored::Md5(hash) => *hash == Md5Hash::of(&password, user),
            Stored::Scram(_) | Stored::Nothing => {
                let verifier = match stored {
                    Stored::Scram(verifier) => verifier.clone(),
                    // The same work for strangers.
                    _ => Verifier::mock(user, &self.gate.mock_secret),
                };
                let password = password.clone();
                // Thousands of hashes: not on a session thread.
                tokio::task::spawn_blocking(move || verifier.accepts(&password))
                    .await
                    .map_err(|error| ProxyError::Internal(error.to_string()))?
            }
        };
        Ok(right.then_some(Secret::Password(password)))
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

/// Whether the client has the certificate that the rule asks for.
fn check_certificate(stream: &ClientStream, user: &str, verdict: &Verdict, maps: &UserMaps) -> Result<()> {
    let named = verdict.method == Method::Certificate || verdict.certificate == ClientCertificate::Named;
    if !named && verdict.certificate == ClientCertificate::Optional {
        return Ok(());
    }
    // rustls has verified it, or there would be no connection.
    let Some(certificate) = stream.client_certificate() else {
        return Err(ProxyError::NotAllowed("connection requires a valid client certificate".to_owned()));
    };
    if !named {
        return Ok(());
    }
    let name = certificate::common_name(certificate).unwrap_or_default();
    if !name.is_empty() && maps.allows(verdict.map.as_deref(), &name, user) {
        return Ok(());
    }
    Err(ProxyError::CertificateFailed { user: user.to_owned(), cause: format!("the certificate is of \"{name}\"") })
}

/// Whether the client's operating system user may be this role.
async fn check_peer(stream: &ClientStream, user: &str, verdict: &Verdict, maps: &UserMaps) -> Result<()> {
    let name = match stream.peer_uid() {
        // The system may have to ask a directory elsewhere: not on a session thread.
        Some(uid) => tokio::task::spawn_blocking(move || nix::unistd::User::from_uid(uid.into()).ok().flatten())
            .await
            .map_err(|error| ProxyError::Internal(error.to_string()))?
            .map(|found| found.name),
        None => None,
    };
    let name = name.unwrap_or_default();
    match !name.is_empty() && maps.allows(verdict.map.as_deref(), &name, user) {
        true => Ok(()),
        false => Err(ProxyError::NotAllowed(format!("Peer authentication failed for user \"{user}\""))),
    }
}

impl DatabaseAccess {
    /// PostgreSQL's verdict on a login to this database. The answer is as new as the login, where what a client
    /// is told of its server may have been learned before.
    fn admits(&self, database: &str) -> Result<()> {
        match (self.allows_connections, self.may_connect) {
            (true, true) => Ok(()),
            (false, _) => Err(ProxyError::ConnectionsNotAllowed(database.to_owned())),
            (true, false) => Err(ProxyError::NoConnectPrivilege(database.to_owned())),
        }
    }
}

/// Proof of a client.
struct Proved {
    /// For servers.
    secret: Secret,
    /// The role's number, if the database was asked.
    role: Option<u32>,
    /// The role's own limit.
    connection_limit: Option<u32>,
    /// Rights in the database, if the database was asked.
    database: Option<DatabaseAccess>,
}

fn refused(error: ScramError) -> ProxyError {
    match error {
        ScramError::Unsupported(_) => ProxyError::Unsupported(error.to_string()),
        ScramError::Malformed(_) | ScramError::WrongProof => ProxyError::Protocol(error.to_string()),
    }
}

/// Sends an authentication request and reads the answer, which may be a password in clear: it is wiped.
async fn ask(stream: &mut ClientStream, request: Authentication<'_>) -> Result<Zeroizing<Vec<u8>>> {
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
    read_rest(stream, length - 4).await.map(Zeroizing::new)
}

async fn send(stream: &mut ClientStream, bytes: &[u8]) -> Result<()> {
    stream.write_all(bytes).await.map_err(ProxyError::ClientGone)?;
    // TLS keeps what the socket did not take.
    stream.flush().await.map_err(ProxyError::ClientGone)
}
