//! Configuration files: reading them with errors that name file, line, key and remedy, and the
//! value types that both programs' files use.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Reason why a configuration file, or a file it names, cannot be used. Each is one line for people.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot read the configuration: {source}; give the right path with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The file is not TOML, or says something that is not understood.
    #[error("{}:{line}:{column}: {key}{problem}; {remedy}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// "`section.key`: ", or nothing where no key is to blame.
        key: String,
        /// Problem.
        problem: String,
        /// Remedy.
        remedy: &'static str,
    },
    /// Each value is readable, but together they make no sense.
    #[error("{}: `{key}`: {problem}", path.display())]
    Contradiction {
        /// The file.
        path: PathBuf,
        /// The key to change.
        key: String,
        /// Problem and remedy.
        problem: String,
    },
    /// A file that the configuration names cannot be read.
    #[error("{}: cannot read it: {source}; create the file or correct `{key}`", path.display())]
    Named {
        /// The file.
        path: PathBuf,
        /// The key that names it.
        key: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// A file with a secret cannot be used.
    #[error("{}: {problem}", path.display())]
    Secret {
        /// The file.
        path: PathBuf,
        /// Problem and remedy.
        problem: String,
    },
}

/// Reads the TOML file at `path`. The target should be marked `deny_unknown_fields` throughout,
/// so that a misspelt key is an error and not a silent default.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(path, &text)
}

/// As [`load`], from `text`; `path` is only named in errors.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| explain(path, text, &error))
}

/// Turns an error of the TOML reader into one line with its place.
fn explain(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let problem = error.message().trim().replace('\n', ", ");
    let offset = error.span().map_or(0, |span| span.start).min(text.len());
    let before = text.get(..offset).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    let remedy = if problem.starts_with("unknown field") {
        "correct or remove the key"
    } else if problem.starts_with("missing field") {
        "add the key"
    } else {
        "correct the value"
    };
    // A missing key belongs to the table, which the place already points at.
    let key = match problem.starts_with("missing field") {
        true => section_at(text, line).map_or(String::new(), |section| format!("`{section}`: ")),
        false => key_at(text, line).map_or(String::new(), |key| format!("`{key}`: ")),
    };
    ConfigError::Invalid { path: path.to_owned(), line, column, key, problem, remedy }
}

/// The table that `line` (from 1) lies in.
fn section_at(text: &str, line: usize) -> Option<&str> {
    let lines: Vec<&str> = text.lines().take(line).collect();
    lines.iter().rev().find_map(|line| line.trim().strip_prefix('[')?.split(']').next())
}

/// The key that `line` (from 1) sets, with its table.
fn key_at(text: &str, line: usize) -> Option<String> {
    let (key, _) = text.lines().nth(line.saturating_sub(1))?.split_once('=')?;
    let key = key.trim();
    Some(match section_at(text, line) {
        Some(section) => format!("{section}.{key}"),
        None => key.to_owned(),
    })
}

/// A size in bytes, written "64MiB", "1GiB", "512KiB", "100B" or as a plain number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

/// Reason why a text is not a [`Size`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a size: expected a whole number with B, KiB, MiB, GiB or TiB, such as \"64MiB\"")]
pub struct SizeError(String);

const SIZE_UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl Size {
    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let trimmed = text.trim();
        let (number, unit) = SIZE_UNITS
            .iter()
            .find_map(|(name, unit)| Some((trimmed.strip_suffix(name)?, *unit)))
            .unwrap_or((trimmed, 1));
        let number: Option<u64> = number.trim_end().parse().ok();
        number.and_then(|number| number.checked_mul(unit)).map(Self).ok_or_else(|| SizeError(text.to_owned()))
    }
}

