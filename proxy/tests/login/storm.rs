//! Many logins at once: how many a thread does, and that each gets in.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use manatee_proxy::wire::scram::{Channel, ClientExchange, Credential, Key};
use manatee_proxy::wire::startup::{encode_password, encode_sasl_initial, encode_startup};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

use crate::Bench;
use crate::console::connect;
use crate::rules::configure;

const PATIENCE: Duration = Duration::from_secs(20);
/// Logins, and how many of them at once.
const LOGINS: usize = 2000;
const AT_ONCE: usize = 100;

/// One message; its tag and body.
pub(crate) async fn message(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let tag = stream.read_u8().await.expect("tag");
    let length = stream.read_u32().await.expect("length") as usize;
    let mut body = vec![0; length - 4];
    stream.read_exact(&mut body).await.expect("body");
    (tag, body)
}

/// A client that has logged in, and its key for cancels.
pub(crate) struct Session {
    pub(crate) stream: TcpStream,
    pub(crate) key: (u32, Vec<u8>),
}

/// A login with keys that were derived before: the client's own hashing is not what is measured.
pub(crate) async fn login(bench: &Bench, keys: &(Key, Key)) -> Session {
    login_with(bench, keys, 0).await
}

/// The same with a minor version of the protocol.
pub(crate) async fn login_with(bench: &Bench, keys: &(Key, Key), minor: u8) -> Session {
    let mut stream = prove(bench, "alice", keys, minor).await;
    let mut key = (0, Vec::new());
    loop {
        let (tag, body) = message(&mut stream).await;
        assert_ne!(tag, b'E', "{}", String::from_utf8_lossy(&body));
        match tag {
            b'K' => key = (u32::from_be_bytes(body[..4].try_into().expect("four")), body[4..].to_vec()),
            b'Z' => return Session { stream, key },
            _ => {}
        }
    }
}

/// A login up to the client's proof.
async fn prove(bench: &Bench, user: &str, keys: &(Key, Key), minor: u8) -> TcpStream {
    let mut stream = TcpStream::connect(bench.proxy).await.expect("connect");
    stream.set_nodelay(true).expect("nodelay");
    let mut out = BytesMut::new();
    encode_startup(&mut out, user, "postgres", &[]);
    out[7] = minor;
    stream.write_all(&out).await.expect("startup");
    let (exchange, first) = ClientExchange::begin("n0nc3", Channel::Unbound);
    assert_eq!(message(&mut stream).await.0, b'R');
    out.clear();
    encode_sasl_initial(&mut out, "SCRAM-SHA-256", first.as_bytes());
    stream.write_all(&out).await.expect("first");
    let (tag, body) = message(&mut stream).await;
    assert_eq!(tag, b'R', "{}", String::from_utf8_lossy(&body));
    let credential = Credential::Keys { client_key: &keys.0, server_key: &keys.1 };
    let (_, last) = exchange.prove(&body[4..], &credential).expect("proof");
    out.clear();
    encode_password(&mut out, last.as_bytes());
    stream.write_all(&out).await.expect("last");
    stream
}

/// The time that a refusal takes does not tell who exists. Both are measured in turn, and compared by
/// what is usual for them.
async fn strangers(bench: &Bench) {
    const ROUNDS: usize = 200;
    configure(bench, &[("auth", "failure_burst = 0".to_owned())]).await;
    let (client_key, server_key) = keys(bench).await;
    let wrong = (server_key, client_key);
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (user, times) in ["alice", "nobody"].iter().zip(&mut times) {
            let begun = Instant::now();
            let mut stream = prove(bench, user, &wrong, 0).await;
            assert_eq!(message(&mut stream).await.0, b'E');
            times.push(begun.elapsed());
        }
    }
    let [known, unknown] = times.map(|mut times| {
        times.sort();
        times[ROUNDS / 2].as_secs_f64()
    });
    println!("a refusal takes {:.2} ms, and {:.2} ms if there is no such role", known * 1e3, unknown * 1e3);
    assert!((0.67..1.5).contains(&(known / unknown)), "{known} s, {unknown} s");
    configure(bench, &[]).await;
}

