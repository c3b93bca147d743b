//! Messages of a client before it is authenticated, and of ours until it is ready. Pure.
//!
//! Manual, sections 55.2.1 (start-up), 55.2.12 (TLS), 55.7 (message formats); PostgreSQL's
//! `ProcessStartupPacket` in `src/backend/tcop/backend_startup.c`.
//!
//! Exactly [`HEADER_BYTES`] are read first, so that nothing a client (or somebody between) sent in
//! plain text can be taken for data received under TLS.

use bytes::{BufMut, BytesMut};

use super::switches;
use crate::error::{ProxyError, Result};

/// Length and code: what is read first.
pub const HEADER_BYTES: usize = 8;
/// The length alone, which is the first of it.
pub const LENGTH_BYTES: usize = 4;
/// PostgreSQL's MAX_STARTUP_PACKET_LENGTH.
pub const MAX_STARTUP_BYTES: usize = 10_000;
/// Longest cancel request: a 256-byte key of protocol 3.2.
const MAX_CANCEL_BYTES: usize = 4 + 4 + 4 + 256;
/// First byte of a TLS handshake record: direct TLS without SSLRequest (PostgreSQL 17).
pub const TLS_HANDSHAKE: u8 = 0x16;

const CANCEL_CODE: u32 = 80_877_102;
/// Our own: a cancel from another proxy, which is not passed on again.
const FORWARDED_CANCEL_CODE: u32 = 1234 << 16 | 0x4D41;
const SSL_CODE: u32 = 80_877_103;
const GSSENC_CODE: u32 = 80_877_104;
/// Protocol 3.0, in a startup message.
pub const VERSION_3_0: u32 = 3 << 16;
/// Version that servers are asked for. It differs from 3.0 in longer cancel keys; servers before PostgreSQL 18
/// negotiate down, and go on (manual, section 55.2.1).
const VERSION_3_2: u32 = VERSION_3_0 | 2;

/// Announcement in the first eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// SSLRequest: complete.
    Ssl,
    /// GSSENCRequest: complete.
    GssEnc,
    /// CancelRequest; `rest` more bytes follow: pid and secret.
    Cancel {
        /// Bytes still to read.
        rest: usize,
    },
    /// A CancelRequest that another proxy passes on; `rest` more bytes follow: pid and secret.
    ForwardedCancel {
        /// Bytes still to read.
        rest: usize,
    },
    /// StartupMessage of protocol 3; `rest` more bytes follow.
    Startup {
        /// Minor version asked for.
        minor: u16,
        /// Bytes still to read.
        rest: usize,
    },
}

/// Whether the first [`LENGTH_BYTES`] may be those of a startup packet.
pub fn is_startup_length(bytes: [u8; HEADER_BYTES]) -> bool {
    let [l0, l1, l2, l3, ..] = bytes;
    (HEADER_BYTES..=MAX_STARTUP_BYTES).contains(&(u32::from_be_bytes([l0, l1, l2, l3]) as usize))
}

impl Header {
    /// Reads the header.
    ///
    /// # Errors
    /// 08P01 for what is no PostgreSQL client, 0A000 for other protocol versions.
    pub fn parse(bytes: [u8; HEADER_BYTES]) -> Result<Self> {
        let [l0, l1, l2, l3, c0, c1, c2, c3] = bytes;
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        let code = u32::from_be_bytes([c0, c1, c2, c3]);
        if !is_startup_length(bytes) {
            return Err(ProxyError::Protocol("invalid length of startup packet".to_owned()));
        }
        let rest = length - HEADER_BYTES;
        match (code, code >> 16) {
            (SSL_CODE, _) if rest == 0 => Ok(Self::Ssl),
            (GSSENC_CODE, _) if rest == 0 => Ok(Self::GssEnc),
            (CANCEL_CODE, _) if rest >= 5 && length <= MAX_CANCEL_BYTES => Ok(Self::Cancel { rest }),
            (FORWARDED_CANCEL_CODE, _) if rest >= 5 && length <= MAX_CANCEL_BYTES => Ok(Self::ForwardedCancel { rest }),
            (SSL_CODE | GSSENC_CODE | CANCEL_CODE | FORWARDED_CANCEL_CODE, _) => {
                Err(ProxyError::Protocol("invalid length of startup packet".to_owned()))
            }
            (_, 3) => Ok(Self::Startup { minor: (code & 0xFFFF) as u16, rest }),
            (_, major) => Err(ProxyError::Unsupported(format!(
                "frontend protocol {major}.{}: this server supports 3.0",
                code & 0xFFFF
            ))),
        }
    }
}

