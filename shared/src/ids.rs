//! Names of peers and shards. Parsed once at the edge; everything inside works on the types.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Identity of a peer: `ip:pgPort:backupPort` (IPv6 addresses in brackets), as Manatee 2 wrote it.
///
/// Ordering is by address and ports and means nothing beyond being stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PeerId {
    /// Address of the host, used by peers and proxies to reach PostgreSQL and the sitter's API.
    pub ip: IpAddr,
    /// TCP port of PostgreSQL.
    pub pg_port: u16,
    /// TCP port of the sitter's API (Manatee 2's backup server).
    pub backup_port: u16,
}

/// Reason why a text is not a [`PeerId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a peer id: expected ip:pgPort:backupPort, {problem}")]
pub struct PeerIdError {
    /// The rejected text.
    pub text: String,
    problem: &'static str,
}

impl FromStr for PeerId {
    type Err = PeerIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |problem| PeerIdError { text: text.to_owned(), problem };
        let (rest, backup_port) = text.rsplit_once(':').ok_or_else(|| fail("no ports found"))?;
        let (ip, pg_port) = rest.rsplit_once(':').ok_or_else(|| fail("one port is missing"))?;
        let port = |port: &str| port.parse::<u16>().ok().filter(|&port| port != 0);
        let ip = match ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')) {
            Some(v6) => v6.parse().ok().filter(IpAddr::is_ipv6),
            None => ip.parse().ok().filter(IpAddr::is_ipv4),
        };
        Ok(Self {
            ip: ip.ok_or_else(|| fail("the address is not an IP address"))?,
            pg_port: port(pg_port).ok_or_else(|| fail("pgPort is not a port"))?,
            backup_port: port(backup_port).ok_or_else(|| fail("backupPort is not a port"))?,
        })
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            IpAddr::V4(ip) => write!(f, "{ip}:{}:{}", self.pg_port, self.backup_port),
            IpAddr::V6(ip) => write!(f, "[{ip}]:{}:{}", self.pg_port, self.backup_port),
        }
    }
}

impl TryFrom<String> for PeerId {
    type Error = PeerIdError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PeerId> for String {
    fn from(id: PeerId) -> Self {
        id.to_string()
    }
}

/// Name of a shard: 1–63 characters of `a-z A-Z 0-9 . _ -`, not starting with a dot; it is a
/// ZooKeeper path element, a metric label and a directory name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ShardName(String);

/// Reason why a text is not a [`ShardName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a shard name: 1 to 63 characters of a-z A-Z 0-9 . _ -, not starting with a dot")]
pub struct ShardNameError(String);

impl ShardName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ShardName {
    type Err = ShardNameError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ok = (1..=63).contains(&text.len())
            && !text.starts_with('.')
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if ok { Ok(Self(text.to_owned())) } else { Err(ShardNameError(text.to_owned())) }
    }
}

impl TryFrom<String> for ShardName {
    type Error = ShardNameError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ShardName> for String {
    fn from(name: ShardName) -> Self {
        name.0
    }
}

impl fmt::Display for ShardName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_ids_round_trip() {
        for text in ["10.77.0.1:5432:12345", "[fd00::1]:5432:1"] {
            assert_eq!(text.parse::<PeerId>().map(|id| id.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn bad_peer_ids_are_refused() {
        for text in ["", "10.0.0.1", "10.0.0.1:5432", "host:1:2", "10.0.0.1:0:2", "10.0.0.1:1:65536", "fd00::1:1:2"] {
            assert!(text.parse::<PeerId>().is_err(), "{text}");
        }
    }

    #[test]
    fn shard_names_are_safe_path_elements() {
        assert!("1.moray-east_2".parse::<ShardName>().is_ok());
        for text in ["", "..", "a/b", "a b", &"x".repeat(64)] {
            assert!(text.parse::<ShardName>().is_err(), "{text}");
        }
    }
}