/// The keys that belong to the role's present verifier.
pub(crate) async fn keys(bench: &Bench) -> (Key, Key) {
    let admin = bench.postgres.admin().await.expect("admin");
    let row = admin.query_one("SELECT rolpassword FROM pg_authid WHERE rolname = 'alice'", &[]).await.expect("role");
    let verifier: &str = row.get(0);
    manatee_proxy::wire::scram::keys_of(verifier, "secret").expect("a verifier")
}

pub(crate) async fn storm(bench: &Bench) {
    rate(bench).await;
    everybody_at_once(bench).await;
    silent_flood(bench).await;
    strangers(bench).await;
}

/// After a restart all clients come back at once: all get in, and the server is not overloaded.
async fn everybody_at_once(bench: &Bench) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("as many files as may be");
    // Both ends of each are in this process.
    let clients = std::env::var("MANATEE_STORM_CLIENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(2000);
    assert!(hard.max(soft) > clients as u64 * 2 + 500, "needs twice as many files as clients");
    let keys = keys(bench).await;
    let begun = Instant::now();
    let sessions = futures_util::future::join_all((0..clients).map(|_| login(bench, &keys))).await;
    let took = begun.elapsed().as_secs_f64();
    let boss = connect(bench, "boss", "boss's", "manatee").await;
    let servers = boss.query("SHOW SERVERS", &[]).await.expect("servers").len();
    println!("{clients} clients at once: all in after {took:.1} s, {servers} server connections");
    assert!(servers <= 40, "{servers} server connections: more than pool.size");
    let used = boss.query("SHOW LISTS", &[]).await.expect("lists");
    let used = used.iter().find(|row| row.get::<_, &str>(0) == "used_clients").expect("used_clients");
    assert!(usize::try_from(used.get::<_, i32>(1)).expect("count") >= sessions.len());
}

/// Connections that say nothing, more than may log in at once, keep nobody out.
async fn silent_flood(bench: &Bench) {
    let settings = [("auth", "max_logins = 50".to_owned()), ("pool", "max_clients = 5".to_owned())];
    configure(bench, &settings).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        let mut stream = TcpStream::connect(bench.proxy).await.expect("connect");
        // Half a startup message.
        stream.write_all(&[0, 0, 0, 50, 0, 3]).await.expect("write");
        silent.push(stream);
    }
    // Nor do they count as clients.
    for _ in 0..20 {
        until_there_is_room(bench).await;
    }
    // The oldest had to leave.
    let end = tokio::time::timeout(PATIENCE, silent[0].read(&mut [0; 1])).await;
    assert!(matches!(end.expect("in time"), Ok(0) | Err(_)));
    configure(bench, &[]).await;
}

/// A client comes and goes; the one before may not have gone yet.
async fn until_there_is_room(bench: &Bench) {
    let begun = Instant::now();
    while let Err(error) = bench.client("alice", "secret").connect(NoTls).await {
        assert_eq!(error.code().map(SqlState::code), Some("53300"), "{error}");
        assert!(begun.elapsed() < PATIENCE, "nobody gets in");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn rate(bench: &Bench) {
    let keys = Arc::new(keys(bench).await);
    login(bench, &keys).await;
    let begun = Instant::now();
    let one = async |series: usize| {
        for _ in (series..LOGINS).step_by(AT_ONCE) {
            login(bench, &keys).await;
        }
    };
    futures_util::future::join_all((0..AT_ONCE).map(one)).await;
    let rate = LOGINS as f64 / begun.elapsed().as_secs_f64();
    println!("{LOGINS} SCRAM logins, {AT_ONCE} at a time, one session thread: {rate:.0} a second");
}
