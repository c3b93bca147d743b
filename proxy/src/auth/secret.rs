//! Secrets of roles, random bytes, and PostgreSQL's md5 authentication.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use md5::{Digest as _, Md5};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::error::{ProxyError, Result};
use crate::wire::scram::Key;

/// Secret that opens a server connection in a role's name. Comparing two takes longer the more they have in common:
/// only for those that were proved.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// Nothing: the server trusts us.
    None,
    /// SCRAM keys: the ClientKey was learned from the client's own login. Password-equivalent.
    Scram {
        /// SCRAM's ClientKey.
        client_key: Key,
        /// SCRAM's ServerKey, with which the server proves itself.
        server_key: Key,
    },
    /// `md5…` as in pg_authid. Password-equivalent.
    Md5(Md5Hash),
    /// A plain password, from a file.
    Password(Zeroizing<String>),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Scram { .. } => "Scram",
            Self::Md5(_) => "Md5",
            Self::Password(_) => "Password",
        })
    }
}

/// `md5` and 32 hexadecimal digits: md5(password, role) as pg_authid stores it.
#[derive(Clone, PartialEq, Eq)]
pub struct Md5Hash(Zeroizing<String>);

impl Md5Hash {
    /// Reads the stored form; None if it is anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("md5")?;
        let valid = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        valid.then(|| Self(Zeroizing::new(text.to_owned())))
    }

    /// Of a password.
    pub fn of(password: &str, role: &str) -> Self {
        Self(Zeroizing::new(format!("md5{}", hex(&[password.as_bytes(), role.as_bytes()]))))
    }

    /// Response to a salt: md5(md5(password, role), salt), as text (manual, section 55.2.1).
    pub fn response(&self, salt: [u8; 4]) -> Zeroizing<String> {
        let digits = self.0.strip_prefix("md5").unwrap_or_default();
        Zeroizing::new(format!("md5{}", hex(&[digits.as_bytes(), &salt])))
    }

    /// Whether `response` answers `salt`; takes the same time either way.
    pub fn accepts(&self, salt: [u8; 4], response: &[u8]) -> bool {
        self.response(salt).as_bytes().ct_eq(response).into()
    }
}

fn hex(parts: &[&[u8]]) -> String {
    let mut md5 = Md5::new();
    for part in parts {
        md5.update(part);
    }
    md5.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes nobody can guess.
///
/// # Errors
/// When the operating system has none, which never happens on a booted Linux.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| ProxyError::Internal("the operating system gave no random bytes".to_owned()))?;
    Ok(bytes)
}

/// A fresh SCRAM nonce: 18 random bytes as text, as PostgreSQL's.
///
/// # Errors
/// As [`random`].
pub fn nonce() -> Result<String> {
    Ok(BASE64_STANDARD.encode(random::<18>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn md5_agrees_with_another_implementation() {
        let hash = Md5Hash::of("secret", "alice");
        let salt = [1, 2, 3, 4];
        let theirs = postgres_protocol::authentication::md5_hash(b"alice", b"secret", salt);
        assert!(hash.accepts(salt, theirs.as_bytes()));
        assert!(!hash.accepts([1, 2, 3, 5], theirs.as_bytes()));
        assert!(!hash.accepts(salt, b""));
    }

    #[test]
    fn only_md5_hashes_are_read() {
        assert!(Md5Hash::parse("md5900150983cd24fb0d6963f7d28e17f72").is_some());
        for text in ["", "md5", "md5zz0150983cd24fb0d6963f7d28e17f72", "SCRAM-SHA-256$"] {
            assert!(Md5Hash::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn random_bytes_differ() {
        assert_ne!(random::<16>().expect("random"), random::<16>().expect("random"));
    }
}
