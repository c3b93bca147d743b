//! SCRAM-SHA-256 (RFC 5802, RFC 7677) from both ends, without passwords: towards a client from the
//! verifier in pg_authid, towards a server with the ClientKey learned from that client's login.
//! Pure: nonces are arguments. A type per state, consumed to make the next.
//!
//! PostgreSQL's own: `src/backend/libpq/auth-scram.c`, `src/interfaces/libpq/fe-auth-scram.c`.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// Without channel binding.
pub const MECHANISM: &str = "SCRAM-SHA-256";
/// With channel binding, over TLS only.
pub const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// The one kind of channel binding PostgreSQL knows (RFC 5929, section 4).
const BINDING: &str = "p=tls-server-end-point";

/// Facts about the channel when an exchange begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Channel<'a> {
    /// No TLS, or a certificate that cannot be bound to.
    #[default]
    Unbound,
    /// It could have been bound to, but the side that chooses did not choose to.
    Declined,
    /// Bound to this: the hash of the server's certificate.
    Bound(&'a [u8]),
}

/// Iterations pretended for roles that do not exist: PostgreSQL's default.
const MOCK_ITERATIONS: u32 = 4096;
/// More iterations than this from a server are refused: an hour of our time is not for the asking.
const MAX_ITERATIONS: u32 = 1_000_000;

/// A SCRAM key: as good as the password in the wrong hands.
pub type Key = Zeroizing<[u8; 32]>;

/// Reason why an exchange failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// Not what RFC 5802 lets the other side say.
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// Channel binding or another extension that was not offered.
    #[error("SCRAM extension not supported: {0}")]
    Unsupported(&'static str),
    /// The proof, or the server's signature, does not fit.
    #[error("SCRAM proof does not match")]
    WrongProof,
}

type Result<T> = std::result::Result<T, ScramError>;

/// Verifier as pg_authid stores it: `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`.
#[derive(Clone)]
pub struct Verifier {
    iterations: u32,
    salt: Vec<u8>,
    stored_key: Key,
    server_key: Key,
}

impl Verifier {
    /// Reads the stored form; None if it is anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('$');
        let (mechanism, parameters, keys) = (parts.next()?, parts.next()?, parts.next()?);
        if mechanism != MECHANISM || parts.next().is_some() {
            return None;
        }
        let (iterations, salt) = parameters.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let key = |text: &str| <[u8; 32]>::try_from(BASE64_STANDARD.decode(text).ok()?).ok().map(Zeroizing::new);
        Some(Self {
            iterations: iterations.parse().ok().filter(|&count| count > 0)?,
            salt: BASE64_STANDARD.decode(salt).ok()?,
            stored_key: key(stored_key)?,
            server_key: key(server_key)?,
        })
    }

    /// Of a password in clear: thousands of hashes. `salt` is random.
    pub fn of_password(password: &str, salt: &[u8], iterations: u32) -> Self {
        let (client_key, server_key) = derive_keys(password, salt, iterations);
        Self { iterations, salt: salt.to_vec(), stored_key: Zeroizing::new(hash(&client_key)), server_key }
    }

    /// Whether it was made of this password: thousands of hashes.
    pub fn accepts(&self, password: &str) -> bool {
        let (client_key, _) = derive_keys(password, &self.salt, self.iterations);
        hash(&client_key).ct_eq(&*self.stored_key).into()
    }

    /// For a role that does not exist or has no password: always the same salt for the same name,
    /// as `mock_scram_secret()` of PostgreSQL, and no proof fits.
    pub fn mock(user: &str, process_secret: &[u8; 32]) -> Self {
        let derive = |purpose: &[u8]| hmac(process_secret, &[purpose, user.as_bytes()]);
        Self {
            iterations: MOCK_ITERATIONS,
            salt: derive(b"salt")[..16].to_vec(),
            stored_key: derive(b"stored key"),
            server_key: derive(b"server key"),
        }
    }
}

/// ClientKey and ServerKey of a password for the salt of this stored verifier; for clients that log in
/// often. None if it is no verifier.
pub fn keys_of(verifier: &str, password: &str) -> Option<(Key, Key)> {
    let verifier = Verifier::parse(verifier)?;
    Some(derive_keys(password, &verifier.salt, verifier.iterations))
}

/// Proof of a client: enough to open server connections in its name.
pub struct Proven {
    /// Message to send.
    pub server_final: String,
    /// SCRAM's ClientKey.
    pub client_key: Key,
    /// SCRAM's ServerKey, to recognise a genuine server.
    pub server_key: Key,
}

