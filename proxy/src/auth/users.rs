//! Roles from a file, for those who shall not depend on the database: the console's users above all.
//! Each line is `"name" "secret"`, where the secret is a password, `md5…` or `SCRAM-SHA-256$…` as
//! in pg_authid; a quote within quotes is doubled. `#` and `;` begin comments.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use zeroize::Zeroizing;

use super::secret::{Md5Hash, random};
use super::verifier::{Role, Stored};
use crate::error::{ProxyError, Result};
use crate::wire::scram::Verifier;

/// Rounds of hashing for passwords in clear: PostgreSQL's default.
const ITERATIONS: u32 = 4096;

/// Reason why the file cannot be used. One line.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// It cannot be read.
    #[error("{path}: cannot be read: {source}")]
    Read {
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// A line is not understood.
    #[error("{path}:{line}: {problem}; write it as \"name\" \"secret\"")]
    Line {
        /// File.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Problem.
        problem: &'static str,
    },
}

/// A role's secret as the file has it.
enum Entry {
    /// As pg_authid has it.
    Stored(Stored),
    /// In clear; what clients prove themselves against is made when first needed.
    Password(Zeroizing<String>, OnceLock<Verifier>),
}

/// The file's roles.
#[derive(Default)]
pub struct Users {
    entries: HashMap<String, Entry>,
}

impl Users {
    /// Reads the file, if one is configured.
    ///
    /// # Errors
    /// [`UsersError`]
    pub fn load(path: Option<&Path>) -> std::result::Result<Self, UsersError> {
        let Some(path) = path else { return Ok(Self::default()) };
        let path = || path.to_owned();
        let text = std::fs::read_to_string(path())
            .map(Zeroizing::new)
            .map_err(|source| UsersError::Read { path: path(), source })?;
        let entries = parse(&text).map_err(|(line, problem)| UsersError::Line { path: path(), line, problem })?;
        Ok(Self { entries })
    }

    /// A role's password, where the file has it in clear.
    pub fn password(&self, user: &str) -> Option<Zeroizing<String>> {
        match self.entries.get(user) {
            Some(Entry::Password(password, _)) => Some(password.clone()),
            Some(Entry::Stored(_)) | None => None,
        }
    }

    /// A role of the file.
    ///
    /// # Errors
    /// When there is no randomness to be had.
    pub async fn role(&self, user: &str) -> Result<Option<Role>> {
        let (stored, password) = match self.entries.get(user) {
            None => return Ok(None),
            Some(Entry::Stored(stored)) => (stored.clone(), None),
            Some(Entry::Password(password, verifier)) => {
                let verifier = match verifier.get() {
                    Some(verifier) => verifier.clone(),
                    None => {
                        let made = derive(password.clone()).await?;
                        verifier.get_or_init(|| made).clone()
                    }
                };
                (Stored::Scram(verifier), Some(password.clone()))
            }
        };
        Ok(Some(Role {
            number: None,
            stored,
            can_login: true,
            valid_until_unix_s: None,
            connection_limit: None,
            database: None,
            password,
        }))
    }
}

/// Thousands of hashes: not on a session thread.
async fn derive(password: Zeroizing<String>) -> Result<Verifier> {
    let salt = random::<16>()?;
    tokio::task::spawn_blocking(move || Verifier::of_password(&password, &salt, ITERATIONS))
        .await
        .map_err(|error| ProxyError::Internal(error.to_string()))
}

type Problem = (usize, &'static str);

fn parse(text: &str) -> std::result::Result<HashMap<String, Entry>, Problem> {
    let mut entries = HashMap::new();
    for (index, line) in text.lines().enumerate() {
        let fail = |problem| (index + 1, problem);
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let (name, rest) = quoted(line).ok_or(fail("the name is not in double quotes"))?;
        let (secret, rest) = quoted(rest.trim_start()).ok_or(fail("the secret is not in double quotes"))?;
        if !(rest.trim().is_empty() || rest.trim_start().starts_with(['#', ';'])) {
            return Err(fail("there is something after the secret"));
        }
        if name.is_empty() || secret.is_empty() {
            return Err(fail("name and secret must not be empty"));
        }
        let secret = Zeroizing::new(secret);
        let entry = if let Some(verifier) = Verifier::parse(&secret) {
            Entry::Stored(Stored::Scram(verifier))
        } else if let Some(hash) = Md5Hash::parse(&secret) {
            Entry::Stored(Stored::Md5(hash))
        } else {
            Entry::Password(secret, OnceLock::new())
        };
        if entries.insert(name, entry).is_some() {
            return Err(fail("this name was there before"));
        }
    }
    Ok(entries)
}

/// A quoted text and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut content = String::new();
    let mut rest = text.strip_prefix('"')?;
    loop {
        let (before, after) = rest.split_once('"')?;
        content.push_str(before);
        match after.strip_prefix('"') {
            Some(more) => {
                content.push('"');
                rest = more;
            }
            None => return Some((content, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let text = "# people\n\"alice\" \"pa\"\"ss\"\n\n  \"bob\"\t\"md5900150983cd24fb0d6963f7d28e17f72\" ; old\n";
        let entries = parse(text).unwrap_or_else(|(line, problem)| panic!("{line}: {problem}"));
        assert!(matches!(&entries["alice"], Entry::Password(password, _) if password.as_str() == "pa\"ss"));
        assert!(matches!(&entries["bob"], Entry::Stored(Stored::Md5(_))));
    }

    #[test]
    fn mistakes_are_named_by_line() {
        for (text, line) in [
            ("alice secret", 1),
            ("\n\"alice\" secret", 2),
            ("\"alice\" \"x\" y", 1),
            ("\"a\" \"x\"\n\"a\" \"y\"", 2),
            ("\"a\" \"", 1),
            ("\"a\" \"\"", 1),
        ] {
            assert_eq!(parse(text).err().expect(text).0, line, "{text}");
        }
    }

    #[tokio::test]
    async fn a_password_in_clear_is_proved_by_scram() {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), "\"alice\" \"secret\"\n").expect("write");
        let users = Users::load(Some(file.path())).expect("valid");
        let role = users.role("alice").await.expect("random").expect("known");
        assert!(matches!(role.stored, Stored::Scram(_)));
        assert_eq!(role.password.as_deref().map(String::as_str), Some("secret"));
        assert!(users.role("bob").await.expect("random").is_none());
    }
}
