//! The sitter's configuration file (`config/sitter.toml` documents each key): reading, checking,
//! and turning it into the settings of the parts.

pub mod environment;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use manatee_shared::cluster::Peer;
use manatee_shared::config::{self, ConfigError, Size, ZkSettings};
use manatee_shared::ids::{PeerId, ShardName};
use manatee_shared::telemetry::LogSettings;
use manatee_shared::tls::ServerTls;
use serde::Deserialize;

use crate::data::DataSettings;
use crate::heartbeat::Timing;
use crate::machine::view;
use crate::postgres;
use crate::snapshotter;
use crate::storage::StorageSettings;
use crate::storage::zfs::command;

/// The file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the shard.
    pub shard: ShardName,
    /// Extent to which a rejoin goes by itself.
    #[serde(default)]
    pub rejoin: RejoinMode,
    /// This peer may be a lone primary that accepts writes with no sync.
    #[serde(default)]
    pub one_node_write_mode: bool,
    /// This peer.
    pub peer: PeerConfig,
    /// ZooKeeper.
    pub zookeeper: ZkSettings,
    /// PostgreSQL.
    pub postgres: PostgresConfig,
    /// Storage of the data.
    #[serde(default)]
    pub storage: StorageConfig,
    /// Snapshots, where the storage has them.
    #[serde(default)]
    pub snapshots: SnapshotsConfig,
    /// Detection of deaths.
    #[serde(default)]
    pub detection: DetectionConfig,
    /// The HTTP API.
    #[serde(default)]
    pub api: ApiConfig,
    /// Logs.
    #[serde(default)]
    pub log: LogSettings,
}

/// `rejoin`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RejoinMode {
    /// All the way.
    #[default]
    Auto,
    /// Stop before the first destructive step.
    Manual,
}

/// `[peer]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    /// Address by which others reach this host.
    pub ip: IpAddr,
    /// PostgreSQL's port.
    pub pg_port: u16,
    /// The API's port.
    pub backup_port: u16,
    /// The API's other port; default: `pg_port` + 1.
    pub status_port: Option<u16>,
    /// Name for people; default: the id.
    pub zone_id: Option<String>,
    /// Everything of this peer.
    pub dir: PathBuf,
}

/// `[postgres]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    /// Folder of the programs; default: of the data's version, or the newest under [`environment::DEBIAN_VERSIONS`].
    pub bin_dir: Option<PathBuf>,
    /// OS user that runs PostgreSQL when the sitter is root.
    #[serde(default = "default_postgres")]
    pub os_user: String,
    /// Superuser role.
    #[serde(default = "default_postgres")]
    pub superuser: String,
    /// Its password, set at first setup.
    pub superuser_password_file: Option<PathBuf>,
    /// Password of the replication role.
    pub replication_password_file: PathBuf,
    /// TLS with other peers' PostgreSQL; default: if they have it.
    pub replication_tls: Option<ServerTls>,
    /// Password of the proxies' role.
    pub proxy_password_file: PathBuf,
    /// Rules for who may connect while the gate is open.
    pub hba: Option<Vec<String>>,
    /// A file in the manner of pg_hba.conf; its lines come after those of `hba`.
    pub hba_file: Option<PathBuf>,
    /// A file in the manner of postgresql.conf: the operator's settings, before `parameters`.
    pub conf_file: Option<PathBuf>,
    /// Most WAL a slot may hold back.
    #[serde(default = "default_slot_keep")]
    pub max_slot_wal_keep_size: Size,
    /// With less room than this on the data's disk, the peer gives its place up.
    #[serde(default = "default_disk_reserve")]
    pub disk_reserve: Size,
    /// PostgreSQL's log is put away when it is larger.
    #[serde(default = "default_log_size")]
    pub log_size: Size,
    /// Number of older ones that are kept.
    #[serde(default = "default_log_kept")]
    pub log_kept: usize,
    /// Longest time for a stop before it is made harder.
    #[serde(with = "humantime_serde", default = "default_stop_timeout")]
    pub stop_timeout: Duration,
    /// The operator's settings.
    #[serde(default)]
    pub parameters: BTreeMap<String, Parameter>,
}