/// Our side of a client's login, after its first message.
pub struct ServerExchange {
    verifier: Verifier,
    client_first_bare: String,
    server_first: String,
    /// gs2-header and the channel's data, in base64.
    binding: String,
    nonce: String,
}

impl ServerExchange {
    /// Takes client-first-message; `server_nonce` is printable, without comma and unguessable.
    /// `channel` is bound if the client chose [`MECHANISM_PLUS`]. Returns server-first-message to send.
    ///
    /// # Errors
    /// [`ScramError::Malformed`] and [`ScramError::Unsupported`].
    pub fn begin(
        verifier: Verifier,
        client_first: &[u8],
        server_nonce: &str,
        channel: Channel<'_>,
    ) -> Result<(Self, String)> {
        let text = std::str::from_utf8(client_first).map_err(|_| ScramError::Malformed("not UTF-8"))?;
        // gs2-header: cbind-flag "," [authzid] ","
        let (flag, rest) = text.split_once(',').ok_or(ScramError::Malformed("no gs2 header"))?;
        let (authzid, bare) = rest.split_once(',').ok_or(ScramError::Malformed("no gs2 header"))?;
        // As `read_client_first_message()` of PostgreSQL.
        match (flag, channel) {
            ("n", Channel::Unbound | Channel::Declined) => {}
            // The client could bind but believes we cannot: so, or somebody between us took it away.
            ("y", Channel::Unbound) => {}
            ("y", Channel::Declined) => {
                return Err(ScramError::Malformed(
                    "channel binding negotiation error: the client supports it but thinks the server does not",
                ));
            }
            (BINDING, Channel::Bound(_)) => {}
            ("n" | "y", Channel::Bound(_)) => {
                return Err(ScramError::Malformed("SCRAM-SHA-256-PLUS was chosen, but no channel binding is included"));
            }
            (_, Channel::Bound(_)) if flag.starts_with("p=") => {
                return Err(ScramError::Unsupported("channel binding type"));
            }
            _ if flag.starts_with("p=") => return Err(ScramError::Unsupported("channel binding was not chosen")),
            _ => return Err(ScramError::Malformed("unknown channel binding flag")),
        }
        if !authzid.is_empty() {
            return Err(ScramError::Unsupported("authorization identity"));
        }
        let mut attributes = bare.split(',');
        match attributes.next() {
            // The name is ignored, as in PostgreSQL: the startup packet has it.
            Some(name) if name.starts_with("n=") => {}
            Some(name) if name.starts_with("m=") => return Err(ScramError::Unsupported("mandatory extension")),
            _ => return Err(ScramError::Malformed("no user name")),
        }
        let client_nonce = attributes
            .next()
            .and_then(|nonce| nonce.strip_prefix("r="))
            .filter(|nonce| !nonce.is_empty() && nonce.bytes().all(|byte| matches!(byte, 0x21..=0x7e)))
            .ok_or(ScramError::Malformed("no nonce"))?;
        let nonce = format!("{client_nonce}{server_nonce}");
        let server_first = format!("r={nonce},s={},i={}", BASE64_STANDARD.encode(&verifier.salt), verifier.iterations);
        let exchange = Self {
            verifier,
            client_first_bare: bare.to_owned(),
            server_first: server_first.clone(),
            binding: encode_binding(flag, channel),
            nonce,
        };
        Ok((exchange, server_first))
    }

    /// Takes client-final-message. The ClientKey is the proof ⊕ HMAC(StoredKey, AuthMessage) and is
    /// right if its hash is the StoredKey.
    ///
    /// # Errors
    /// [`ScramError`]; `WrongProof` is a wrong password.
    pub fn finish(self, client_final: &[u8]) -> Result<Proven> {
        let text = std::str::from_utf8(client_final).map_err(|_| ScramError::Malformed("not UTF-8"))?;
        let (without_proof, proof) = text.rsplit_once(",p=").ok_or(ScramError::Malformed("no proof"))?;
        let mut attributes = without_proof.split(',');
        let binding = attributes.next().and_then(|binding| binding.strip_prefix("c="));
        if binding != Some(self.binding.as_str()) {
            return Err(ScramError::Malformed("channel binding does not match the first message"));
        }
        if attributes.next().and_then(|nonce| nonce.strip_prefix("r=")) != Some(self.nonce.as_str()) {
            return Err(ScramError::Malformed("nonce does not match"));
        }
        let proof = decode_key(proof).ok_or(ScramError::Malformed("proof is not 32 bytes of base64"))?;
        let parts = auth_message(&self.client_first_bare, &self.server_first, without_proof);
        let client_key = xor(&proof, &hmac(&*self.verifier.stored_key, &parts));
        if !bool::from(hash(&client_key).ct_eq(&*self.verifier.stored_key)) {
            return Err(ScramError::WrongProof);
        }
        let signature = hmac(&*self.verifier.server_key, &parts);
        Ok(Proven {
            server_final: format!("v={}", BASE64_STANDARD.encode(*signature)),
            client_key,
            server_key: self.verifier.server_key,
        })
    }
}

