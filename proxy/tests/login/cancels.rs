//! Cancels: at any proxy of the fleet, and never for somebody else's query.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use manatee_proxy::wire::frontend::put_query;
use manatee_proxy::wire::startup::encode_cancel;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::rules::configure;
use crate::storm::{Session, keys, login, login_with, message};
use crate::{Bench, start_proxy};

const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn cancels(bench: &Bench) {
    at_any_proxy(bench).await;
    long_keys(bench).await;
    never_somebody_elses(bench).await;
}

/// Sends a cancel and waits until it was taken.
async fn cancel(proxy: std::net::SocketAddr, session: &(u32, Vec<u8>)) {
    let mut stream = TcpStream::connect(proxy).await.expect("connect");
    let mut request = BytesMut::new();
    encode_cancel(&mut request, session.0, &session.1);
    stream.write_all(&request).await.expect("cancel");
    let _ = stream.read(&mut [0; 1]).await;
}

/// Runs a query; the SQLSTATE if it failed.
async fn run(stream: &mut TcpStream, sql: &str) -> Option<String> {
    let mut query = BytesMut::new();
    put_query(&mut query, sql.as_bytes());
    stream.write_all(&query).await.expect("query");
    let mut code = None;
    loop {
        let (tag, body) = message(stream).await;
        match tag {
            b'E' => {
                let field = body.split(|byte| *byte == 0).find_map(|field| field.strip_prefix(b"C"));
                code = field.map(|code| String::from_utf8_lossy(code).into_owned());
            }
            b'Z' => return code,
            _ => {}
        }
    }
}

async fn asleep(bench: &Bench) -> bool {
    let admin = bench.postgres.admin().await.expect("admin");
    let question = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND state = 'active' \
                    AND pid <> pg_backend_pid()";
    admin.query_one(question, &[]).await.expect("activity").get::<_, i64>(0) > 0
}

async fn expect_cancelled(bench: &Bench, session: Session, proxy: std::net::SocketAddr) {
    let Session { mut stream, key } = session;
    let sleeping = tokio::spawn(async move { run(&mut stream, "SELECT pg_sleep(60)").await });
    let begun = std::time::Instant::now();
    while !asleep(bench).await {
        assert!(begun.elapsed() < PATIENCE, "the query must run");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cancel(proxy, &key).await;
    let code = tokio::time::timeout(PATIENCE, sleeping).await.expect("cancelled in time").expect("no panic");
    assert_eq!(code.as_deref(), Some("57014"));
}

async fn at_any_proxy(bench: &Bench) {
    let folder = bench.postgres.folder();
    let text =
        crate::configuration(folder, &[("fleet", format!("number = 2\n[fleet.peers]\n1 = \"{}\"", bench.proxy))]);
    let config = folder.join("two.toml");
    std::fs::write(&config, text).expect("write");
    let other = start_proxy(bench.postgres.port, &config, None).await;
    let keys = keys(bench).await;
    // A wrong key does nothing, wherever it arrives.
    let session = login(bench, &keys).await;
    let mut wrong = session.key.clone();
    wrong.1[0] ^= 1;
    cancel(bench.proxy, &wrong).await;
    cancel(other.proxy, &wrong).await;
    expect_cancelled(bench, session, bench.proxy).await;
    let session = login(bench, &keys).await;
    expect_cancelled(bench, session, other.proxy).await;
    other.stop.cancel();
}

async fn long_keys(bench: &Bench) {
    let keys = keys(bench).await;
    let session = login_with(bench, &keys, 2).await;
    assert_eq!(session.key.1.len(), 32, "as long as protocol 3.2 allows for 256 bits");
    expect_cancelled(bench, session, bench.proxy).await;
    assert_eq!(login(bench, &keys).await.key.1.len(), 4);
}

/// Two clients share one server; the cancels of one, sent without end, never hit the other.
async fn never_somebody_elses(bench: &Bench) {
    configure(bench, &[("pool", "size = 1".to_owned())]).await;
    let keys = keys(bench).await;
    let (target, other) = (login(bench, &keys).await, login(bench, &keys).await);
    let (proxy, key) = (bench.proxy, target.key.clone());
    let stop = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicUsize::new(0));
    let sending: Vec<_> = (0..4)
        .map(|_| {
            let (stop, sent, key) = (stop.clone(), sent.clone(), key.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    cancel(proxy, &key).await;
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let (mut target, mut other) = (target.stream, other.stream);
    let targeted = tokio::spawn(async move {
        let mut hit = 0;
        for _ in 0..300 {
            hit += usize::from(run(&mut target, "SELECT pg_sleep(0.002)").await.is_some());
        }
        hit
    });
    for _ in 0..300 {
        assert_eq!(run(&mut other, "SELECT pg_sleep(0.002)").await, None, "a cancel hit somebody else's query");
    }
    let hit = tokio::time::timeout(PATIENCE, targeted).await.expect("in time").expect("no panic");
    stop.store(true, Ordering::Relaxed);
    for task in sending {
        task.await.expect("no panic");
    }
    println!("{} cancels, {hit} of 300 queries cancelled, none of the other client's", sent.load(Ordering::Relaxed));
    configure(bench, &[]).await;
}
