//! Settings that the PostgreSQL manager is told once, and the folders that follow from them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

pub use manatee_shared::config::Secret;
use manatee_shared::ids::PeerId;

use super::conf;
use super::error::Error;
use super::hba;
use super::replication_tls::ReplicationTls;
pub use crate::host::Layout;

/// Settings of the PostgreSQL manager, from the sitter's configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Everything of this peer: `data/`, `run/`, `isolated/` are below it.
    pub dir: PathBuf,
    /// Folder of `postgres`, `initdb`, `pg_basebackup`, `pg_rewind`…
    pub bin_dir: PathBuf,
    /// OS user that runs PostgreSQL when the sitter is root; ignored otherwise.
    pub os_user: String,
    /// Superuser role, made by `initdb`.
    pub superuser: String,
    /// TLS towards other peers' PostgreSQL: streaming, `pg_basebackup`, `pg_rewind`, the sitter's questions.
    pub replication_tls: ReplicationTls,
    /// Given to the superuser at first setup.
    pub superuser_password: Option<Secret>,
    /// Of the role [`super::REPLICATION_ROLE`].
    pub replication_password: Secret,
    /// Of the role [`super::PROXY_ROLE`].
    pub proxy_password: Secret,
    /// Lines of `pg_hba.conf` that hold while the gate is open.
    pub hba: Vec<String>,
    /// The text of the operator's own `postgresql.conf`, whose settings come before `parameters`.
    pub conf_template: Option<String>,
    /// The operator's settings of `postgresql.conf`.
    pub parameters: BTreeMap<String, String>,
    /// Most WAL a slot may hold back, bytes.
    pub max_slot_wal_keep_bytes: u64,
    /// With less room than this on the data's disk, PostgreSQL is not to be relied on, bytes.
    pub disk_reserve_bytes: u64,
    /// PostgreSQL's log is put away when it is larger, bytes.
    pub log_bytes: u64,
    /// Number of older ones that are kept.
    pub log_kept: usize,
    /// Longest time for a stop before it is made harder.
    pub stop_timeout: Duration,
    /// Longest time for a configuration change to be confirmed.
    pub confirm_timeout: Duration,
    /// Longest time for a promotion: everything received is replayed first.
    pub promote_timeout: Duration,
    /// Time for which [`super::Postgres::start`] waits for an answer before it leaves the rest to the
    /// observation.
    pub start_wait: Duration,
}

impl Settings {
    /// Settings with the defaults of the sample configuration.
    pub fn new(dir: PathBuf, bin_dir: PathBuf, replication_password: Secret, proxy_password: Secret) -> Self {
        Self {
            dir,
            bin_dir,
            os_user: "postgres".to_owned(),
            superuser: "postgres".to_owned(),
            replication_tls: ReplicationTls::default(),
            superuser_password: None,
            replication_password,
            proxy_password,
            hba: ["all", "replication"]
                .iter()
                .flat_map(|database| {
                    ["0.0.0.0/0", "::/0"].map(|from| format!("host {database} all {from} scram-sha-256"))
                })
                .collect(),
            conf_template: None,
            parameters: BTreeMap::new(),
            max_slot_wal_keep_bytes: 8 << 30,
            disk_reserve_bytes: 64 << 20,
            log_bytes: 64 << 20,
            log_kept: 4,
            stop_timeout: Duration::from_secs(10),
            confirm_timeout: Duration::from_secs(5),
            promote_timeout: Duration::from_secs(60),
            start_wait: Duration::from_secs(2),
        }
    }

    /// The lines that say something of a file in the manner of `pg_hba.conf`.
    pub fn hba_lines(text: &str) -> Vec<String> {
        let says = |line: &&str| !line.is_empty() && !line.starts_with('#');
        text.lines().map(str::trim).filter(says).map(str::to_owned).collect()
    }

    /// Whether these settings can work, without touching PostgreSQL (for `--check-config` too).
    pub fn check(&self, me: PeerId) -> Result<(), Error> {
        conf::check_parameters(&self.parameters)?;
        conf::check_template(self.conf_template.as_deref().unwrap_or_default())?;
        self.replication_tls.check(&self.parameters, self.conf_template.as_deref().unwrap_or_default())?;
        conf::check_numbers(&self.parameters, self.conf_template.as_deref().unwrap_or_default())?;
        for line in &self.hba {
            hba::check_line(line).map_err(|problem| Error::Setting {
                key: "postgres.hba".to_owned(),
                problem: format!("`{line}`: {problem}"),
            })?;
            if line.contains(['\n', '\r']) || line.trim_start().starts_with("include") {
                return Err(Error::Setting {
                    key: "postgres.hba".to_owned(),
                    problem: format!("`{line}` is not one line of pg_hba.conf"),
                });
            }
        }
        let socket = self.layout().socket(me.pg_port);
        // sun_path holds 108 bytes; PostgreSQL adds ".lock" to the same path for its lock file.
        if socket.as_os_str().len() >= 100 {
            return Err(Error::Setting {
                key: "peer.dir".to_owned(),
                problem: format!(
                    "the Unix socket's path {} would have {} bytes, more than the 99 allowed: choose a shorter folder",
                    socket.display(),
                    socket.as_os_str().len()
                ),
            });
        }
        Ok(())
    }

    /// The folders and files of this peer.
    pub fn layout(&self) -> Layout {
        Layout::new(self.dir.clone())
    }
}
