//! Errors of the proxy, and their texts for clients.
//!
//! Every error carries where it comes from, its SQLSTATE and its severity. The text for the client ([`ProxyError::client_message`]) never contains addresses of
//! servers or the operating system's words; those are in `Display` and the sources, for the log.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::{BufMut, BytesMut};

/// Party that has to do something about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The client sent something wrong, or may not do what it asked for.
    Client,
    /// A limit or a missing ability of the proxy.
    Proxy,
    /// A PostgreSQL server failed or refused.
    Server,
    /// No node fit for the request is known.
    Topology,
}

impl Origin {
    /// As in metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Proxy => "proxy",
            Self::Server => "server",
            Self::Topology => "topology",
        }
    }
}

/// Severity as the protocol knows it: after `FATAL` the connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// The request failed; the connection stays.
    Error,
    /// The connection ends.
    Fatal,
}

impl Severity {
    /// As on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
        }
    }
}

/// Five characters (manual, appendix A).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState(pub [u8; 5]);

impl SqlState {
    /// 00000
    pub const SUCCESSFUL_COMPLETION: Self = Self(*b"00000");
    /// 22021
    pub const CHARACTER_NOT_IN_REPERTOIRE: Self = Self(*b"22021");
    /// 26000
    pub const INVALID_SQL_STATEMENT_NAME: Self = Self(*b"26000");
    /// 3D000
    pub const INVALID_CATALOG_NAME: Self = Self(*b"3D000");
    /// 42501
    pub const INSUFFICIENT_PRIVILEGE: Self = Self(*b"42501");
    /// 42601
    pub const SYNTAX_ERROR: Self = Self(*b"42601");
    /// 55000
    pub const OBJECT_NOT_IN_PREREQUISITE_STATE: Self = Self(*b"55000");
    /// 08P01
    pub const PROTOCOL_VIOLATION: Self = Self(*b"08P01");
    /// 08001
    pub const CANNOT_CONNECT: Self = Self(*b"08001");
    /// 08006
    pub const CONNECTION_FAILURE: Self = Self(*b"08006");
    /// 08007
    pub const TRANSACTION_RESOLUTION_UNKNOWN: Self = Self(*b"08007");
    /// 0A000
    pub const FEATURE_NOT_SUPPORTED: Self = Self(*b"0A000");
    /// 25006
    pub const READ_ONLY_TRANSACTION: Self = Self(*b"25006");
    /// 28000
    pub const INVALID_AUTHORIZATION: Self = Self(*b"28000");
    /// 28P01
    pub const INVALID_PASSWORD: Self = Self(*b"28P01");
    /// 40001
    pub const SERIALIZATION_FAILURE: Self = Self(*b"40001");
    /// 53300
    pub const TOO_MANY_CONNECTIONS: Self = Self(*b"53300");
    /// 53400
    pub const CONFIGURATION_LIMIT_EXCEEDED: Self = Self(*b"53400");
    /// 57014
    pub const QUERY_CANCELED: Self = Self(*b"57014");
    /// 57P01
    pub const ADMIN_SHUTDOWN: Self = Self(*b"57P01");
    /// 57P03
    pub const CANNOT_CONNECT_NOW: Self = Self(*b"57P03");
    /// XX000
    pub const INTERNAL_ERROR: Self = Self(*b"XX000");

    /// From a server's text; anything that is not five letters and digits becomes XX000.
    pub fn parse(text: &[u8]) -> Self {
        match <[u8; 5]>::try_from(text) {
            Ok(code) if code.iter().all(u8::is_ascii_alphanumeric) => Self(code),
            _ => Self::INTERNAL_ERROR,
        }
    }

    /// The five characters.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("XX000")
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An ErrorResponse that a server sent, with the fields worth looking at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("server: {severity} {code}: {message}")]
pub struct ServerError {
    /// Severity (not localised where the server says so).
    pub severity: String,
    /// SQLSTATE.
    pub code: SqlState,
    /// Primary message.
    pub message: String,
    /// The fields as received: the body of the message without tag and length.
    pub body: Vec<u8>,
}