/// Credential that proves our right to a server.
pub enum Credential<'a> {
    /// Keys learned from a client's login.
    Keys {
        /// SCRAM's ClientKey.
        client_key: &'a Key,
        /// SCRAM's ServerKey.
        server_key: &'a Key,
    },
    /// A password; costs thousands of hashes.
    Password(&'a str),
}

/// Our login at a server, after our first message.
pub struct ClientExchange {
    client_first_bare: String,
    nonce: String,
    /// gs2-header and the channel's data, in base64.
    binding: String,
}

/// Our login at a server, after our proof.
pub struct ClientProof {
    expected_signature: Key,
}

impl ClientExchange {
    /// Returns client-first-message for `nonce` (printable, no comma, unguessable). `channel` is
    /// declined if we could bind but the server did not offer it.
    pub fn begin(nonce: &str, channel: Channel<'_>) -> (Self, String) {
        let flag = match channel {
            Channel::Unbound => "n",
            Channel::Declined => "y",
            Channel::Bound(_) => BINDING,
        };
        let bare = format!("n=,r={nonce}");
        let message = format!("{flag},,{bare}");
        let binding = encode_binding(flag, channel);
        (Self { client_first_bare: bare, nonce: nonce.to_owned(), binding }, message)
    }

    /// Takes server-first-message, returns client-final-message.
    ///
    /// # Errors
    /// [`ScramError::Malformed`] and [`ScramError::Unsupported`].
    pub fn prove(self, server_first: &[u8], credential: &Credential<'_>) -> Result<(ClientProof, String)> {
        let text = std::str::from_utf8(server_first).map_err(|_| ScramError::Malformed("not UTF-8"))?;
        let mut attributes = text.split(',');
        let mut next = |prefix| attributes.next().and_then(|attribute| attribute.strip_prefix(prefix));
        let nonce = next("r=")
            .filter(|nonce| nonce.len() > self.nonce.len() && nonce.starts_with(&self.nonce))
            .ok_or(ScramError::Malformed("nonce does not continue ours"))?;
        let salt =
            next("s=").and_then(|salt| BASE64_STANDARD.decode(salt).ok()).ok_or(ScramError::Malformed("no salt"))?;
        let iterations = next("i=")
            .and_then(|count| count.parse::<u32>().ok())
            .filter(|count| (1..=MAX_ITERATIONS).contains(count))
            .ok_or(ScramError::Malformed("no sensible iteration count"))?;
        let (client_key, server_key) = match credential {
            Credential::Keys { client_key, server_key } => ((*client_key).clone(), (*server_key).clone()),
            Credential::Password(password) => derive_keys(password, &salt, iterations),
        };
        let without_proof = format!("c={},r={nonce}", self.binding);
        let parts = auth_message(&self.client_first_bare, text, &without_proof);
        let proof = xor(&client_key, &hmac(&hash(&client_key), &parts));
        let message = format!("{without_proof},p={}", BASE64_STANDARD.encode(*proof));
        Ok((ClientProof { expected_signature: hmac(&*server_key, &parts) }, message))
    }
}

impl ClientProof {
    /// Takes server-final-message: whether the server knows our verifier too.
    ///
    /// # Errors
    /// [`ScramError`].
    pub fn verify(self, server_final: &[u8]) -> Result<()> {
        let signature = std::str::from_utf8(server_final)
            .ok()
            .and_then(|text| text.strip_prefix("v="))
            .and_then(decode_key)
            .ok_or(ScramError::Malformed("no server signature"))?;
        if bool::from(signature.ct_eq(&*self.expected_signature)) { Ok(()) } else { Err(ScramError::WrongProof) }
    }
}