/// A value in `[postgres.parameters]`: any scalar.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Parameter {
    /// `on` or `off`.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A fraction.
    Float(f64),
    /// Anything else.
    Text(String),
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => f.write_str(if *value { "on" } else { "off" }),
            Self::Integer(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
            Self::Text(value) => value.fmt(f),
        }
    }
}

/// `[storage]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageConfig {
    /// Kind of storage for the data.
    pub kind: StorageKind,
    /// The ZFS dataset of this peer; everything is below it.
    pub dataset: Option<String>,
    /// Its properties.
    pub properties: BTreeMap<String, Parameter>,
    /// Number of data sets set aside that a healthy peer keeps.
    pub isolated_kept: usize,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self { kind: StorageKind::default(), dataset: None, properties: default_properties(), isolated_kept: 1 }
    }
}

/// For PostgreSQL: blocks of 8 kB, two to a record so that there is something to compress; the default
/// compression of whatever ZFS it is; no write for every read.
fn default_properties() -> BTreeMap<String, Parameter> {
    let pairs = [("recordsize", "16K"), ("compression", "on"), ("atime", "off")];
    pairs.map(|(name, value)| (name.to_owned(), Parameter::Text(value.to_owned()))).into()
}

/// `[snapshots]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotsConfig {
    /// Between two.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// Number of snapshots that are kept; 0: none are taken.
    pub kept: usize,
}

impl Default for SnapshotsConfig {
    fn default() -> Self {
        Self { interval: Duration::from_secs(3600), kept: 24 }
    }
}

/// `storage.kind`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StorageKind {
    /// An ordinary folder, copied by `pg_basebackup`.
    #[default]
    Directory,
    /// ZFS: snapshots, streams between peers.
    Zfs,
}

/// `[detection]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DetectionConfig {
    /// Between two heartbeats to one peer.
    #[serde(with = "humantime_serde")]
    pub heartbeat_interval: Duration,
    /// Silence after which a peer is suspected.
    #[serde(with = "humantime_serde")]
    pub suspicion_timeout: Duration,
    /// Longest time for a crashed PostgreSQL to restart in place.
    #[serde(with = "humantime_serde")]
    pub restart_budget: Duration,
}

impl Default for DetectionConfig {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_millis(100),
            suspicion_timeout: Duration::from_secs(1),
            restart_budget: Duration::from_secs(1),
        }
    }
}

/// `[api]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiConfig {
    /// Shared secret of the shard's sitters.
    pub token_file: Option<PathBuf>,
}

/// A fast stop writes what is dirty: less time than this is as good as none.
const LEAST_STOP: Duration = Duration::from_secs(1);

/// Four WAL segments, in bytes.
const LEAST_SLOT_WAL: u64 = 64 << 20;

fn default_postgres() -> String {
    "postgres".to_owned()
}

fn default_slot_keep() -> Size {
    Size(8 << 30)
}

fn default_disk_reserve() -> Size {
    Size(64 << 20)
}

fn default_log_size() -> Size {
    Size(64 << 20)
}

fn default_log_kept() -> usize {
    4
}

fn default_stop_timeout() -> Duration {
    Duration::from_secs(10)
}

