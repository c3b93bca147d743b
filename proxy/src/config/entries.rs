//! The configuration as a flat list: for `SHOW CONFIG`, and to see what a reload changes.

use serde_json::Value;

use super::{Config, Pool};

/// What changes with a reload; everything else needs a restart.
const LIVE: [&str; 27] = [
    "admin.",
    "auth.failure_burst",
    "auth.failure_forgiven_after",
    "auth.hba_file",
    "auth.ident_file",
    "auth.login_timeout",
    "auth.max_logins",
    "auth.users_file",
    "databases.",
    "hold.",
    "listen.proxy_protocol_from",
    "listen.upgrade_drain",
    "pool.max_clients",
    "pool.max_clients_per_database",
    "pool.max_clients_per_user",
    "pool.max_servers_per_database",
    "pool.max_servers_per_node",
    "pool.max_servers_per_user",
    "pool.query_wait_timeout",
    "pool.server_idle_timeout",
    "pool.server_lifetime",
    "pool.size",
    "routing.consistency",
    "routing.split",
    "server_tls.",
    "shards.",
    "tls.",
];

/// A setting: key, value, default, and whether it can change without a restart.
pub type Entry = (String, String, String, bool);

/// A setting that a reload finds changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub key: String,
    /// The new value.
    pub value: String,
    /// Whether it is in use from now on.
    pub live: bool,
}

/// Whether a key changes with a reload.
fn is_live(key: &str) -> bool {
    LIVE.iter().any(|live| key == *live || (live.ends_with('.') && key.starts_with(live)))
}

impl Config {
    /// Every key with its value. At the end PgBouncer's names for what its tools look for.
    pub fn entries(&self) -> Vec<Entry> {
        let defaults = flatten(&self.with_defaults());
        let default = |key: &str| defaults.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone());
        let mut entries: Vec<Entry> = flatten(self)
            .into_iter()
            .map(|(key, value)| {
                let live = is_live(&key);
                (key.clone(), value, default(&key).unwrap_or_default(), live)
            })
            .collect();
        let pool = Pool::default();
        let seconds = |duration: std::time::Duration| duration.as_secs().to_string();
        let mut also = |key: &str, value: String, default: String, live: bool| {
            entries.push((key.to_owned(), value, default, live));
        };
        also("max_client_conn", self.pool.max_clients.to_string(), pool.max_clients.to_string(), true);
        also("max_user_connections", "0".to_owned(), "0".to_owned(), false);
        also("max_db_connections", "0".to_owned(), "0".to_owned(), false);
        also("default_pool_size", self.pool.size.to_string(), pool.size.to_string(), true);
        let timeout = self.pool.query_wait_timeout;
        also("query_wait_timeout", seconds(timeout), seconds(pool.query_wait_timeout), true);
        also("server_idle_timeout", seconds(self.pool.server_idle_timeout), seconds(pool.server_idle_timeout), true);
        also("server_lifetime", seconds(self.pool.server_lifetime), seconds(pool.server_lifetime), true);
        also("listen_addr", self.listen.address.ip().to_string(), String::new(), false);
        also("listen_port", self.listen.address.port().to_string(), String::new(), false);
        also("client_login_timeout", seconds(self.auth.login_timeout), "30".to_owned(), true);
        entries
    }

    /// The same with nothing said that need not be said.
    fn with_defaults(&self) -> Self {
        Self {
            path: self.path.clone(),
            workers: 0,
            listen: super::Listen {
                address: self.listen.address,
                read_only: None,
                primary_only: None,
                unix_directory: None,
                proxy_protocol_from: Vec::new(),
                http: None,
                upgrade_drain: std::time::Duration::from_secs(60),
                shards: Vec::new(),
            },
            shards: super::Shards::default(),
            databases: std::collections::BTreeMap::new(),
            auth: super::Auth::with_password(self.auth.password_file.clone()),
            tls: super::Tls::default(),
            server_tls: super::ServerTls::default(),
            pool: Pool::default(),
            routing: super::Routing::default(),
            hold: super::Hold::default(),
            fleet: super::Fleet::default(),
            admin: super::Admin::default(),
            log: manatee_shared::telemetry::LogSettings::default(),
            ..self.clone()
        }
    }

    /// What `new` says differently.
    pub fn changes(&self, new: &Self) -> Vec<Change> {
        let old = flatten(self);
        let changed = flatten(new).into_iter().filter(|entry| !old.contains(entry));
        changed.map(|(key, value)| Change { live: is_live(&key), key, value }).collect()
    }
}

/// Keys as `section.key`.
fn flatten(config: &Config) -> Vec<(String, String)> {
    let mut entries = Vec::new();
    // A configuration that was read can be written: there is nothing in it that JSON has not.
    if let Ok(Value::Object(sections)) = serde_json::to_value(config) {
        for (section, value) in sections {
            match value {
                Value::Object(keys) => {
                    entries.extend(keys.into_iter().map(|(key, value)| (format!("{section}.{key}"), plain(&value))));
                }
                value => entries.push((section, plain(&value))),
            }
        }
    }
    entries
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Object(keys) => {
            keys.iter().map(|(key, value)| format!("{key}={}", plain(value))).collect::<Vec<_>>().join(",")
        }
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(more: &str) -> Config {
        let text = format!(
            "[listen]\naddress = \"0.0.0.0:6432\"\n[zookeeper]\nservers = [\"127.0.0.1:2181\"]\n[shard]\nname = \"demo\"\n\
             [auth]\npassword_file = \"/x\"\n{more}"
        );
        manatee_shared::config::parse(std::path::Path::new("x"), &text).expect("valid")
    }

    #[test]
    fn every_key_is_listed_with_its_default() {
        let entries = config("[pool]\nsize = 7\n").entries();
        let find = |key: &str| entries.iter().find(|entry| entry.0 == key).cloned().expect(key);
        assert_eq!(find("pool.size"), ("pool.size".to_owned(), "7".to_owned(), "40".to_owned(), true));
        assert_eq!(find("hold.max_bytes").1, "64MiB");
        assert_eq!(find("routing.poll_interval").1, "100ms");
        assert_eq!(find("max_client_conn").1, "10000");
        assert!(!find("workers").3);
    }

    #[test]
    fn a_reload_tells_what_it_can_change_from_what_it_cannot() {
        let changes = config("").changes(&config("[pool]\nsize = 7\nmode = \"session\"\n"));
        let mut changes: Vec<_> = changes.into_iter().map(|change| (change.key, change.live)).collect();
        changes.sort();
        assert_eq!(changes, [("pool.mode".to_owned(), false), ("pool.size".to_owned(), true)]);
        assert_eq!(config("").changes(&config("")), []);
    }
}
