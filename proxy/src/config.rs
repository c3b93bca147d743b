//! The proxy's configuration: `config/proxy.toml`, every key typed and checked.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use manatee_shared::config::{self, ConfigError, Size, ZkSettings};
use manatee_shared::ids::ShardName;
use manatee_shared::telemetry::LogSettings;
use manatee_shared::tls::ServerTls;
use serde::{Deserialize, Serialize};

mod entries;
#[macro_use]
mod reload;

pub use entries::{Change, Entry};
use reload::Reload;

use crate::auth::Access;
use crate::auth::hba::Network;
use crate::pool::Mode;
use crate::topology::consistency::Consistency;

/// More session threads than this make no sense on any machine this runs on.
const MAX_WORKERS: usize = 256;

settings! {
    /// The whole file.
    #[derive(Clone, Debug, Deserialize, Serialize)]
    #[serde(deny_unknown_fields)]
    pub struct Config {
        /// The file it was read from.
        #[serde(skip)]
        pub path: PathBuf => Reload::Restart,
        /// Session threads that run, whatever the file says by now.
        #[serde(skip)]
        pub running_threads: Option<usize> => Reload::Restart,
        /// Session threads; 0: one per core.
        #[serde(default)]
        pub workers: usize => Reload::Restart,
        /// Addresses for clients.
        pub listen: Listen => Reload::ByKey(Listen::RELOAD),
        /// Connection to ZooKeeper.
        pub zookeeper: ZkSettings => Reload::Restart,
        /// The default shard.
        pub shard: Shard => Reload::ByKey(Shard::RELOAD),
        /// Further shards.
        #[serde(default)]
        pub shards: Shards => Reload::ByKey(Shards::RELOAD),
        /// Databases by the names clients use, where those say which shard is meant.
        #[serde(default)]
        pub databases: BTreeMap<String, Database> => Reload::Live,
        /// Authentication of clients.
        pub auth: Auth => Reload::ByKey(Auth::RELOAD),
        /// TLS towards clients.
        #[serde(default)]
        pub tls: Tls => Reload::ByKey(Tls::RELOAD),
        /// TLS towards servers.
        #[serde(default)]
        pub server_tls: ServerTls => Reload::Live,
        /// Server connections.
        #[serde(default)]
        pub pool: Pool => Reload::ByKey(Pool::RELOAD),
        /// Routing of statements.
        #[serde(default)]
        pub routing: Routing => Reload::ByKey(Routing::RELOAD),
        /// Treatment of clients while there is no primary.
        #[serde(default)]
        pub hold: Hold => Reload::ByKey(Hold::RELOAD),
        /// The other proxies.
        #[serde(default)]
        pub fleet: Fleet => Reload::ByKey(Fleet::RELOAD),
        /// The console.
        #[serde(default)]
        pub admin: Admin => Reload::ByKey(Admin::RELOAD),
        /// The log.
        #[serde(default)]
        pub log: LogSettings => Reload::Restart,
    }
}

settings! {
    /// `[listen]`
    #[derive(Clone, Debug, Deserialize, Serialize)]
    #[serde(deny_unknown_fields)]
    pub struct Listen {
        /// Reads and writes.
        pub address: SocketAddr => Reload::Restart,
        /// Everything read-only, to a standby.
        pub read_only: Option<SocketAddr> => Reload::Restart,
        /// Everything to the primary.
        pub primary_only: Option<SocketAddr> => Reload::Restart,
        /// Folder of a Unix socket, named as PostgreSQL does for the port of `address`.
        pub unix_directory: Option<PathBuf> => Reload::Restart,
        /// Balancers that say by the PROXY protocol for whom they speak, and must.
        #[serde(default)]
        pub proxy_protocol_from: Vec<Network> => Reload::Live,
        /// `/metrics`, `/healthz`, `/readyz`, `/topology`.
        pub http: Option<SocketAddr> => Reload::Restart,
        /// Longest stay of clients with a process that has handed its listeners over.
        #[serde(default = "seconds::<60>", with = "humantime_serde")]
        pub upgrade_drain: Duration => Reload::Live,
        /// Addresses of single shards.
        #[serde(default)]
        pub shards: Vec<ListenShard> => Reload::Restart,
    }
}