/// Reads the rest of a CancelRequest: process id and secret.
pub fn parse_cancel(body: &[u8]) -> Option<(u32, &[u8])> {
    let (pid, secret) = body.split_first_chunk::<4>()?;
    (!secret.is_empty()).then_some((u32::from_be_bytes(*pid), secret))
}

/// Whether a client wants to replicate (manual, section 55.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replication {
    /// An ordinary connection.
    #[default]
    No,
    /// Connected to no database: streams WAL, takes base backups.
    Physical,
    /// Connected to a database: decodes its changes.
    Logical,
}

impl Replication {
    /// As a startup message says it; none for an ordinary connection.
    pub fn value(self) -> Option<&'static str> {
        match self {
            Self::No => None,
            Self::Physical => Some("true"),
            Self::Logical => Some("database"),
        }
    }

    /// `database`, or any spelling of a boolean (`ProcessStartupPacket`).
    fn parse(value: &str) -> Result<Self> {
        if value == "database" {
            return Ok(Self::Logical);
        }
        match parse_bool(value) {
            Some(true) => Ok(Self::Physical),
            Some(false) => Ok(Self::No),
            None => Err(ProxyError::Protocol(format!(
                "invalid value for parameter \"replication\": \"{value}\"; it is false, 0, true, 1 or database"
            ))),
        }
    }
}

/// A StartupMessage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Startup {
    /// Minor version asked for.
    pub minor: u16,
    /// Role.
    pub user: String,
    /// Database; the role's name if none was given.
    pub database: String,
    /// Whether a replication connection is wanted.
    pub replication: Replication,
    /// Names of protocol options (`_pq_.…`); none is known here.
    pub protocol_options: Vec<String>,
    /// Everything else, in order, `options` (command-line switches) already taken apart.
    pub settings: Vec<(String, String)>,
}

impl Startup {
    /// Reads what follows the header.
    ///
    /// # Errors
    /// 08P01 for a malformed packet or an unknown kind of replication, 28000 without a user, 42601 for unknown
    /// switches, 22021 for a setting that is not UTF-8.
    pub fn parse(minor: u16, body: &[u8]) -> Result<Self> {
        let malformed =
            || ProxyError::Protocol("invalid startup packet layout: expected terminator as last byte".to_owned());
        let fields = body.strip_suffix(b"\0").ok_or_else(malformed)?;
        let mut startup = Self {
            minor,
            user: String::new(),
            database: String::new(),
            replication: Replication::No,
            protocol_options: Vec::new(),
            settings: Vec::new(),
        };
        let mut fields = fields.split_inclusive(|&byte| byte == 0);
        let mut next = || fields.next().map(|field| field.strip_suffix(b"\0").ok_or_else(malformed));
        let mut settings = Vec::new();
        while let Some(name) = next() {
            let name = text(name?)?;
            let value = next().ok_or_else(malformed)??;
            match name.as_str() {
                "" => return Err(malformed()),
                "user" => startup.user = shortened(value),
                "database" => startup.database = shortened(value),
                "replication" => startup.replication = Replication::parse(&text(value)?)?,
                // Before the others, wherever they are (`process_startup_options`).
                "options" => startup.settings = switches::parse(&text(value)?)?,
                "application_name" => settings.push((name, name_in_ascii(value))),
                _ if name.starts_with("_pq_.") => startup.protocol_options.push(name),
                _ => settings.push((name, text(value)?)),
            }
        }
        startup.settings.append(&mut settings);
        if startup.user.is_empty() {
            return Err(ProxyError::NotAllowed("no PostgreSQL user name specified in startup packet".to_owned()));
        }
        if startup.database.is_empty() {
            startup.database.clone_from(&startup.user);
        }
        Ok(startup)
    }

    /// The minor version spoken: 2 to whoever asks for it or more; there is no 1.
    pub fn spoken_minor(&self) -> u16 {
        if self.minor >= 2 { 2 } else { 0 }
    }

    /// Whether the client asked for more than we speak and must be told (NegotiateProtocolVersion).
    pub fn needs_negotiation(&self) -> bool {
        self.minor != self.spoken_minor() || !self.protocol_options.is_empty()
    }
}