/// Whole milliseconds, saturating.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Config {
    /// Reads and checks the file at `path`. Touches nothing else.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let config: Self = config::load(path)?;
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let fail = |key: &str, problem: String| {
            Err(ConfigError::Contradiction { path: path.to_owned(), key: key.to_owned(), problem })
        };
        if let Err((key, problem)) = self.zookeeper.check() {
            return fail(&format!("zookeeper.{key}"), problem);
        }
        if let Err(error) = self.log.check() {
            return fail("log.filter", error.to_string());
        }
        if let Some(tls) = &self.postgres.replication_tls
            && let Err((key, problem)) = tls.check("postgres.replication_tls")
        {
            return fail(&key, problem.to_owned());
        }
        let peer = &self.peer;
        if peer.ip.is_unspecified() || peer.ip.is_multicast() {
            return fail("peer.ip", format!("{} is not an address that others can reach; name this host's", peer.ip));
        }
        for (key, port) in [("peer.pg_port", peer.pg_port), ("peer.backup_port", peer.backup_port)] {
            if port == 0 {
                return fail(key, "0 is not a port; choose one from 1 to 65535".to_owned());
            }
        }
        let Some(status_port) = self.status_port() else {
            return fail("peer.status_port", "0 is not a port, nor is pg_port + 1; choose one".to_owned());
        };
        if peer.backup_port == peer.pg_port || status_port == peer.pg_port {
            return fail("peer.pg_port", format!("{} is given to the sitter's API too; choose another", peer.pg_port));
        }
        if self.postgres.stop_timeout < LEAST_STOP {
            let least = humantime_serde::re::humantime::format_duration(LEAST_STOP);
            return fail(
                "postgres.stop_timeout",
                format!("PostgreSQL would be killed at every stop; choose at least \"{least}\""),
            );
        }
        let kept = self.postgres.max_slot_wal_keep_size;
        if kept.bytes() < LEAST_SLOT_WAL {
            let problem = format!(
                "{} bytes hold less than a few WAL segments: a peer that is away for a moment would have to be copied anew; \
                 write it with a unit, such as \"8GiB\", and not below \"64MiB\"",
                kept.bytes()
            );
            return fail("postgres.max_slot_wal_keep_size", problem);
        }
        if !peer.dir.is_absolute() {
            return fail("peer.dir", format!("`{}` is not an absolute path; write it from /", peer.dir.display()));
        }
        self.check_storage().and_then(|()| self.check_detection()).or_else(|(key, problem)| fail(key, problem))
    }

    fn check_storage(&self) -> Result<(), (&'static str, String)> {
        let storage = &self.storage;
        if self.snapshots.kept > 0 && self.snapshots.interval < Duration::from_secs(1) {
            return Err(("snapshots.interval", "choose at least \"1s\", or kept = 0 for none".to_owned()));
        }
        if self.storage.kind == StorageKind::Directory {
            return match &storage.dataset {
                Some(_) => Err(("storage.dataset", "this is for kind = \"zfs\"; remove it or set the kind".to_owned())),
                None => Ok(()),
            };
        }
        let Some(dataset) = &storage.dataset else {
            let problem = "kind = \"zfs\" needs the dataset of this peer; write it as pool/name".to_owned();
            return Err(("storage.dataset", problem));
        };
        command::check_name(dataset).map_err(|problem| ("storage.dataset", problem))?;
        let owned = ["mountpoint", "canmount", "readonly", "zoned"];
        if let Some(name) = storage.properties.keys().find(|name| owned.contains(&name.as_str())) {
            return Err(("storage.properties", format!("`{name}` is Manatee's to set; remove it")));
        }
        let is_word = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'=');
        let odd = |(name, value): &(&String, &Parameter)| !is_word(name) || !is_word(&value.to_string());
        if let Some((name, _)) = storage.properties.iter().find(odd) {
            return Err(("storage.properties", format!("`{name}` is not a ZFS property with one word as its value")));
        }
        if self.api.token_file.is_none() {
            let problem = "kind = \"zfs\" copies data over the API, which needs the shard's token; name its file";
            return Err(("api.token_file", problem.to_owned()));
        }
        Ok(())
    }

    fn check_detection(&self) -> Result<(), (&'static str, String)> {
        let detection = &self.detection;
        let interval = detection.heartbeat_interval;
        if !(Duration::from_millis(10)..=Duration::from_secs(10)).contains(&interval) {
            return Err(("detection.heartbeat_interval", "choose something from \"10ms\" to \"10s\"".to_owned()));
        }
        if detection.suspicion_timeout < interval * 3 {
            let least = humantime_serde::re::humantime::format_duration(interval * 3);
            let problem =
                format!("less than three heartbeats would suspect healthy peers; choose at least \"{least}\"");
            return Err(("detection.suspicion_timeout", problem));
        }
        Ok(())
    }

    /// This peer's id.
    pub fn id(&self) -> PeerId {
        PeerId { ip: self.peer.ip, pg_port: self.peer.pg_port, backup_port: self.peer.backup_port }
    }

    /// This peer.
    pub fn me(&self) -> Peer {
        let id = self.id();
        Peer::new(id, self.peer.zone_id.clone().unwrap_or_else(|| id.to_string()))
    }

    /// Port of the API where Manatee 2 had its status server; None if there is no such port.
    pub fn status_port(&self) -> Option<u16> {
        match self.peer.status_port {
            Some(port) => (port != 0).then_some(port),
            None => self.peer.pg_port.checked_add(1),
        }
    }

    /// Timing of the heartbeats.
    pub fn timing(&self) -> Timing {
        Timing { interval: self.detection.heartbeat_interval, suspicion: self.detection.suspicion_timeout }
    }

    /// Schedule of snapshots, and the number that is kept.
    pub fn snapshotter(&self) -> snapshotter::Settings {
        snapshotter::Settings {
            interval: self.snapshots.interval,
            kept: self.snapshots.kept,
            isolated_kept: self.storage.isolated_kept,
        }
    }

    /// Settings that decisions depend on.
    pub fn machine(&self) -> view::Settings {
        view::Settings {
            suspicion_timeout_ms: millis(self.detection.suspicion_timeout),
            restart_budget_ms: millis(self.detection.restart_budget),
            manual_rejoin: self.rejoin == RejoinMode::Manual,
            one_node_write_mode: self.one_node_write_mode,
            ..view::Settings::default()
        }
    }

    /// The files of secrets that this configuration names, with their keys.
    pub fn secret_files(&self) -> Vec<(&'static str, &Path)> {
        let postgres = &self.postgres;
        let named = [
            ("postgres.replication_password_file", Some(&postgres.replication_password_file)),
            ("postgres.proxy_password_file", Some(&postgres.proxy_password_file)),
            ("postgres.superuser_password_file", postgres.superuser_password_file.as_ref()),
            ("api.token_file", self.api.token_file.as_ref()),
        ];
        named.into_iter().filter_map(|(key, path)| Some((key, path?.as_path()))).collect()
    }

    /// The shared secret of the shard's sitters, if one is configured.
    pub fn api_token(&self) -> Result<Option<config::Secret>, ConfigError> {
        self.api.token_file.as_deref().map(config::read_secret).transpose()
    }

    /// Settings of the PostgreSQL manager; reads the secrets.
    pub fn postgres(&self, bin_dir: PathBuf) -> Result<postgres::Settings, ConfigError> {
        let read = config::read_secret;
        let from = &self.postgres;
        let (replication, proxy) = (read(&from.replication_password_file)?, read(&from.proxy_password_file)?);
        let mut settings = postgres::Settings::new(self.peer.dir.clone(), bin_dir, replication, proxy);
        settings.os_user.clone_from(&from.os_user);
        settings.superuser.clone_from(&from.superuser);
        settings.replication_tls = from.replication_tls.clone().map(postgres::ReplicationTls::new).unwrap_or_default();
        settings.superuser_password = from.superuser_password_file.as_deref().map(read).transpose()?;
        if let Some(hba) = &from.hba {
            settings.hba.clone_from(hba);
        }
        if let Some(file) = &from.hba_file {
            let lines = postgres::Settings::hba_lines(&config::read_named("postgres.hba_file", file)?);
            let before = from.hba.clone().unwrap_or_default();
            settings.hba = before.into_iter().chain(lines).collect();
        }
        if let Some(file) = &from.conf_file {
            settings.conf_template = Some(config::read_named("postgres.conf_file", file)?);
        }
        settings.parameters = from.parameters.iter().map(|(key, value)| (key.clone(), value.to_string())).collect();
        settings.max_slot_wal_keep_bytes = from.max_slot_wal_keep_size.bytes();
        settings.disk_reserve_bytes = from.disk_reserve.bytes();
        settings.log_bytes = from.log_size.bytes();
        settings.log_kept = from.log_kept;
        settings.stop_timeout = from.stop_timeout;
        Ok(settings)
    }

    /// Settings of the local data. Reads the token's file.
    pub fn data(&self) -> Result<DataSettings, ConfigError> {
        let storage = match (self.storage.kind, &self.storage.dataset) {
            (StorageKind::Zfs, Some(dataset)) => {
                let properties = self.storage.properties.iter();
                let properties = properties.map(|(name, value)| (name.clone(), value.to_string())).collect();
                StorageSettings::Zfs { dataset: dataset.clone(), properties }
            }
            _ => StorageSettings::Directory,
        };
        Ok(DataSettings { storage, isolated_kept: self.storage.isolated_kept, api_token: self.api_token()? })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::*;

    const SAMPLE: &str = include_str!("../../../config/sitter.toml");

    fn read(text: &str) -> Result<Config, String> {
        let path = Path::new("sitter.toml");
        let config: Config = config::parse(path, text).map_err(|error| error.to_string())?;
        config.check(path).map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn the_sample_is_valid_and_says_the_defaults() {
        let config = read(SAMPLE).unwrap();
        assert_eq!(config.id().to_string(), "10.77.0.1:5432:12345");
        assert_eq!((config.status_port(), config.me().zone_id), (Some(5433), config.id().to_string()));
        assert_eq!(config.machine(), view::Settings::default());
        let timing = Timing { interval: Duration::from_millis(100), suspicion: Duration::from_secs(1) };
        assert_eq!(config.timing(), timing);
    }

    #[test]
    fn every_commented_key_of_the_sample_exists() {
        let all: String = SAMPLE
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(key)
                    if key.starts_with('[') && key.ends_with(']') || key.contains(" = ") && !key.contains(": ") =>
                {
                    format!("{key}\n")
                }
                _ => format!("{line}\n"),
            })
            .collect();
        let config = read(&all.replace("kind = \"directory\"", "kind = \"zfs\"")).unwrap();
        assert!(config.api.token_file.is_some() && config.postgres.bin_dir.is_some(), "{all}");
        assert_eq!(config.storage.dataset.as_deref(), Some("tank/manatee"));
        assert_eq!(config.postgres.parameters["shared_buffers"].to_string(), "1GB");
    }

    #[test]
    fn each_mistake_is_one_line_that_names_the_key() {
        for (from, to, key) in [
            ("pg_port = 5432", "pg_port = 12345", "peer.pg_port"),
            ("pg_port = 5432", "pg_port = 0", "peer.pg_port"),
            ("pg_port = 5432", "pg_prt = 5432", "peer.pg_prt"),
            ("\"10.77.0.1\"", "\"0.0.0.0\"", "peer.ip"),
            ("\"10.77.0.1\"", "\"db1\"", "peer.ip"),
            ("\"/var/lib/manatee\"", "\"manatee\"", "peer.dir"),
            ("suspicion_timeout = \"1s\"", "suspicion_timeout = \"200ms\"", "detection.suspicion_timeout"),
            ("interval = \"100ms\"", "interval = \"0s\"", "detection.heartbeat_interval"),
            ("kind = \"directory\"", "kind = \"tape\"", "storage.kind"),
            ("kind = \"directory\"", "kind = \"zfs\"", "storage.dataset"),
            ("kind = \"directory\"", "kind = \"zfs\"\ndataset = \"tank/\"", "storage.dataset"),
            ("kind = \"directory\"", "kind = \"zfs\"\ndataset = \"tank/db1\"", "api.token_file"),
            ("kind = \"directory\"", "dataset = \"tank/db1\"", "storage.dataset"),
            ("interval = \"1h\"", "interval = \"0s\"", "snapshots.interval"),
            ("stop_timeout = \"10s\"", "stop_timeout = \"0s\"", "postgres.stop_timeout"),
            ("max_slot_wal_keep_size = \"8GiB\"", "max_slot_wal_keep_size = 8", "postgres.max_slot_wal_keep_size"),
            ("servers = [\"127.0.0.1:2181\"]", "servers = []", "zookeeper.servers"),
            ("filter = \"info\"", "filter = \"=,[\"", "log.filter"),
        ] {
            let problem = read(&SAMPLE.replacen(from, to, 1)).map(|_| ()).expect_err(to);
            assert!(problem.contains(key) && !problem.contains('\n'), "{to}: {problem}");
        }
    }
}
