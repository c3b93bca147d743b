//! Logins through the proxy against a real PostgreSQL: who gets in, and what the others are told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use manatee_proxy::auth::{Access, Policy};
use manatee_proxy::config::Config;
use manatee_proxy::context::ProxyContext;
use manatee_proxy::own_role::OwnRole;
use manatee_proxy::server::background::serve_http;
use manatee_proxy::server::listen::{Address, Listener};
use manatee_proxy::server::{Proxy, Workers, accept};
use manatee_proxy::tls::Certificates;
use manatee_proxy::tls::servers::Servers;
use manatee_proxy::topology::monitor;
use manatee_shared::cluster::Peer;
use manatee_shared::lsn::Lsn;
use manatee_shared::topology::{Freshness, Topology as State};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio_postgres::{Config as Client, NoTls};
use tokio_util::sync::CancellationToken;

#[path = "login/cancels.rs"]
mod cancels;
#[path = "login/closed.rs"]
mod closed;
#[path = "login/console.rs"]
mod console;
#[path = "login/encryption.rs"]
mod encryption;
#[path = "login/front.rs"]
mod front;
#[path = "login/keys.rs"]
mod keys;
#[path = "login/postgres.rs"]
mod postgres;
#[path = "login/replication.rs"]
mod replication;
#[path = "login/room.rs"]
mod room;
#[path = "login/rotation.rs"]
mod rotation;
#[path = "login/rules.rs"]
mod rules;
#[path = "login/servers.rs"]
mod servers;
#[path = "login/shards.rs"]
mod shards;
#[path = "login/storm.rs"]
mod storm;
use postgres::Postgres;

const ROLES: &str = "
    CREATE ROLE manatee_proxy LOGIN PASSWORD 'proxy';
    CREATE SCHEMA manatee;
    CREATE FUNCTION manatee.role_verifier(rolname text)
      RETURNS TABLE (verifier text, can_login boolean, valid_until timestamptz, connection_limit integer)
      LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
      AS 'SELECT a.rolpassword, a.rolcanlogin, a.rolvaliduntil, a.rolconnlimit
          FROM pg_catalog.pg_authid a WHERE a.rolname::text = $1';
    GRANT USAGE ON SCHEMA manatee TO manatee_proxy;
    CREATE ROLE alice LOGIN PASSWORD 'secret';
    CREATE ROLE late LOGIN PASSWORD 'secret' VALID UNTIL '2001-01-01';
    CREATE ROLE forever LOGIN PASSWORD 'secret' VALID UNTIL 'infinity';
    CREATE ROLE outsider NOLOGIN PASSWORD 'secret';
    CREATE ROLE blank LOGIN;
    CREATE ROLE watcher LOGIN PASSWORD 'secret';
    CREATE ROLE carol LOGIN PASSWORD 'carol''s';
    SET password_encryption = md5;
    CREATE ROLE oldtimer LOGIN PASSWORD 'secret';";

struct Bench {
    postgres: Postgres,
    proxy: SocketAddr,
    http: SocketAddr,
    state: watch::Sender<Option<State>>,
    shared: Arc<ProxyContext>,
    workers: Workers,
    certificate: std::path::PathBuf,
    key: std::path::PathBuf,
    config: std::path::PathBuf,
    stop: CancellationToken,
}

impl Bench {
    async fn start() -> Self {
        Self::with_threads(1).await
    }

    async fn with_threads(threads: usize) -> Self {
        let postgres = Postgres::start().await;
        postgres.run(ROLES).await;
        let (certificate, key) = make_certificate(postgres.folder());
        let (users, config) = (postgres.folder().join("users"), postgres.folder().join("proxy.toml"));
        std::fs::write(users, "# not in the database\n\"boss\" \"boss's\"\n\"carol\" \"carol's\"\n").expect("users");
        std::fs::write(postgres.folder().join("proxy.password"), "proxy\n").expect("password");
        let text = configuration(postgres.folder(), &[]);
        let text = text.replace("workers = 1", &format!("workers = {threads}"));
        std::fs::write(&config, text).expect("configuration");
        let Started { proxy, http, state, shared, workers, stop } =
            start_proxy(postgres.port, &config, Some(postgres.folder().to_owned())).await;
        Self { postgres, proxy, http, state, shared, workers, certificate, key, config, stop }
    }

    fn client(&self, user: &str, password: &str) -> Client {
        let mut client = Client::new();
        client.host("127.0.0.1").port(self.proxy.port()).user(user).password(password).dbname("postgres");
        client
    }