/// A setting that is text in UTF-8.
fn text(value: &[u8]) -> Result<String> {
    String::from_utf8(value.to_vec()).map_err(|_| ProxyError::NotText(String::from_utf8_lossy(value).into_owned()))
}

/// A name as PostgreSQL takes it here: cut to what an identifier holds (`ProcessStartupPacket`; NAMEDATALEN is 64).
/// Bytes that are not UTF-8 are replaced: no role or database is called so.
fn shortened(name: &[u8]) -> String {
    String::from_utf8_lossy(&name[..name.len().min(63)]).into_owned()
}

/// An application's name may be in any encoding: PostgreSQL shows its bytes beyond ASCII as others
/// (`check_application_name`). Those that are not UTF-8 are replaced already here.
fn name_in_ascii(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '?'));
    }
    text
}

/// The spellings PostgreSQL takes: any unambiguous beginning (`parse_bool`).
fn parse_bool(value: &str) -> Option<bool> {
    let value = value.to_ascii_lowercase();
    let begins = |word: &str| !value.is_empty() && word.starts_with(&value);
    match value.as_str() {
        "1" | "on" => Some(true),
        "0" | "of" | "off" => Some(false),
        _ if begins("true") || begins("yes") => Some(true),
        _ if begins("false") || begins("no") => Some(false),
        _ => None,
    }
}

/// Appends our own StartupMessage for a server.
pub fn encode_startup(out: &mut BytesMut, user: &str, database: &str, settings: &[(String, String)]) {
    let start = out.len();
    out.put_u32(0);
    out.put_u32(VERSION_3_2);
    let pairs = [("user", user), ("database", database)];
    let settings = settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in pairs.into_iter().chain(settings) {
        put_string(out, name);
        put_string(out, value);
    }
    out.put_u8(0);
    patch_length(out, start);
}

/// Appends a CancelRequest for a server.
pub fn encode_cancel(out: &mut BytesMut, pid: u32, secret: &[u8]) {
    encode_key(out, CANCEL_CODE, pid, secret);
}

/// Appends a cancel for another proxy.
pub fn encode_forwarded_cancel(out: &mut BytesMut, pid: u32, secret: &[u8]) {
    encode_key(out, FORWARDED_CANCEL_CODE, pid, secret);
}

fn encode_key(out: &mut BytesMut, code: u32, pid: u32, secret: &[u8]) {
    let start = out.len();
    out.put_u32(0);
    out.put_u32(code);
    out.put_u32(pid);
    out.put_slice(secret);
    patch_length(out, start);
}

/// Appends NegotiateProtocolVersion: the version spoken, and the options we do not know.
pub fn encode_negotiate(out: &mut BytesMut, minor: u16, unknown: &[String]) {
    message(out, b'v', |out| {
        out.put_u32(VERSION_3_0 | u32::from(minor));
        out.put_u32(u32::try_from(unknown.len()).unwrap_or(0));
        for name in unknown {
            put_string(out, name);
        }
    });
}

/// Requests and results of authentication (`R`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authentication<'a> {
    /// Done.
    Ok,
    /// MD5 with this salt.
    Md5([u8; 4]),
    /// SASL with SCRAM-SHA-256.
    Sasl,
    /// SASL with SCRAM-SHA-256-PLUS before that.
    SaslPlus,
    /// A password in clear.
    Cleartext,
    /// server-first-message.
    SaslContinue(&'a [u8]),
    /// server-final-message.
    SaslFinal(&'a [u8]),
}

impl Authentication<'_> {
    /// Appends the message.
    pub fn encode(self, out: &mut BytesMut) {
        message(out, b'R', |out| match self {
            Self::Ok => out.put_u32(0),
            Self::Md5(salt) => {
                out.put_u32(5);
                out.put_slice(&salt);
            }
            Self::Cleartext => out.put_u32(3),
            Self::Sasl => {
                out.put_u32(10);
                put_string(out, super::scram::MECHANISM);
                out.put_u8(0);
            }
            Self::SaslPlus => {
                out.put_u32(10);
                put_string(out, super::scram::MECHANISM_PLUS);
                put_string(out, super::scram::MECHANISM);
                out.put_u8(0);
            }
            Self::SaslContinue(data) => {
                out.put_u32(11);
                out.put_slice(data);
            }
            Self::SaslFinal(data) => {
                out.put_u32(12);
                out.put_slice(data);
            }
        });
    }
}