impl ServerError {
    /// Reads the body of an ErrorResponse or NoticeResponse. Never fails: what is missing is empty.
    pub fn parse(body: &[u8]) -> Self {
        let mut error = Self {
            severity: String::new(),
            code: SqlState::INTERNAL_ERROR,
            message: String::new(),
            body: body.to_vec(),
        };
        let mut fields = body.split(|&byte| byte == 0).take_while(|field| !field.is_empty());
        while let Some((&kind, value)) = fields.next().and_then(<[u8]>::split_first) {
            let text = || String::from_utf8_lossy(value).into_owned();
            match kind {
                b'S' if error.severity.is_empty() => error.severity = text(),
                b'V' => error.severity = text(),
                b'C' => error.code = SqlState::parse(value),
                b'M' => error.message = text(),
                _ => {}
            }
        }
        error
    }
}

impl ServerError {
    /// One of its fields (manual, section "Error and Notice Message Fields").
    pub fn field(&self, wanted: u8) -> Option<&[u8]> {
        let fields = self.body.split(|&byte| byte == 0).take_while(|field| !field.is_empty());
        fields.filter_map(<[u8]>::split_first).find(|(kind, _)| **kind == wanted).map(|(_, value)| value)
    }
}

/// Limit on a server's connections that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// `max_connections`, with or without what is reserved of it.
    Node,
    /// A database's CONNECTION LIMIT.
    Database,
    /// A role's CONNECTION LIMIT.
    Role,
}