impl fmt::Display for Size {
    /// The largest unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = SIZE_UNITS.iter().find(|(_, unit)| self.0 != 0 && self.0.is_multiple_of(*unit));
        let (name, unit) = whole.copied().unwrap_or(("B", 1));
        write!(f, "{}{name}", self.0 / unit)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"64MiB\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes).map(Size).map_err(|_| E::custom("a size is not negative"))
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A password or token. Never shown: its `Debug` is blank, and it is not serialisable.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret that did not come from a file.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Reads a secret from a file of its own, without its trailing newline. An empty one is an error;
/// a file that everybody may read is only warned about.
///
/// # Errors
/// One line that names the file and the remedy.
pub fn read_secret(path: &Path) -> Result<Secret, ConfigError> {
    let mut secrets = read_lines(path)?;
    match (secrets.pop(), secrets.is_empty()) {
        (Some(secret), true) => Ok(secret),
        _ => Err(ConfigError::Secret {
            path: path.to_owned(),
            problem: "the file has more than one line; put the secret alone on one line".to_owned(),
        }),
    }
}

/// Reads a secret that may be in the middle of a change: the new one on the first line and, while both may have to
/// be tried, the one before it on the second. Otherwise as [`read_secret`].
///
/// # Errors
/// One line that names the file and the remedy.
pub fn read_secrets(path: &Path) -> Result<Vec<Secret>, ConfigError> {
    let secrets = read_lines(path)?;
    if secrets.len() > 2 {
        let problem = "the file has more than two lines; put the secret on the first and, during a change, the \
                       one before it on the second";
        return Err(ConfigError::Secret { path: path.to_owned(), problem: problem.to_owned() });
    }
    Ok(secrets)
}

/// The lines of a file of secrets: at least one, none empty.
fn read_lines(path: &Path) -> Result<Vec<Secret>, ConfigError> {
    use std::os::unix::fs::PermissionsExt;

    let fail = |problem: String| ConfigError::Secret { path: path.to_owned(), problem };
    let text = std::fs::read_to_string(path)
        .map_err(|error| fail(format!("cannot read the secret: {error}; create the file or correct its path")))?;
    let text = text.trim_end_matches(['\n', '\r']);
    if text.is_empty() {
        return Err(fail("the file is empty; put the secret on its first line".to_owned()));
    }
    if text.contains('\0') {
        return Err(fail("the file has a NUL byte; put the secret alone on one line".to_owned()));
    }
    let secrets: Vec<Secret> = text.lines().map(|line| Secret(line.to_owned())).collect();
    if secrets.iter().any(|secret| secret.0.is_empty()) {
        return Err(fail("a line is empty; put the secret on the first line".to_owned()));
    }
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0) {
        tracing::warn!(path = %path.display(), "everybody may read this secret; chmod 600 it");
    }
    Ok(secrets)
}

/// Reads a text file that `key` of the configuration names.
pub fn read_named(key: &'static str, path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Named { path: path.to_owned(), key, source })
}

/// Connection to ZooKeeper; the `[zookeeper]` section of both programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ZkSettings {
    /// The ensemble: `host:port`, or `host` for port 2181.
    pub servers: Vec<String>,
    /// Time for which ZooKeeper keeps our election node after it last heard of us.
    #[serde(with = "humantime_serde", default = "ZkSettings::default_session_timeout")]
    pub session_timeout: Duration,
    /// Folder of all shards.
    #[serde(default = "ZkSettings::default_root")]
    pub root: String,
    /// File with `user:password` for ZooKeeper's authentication by `auth_scheme`. What is created with it is
    /// for that user alone (and for who shows our certificate, if we show one).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_file: Option<PathBuf>,
    /// With `auth_file`: how the user is shown.
    #[serde(default)]
    pub auth_scheme: AuthScheme,
    /// With `auth_file`: everybody may still read what is created, as clients of Manatee 2 do.
    #[serde(default)]
    pub world_readable: bool,
    /// TLS towards ZooKeeper; without it the connection is plain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ZkTls>,
}

/// Scheme by which we prove to ZooKeeper who we are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuthScheme {
    /// The password as it is, which ZooKeeper keeps no list of: whoever has it has the rights. Use TLS with it.
    #[default]
    Digest,
    /// SASL's DIGEST-MD5 (RFC 2831): one of the users in the servers' JAAS configuration.
    SaslDigestMd5,
}