/// ClientKey and ServerKey of a password (RFC 5802, section 3). What SASLprep rejects is used as
/// it is, as PostgreSQL does.
fn derive_keys(password: &str, salt: &[u8], iterations: u32) -> (Key, Key) {
    let prepared = stringprep::saslprep(password).unwrap_or(password.into());
    let mut block = hmac(prepared.as_bytes(), &[salt, &1u32.to_be_bytes()]);
    let mut salted = block.clone();
    for _ in 1..iterations {
        block = hmac(prepared.as_bytes(), &[&*block]);
        salted = xor(&salted, &block);
    }
    (hmac(&*salted, &[b"Client Key"]), hmac(&*salted, &[b"Server Key"]))
}

/// cbind-input (RFC 5802, section 7) in base64.
fn encode_binding(flag: &str, channel: Channel<'_>) -> String {
    let mut input = format!("{flag},,").into_bytes();
    if let Channel::Bound(data) = channel {
        input.extend_from_slice(data);
    }
    BASE64_STANDARD.encode(input)
}

/// AuthMessage in pieces.
fn auth_message<'a>(client_first_bare: &'a str, server_first: &'a str, without_proof: &'a str) -> [&'a [u8]; 5] {
    [client_first_bare.as_bytes(), b",", server_first.as_bytes(), b",", without_proof.as_bytes()]
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Key {
    // A key of any length is taken, so this cannot fail; if it ever did, nothing would match.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return Zeroizing::new([0; 32]) };
    for part in parts {
        mac.update(part);
    }
    Zeroizing::new(mac.finalize().into_bytes().into())
}

fn hash(key: &Key) -> [u8; 32] {
    Sha256::digest(**key).into()
}

fn xor(left: &[u8; 32], right: &[u8; 32]) -> Key {
    let mut result = Zeroizing::new(*left);
    result.iter_mut().zip(right).for_each(|(byte, other)| *byte ^= other);
    result
}

fn decode_key(text: &str) -> Option<Key> {
    <[u8; 32]>::try_from(BASE64_STANDARD.decode(text).ok()?).ok().map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
    use proptest::prelude::*;

    fn verifier(password: &str) -> Verifier {
        Verifier::parse(&postgres_protocol::password::scram_sha_256(password.as_bytes())).expect("verifier")
    }

    /// RFC 7677, section 3.
    #[test]
    fn the_rfcs_example_holds() {
        let salt = BASE64_STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").expect("salt");
        let (client_key, server_key) = derive_keys("pencil", &salt, 4096);
        let stored_key = Zeroizing::new(hash(&client_key));
        let verifier = Verifier { iterations: 4096, salt, stored_key, server_key };
        let (exchange, server_first) = ServerExchange::begin(
            verifier,
            b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
            "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
            Channel::Unbound,
        )
        .expect("first");
        assert_eq!(
            server_first,
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        );
        let proven = exchange
            .finish(
                b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            )
            .expect("final");
        assert_eq!(proven.server_final, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        assert_eq!(proven.client_key, client_key);
    }

    #[test]
    fn another_implementation_logs_in_and_the_learned_key_opens_a_server() {
        let verifier = verifier("pässword");
        let mut client = ScramSha256::new("pässword".as_bytes(), ChannelBinding::unsupported());
        let (exchange, first) =
            ServerExchange::begin(verifier.clone(), client.message(), "servernonce", Channel::Unbound).expect("first");
        client.update(first.as_bytes()).expect("server first");
        let proven = exchange.finish(client.message()).expect("right password");
        client.finish(proven.server_final.as_bytes()).expect("genuine server");

        // Now as a client, with what was learned.
        let (ours, first) = ClientExchange::begin("ournonce", Channel::Unbound);
        let (server, server_first) =
            ServerExchange::begin(verifier, first.as_bytes(), "other", Channel::Unbound).expect("first");
        let keys = Credential::Keys { client_key: &proven.client_key, server_key: &proven.server_key };
        let (proof, last) = ours.prove(server_first.as_bytes(), &keys).expect("proof");
        let accepted = server.finish(last.as_bytes()).expect("accepted");
        assert_eq!(proof.verify(accepted.server_final.as_bytes()), Ok(()));
    }

    #[test]
    fn password_login_works_and_a_wrong_one_does_not() {
        for (password, right) in [("secret", true), ("Secret", false)] {
            let (ours, first) = ClientExchange::begin("n1", Channel::Unbound);
            let (server, server_first) =
                ServerExchange::begin(verifier("secret"), first.as_bytes(), "n2", Channel::Unbound).expect("first");
            let (_, last) = ours.prove(server_first.as_bytes(), &Credential::Password(password)).expect("proof");
            assert_eq!(server.finish(last.as_bytes()).is_ok(), right);
        }
    }

    #[test]
    fn another_implementation_binds_to_the_channel() {
        for (seen, right) in [(&b"hash"[..], true), (b"another", false)] {
            let binding = ChannelBinding::tls_server_end_point(seen.to_vec());
            let mut client = ScramSha256::new(b"secret", binding);
            let (exchange, first) =
                ServerExchange::begin(verifier("secret"), client.message(), "n", Channel::Bound(b"hash"))
                    .expect("first");
            client.update(first.as_bytes()).expect("server first");
            assert_eq!(exchange.finish(client.message()).is_ok(), right, "bound to another server's certificate");
        }
        // Our own client binds in the same way.
        let (ours, first) = ClientExchange::begin("n1", Channel::Bound(b"hash"));
        let (server, server_first) =
            ServerExchange::begin(verifier("secret"), first.as_bytes(), "n2", Channel::Bound(b"hash")).expect("first");
        let (_, last) = ours.prove(server_first.as_bytes(), &Credential::Password("secret")).expect("proof");
        assert!(server.finish(last.as_bytes()).is_ok());
    }

    /// The table of `read_client_first_message()`.
    #[test]
    fn a_downgrade_of_the_binding_is_noticed() {
        let begin = |flag: &str, channel| {
            ServerExchange::begin(verifier("x"), format!("{flag},,n=,r=abc").as_bytes(), "n", channel).is_ok()
        };
        for (flag, channel, right) in [
            ("n", Channel::Unbound, true),
            ("y", Channel::Unbound, true),
            (BINDING, Channel::Unbound, false),
            ("n", Channel::Declined, true),
            ("y", Channel::Declined, false),
            (BINDING, Channel::Declined, false),
            ("n", Channel::Bound(b"hash"), false),
            ("y", Channel::Bound(b"hash"), false),
            (BINDING, Channel::Bound(b"hash"), true),
            ("p=tls-unique", Channel::Bound(b"hash"), false),
        ] {
            assert_eq!(begin(flag, channel), right, "{flag} {channel:?}");
        }
    }

    #[test]
    fn mock_verifiers_are_stable_and_unlike() {
        let salt = |user| Verifier::mock(user, &[7; 32]).salt;
        assert_eq!(salt("alice"), salt("alice"));
        assert_ne!(salt("alice"), salt("bob"));
        assert_ne!(salt("alice"), Verifier::mock("alice", &[8; 32]).salt);
    }

    #[test]
    fn what_was_not_offered_is_refused() {
        let begin =
            |message: &str| ServerExchange::begin(verifier("x"), message.as_bytes(), "n", Channel::Unbound).map(|_| ());
        assert_eq!(begin("y,,n=,r=abc"), Ok(()));
        assert!(matches!(begin("p=tls-server-end-point,,n=,r=abc"), Err(ScramError::Unsupported(_))));
        assert!(matches!(begin("n,a=admin,n=,r=abc"), Err(ScramError::Unsupported(_))));
        assert!(matches!(begin("n,,m=x,n=,r=abc"), Err(ScramError::Unsupported(_))));
        for text in ["", "n", "n,,", "n,,n=x", "n,,n=x,r=", "n,,r=abc", "x,,n=,r=abc"] {
            assert!(matches!(begin(text), Err(ScramError::Malformed(_))), "{text}");
        }
    }

    #[test]
    fn verifiers_of_other_kinds_are_not_read() {
        for text in ["", "md5abcdef", "SCRAM-SHA-256$4096:c2FsdA==$AAAA:AAAA", "SCRAM-SHA-256$0:AA==$$", "$$$$"] {
            assert!(Verifier::parse(text).is_none(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(first in proptest::collection::vec(any::<u8>(), 0..80), last in "\\PC{0,80}") {
            let _ = ServerExchange::begin(verifier_of_nothing(), &first, "n", Channel::Unbound);
            let (exchange, _) = ServerExchange::begin(verifier_of_nothing(), b"n,,n=,r=abc", "n", Channel::Unbound).expect("first");
            prop_assert!(exchange.finish(last.as_bytes()).is_err());
            let (ours, _) = ClientExchange::begin("abc", Channel::Unbound);
            let _ = ours.prove(&first, &Credential::Password("x"));
        }
    }

    fn verifier_of_nothing() -> Verifier {
        Verifier::mock("nobody", &[0; 32])
    }
}