/// Everything that ends a request or a connection on the proxy's own account.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// A malformed message or one that may not come now.
    #[error("protocol violation: {0}")]
    Protocol(String),
    /// A switch in `options` that PostgreSQL does not take either.
    #[error("{0}")]
    Switch(String),
    /// A setting in the startup message whose value is not text.
    #[error("invalid byte sequence for encoding \"UTF8\" in the startup packet: \"{0}\"")]
    NotText(String),
    /// Something the protocol knows and this version does not do.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// The client's socket failed or closed in the middle of something.
    #[error("client connection lost")]
    ClientGone(#[source] io::Error),
    /// Wrong password, unknown role, expired password, role without a password: told the same way.
    #[error("password authentication failed for user \"{user}\": {cause}")]
    PasswordFailed {
        /// As the client named it.
        user: String,
        /// For the log only.
        cause: &'static str,
    },
    /// The role has NOLOGIN. Told only after the right password was given.
    #[error("role \"{0}\" is not permitted to log in")]
    NoLogin(String),
    /// The connection is not allowed, for example because it must use TLS.
    #[error("{0}")]
    NotAllowed(String),
    /// A client asked for a shard that is not served here.
    #[error("shard \"{0}\" does not exist")]
    NoShard(String),
    /// The database has ALLOW_CONNECTIONS false. In PostgreSQL's words (`CheckMyDatabase`), as the next one.
    #[error("database \"{0}\" is not currently accepting connections")]
    ConnectionsNotAllowed(String),
    /// The role has no CONNECT privilege.
    #[error("permission denied for database \"{0}\"")]
    NoConnectPrivilege(String),
    /// An administrator keeps new clients out of this database.
    #[error("database \"{0}\" is not currently accepting connections")]
    DatabaseDisabled(String),
    /// A certificate of somebody else.
    #[error("certificate authentication failed for user \"{user}\": {cause}")]
    CertificateFailed {
        /// As the client named it.
        user: String,
        /// For the log only.
        cause: String,
    },
    /// As many clients of this role or database as there may be.
    #[error("too many connections for {0}")]
    TooManyOf(String),
    /// `max_clients` reached.
    #[error("sorry, too many clients already")]
    TooManyClients,
    /// The login took longer than `login_timeout`.
    #[error("login not finished within {0:?}")]
    LoginTimeout(Duration),
    /// The client's cancel request reached a statement that waited for a server.
    #[error("canceling statement due to user request")]
    Canceled,
    /// A statement would bind its session to a server connection, and the pool has no more of them for that.
    #[error(
        "too many sessions are bound to a server connection: {bound} of the {size} of this pool, by LISTEN, advisory \
         locks, temporary tables or the like; the others are kept for sessions that are not"
    )]
    TooManyBound {
        /// Connections that sessions are bound to, on this thread.
        bound: usize,
        /// Connections at most.
        size: usize,
    },
    /// No server connection became free within `query_wait_timeout`.
    #[error("no server connection became free within {0:?}")]
    PoolTimeout(Duration),
    /// A write on a read-only listen address.
    #[error("cannot execute this statement on the proxy's read-only address")]
    ReadOnly,
    /// Held for the whole time allowed and no server that could serve appeared.
    #[error("no suitable server became available within {0:?}")]
    HoldTimeout(Duration),
    /// The client is on a read-only address and there was nothing to read from.
    #[error("no standby fit to read from was available within {0:?}")]
    NoStandby(Duration),
    /// More clients or bytes are held than the configuration allows.
    #[error("no primary available, and {0}")]
    HoldFull(&'static str),
    /// The server of an open transaction is gone; nothing of it was committed.
    #[error("the server of an open transaction was lost")]
    TransactionLost,
    /// The server was lost after COMMIT was sent and before it answered.
    #[error("the server was lost while committing")]
    CommitInDoubt,
    /// A commit ended without the sync having it ("canceling wait for synchronous replication").
    #[error("commit was not confirmed by the synchronous standby")]
    CommitNotReplicated,
    /// The server was lost in a state the session cannot leave behind (pinned session).
    #[error("the server this session was bound to was lost")]
    SessionLost,
    /// No connection to a server: refused, unreachable, reset. Nothing was sent.
    #[error("cannot connect to {target}")]
    Connect {
        /// Server.
        target: String,
        /// Error of the operating system.
        #[source]
        source: io::Error,
    },
    /// A server without the TLS that is asked of it, or with a certificate that will not do.
    #[error("no TLS with {target}")]
    ServerTls {
        /// Server.
        target: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A server did not finish the start of a connection in time.
    #[error("no connection to {target} within {waited:?}")]
    ConnectTimeout {
        /// Server.
        target: String,
        /// The limit.
        waited: Duration,
    },
    /// A server said something we do not understand.
    #[error("unexpected response from {target}: {problem}")]
    ServerProtocol {
        /// Server.
        target: String,
        /// Problem.
        problem: String,
    },
    /// A server asks for another kind of proof than the client gave us the means for, because the role's
    /// password, or the server's rules, were changed.
    #[error("{target} requires {wanted} authentication, but the proxy has no such credential for role \"{user}\"")]
    NoSecret {
        /// Server.
        target: String,
        /// Role whose secret is missing.
        user: String,
        /// Kind of authentication it asked for.
        wanted: &'static str,
    },
    /// A server refused, in its own words; passed on to the client as it is.
    #[error("{target} refused: {error}")]
    Server {
        /// Server.
        target: String,
        /// Its words.
        #[source]
        error: ServerError,
    },
    /// The proxy is stopping.
    #[error("the proxy is shutting down")]
    ShuttingDown,
    /// A broken assumption; the text is for the log.
    #[error("internal error: {0}")]
    Internal(String),
}

/// Result with a [`ProxyError`].
pub type Result<T> = std::result::Result<T, ProxyError>;

impl ProxyError {
    /// Party that has to act.
    pub fn origin(&self) -> Origin {
        match self {
            Self::Protocol(_)
            | Self::Switch(_)
            | Self::NotText(_)
            | Self::ClientGone(_)
            | Self::PasswordFailed { .. }
            | Self::CertificateFailed { .. }
            | Self::NoShard(_)
            | Self::NoLogin(_)
            | Self::NotAllowed(_)
            | Self::ConnectionsNotAllowed(_)
            | Self::NoConnectPrivilege(_)
            | Self::ReadOnly
            | Self::Canceled
            | Self::LoginTimeout(_) => Origin::Client,
            Self::Unsupported(_)
            | Self::DatabaseDisabled(_)
            | Self::TooManyClients
            | Self::TooManyOf(_)
            | Self::PoolTimeout(_)
            | Self::TooManyBound { .. }
            | Self::ShuttingDown
            | Self::Internal(_) => Origin::Proxy,
            Self::HoldTimeout(_) | Self::NoStandby(_) | Self::HoldFull(_) => Origin::Topology,
            Self::TransactionLost
            | Self::CommitInDoubt
            | Self::CommitNotReplicated
            | Self::SessionLost
            | Self::Connect { .. }
            | Self::ServerTls { .. }
            | Self::ConnectTimeout { .. }
            | Self::ServerProtocol { .. }
            | Self::NoSecret { .. }
            | Self::Server { .. } => Origin::Server,
        }
    }

    /// The SQLSTATE a client gets.
    pub fn sqlstate(&self) -> SqlState {
        match self {
            Self::Protocol(_) => SqlState::PROTOCOL_VIOLATION,
            Self::Switch(_) => SqlState::SYNTAX_ERROR,
            Self::NotText(_) => SqlState::CHARACTER_NOT_IN_REPERTOIRE,
            Self::Unsupported(_) => SqlState::FEATURE_NOT_SUPPORTED,
            Self::PasswordFailed { .. } | Self::NoSecret { .. } => SqlState::INVALID_PASSWORD,
            Self::NoLogin(_) | Self::NotAllowed(_) | Self::CertificateFailed { .. } => SqlState::INVALID_AUTHORIZATION,
            Self::NoShard(_) => SqlState::INVALID_CATALOG_NAME,
            Self::NoConnectPrivilege(_) => SqlState::INSUFFICIENT_PRIVILEGE,
            Self::DatabaseDisabled(_) | Self::ConnectionsNotAllowed(_) => SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            Self::TooManyClients | Self::TooManyOf(_) | Self::PoolTimeout(_) | Self::TooManyBound { .. } => {
                SqlState::TOO_MANY_CONNECTIONS
            }
            Self::LoginTimeout(_) | Self::Canceled => SqlState::QUERY_CANCELED,
            Self::ReadOnly => SqlState::READ_ONLY_TRANSACTION,
            Self::HoldTimeout(_) | Self::NoStandby(_) => SqlState::CANNOT_CONNECT_NOW,
            Self::HoldFull(_) => SqlState::CONFIGURATION_LIMIT_EXCEEDED,
            Self::TransactionLost => SqlState::SERIALIZATION_FAILURE,
            Self::CommitInDoubt | Self::CommitNotReplicated => SqlState::TRANSACTION_RESOLUTION_UNKNOWN,
            Self::ClientGone(_) | Self::ServerProtocol { .. } => SqlState::CONNECTION_FAILURE,
            Self::Connect { .. } | Self::ServerTls { .. } | Self::ConnectTimeout { .. } => SqlState::CANNOT_CONNECT,
            Self::Server { error, .. } => error.code,
            // As where the server itself says that it goes: drivers pass the text on, and reconnect.
            Self::ShuttingDown | Self::SessionLost => SqlState::ADMIN_SHUTDOWN,
            Self::Internal(_) => SqlState::INTERNAL_ERROR,
        }
    }

    /// Whether the client's connection ends with this error.
    pub fn severity(&self) -> Severity {
        match self {
            Self::Protocol(_)
            | Self::Switch(_)
            | Self::NotText(_)
            | Self::ClientGone(_)
            | Self::PasswordFailed { .. }
            | Self::NoLogin(_)
            | Self::NotAllowed(_)
            | Self::DatabaseDisabled(_)
            | Self::ConnectionsNotAllowed(_)
            | Self::NoConnectPrivilege(_)
            | Self::NoShard(_)
            | Self::CertificateFailed { .. }
            | Self::TooManyClients
            | Self::TooManyOf(_)
            | Self::LoginTimeout(_)
            | Self::SessionLost
            | Self::NoSecret { .. }
            | Self::ShuttingDown
            | Self::Internal(_) => Severity::Fatal,
            Self::Server { error, .. } if matches!(error.severity.as_str(), "FATAL" | "PANIC") => Severity::Fatal,
            _ => Severity::Error,
        }
    }

    /// Whether a server could not be used just now although nothing is wrong with the request: it
    /// is starting, stopping, full, not reachable, or keeps clients out until its role is
    /// confirmed (the sitter's gate is an HBA file: 28000). Another try, or another node, may do.
    pub fn is_server_unready(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::ConnectTimeout { .. } => true,
            Self::Server { error, .. } => {
                matches!(&error.code.0, b"53300" | b"57P01" | b"57P02" | b"57P03")
                    || (error.code == SqlState::INVALID_AUTHORIZATION && error.message.contains("pg_hba.conf"))
            }
            _ => false,
        }
    }

    /// Limit on the server's connections that kept us out, if one did. All are 53300; the function that says so
    /// (field R) tells them apart: `InitializeSessionUserId` (miscinit.c) for a role's, `CheckMyDatabase`
    /// (postinit.c) for a database's.
    pub fn server_full(&self) -> Option<Full> {
        let Self::Server { error, .. } = self else { return None };
        let is_from = |routine: &[u8]| error.field(b'R').is_some_and(|name| name == routine);
        (error.code == SqlState::TOO_MANY_CONNECTIONS).then(|| {
            if is_from(b"InitializeSessionUserId") {
                Full::Role
            } else if is_from(b"CheckMyDatabase") {
                Full::Database
            } else {
                Full::Node
            }
        })
    }

    /// Whether a server did not believe us to be who we say: the role's password is another by now.
    pub fn is_wrong_secret(&self) -> bool {
        match self {
            Self::NoSecret { .. } => true,
            Self::Server { error, .. } => error.code == SqlState::INVALID_PASSWORD,
            _ => false,
        }
    }

    /// Text for the client. PostgreSQL's own wording where it has one.
    pub fn client_message(&self) -> String {
        match self {
            Self::PasswordFailed { user, .. } | Self::NoSecret { user, .. } => {
                format!("password authentication failed for user \"{user}\"")
            }
            Self::CertificateFailed { user, .. } => format!("certificate authentication failed for user \"{user}\""),
            Self::Connect { .. } | Self::ServerTls { .. } | Self::ConnectTimeout { .. } => {
                "cannot connect to a database server".to_owned()
            }
            Self::ServerProtocol { .. } => "unexpected response from a database server".to_owned(),
            Self::Server { error, .. } => error.message.clone(),
            Self::TransactionLost => {
                "could not finish the transaction: the database server was lost, nothing was committed".to_owned()
            }
            Self::CommitInDoubt => "the database server was lost while committing: the outcome is unknown".to_owned(),
            Self::SessionLost => {
                "terminating connection: the database server that this session was bound to was lost".to_owned()
            }
            Self::ShuttingDown => "terminating connection due to administrator command".to_owned(),
            Self::ClientGone(_) => "connection lost".to_owned(),
            Self::Internal(_) => "internal proxy error; see the proxy's log".to_owned(),
            other => other.to_string(),
        }
    }

    /// Advice for the client, where there is any.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::TransactionLost => Some("Run the transaction again."),
            Self::CommitInDoubt | Self::CommitNotReplicated => {
                Some("Check whether its changes are there before running it again.")
            }
            Self::TooManyBound { .. } => Some(
                "Nothing was executed. End sessions that hold such things and do nothing (SHOW POOLS counts them), or \
                 raise pool.size.",
            ),
            Self::HoldTimeout(_) | Self::HoldFull(_) => Some("Nothing was executed; try again later."),
            Self::NoStandby(_) => {
                Some("Nothing was executed; try again later, or connect to the proxy's read-write address.")
            }
            Self::ReadOnly => Some("Connect to the proxy's read-write address."),
            _ => None,
        }
    }

    /// Appends the ErrorResponse (manual, section 55.7). A server's own error is passed on with
    /// all its fields.
    pub fn encode(&self, out: &mut BytesMut) {
        if let Self::Server { error, .. } = self {
            out.put_u8(b'E');
            out.put_u32(u32::try_from(error.body.len() + 4).unwrap_or(u32::MAX));
            out.put_slice(&error.body);
            return;
        }
        encode_response(out, b'E', self.severity().as_str(), self.sqlstate(), &self.client_message(), self.hint());
    }

    /// As [`ProxyError::encode`], but FATAL whatever the error is: the connection ends with it.
    pub fn as_fatal(&self, out: &mut BytesMut) {
        let severity = Severity::Fatal.as_str();
        match self.severity() {
            Severity::Fatal => self.encode(out),
            Severity::Error => {
                encode_response(out, b'E', severity, self.sqlstate(), &self.client_message(), self.hint());
            }
        }
    }
}