/// Appends a password message (`p`): a password, a hash or a SASL response.
pub fn encode_password(out: &mut BytesMut, data: &[u8]) {
    message(out, b'p', |out| out.put_slice(data));
}

/// Appends SASLInitialResponse.
pub fn encode_sasl_initial(out: &mut BytesMut, mechanism: &str, data: &[u8]) {
    message(out, b'p', |out| {
        put_string(out, mechanism);
        out.put_u32(u32::try_from(data.len()).unwrap_or(u32::MAX));
        out.put_slice(data);
    });
}

/// Reads SASLInitialResponse: mechanism and data.
pub fn parse_sasl_initial(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = body.iter().position(|&byte| byte == 0)?;
    let (length, data) = body[end + 1..].split_first_chunk::<4>()?;
    (u32::from_be_bytes(*length) as usize == data.len()).then_some((&body[..end], data))
}

/// Appends ParameterStatus.
pub fn encode_parameter_status(out: &mut BytesMut, name: &str, value: &str) {
    message(out, b'S', |out| {
        put_string(out, name);
        put_string(out, value);
    });
}

/// Appends BackendKeyData.
pub fn encode_backend_key(out: &mut BytesMut, pid: u32, secret: &[u8]) {
    message(out, b'K', |out| {
        out.put_u32(pid);
        out.put_slice(secret);
    });
}

/// Appends ReadyForQuery, idle.
pub fn encode_ready(out: &mut BytesMut) {
    message(out, b'Z', |out| out.put_u8(b'I'));
}

fn message(out: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    let start = out.len();
    out.put_u32(0);
    body(out);
    patch_length(out, start);
}