    /// SQLSTATE and message of a refused login.
    async fn refused(&self, client: &Client) -> (String, String) {
        let error = client.connect(NoTls).await.err().expect("refused");
        let error = error.as_db_error().unwrap_or_else(|| panic!("{error}"));
        (error.code().code().to_owned(), error.message().to_owned())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn make_certificate(folder: &Path) -> (std::path::PathBuf, std::path::PathBuf) {
    let (certificate, key) = (folder.join("proxy.crt"), folder.join("proxy.key"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost"])
        .arg("-out")
        .arg(&certificate)
        .arg("-keyout")
        .arg(&key)
        .output()
        .expect("openssl");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    (certificate, key)
}

/// The proxy's configuration, with more keys in some sections.
fn configuration(folder: &Path, extra: &[(&str, String)]) -> String {
    let [users, certificate, key, password] =
        ["users", "proxy.crt", "proxy.key", "proxy.password"].map(|name| folder.join(name));
    let sections = [
        ("", "workers = 1".to_owned()),
        ("fleet", "number = 1".to_owned()),
        ("listen", "address = \"127.0.0.1:6432\"".to_owned()),
        ("zookeeper", "servers = [\"127.0.0.1:1\"]".to_owned()),
        ("shard", "name = \"test\"".to_owned()),
        ("auth", format!("password_file = {password:?}\nusers_file = {users:?}\nlogin_timeout = \"10s\"")),
        ("admin", "admin_users = [\"boss\"]\nstats_users = [\"watcher\"]".to_owned()),
        ("tls", format!("certificate_file = {certificate:?}\nkey_file = {key:?}")),
        ("server_tls", String::new()),
        ("databases", String::new()),
        ("pool", String::new()),
        ("hold", String::new()),
    ];
    let mut text = String::new();
    for (section, keys) in &sections {
        let head = if section.is_empty() { String::new() } else { format!("[{section}]\n") };
        let more: Vec<&str> = extra.iter().filter(|(name, _)| name == section).map(|(_, keys)| keys.as_str()).collect();
        // These are replaced, others added to.
        let replaced = matches!(*section, "admin" | "fleet") && !more.is_empty();
        let keys = if replaced { "" } else { keys };
        text += &format!("{head}{keys}\n{}\n", more.join("\n"));
    }
    text
}

/// A proxy in this process.
struct Started {
    proxy: SocketAddr,
    http: SocketAddr,
    state: watch::Sender<Option<State>>,
    shared: Arc<ProxyContext>,
    workers: Workers,
    stop: CancellationToken,
}

/// Settings with which the proxy's own role asks.
fn own(config: &Config) -> monitor::Settings {
    monitor::Settings {
        shard: config.shard.name.clone(),
        own: Arc::new(OwnRole::load(&config.auth.user, &config.auth.password_file).expect("password")),
        poll_interval: config.routing.poll_interval,
        max_lag: config.routing.max_lag,
        servers: Servers::load(&config.server_tls).expect("server_tls").into(),
    }
}

/// State in ZooKeeper of one PostgreSQL in one-node-write mode.
fn one_node(postgres_port: u16) -> State {
    State {
        shard: "test".parse().expect("name"),
        version: 1,
        generation: 1,
        primary: Peer::new(format!("127.0.0.1:{postgres_port}:1").parse().expect("id"), "one"),
        sync_peer: None,
        async_peers: Vec::new(),
        deposed: Vec::new(),
        init_wal: Lsn::ZERO,
        init_wal_timeline: None,
        active: Vec::new(),
        frozen: false,
        one_node_write_mode: true,
        handing_over: false,
        zookeeper: Freshness::Fresh,
    }
}

/// Starts one, with a Unix socket in `socket_folder` if that is given.
async fn start_proxy(postgres_port: u16, config: &Path, socket_folder: Option<std::path::PathBuf>) -> Started {
    let config = Config::load(config).expect("config");
    let own = own(&config);
    let certificates = Certificates::load(&config.tls).expect("certificates");
    let policy = Policy::load(&config).expect("policy");
    let Proxy { shared, background } = Proxy::new(config, own, certificates, policy, None).expect("proxy");
    let stop = shared.closed.clone();
    let (state, receiver) = watch::channel(Some(one_node(postgres_port)));
    tokio::spawn(background.run(receiver, stop.clone()));
    let bind = |address| Listener::bind("listen", address).expect("bind").open(None).expect("open");
    let any = || Address::Tcp("127.0.0.1:0".parse().expect("address"));
    let listener = bind(any());
    let proxy = listener.local_addr().expect("address");
    let workers = Workers::start(&shared).expect("workers");
    tokio::spawn(accept(listener, Access::ReadWrite.into(), shared.clone(), workers.clone()));
    if let Some(folder) = socket_folder {
        let socket = bind(Address::Unix(folder.join(format!(".s.PGSQL.{}", proxy.port()))));
        tokio::spawn(accept(socket, Access::ReadWrite.into(), shared.clone(), workers.clone()));
    }
    let listener = Listener::bind("listen.http", any()).expect("bind").open_tcp(None).expect("open");
    let http = listener.local_addr().expect("address");
    // Only the first in this process gets the recorder.
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
    let recorder = manatee_shared::telemetry::install_recorder().unwrap_or(recorder);
    manatee_proxy::metrics::describe();
    tokio::spawn(serve_http(listener, shared.clone(), recorder, stop.clone()));
    Started { proxy, http, state, shared, workers, stop }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn logins() {
    let bench = Bench::start().await;
    passwords(&bench).await;
    what_postgresql_refuses(&bench).await;
    a_new_password(&bench).await;
    tls(&bench);
    encryption::encryption(&bench).await;
    keys::keys(&bench).await;
    garbage(&bench).await;
    injected_plain_text(&bench).await;
    console::console(&bench).await;
    rules::rules(&bench).await;
    front::front(&bench).await;
    cancels::cancels(&bench).await;
    servers::servers(&bench).await;
    shards::two_shards(&bench).await;
    storm::storm(&bench).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn replication_connections() {
    replication::replication(&Bench::start().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_database_postgres_that_lets_nobody_in() {
    closed::closed(&Bench::start().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn secrets_that_change() {
    rotation::rotation(&Bench::start().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn idle_servers_make_room() {
    let bench = Bench::with_threads(2).await;
    room::a_full_node(&bench).await;
    room::databases_come_and_go(&bench).await;
    room::holds_in_a_row(&bench).await;
    room::the_end(&bench).await;
}

async fn passwords(bench: &Bench) {
    for user in ["alice", "forever", "oldtimer"] {
        let login = bench.client(user, "secret").connect(NoTls).await;
        assert!(login.is_ok(), "{user}: {:?}", login.err());
    }
    for (user, password) in
        [("alice", "Secret"), ("oldtimer", "Secret"), ("nobody", "secret"), ("late", "secret"), ("blank", "secret")]
    {
        let (code, message) = bench.refused(&bench.client(user, password)).await;
        assert_eq!(code, "28P01", "{user}");
        assert_eq!(message, format!("password authentication failed for user \"{user}\""));
    }
    let (code, message) = bench.refused(&bench.client("outsider", "secret")).await;
    assert_eq!((code.as_str(), message.as_str()), ("28000", "role \"outsider\" is not permitted to log in"));
    assert_eq!(bench.refused(&bench.client("outsider", "wrong")).await.0, "28P01");
}

async fn what_postgresql_refuses(bench: &Bench) {
    let (code, message) = bench.refused(bench.client("alice", "secret").dbname("nowhere")).await;
    assert_eq!((code.as_str(), message.as_str()), ("3D000", "database \"nowhere\" does not exist"));
    bench.postgres.run("CREATE DATABASE closed").await;
    bench.postgres.run("REVOKE CONNECT ON DATABASE closed FROM PUBLIC").await;
    assert_eq!(bench.refused(bench.client("alice", "secret").dbname("closed")).await.0, "42501");
    assert_eq!(bench.refused(bench.client("alice", "secret").options("-c work_mem=lots")).await.0, "22023");
    assert_eq!(bench.refused(bench.client("alice", "secret").options("-B 16")).await.0, "55P02");
    assert_eq!(bench.refused(bench.client("alice", "secret").options("-d 3")).await.0, "42501");
    assert_eq!(bench.refused(bench.client("alice", "secret").options("-Z")).await.0, "42601");
    switches_and_long_names(bench).await;
    rights_that_are_taken_away(bench).await;
    let good = bench.client("alice", "secret").options("-c work_mem=1MB -c DateStyle=German").connect(NoTls).await;
    assert!(good.is_ok());
}

/// Both ways give the same: PostgreSQL is asked straight, then through the proxy.
async fn switches_and_long_names(bench: &Bench) {
    let long = "r".repeat(70);
    bench.postgres.run(&format!("CREATE ROLE {long} LOGIN PASSWORD 'secret'")).await;
    bench.postgres.run(&format!("CREATE DATABASE {long}")).await;
    let ask = async |port: u16, options: &str| {
        let mut to = Client::new();
        to.host("127.0.0.1").port(port).user(&long).password("secret").dbname(&long).options(options);
        let (client, connection) = to.connect(NoTls).await.expect(options);
        tokio::spawn(connection);
        let question = "SELECT current_user::text || current_database() || current_setting('work_mem') \
                        || current_setting('datestyle') || current_setting('enable_seqscan')";
        client.query_one(question, &[]).await.expect("an answer").get::<_, String>(0)
    };
    for options in ["", "-e", "-S 2048", "-f s", "-S 64 -e -c enable_seqscan=off -n"] {
        let straight = ask(bench.postgres.port, options).await;
        assert_eq!(ask(bench.proxy.port(), options).await, straight, "{options}");
    }
}

/// Rights are taken away that were there a moment ago, while the greeting of the client is still remembered from then.
async fn rights_that_are_taken_away(bench: &Bench) {
    bench.postgres.run("CREATE DATABASE doors").await;
    let login = async || bench.client("alice", "secret").dbname("doors").connect(NoTls).await;
    let refused = async || bench.refused(bench.client("alice", "secret").dbname("doors")).await;
    assert!(login().await.is_ok());
    bench.postgres.run("REVOKE CONNECT ON DATABASE doors FROM PUBLIC").await;
    assert_eq!(refused().await, ("42501".to_owned(), "permission denied for database \"doors\"".to_owned()));
    bench.postgres.run("GRANT CONNECT ON DATABASE doors TO alice").await;
    assert!(login().await.is_ok());
    bench.postgres.run("ALTER DATABASE doors ALLOW_CONNECTIONS false").await;
    let closed = "database \"doors\" is not currently accepting connections".to_owned();
    assert_eq!(refused().await, ("55000".to_owned(), closed));
    bench.postgres.run("ALTER DATABASE doors ALLOW_CONNECTIONS true CONNECTION LIMIT 1").await;
    let begun = std::time::Instant::now();
    let (_client, _connection) = loop {
        // Those of before may not have gone yet.
        match login().await {
            Ok(first) => break first,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(20), "{error}"),
        }
    };
    assert_eq!(refused().await.0, "53300");
}

async fn a_new_password(bench: &Bench) {
    bench.postgres.run("ALTER ROLE alice PASSWORD 'changed'").await;
    assert!(bench.client("alice", "changed").connect(NoTls).await.is_ok(), "it counts at once");
    assert_eq!(bench.refused(&bench.client("alice", "secret")).await.0, "28P01");
    bench.postgres.run("ALTER ROLE alice PASSWORD 'secret'").await;
    assert!(bench.client("alice", "secret").connect(NoTls).await.is_ok());
}

fn tls(bench: &Bench) {
    let psql = |mode: &str, host: &str| {
        let conninfo = format!(
            "host={host} hostaddr=127.0.0.1 port={} user=alice dbname=postgres sslmode={mode} sslrootcert={}",
            bench.proxy.port(),
            bench.certificate.display()
        );
        Command::new("psql")
            .arg(conninfo)
            .args(["-X", "-c", "\\conninfo"])
            .env("PGPASSWORD", "secret")
            .output()
            .expect("psql")
    };
    for mode in ["require", "verify-full"] {
        let output = psql(mode, "localhost");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("SSL connection") || text.contains("TLS"), "{text}");
    }
    assert!(!psql("verify-full", "elsewhere").status.success());
    assert!(psql("disable", "localhost").status.success());
}

async fn garbage(bench: &Bench) {
    // What does not begin with a length is told nothing, as by PostgreSQL; nor is who leaves at once.
    for bytes in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"X\0\0\0\x04", b"\0\0\0\x03", b"\0\0\x27\x11\0\x03\0\0"] {
        assert_eq!(say(bench, bytes).await, b"", "{bytes:?}");
    }
    for (bytes, wanted) in [(&b"\0\0\0\x08\0\x02\0\0"[..], "0A000"), (b"\0\0\0\x0f\0\x03\0\0user\0a\0", "08P01")] {
        let answer = say(bench, bytes).await;
        assert_eq!(answer.first(), Some(&b'E'), "{bytes:?}: {answer:?}");
        assert!(String::from_utf8_lossy(&answer).contains(wanted), "{bytes:?}: {answer:?}");
    }
    assert!(bench.client("alice", "secret").connect(NoTls).await.is_ok(), "others are not affected");
}

/// Plain text that follows an SSLRequest must not be taken for what the client says under TLS.
async fn injected_plain_text(bench: &Bench) {
    let mut bytes = b"\0\0\0\x08\x04\xd2\x16\x2f".to_vec();
    bytes.extend_from_slice(b"\0\0\0\x14\0\x03\0\0user\0alice\0\0");
    let answer = say(bench, &bytes).await;
    assert_eq!(answer.first(), Some(&b'S'));
    assert!(!answer.contains(&b'R'), "no login may begin: {answer:?}");
}

async fn say(bench: &Bench, bytes: &[u8]) -> Vec<u8> {
    let mut socket = tokio::net::TcpStream::connect(bench.proxy).await.expect("connect");
    socket.write_all(bytes).await.expect("write");
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(15), socket.read_to_end(&mut answer)).await;
    // A reset after the answer is as good as an end.
    let _ = read.expect("the proxy must answer and close");
    answer
}