/// Appends an ErrorResponse (`tag` E) or NoticeResponse (N). NUL bytes in texts become `?`.
pub fn encode_response(out: &mut BytesMut, tag: u8, severity: &str, code: SqlState, message: &str, hint: Option<&str>) {
    out.put_u8(tag);
    let start = out.len();
    out.put_u32(0);
    let mut field = |kind: u8, text: &str| {
        out.put_u8(kind);
        out.extend(text.bytes().map(|byte| if byte == 0 { b'?' } else { byte }));
        out.put_u8(0);
    };
    field(b'S', severity);
    field(b'V', severity);
    field(b'C', code.as_str());
    field(b'M', message);
    if let Some(hint) = hint {
        field(b'H', hint);
    }
    out.put_u8(0);
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_errors_read_back() {
        let mut out = BytesMut::new();
        let error = ProxyError::PasswordFailed { user: "al\0ice".to_owned(), cause: "no such role" };
        error.encode(&mut out);
        assert_eq!(out[0], b'E');
        assert_eq!(u32::from_be_bytes([out[1], out[2], out[3], out[4]]) as usize, out.len() - 1);
        let read = ServerError::parse(&out[5..]);
        assert_eq!(read.severity, "FATAL");
        assert_eq!(read.code, SqlState::INVALID_PASSWORD);
        assert_eq!(read.message, "password authentication failed for user \"al?ice\"");
        assert!(!String::from_utf8_lossy(&out).contains("no such role"));
    }

    #[test]
    fn a_servers_error_is_passed_on_unchanged() {
        let body = b"SERREUR\0VERROR\0C22012\0Mdivision by zero\0\0".to_vec();
        let error = ProxyError::Server { target: "a".to_owned(), error: ServerError::parse(&body) };
        assert_eq!((error.sqlstate().as_str(), error.severity()), ("22012", Severity::Error));
        let mut out = BytesMut::new();
        error.encode(&mut out);
        assert_eq!(&out[5..], &body[..]);
    }

    #[test]
    fn garbage_from_a_server_is_survived() {
        for body in [&b""[..], b"\0", b"C", b"C123\0", b"M\xff\xfe\0\0", b"S\0\0"] {
            let _ = ServerError::parse(body);
        }
        assert_eq!(ServerError::parse(b"C12\0\0").code, SqlState::INTERNAL_ERROR);
    }

    #[test]
    fn the_limits_of_a_server_are_told_apart() {
        let refused = |code: &str, routine: &str| ProxyError::Server {
            target: String::new(),
            error: ServerError::parse(format!("SFATAL\0C{code}\0Mzu viele\0R{routine}\0\0").as_bytes()),
        };
        assert_eq!(refused("53300", "InitProcess").server_full(), Some(Full::Node));
        assert_eq!(refused("53300", "InitPostgres").server_full(), Some(Full::Node));
        assert_eq!(refused("53300", "InitializeSessionUserId").server_full(), Some(Full::Role));
        assert_eq!(refused("53300", "CheckMyDatabase").server_full(), Some(Full::Database));
        assert_eq!(refused("57P03", "InitProcess").server_full(), None);
        assert_eq!(ProxyError::TooManyClients.server_full(), None);
    }

    #[test]
    fn the_gate_of_a_sitter_counts_as_unready() {
        let refused = |code: &str, message: &str| ProxyError::Server {
            target: String::new(),
            error: ServerError::parse(format!("SFATAL\0C{code}\0M{message}\0\0").as_bytes()),
        };
        assert!(refused("28000", "pg_hba.conf rejects connection for host").is_server_unready());
        assert!(refused("57P03", "the database system is starting up").is_server_unready());
        assert!(!refused("3D000", "database \"x\" does not exist").is_server_unready());
        assert!(!refused("28000", "role \"x\" is not permitted to log in").is_server_unready());
    }
}