fn patch_length(out: &mut BytesMut, start: usize) {
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// A NUL inside would end the string early and make the rest another field: it is dropped.
fn put_string(out: &mut BytesMut, text: &str) {
    out.extend(text.bytes().filter(|&byte| byte != 0));
    out.put_u8(0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::SqlState;
    use proptest::prelude::*;

    fn header(length: u32, code: u32) -> Result<Header> {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        bytes[4..].copy_from_slice(&code.to_be_bytes());
        Header::parse(bytes)
    }

    #[test]
    fn headers() {
        assert_eq!(header(8, SSL_CODE).expect("ssl"), Header::Ssl);
        assert_eq!(Header::parse(manatee_shared::tls::SSL_REQUEST).expect("ssl"), Header::Ssl);
        assert_eq!(header(8, GSSENC_CODE).expect("gss"), Header::GssEnc);
        assert_eq!(header(16, CANCEL_CODE).expect("cancel"), Header::Cancel { rest: 8 });
        assert_eq!(header(268, CANCEL_CODE).expect("long key"), Header::Cancel { rest: 260 });
        assert_eq!(header(9, VERSION_3_0).expect("3.0"), Header::Startup { minor: 0, rest: 1 });
        assert_eq!(header(40, VERSION_3_0 + 2).expect("3.2"), Header::Startup { minor: 2, rest: 32 });
        let refused = |length, code| header(length, code).expect_err("refused").sqlstate();
        assert_eq!(refused(40, 2 << 16), SqlState::FEATURE_NOT_SUPPORTED);
        assert_eq!(refused(40, 4 << 16), SqlState::FEATURE_NOT_SUPPORTED);
        for (length, code) in [
            (0, VERSION_3_0),
            (7, VERSION_3_0),
            (10_001, VERSION_3_0),
            (9, SSL_CODE),
            (12, CANCEL_CODE),
            (269, CANCEL_CODE),
        ] {
            assert_eq!(refused(length, code), SqlState::PROTOCOL_VIOLATION, "{length} {code}");
        }
        assert_eq!(Header::parse(*b"GET / HT").expect_err("not PostgreSQL").sqlstate(), SqlState::PROTOCOL_VIOLATION);
    }

    #[test]
    fn startup_messages_are_taken_apart() {
        let body =
            b"user\0alice\0_pq_.x\0y\0options\0-c geqo=off -cwork_mem=1MB --lock-timeout=5\\ s\0DateStyle\0ISO\0\0";
        let startup = Startup::parse(2, body).expect("valid");
        assert_eq!((startup.user.as_str(), startup.database.as_str()), ("alice", "alice"));
        assert!(startup.needs_negotiation() && startup.replication == Replication::No);
        let spoken = [0, 1, 2, 3].map(|minor| {
            let startup = Startup { minor, protocol_options: Vec::new(), ..startup.clone() };
            (startup.spoken_minor(), startup.needs_negotiation())
        });
        assert_eq!(spoken, [(0, false), (0, true), (2, false), (2, true)]);
        assert_eq!(startup.protocol_options, ["_pq_.x"]);
        let settings: Vec<_> = startup.settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(settings, ["geqo=off", "work_mem=1MB", "lock_timeout=5 s", "DateStyle=ISO"]);
        // The switches come first, wherever they are.
        let startup = Startup::parse(0, b"user\0a\0datestyle\0ISO\0options\0-e\0\0").expect("valid");
        let names: Vec<_> = startup.settings.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(names, ["euro", "ISO"]);
    }

    #[test]
    fn names_are_taken_as_postgresql_takes_them() {
        let body = b"user\0caf\xe9\0application_name\0caf\xe9 \xc3\xa9.exe\0\0";
        let startup = Startup::parse(0, body).expect("valid");
        assert_eq!(startup.user, "caf\u{fffd}");
        assert_eq!(startup.settings, [("application_name".to_owned(), "caf? \u{e9}.exe".to_owned())]);
        let long = "x".repeat(70);
        let startup = Startup::parse(0, format!("user\0{long}\0database\0{long}\0\0").as_bytes()).expect("valid");
        assert_eq!((startup.user.as_str(), startup.database.as_str()), (&long[..63], &long[..63]));
        let refused = Startup::parse(0, b"user\0a\0app.x\0caf\xe9\0\0").expect_err("not UTF-8").sqlstate();
        assert_eq!(refused, SqlState::CHARACTER_NOT_IN_REPERTOIRE);
    }

    #[test]
    fn our_own_startup_reads_back() {
        let mut out = BytesMut::new();
        encode_startup(&mut out, "bob", "db", &[("application_name".to_owned(), "x\0y".to_owned())]);
        let header = Header::parse(out[..8].try_into().expect("eight")).expect("header");
        assert_eq!(header, Header::Startup { minor: 2, rest: out.len() - 8 });
        let startup = Startup::parse(2, &out[8..]).expect("valid");
        assert_eq!((startup.user.as_str(), startup.database.as_str()), ("bob", "db"));
        assert_eq!(startup.settings, [("application_name".to_owned(), "xy".to_owned())]);
    }

    #[test]
    fn malformed_startups_are_refused() {
        let refused = |body: &[u8]| Startup::parse(0, body).expect_err("refused").sqlstate();
        for body in [&b""[..], b"user\0a\0", b"user\0a", b"user\0\0\0x", b"\0a\0\0"] {
            assert_eq!(refused(body), SqlState::PROTOCOL_VIOLATION, "{body:?}");
        }
        assert_eq!(refused(b"\0"), SqlState::INVALID_AUTHORIZATION);
        assert_eq!(refused(b"database\0x\0\0"), SqlState::INVALID_AUTHORIZATION);
        assert_eq!(refused(b"user\0a\0options\0-Z\0\0"), SqlState::SYNTAX_ERROR);
    }

    #[test]
    fn replication_is_recognised() {
        use Replication::{Logical, No, Physical};
        let parse = |value: &str| Startup::parse(0, format!("user\0a\0replication\0{value}\0\0").as_bytes());
        let known = [("true", Physical), ("1", Physical), ("YES", Physical), ("on", Physical), ("database", Logical)];
        let not = ["false", "off", "of", "0", "n"].map(|value| (value, No));
        for (value, wanted) in known.into_iter().chain(not) {
            assert_eq!(parse(value).expect("valid").replication, wanted, "{value}");
        }
        for value in ["o", "maybe", "", "2"] {
            assert_eq!(parse(value).expect_err("unknown").sqlstate(), SqlState::PROTOCOL_VIOLATION, "{value}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in any::<[u8; 8]>(), body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Header::parse(bytes);
            let _ = Startup::parse(0, &body);
            let _ = parse_cancel(&body);
            let _ = parse_sasl_initial(&body);
        }

        #[test]
        fn any_options_text_is_survived(options in "[-a-z= \\\\]{0,60}") {
            let _ = switches::parse(&options);
        }
    }
}
