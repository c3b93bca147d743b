//! Other ways in: a Unix socket, a balancer that speaks the PROXY protocol, HTTP.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use manatee_proxy::auth::Access;
use manatee_proxy::server::accept;
use manatee_proxy::server::listen::{Address, Listener};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio_postgres::NoTls;

use crate::Bench;
use crate::rules::configure;

const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn front(bench: &Bench) {
    unix_socket(bench).await;
    balancer(bench).await;
    http(bench).await;
    events(bench).await;
    read_only(bench).await;
}

async fn unix_socket(bench: &Bench) {
    let mut client = tokio_postgres::Config::new();
    client.host_path(bench.postgres.folder()).port(bench.proxy.port()).user("alice").dbname("postgres");
    let (alice, connection) = client.password("secret").connect(NoTls).await.expect("by the socket");
    tokio::spawn(connection);
    alice.batch_execute("SELECT 1").await.expect("a query");
    assert!(client.password("wrong").connect(NoTls).await.is_err());
    // The operating system's word for who it is.
    let me = nix::unistd::User::from_uid(nix::unistd::geteuid()).expect("users").expect("somebody").name;
    let hba = bench.postgres.folder().join("hba");
    std::fs::write(&hba, "local manatee all peer\nhost all all all md5\n").expect("write");
    let admins = format!("admin_users = [\"boss\", {me:?}]\nstats_users = []");
    configure(bench, &[("auth", format!("hba_file = {hba:?}")), ("admin", admins)]).await;
    let console = async |user: &str| {
        let mut client = tokio_postgres::Config::new();
        client.host_path(bench.postgres.folder()).port(bench.proxy.port()).user(user).dbname("manatee");
        client.connect(NoTls).await
    };
    let (console_client, connection) = console(&me).await.expect("by name of the system's user");
    tokio::spawn(connection);
    let clients = console_client.query("SHOW CLIENTS", &[]).await.expect("clients");
    assert_eq!(clients[0].get::<_, &str>("addr"), "unix");
    assert!(console("boss").await.is_err(), "somebody else");
    configure(bench, &[]).await;
}