impl Listen {
    /// The Unix socket.
    pub fn unix_socket(&self) -> Option<PathBuf> {
        Some(self.unix_directory.as_ref()?.join(format!(".s.PGSQL.{}", self.address.port())))
    }
}

settings! {
    /// `[shard]`
    #[derive(Clone, Debug, Deserialize, Serialize)]
    #[serde(deny_unknown_fields)]
    pub struct Shard {
        /// Its name in ZooKeeper.
        pub name: ShardName => Reload::Restart,
    }
}

settings! {
    /// `[shards]`
    #[derive(Clone, Debug, Default, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Shards {
        /// Serve every shard there is under `zookeeper.root`, also those that come later.
        pub discover: bool => Reload::Live,
        /// Serve these.
        pub names: Vec<ShardName> => Reload::Live,
    }
}

/// An entry of `[databases]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// Its shard.
    pub shard: ShardName,
    /// Its name there; the same if not said.
    pub database: Option<String>,
}

/// An entry of `[[listen.shards]]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ListenShard {
    /// Address for clients.
    pub address: SocketAddr,
    /// Their shard.
    pub shard: ShardName,
    /// Access they ask for.
    #[serde(default)]
    pub access: Access,
}

settings! {
    /// `[auth]`
    #[derive(Clone, Debug, Deserialize, Serialize)]
    #[serde(deny_unknown_fields)]
    pub struct Auth {
        /// The proxy's own role: looks up verifiers and asks nodes for their state.
        #[serde(default = "default_auth_user")]
        pub user: String => Reload::Restart,
        /// File with its password.
        pub password_file: PathBuf => Reload::Live,
        /// File with roles and secrets of their own, asked before the database.
        pub users_file: Option<PathBuf> => Reload::Live,
        /// File with rules who may connect from where.
        pub hba_file: Option<PathBuf> => Reload::Live,
        /// File with maps of names in certificates to roles.
        pub ident_file: Option<PathBuf> => Reload::Live,
        /// Logins under way at most; for one more the oldest that has had long enough leaves.
        #[serde(default = "default_max_logins")]
        pub max_logins: usize => Reload::Live,
        /// Failed logins that are answered at once, for one role from one address; 0: all of them.
        #[serde(default = "default_failure_burst")]
        pub failure_burst: u32 => Reload::Live,
        /// One of them is forgiven after this.
        #[serde(default = "seconds::<3>", with = "humantime_serde")]
        pub failure_forgiven_after: Duration => Reload::Live,
        /// Age up to which what is known of a role may be used while no server can be asked.
        #[serde(default = "seconds::<600>", with = "humantime_serde")]
        pub verifier_max_age: Duration => Reload::Restart,
        /// Longest time for a client's login.
        #[serde(default = "seconds::<30>", with = "humantime_serde")]
        pub login_timeout: Duration => Reload::Live,
    }
}

settings! {
    /// `[tls]`
    #[derive(Clone, Debug, Default, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Tls {
        /// Certificate chain, PEM.
        pub certificate_file: Option<PathBuf> => Reload::Live,
        /// Private key, PEM.
        pub key_file: Option<PathBuf> => Reload::Live,
        /// Refuse clients without TLS.
        pub required: bool => Reload::Live,
        /// Authorities of client certificates, PEM.
        pub client_ca_file: Option<PathBuf> => Reload::Live,
        /// Client certificates that were revoked, PEM.
        pub client_crl_file: Option<PathBuf> => Reload::Live,
    }
}

