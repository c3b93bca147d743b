//! The configuration as a flat list: for `SHOW CONFIG`, and to see what a reload changes.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::reload::Reload;
use super::{Config, Pool};

/// Keys without a default.
const REQUIRED: [&str; 4] = ["auth.password_file", "listen.address", "shard.name", "zookeeper.servers"];

/// Times that cannot be configured, for the record.
const FIXED: [(&str, Duration); 8] = [
    ("fixed.server_connect_timeout", crate::server::CONNECT_LIMIT),
    ("fixed.login_parameters_max_age", crate::auth::login_parameters::MAX_AGE),
    ("fixed.failed_login_max_delay", crate::auth::failures::MAX_DELAY),
    ("fixed.role_lookup_timeout", crate::auth::verifier::ANSWER_LIMIT),
    ("fixed.node_connect_timeout", crate::topology::monitor::CONNECT_LIMIT),
    ("fixed.node_answer_timeout", crate::topology::monitor::ANSWER_LIMIT),
    ("fixed.catalog_reload_interval", crate::catalog::RELOAD_EVERY),
    ("fixed.shutdown_drain_limit", crate::server::run::DRAIN_LIMIT),
];

/// A setting: key, value, default, and whether it can change without a restart.
pub type Entry = (String, String, String, bool);

/// A setting that a reload finds changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its name.
    pub key: String,
    /// The new value.
    pub value: String,
    /// Whether it is in use from now on.
    pub live: bool,
}

/// Whether a key changes with a reload.
fn is_live(key: &str) -> bool {
    Reload::of(Config::RELOAD, key) == Some(Reload::Live)
}

impl Config {
    /// Every key with its value. At the end PgBouncer's names for what its tools look for.
    pub fn entries(&self) -> Vec<Entry> {
        let defaults = flatten(&self.with_defaults());
        let default = |key: &str| {
            defaults
                .iter()
                .filter(|_| !REQUIRED.contains(&key))
                .find(|(name, _)| name == key)
                .map(|(_, value)| value.clone())
        };
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
        let (per_user, per_database) = (self.pool.max_servers_per_user, self.pool.max_servers_per_database);
        also("max_user_connections", per_user.to_string(), pool.max_servers_per_user.to_string(), true);
        also("max_db_connections", per_database.to_string(), pool.max_servers_per_database.to_string(), true);
        also("default_pool_size", self.pool.size.to_string(), pool.size.to_string(), true);
        let timeout = self.pool.query_wait_timeout;
        also("query_wait_timeout", seconds(timeout), seconds(pool.query_wait_timeout), true);
        also("server_idle_timeout", seconds(self.pool.server_idle_timeout), seconds(pool.server_idle_timeout), true);
        also("server_lifetime", seconds(self.pool.server_lifetime), seconds(pool.server_lifetime), true);
        also("listen_addr", self.listen.address.ip().to_string(), String::new(), false);
        also("listen_port", self.listen.address.port().to_string(), String::new(), false);
        also("client_login_timeout", seconds(self.auth.login_timeout), "30".to_owned(), true);
        also(
            "server_connect_timeout",
            seconds(crate::server::CONNECT_LIMIT),
            seconds(crate::server::CONNECT_LIMIT),
            false,
        );
        for (key, duration) in FIXED {
            let text = humantime_serde::re::humantime::format_duration(duration).to_string();
            also(key, text.clone(), text, false);
        }
        entries
    }

    /// The same with nothing said that need not be said.
    fn with_defaults(&self) -> Self {
        const MINIMAL: &str = "[listen]\naddress = \"0.0.0.0:6432\"\n[zookeeper]\nservers = [\"127.0.0.1:2181\"]\n\
                               [shard]\nname = \"demo\"\n[auth]\npassword_file = \"/x\"\n";
        // It can be read: a test does so.
        manatee_shared::config::parse(Path::new("defaults"), MINIMAL).unwrap_or_else(|_| self.clone())
    }

    /// Settings that `new` has otherwise.
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
    fn every_key_says_what_a_reload_does_with_it() {
        let sample = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../config/proxy.toml"));
        let sample: Config = manatee_shared::config::parse(Path::new("x"), &sample.expect("sample")).expect("valid");
        for (key, _) in flatten(&sample) {
            let reload = Reload::of(Config::RELOAD, &key);
            assert!(matches!(reload, Some(Reload::Live | Reload::Restart)), "{key}: {reload:?}");
        }
        for key in ["databases.orders", "server_tls.mode", "auth.password_file", "pool.size"] {
            assert!(is_live(key), "{key}");
        }
        for key in ["zookeeper.servers", "pool.mode", "workers", "listen.address", "pool.no_such_key", "pool"] {
            assert!(!is_live(key), "{key}");
        }
    }

    #[test]
    fn defaults_are_what_an_empty_file_would_give() {
        let entries = config("[zookeeper.tls]\nca_file = \"/ca\"\n").entries();
        let find =
            |key: &str| entries.iter().find(|entry| entry.0 == key).map(|entry| (entry.1.as_str(), entry.2.as_str()));
        assert_eq!(find("shard.name"), Some(("demo", "")));
        assert_eq!(find("zookeeper.session_timeout"), Some(("4s", "4s")));
        assert_eq!(find("max_user_connections"), Some(("0", "0")));
        assert_eq!(find("fixed.server_connect_timeout"), Some(("5s", "5s")));
        let limited = config("[pool]\nmax_servers_per_user = 7\n").entries();
        let limit = limited.iter().find(|entry| entry.0 == "max_user_connections").expect("key");
        assert_eq!((limit.1.as_str(), limit.3), ("7", true));
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