async fn balancer(bench: &Bench) {
    let hba = bench.postgres.folder().join("hba");
    std::fs::write(&hba, "local manatee boss md5\nhost all alice 192.0.2.0/24 md5\nhost manatee boss all md5\n")
        .expect("write");
    let from = "proxy_protocol_from = [\"127.0.0.0/8\"]";
    configure(bench, &[("auth", format!("hba_file = {hba:?}")), ("listen", from.to_owned())]).await;
    let login = async |header: &[u8]| {
        let mut stream = TcpStream::connect(bench.proxy).await.expect("connect");
        stream.write_all(header).await.expect("header");
        let config = bench.client("alice", "secret");
        config
            .connect_raw(stream, NoTls)
            .await
            .map(drop)
            .map_err(|error| error.as_db_error().map(|error| error.message().to_owned()).unwrap_or_default())
    };
    assert_eq!(login(b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 5432\r\n").await, Ok(()));
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x09\x0a\0\0\x01\x12\x34\x15\x38";
    assert_eq!(login(v2).await, Ok(()));
    let refused = login(b"PROXY TCP4 203.0.113.9 10.0.0.1 4660 5432\r\n").await.expect_err("not from there");
    assert!(refused.starts_with("no pg_hba.conf entry for host \"203.0.113.9\""), "{refused}");
    assert!(login(b"").await.is_err(), "a balancer has to say");
    // The way back is by the socket.
    let text = crate::configuration(bench.postgres.folder(), &[]);
    std::fs::write(&bench.config, text).expect("write");
    let mut client = tokio_postgres::Config::new();
    client.host_path(bench.postgres.folder()).port(bench.proxy.port()).user("boss").dbname("manatee");
    let (boss, connection) = client.password("boss's").connect(NoTls).await.expect("by the socket");
    tokio::spawn(connection);
    boss.batch_execute("RELOAD").await.expect("reload");
    assert!(bench.client("alice", "secret").connect(NoTls).await.is_ok());
}

/// Status and body of a GET.
pub(crate) async fn get(bench: &Bench, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(bench.http).await.expect("connect");
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.expect("request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("status");
    (status, body.to_owned())
}

async fn http(bench: &Bench) {
    for (path, wanted) in [
        ("/healthz", 200),
        ("/readyz", 200),
        ("/readyz/primary", 200),
        ("/readyz/standby", 503),
        ("/topology", 200),
        ("/topology?shard=test", 200),
        ("/topology?shard=other", 404),
        ("/readyz?shard=other", 404),
        ("/status", 200),
        ("/", 200),
    ] {
        assert_eq!(get(bench, path).await.0, wanted, "{path}");
    }
    let topology: serde_json::Value = serde_json::from_str(&get(bench, "/topology").await.1).expect("JSON");
    assert_eq!((&topology["shard"], &topology["generation"]), (&"test".into(), &1.into()));
    let status: serde_json::Value = serde_json::from_str(&get(bench, "/status").await.1).expect("JSON");
    assert_eq!(status["shards"][0]["shard"], "test");
    // What Prometheus' own tool thinks of it.
    let (_, metrics) = get(bench, "/metrics").await;
    assert!(metrics.contains("manatee_proxy_query_seconds_bucket{shard=\"test\",route=\"primary\",le=\"+Inf\"}"));
    assert!(metrics.contains("# TYPE manatee_proxy_standby_fit gauge\n"), "of no standby while there is none");
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("promtool");
    promtool.stdin.take().expect("stdin").write_all(metrics.as_bytes()).expect("write");
    let output = promtool.wait_with_output().expect("promtool");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

async fn events(bench: &Bench) {
    let mut stream = TcpStream::connect(bench.http).await.expect("connect");
    stream.write_all(b"GET /topology HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n").await.expect("request");
    let mut lines = BufReader::new(stream).lines();
    let mut data = async || loop {
        let line =
            tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("in time").expect("read").expect("a line");
        if let Some(data) = line.strip_prefix("data: ") {
            return data.to_owned();
        }
    };
    let url = format!("tcp://postgres@127.0.0.1:{}/postgres", bench.postgres.port);
    assert_eq!(data().await, format!("[{url:?}]"));
    // A sync joins, and that is told at once.
    let other: manatee_shared::cluster::Peer =
        manatee_shared::cluster::Peer::new("127.0.0.9:5432:1".parse().expect("id"), "two");
    bench.state.send_modify(|state| {
        if let Some(state) = state {
            state.version += 1;
            state.sync_peer = Some(other.clone());
        }
    });
    assert_eq!(data().await, format!("[{url:?},\"tcp://postgres@127.0.0.9:5432/postgres\"]"));
    bench.state.send_modify(|state| {
        if let Some(state) = state {
            state.version += 1;
            state.sync_peer = None;
        }
    });
    assert_eq!(data().await, format!("[{url:?}]"));
}

/// A read-only address of a shard without a standby: a clear answer, long before a lost primary would be
/// given up, and the connection stays.
async fn read_only(bench: &Bench) {
    let hold = "timeout = \"1h\"\nstandby_timeout = \"200ms\"";
    configure(bench, &[("hold", hold.to_owned())]).await;
    let any = Address::Tcp("127.0.0.1:0".parse().expect("address"));
    let listener = Listener::bind("listen.read_only", any).expect("bind").open(None).expect("open");
    let port = listener.local_addr().expect("address").port();
    tokio::spawn(accept(listener, Access::ReadOnly.into(), bench.shared.clone(), bench.workers.clone()));
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(port).user("alice").password("secret").dbname("postgres");
    let (client, connection) = config.connect(NoTls).await.expect("login");
    tokio::spawn(connection);
    for _ in 0..2 {
        let answer = tokio::time::timeout(PATIENCE, client.simple_query("SELECT 1")).await.expect("in time");
        let error = answer.expect_err("no standby");
        let error = error.as_db_error().expect("told");
        assert_eq!((error.severity(), error.code().code()), ("ERROR", "57P03"));
        assert!(error.message().starts_with("no standby fit to read from"), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("read-write address")), "{error:?}");
    }
    configure(bench, &[]).await;
}