/// TLS towards ZooKeeper; the `[zookeeper.tls]` section. The server's certificate must name the host as
/// `servers` does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ZkTls {
    /// Certificates (PEM) of who may sign the servers' ones.
    pub ca_file: PathBuf,
    /// Our own certificate and its chain (PEM), if the servers ask for one. With `key_file` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// Its key (PEM, PKCS #8).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

impl ZkSettings {
    /// Settings for `servers`, all else by default.
    pub fn new(servers: Vec<String>) -> Self {
        Self {
            servers,
            session_timeout: Self::default_session_timeout(),
            root: Self::default_root(),
            auth_file: None,
            auth_scheme: AuthScheme::default(),
            world_readable: false,
            tls: None,
        }
    }

    fn default_session_timeout() -> Duration {
        Duration::from_secs(4)
    }

    fn default_root() -> String {
        "/manatee".to_owned()
    }

    /// The ensemble as one text, for messages.
    pub fn ensemble(&self) -> String {
        self.servers.join(",")
    }

    /// Checks these settings. Errors: the key within the section, and the remedy.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let valid_server = |server: &String| {
            let (host, port) = match server.rsplit_once(':') {
                Some((host, port)) => (host, port.parse::<u16>().ok().filter(|&port| port != 0)),
                None => (server.as_str(), Some(2181)),
            };
            !host.is_empty() && !host.contains([',', '/', ' ']) && port.is_some()
        };
        if self.servers.is_empty() {
            return Err(("servers", "no server is named; list the ensemble as \"host:port\"".to_owned()));
        }
        if let Some(server) = self.servers.iter().find(|server| !valid_server(server)) {
            return Err(("servers", format!("`{server}` is not a server; write it as \"host:port\"")));
        }
        let elements = self.root.strip_prefix('/').map(|path| path.split('/'));
        let valid_root = elements.is_some_and(|mut elements| {
            elements.all(|element| !element.is_empty() && element != "." && element != "..")
        });
        if !valid_root {
            return Err(("root", format!("`{}` is not a ZooKeeper path; write it as \"/manatee\"", self.root)));
        }
        // Below, ordinary hiccups of a busy machine look like deaths; above, one goes unnoticed too long.
        let bounds = Duration::from_millis(200)..=Duration::from_secs(300);
        if !bounds.contains(&self.session_timeout) {
            return Err(("session_timeout", "choose something from \"200ms\" to \"300s\"".to_owned()));
        }
        if self.auth_scheme != AuthScheme::default() && self.auth_file.is_none() {
            return Err(("auth_scheme", "without `auth_file` there is no user to show; set that too".to_owned()));
        }
        if self.world_readable && self.auth_file.is_none() {
            return Err(("world_readable", "without `auth_file` everybody may read anyway; set that too".to_owned()));
        }
        if self.tls.as_ref().is_some_and(|tls| tls.cert_file.is_some() != tls.key_file.is_some()) {
            return Err(("tls", "`cert_file` and `key_file` belong together; set both or none".to_owned()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        zookeeper: ZkSettings,
        #[serde(default)]
        limit: Option<Size>,
    }

    fn error(text: &str) -> String {
        parse::<Sample>(Path::new("m.toml"), text).map(|_| ()).expect_err("invalid").to_string()
    }

    #[test]
    fn defaults_and_durations() {
        let sample: Sample =
            parse(Path::new("m.toml"), "limit = \"64MiB\"\n[zookeeper]\nservers = [\"a:1\", \"b\"]").expect("valid");
        assert_eq!(sample.limit, Some(Size(64 << 20)));
        assert_eq!(sample.zookeeper, ZkSettings::new(vec!["a:1".to_owned(), "b".to_owned()]));
        assert_eq!(sample.zookeeper.check(), Ok(()));
    }

    #[test]
    fn errors_name_the_place_the_key_and_the_remedy() {
        assert_eq!(
            error("[zookeeper]\nservers = []\nsesion_timeout = \"4s\"\n"),
            "m.toml:3:1: `zookeeper.sesion_timeout`: unknown field `sesion_timeout`, expected one of `servers`, \
             `session_timeout`, `root`, `auth_file`, `auth_scheme`, `world_readable`, `tls`; correct or remove the key"
        );
        assert_eq!(
            error("[zookeeper]\nservers = 3\n"),
            "m.toml:2:11: `zookeeper.servers`: invalid type: integer `3`, expected a sequence; correct the value"
        );
        assert_eq!(error("[zookeeper]\n"), "m.toml:1:1: `zookeeper`: missing field `servers`; add the key");
        assert!(error("limit = \"7 bushels\"\n[zookeeper]\nservers=[]").contains("`limit`: `7 bushels` is not a size"));
        assert!(error("[zookeeper\n").starts_with("m.toml:1:11: "), "{}", error("[zookeeper\n"));
    }

    #[test]
    fn zookeeper_settings_that_cannot_work_are_refused() {
        let key = |change: fn(&mut ZkSettings)| {
            let mut settings = ZkSettings::new(vec!["127.0.0.1:2181".to_owned()]);
            change(&mut settings);
            settings.check().map_err(|(key, _)| key)
        };
        assert_eq!(key(|_| ()), Ok(()));
        assert_eq!(key(|settings| settings.servers.clear()), Err("servers"));
        assert_eq!(key(|settings| settings.servers.push("a:b".to_owned())), Err("servers"));
        assert_eq!(key(|settings| settings.root = "manatee".to_owned()), Err("root"));
        assert_eq!(key(|settings| settings.root = "/a/".to_owned()), Err("root"));
        assert_eq!(key(|settings| settings.session_timeout = Duration::ZERO), Err("session_timeout"));
        assert_eq!(key(|settings| settings.world_readable = true), Err("world_readable"));
        let half = ZkTls { ca_file: "ca".into(), cert_file: Some("cert".into()), key_file: None };
        let mut settings = ZkSettings::new(vec!["127.0.0.1:2181".to_owned()]);
        settings.tls = Some(half);
        assert_eq!(settings.check().map_err(|(key, _)| key), Err("tls"));
    }

    #[test]
    fn sizes_round_trip() {
        for (text, bytes) in [("0B", 0), ("7B", 7), ("512KiB", 512 << 10), ("1GiB", 1 << 30), ("3TiB", 3 << 40)] {
            assert_eq!(text.parse(), Ok(Size(bytes)));
            assert_eq!(Size(bytes).to_string(), text);
        }
        assert_eq!("1024".parse(), Ok(Size(1024)));
        for text in ["", "MiB", "-1B", "1.5GiB", "1kB", "99999999999TiB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn secrets_are_read_whole_and_never_shown() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("secret");
        assert!(read_secret(&file).expect_err("missing").to_string().contains("cannot read the secret"));
        std::fs::write(&file, "\n").expect("write");
        assert!(read_secret(&file).expect_err("empty").to_string().contains("empty"));
        std::fs::write(&file, "s3cret \n").expect("write");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("chmod");
        let secret = read_secret(&file).expect("secret");
        assert_eq!(secret.expose(), "s3cret ");
        assert!(!format!("{secret:?}").contains("s3cret"));
        std::fs::write(&file, "new\nold\n").expect("write");
        assert!(read_secret(&file).expect_err("two").to_string().contains("more than one line"));
        let both = read_secrets(&file).expect("secrets");
        assert_eq!(both.iter().map(Secret::expose).collect::<Vec<_>>(), ["new", "old"]);
        for text in ["new\n\nold", "a\nb\nc", "\nold"] {
            std::fs::write(&file, text).expect("write");
            assert!(read_secrets(&file).is_err(), "{text:?}");
        }
    }
}