settings! {
    /// `[pool]`
    #[derive(Clone, Debug, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Pool {
        /// Moment at which server connections go back.
        pub mode: Mode => Reload::Restart,
        /// Server connections per user, database and node, shared among the session threads.
        pub size: usize => Reload::Live,
        /// Of these, the part in a hundred that is kept for sessions that are bound to none.
        pub unbound_percent: usize => Reload::Live,
        /// Server connections to one node at most, shared among the session threads; 0: any number. By default less
        /// than the 200 that the sitter lets a node have, so that reserved ones, sitters and others find room.
        pub max_servers_per_node: usize => Reload::Live,
        /// The same of one database.
        pub max_servers_per_database: usize => Reload::Live,
        /// The same of one role.
        pub max_servers_per_user: usize => Reload::Live,
        /// Clients at most.
        pub max_clients: usize => Reload::Live,
        /// Clients of one role at most; 0: any number.
        pub max_clients_per_user: u32 => Reload::Live,
        /// Clients of one database at most; 0: any number.
        pub max_clients_per_database: u32 => Reload::Live,
        /// Longest wait of a transaction for a server connection.
        #[serde(with = "humantime_serde")]
        pub query_wait_timeout: Duration => Reload::Live,
        /// Server connections idle for longer are closed.
        #[serde(with = "humantime_serde")]
        pub server_idle_timeout: Duration => Reload::Live,
        /// Older server connections are closed.
        #[serde(with = "humantime_serde")]
        pub server_lifetime: Duration => Reload::Live,
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            mode: Mode::Transaction,
            size: 40,
            unbound_percent: 25,
            max_servers_per_node: 150,
            max_servers_per_database: 0,
            max_servers_per_user: 0,
            max_clients: 10_000,
            max_clients_per_user: 0,
            max_clients_per_database: 0,
            query_wait_timeout: Duration::from_secs(120),
            server_idle_timeout: Duration::from_secs(600),
            server_lifetime: Duration::from_secs(3600),
        }
    }
}

settings! {
    /// `[routing]`
    #[derive(Clone, Debug, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Routing {
        /// Send reads to standbys.
        pub split: bool => Reload::Live,
        /// Default consistency of a session.
        pub consistency: Consistency => Reload::Live,
        /// A standby further behind serves nothing.
        #[serde(with = "humantime_serde")]
        pub max_lag: Duration => Reload::Restart,
        /// Interval of asking each node.
        #[serde(with = "humantime_serde")]
        pub poll_interval: Duration => Reload::Restart,
    }
}

impl Default for Routing {
    fn default() -> Self {
        Self {
            split: true,
            consistency: Consistency::Session,
            max_lag: Duration::from_secs(10),
            poll_interval: Duration::from_millis(100),
        }
    }
}

settings! {
    /// `[hold]`
    #[derive(Clone, Debug, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Hold {
        /// Longest wait of a transaction for a primary.
        #[serde(with = "humantime_serde")]
        pub timeout: Duration => Reload::Live,
        /// Longest wait of one of a read-only address for a standby, while none is fit.
        #[serde(with = "humantime_serde")]
        pub standby_timeout: Duration => Reload::Live,
        /// Clients that may wait, in the whole process.
        pub max_clients: usize => Reload::Live,
        /// Bytes of theirs that may be kept, in the whole process.
        pub max_bytes: Size => Reload::Live,
    }
}

impl Default for Hold {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            standby_timeout: Duration::from_secs(5),
            max_clients: 10_000,
            max_bytes: Size(64 << 20),
        }
    }
}

settings! {
    /// `[fleet]`
    #[derive(Clone, Debug, Default, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Fleet {
        /// This proxy's number, each its own; 0: alone.
        pub number: u32 => Reload::Restart,
        /// Addresses of the other proxies for clients, by number.
        pub peers: BTreeMap<String, SocketAddr> => Reload::Restart,
    }
}

impl Fleet {
    /// The others, by number. Those that are no numbers were refused by [`Config::load`].
    pub fn peers(&self) -> HashMap<u32, SocketAddr> {
        self.peers.iter().filter_map(|(number, address)| Some((number.parse().ok()?, *address))).collect()
    }
}

settings! {
    /// `[admin]`
    #[derive(Clone, Debug, Deserialize, Serialize)]
    #[serde(deny_unknown_fields, default)]
    pub struct Admin {
        /// Name of the virtual database.
        pub database: String => Reload::Live,
        /// Another name of it, by which PgBouncer's tools look for it; empty: none.
        pub alias: String => Reload::Live,
        /// Roles that may do everything there.
        pub admin_users: Vec<String> => Reload::Live,
        /// Roles that may look only.
        pub stats_users: Vec<String> => Reload::Live,
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            database: "manatee".to_owned(),
            alias: "pgbouncer".to_owned(),
            admin_users: Vec::new(),
            stats_users: Vec::new(),
        }
    }
}

impl Admin {
    /// Whether a client that asks for this database wants the console.
    pub fn is_console(&self, database: &str) -> bool {
        database == self.database || (!self.alias.is_empty() && database == self.alias)
    }
}

fn default_max_logins() -> usize {
    2000
}

fn default_failure_burst() -> u32 {
    20
}

fn default_auth_user() -> String {
    "manatee_proxy".to_owned()
}

fn seconds<const N: u64>() -> Duration {
    Duration::from_secs(N)
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// One line that names file, key and remedy.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = config::load(path)?;
        path.clone_into(&mut config.path);
        match config.check() {
            Ok(()) => Ok(config),
            Err((key, problem)) => {
                Err(ConfigError::Contradiction { path: path.to_owned(), key: key.to_owned(), problem })
            }
        }
    }

    /// Session threads to start: where one per core is asked for, no more than can have a share of every limit.
    pub fn worker_count(&self) -> usize {
        match self.running_threads.unwrap_or(self.workers) {
            0 => {
                let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
                self.shared_limits().map(|(_, limit)| limit).fold(cores, usize::min).max(1)
            }
            count => count,
        }
    }

    /// Limits that are divided among the session threads, by key.
    fn shared_limits(&self) -> impl Iterator<Item = (&'static str, usize)> {
        let pool = &self.pool;
        let limits = [
            ("pool.size", pool.size),
            ("pool.max_servers_per_node", pool.max_servers_per_node),
            ("pool.max_servers_per_database", pool.max_servers_per_database),
            ("pool.max_servers_per_user", pool.max_servers_per_user),
        ];
        limits.into_iter().filter(|(_, limit)| *limit > 0)
    }

    /// Whether every session thread has a share of every limit.
    ///
    /// # Errors
    /// The key and what to do.
    pub fn check_shares(&self) -> Result<(), (String, String)> {
        let threads = self.worker_count();
        match self.shared_limits().find(|(_, limit)| *limit < threads) {
            None => Ok(()),
            Some((key, limit)) => Err((
                key.to_owned(),
                format!(
                    "is {limit}, fewer than the {threads} session threads; raise it, or start with fewer `workers`"
                ),
            )),
        }
    }

    /// Checks that it makes sense. Errors: the key and the remedy.
    fn check(&self) -> Result<(), (String, String)> {
        let fail = |key: &str, problem: &str| Err((key.to_owned(), problem.to_owned()));
        self.zookeeper.check().map_err(|(key, problem)| (format!("zookeeper.{key}"), problem))?;
        if self.log.check().is_err() {
            return fail("log.filter", "is not a log filter; write it like \"info,manatee_proxy=debug\"");
        }
        if self.workers > MAX_WORKERS {
            return fail("workers", "is more than 256; use 0 for one per core");
        }
        if self.auth.user.is_empty() {
            return fail("auth.user", "is empty; name the proxy's own role");
        }
        if self.tls.certificate_file.is_some() != self.tls.key_file.is_some() {
            return fail("tls", "needs both certificate_file and key_file, or neither");
        }
        if self.tls.client_crl_file.is_some() && self.tls.client_ca_file.is_none() {
            return fail("tls.client_crl_file", "needs client_ca_file");
        }
        if self.tls.client_ca_file.is_some() && self.tls.certificate_file.is_none() {
            return fail("tls.client_ca_file", "is set but there is no certificate; set tls.certificate_file");
        }
        if self.tls.required && self.tls.certificate_file.is_none() {
            return fail(
                "tls.required",
                "is true but there is no certificate; set tls.certificate_file and tls.key_file",
            );
        }
        if let Err((key, problem)) = self.server_tls.check("server_tls") {
            return fail(&key, problem);
        }
        for (key, number) in [
            ("pool.size", self.pool.size),
            ("pool.max_clients", self.pool.max_clients),
            ("hold.max_clients", self.hold.max_clients),
            ("auth.max_logins", self.auth.max_logins),
        ] {
            if number == 0 {
                return fail(key, "is 0, so nothing would ever be served; use at least 1");
            }
        }
        if self.pool.unbound_percent > 100 {
            return fail("pool.unbound_percent", "is above 100; it is a part in a hundred of pool.size");
        }
        for (key, duration) in [
            ("auth.login_timeout", self.auth.login_timeout),
            ("auth.failure_forgiven_after", self.auth.failure_forgiven_after),
            ("pool.query_wait_timeout", self.pool.query_wait_timeout),
            ("routing.max_lag", self.routing.max_lag),
        ] {
            if duration.is_zero() {
                return fail(key, "is zero, so nothing would ever be in time; use for example \"10s\"");
            }
        }
        let numbers = 1..=crate::cancel::fleet::MAX_NUMBER;
        let fleet = &self.fleet;
        if fleet.number != 0 && !numbers.contains(&fleet.number) {
            return fail("fleet.number", "is above 4087; give each proxy a number of its own from 1 on");
        }
        if !fleet.peers.is_empty() && fleet.number == 0 {
            return fail("fleet.number", "is missing; give each proxy a number of its own from 1 on");
        }
        let wrong =
            |number: &String| !number.parse().is_ok_and(|number| numbers.contains(&number) && number != fleet.number);
        if let Some(number) = fleet.peers.keys().find(|number| wrong(number)) {
            return fail("fleet.peers", &format!("`{number}` is not the number of another proxy, from 1 to 4087"));
        }
        let sensible = Duration::from_millis(10)..=Duration::from_secs(10);
        if !sensible.contains(&self.routing.poll_interval) {
            return fail("routing.poll_interval", "must be between \"10ms\" and \"10s\"");
        }
        self.check_shares()?;
        self.check_addresses()
    }

    fn check_addresses(&self) -> Result<(), (String, String)> {
        let listen = &self.listen;
        let mut addresses = vec![
            ("listen.address", Some(listen.address)),
            ("listen.read_only", listen.read_only),
            ("listen.primary_only", listen.primary_only),
            ("listen.http", listen.http),
        ];
        addresses.extend(listen.shards.iter().map(|shard| ("listen.shards", Some(shard.address))));
        for (index, (key, address)) in addresses.iter().enumerate() {
            let earlier = addresses[..index]
                .iter()
                .find(|(_, other)| address.is_some_and(|address| address.port() != 0 && *other == Some(address)));
            if let Some((other, _)) = earlier {
                return Err(((*key).to_owned(), format!("is the same address as {other}; choose another port")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let path = Path::new("proxy.toml");
        let config: Config = config::parse(path, text).map_err(|error| error.to_string())?;
        config.check().map_err(|(key, problem)| format!("{key}: {problem}"))?;
        Ok(config)
    }

    fn sample() -> String {
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../config/proxy.toml")).expect("sample")
    }

    #[test]
    fn the_sample_is_valid_and_shows_the_defaults() {
        let config = parse(&sample()).expect("valid");
        let minimal = parse(
            "[listen]\naddress = \"0.0.0.0:6432\"\n[zookeeper]\nservers = [\"127.0.0.1:2181\"]\n[shard]\nname = \"demo\"\n[auth]\npassword_file = \"/x\"\n",
        )
        .expect("valid");
        assert_eq!(
            format!("{:?}", (config.pool, config.routing, config.hold)),
            format!("{:?}", (minimal.pool, minimal.routing, minimal.hold))
        );
        assert_eq!(config.auth.user, minimal.auth.user);
    }

    #[test]
    fn mistakes_are_named() {
        for (from, to, wanted) in [
            ("workers = 0", "wokers = 0", "unknown field `wokers`"),
            ("workers = 0", "workers = 41", "pool.size: is 40, fewer than the 41 session threads"),
            ("size = 40", "size = 0", "pool.size"),
            ("required = false", "required = true", "tls.required"),
            ("poll_interval = \"100ms\"", "poll_interval = \"1ms\"", "routing.poll_interval"),
            ("consistency = \"session\"", "consistency = \"sometimes\"", "sometimes"),
            ("http = \"127.0.0.1:6480\"", "http = \"0.0.0.0:6432\"", "listen.http"),
            ("max_bytes = \"64MiB\"", "max_bytes = \"64MB\"", "64MB"),
            ("name = \"demo\"", "name = \"a/b\"", "a/b"),
        ] {
            let text = sample().replacen(from, to, 1);
            assert_ne!(text, sample(), "{from}");
            let problem = parse(&text).expect_err(to);
            assert!(problem.contains(wanted), "{problem}");
            assert!(!problem.contains('\n'), "{problem}");
        }
    }
}
