//! Rules, certificates, limits: changed while serving, by RELOAD.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

use crate::Bench;
use crate::console::connect;

/// Rewrites the configuration's `section` keys and has the proxy read it.
pub(crate) async fn configure(bench: &Bench, extra: &[(&str, String)]) {
    let boss = connect(bench, "boss", "boss's", "manatee").await;
    let text = crate::configuration(bench.postgres.folder(), extra);
    std::fs::write(&bench.config, text).expect("write");
    boss.batch_execute("RELOAD").await.expect("reload");
}

/// A certificate for `name`, signed by our own authority; and its key.
pub(crate) fn sign(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let path = |suffix: &str| folder.join(format!("{name}.{suffix}"));
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).current_dir(folder).output().expect("openssl");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    if !folder.join("ca.crt").exists() {
        let ca = ["req", "-x509", "-days", "2", "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.crt"];
        openssl(&[&ca[..], &new_key].concat());
    }
    let (subject, key, request) = (format!("/CN={name}"), format!("{name}.key"), format!("{name}.csr"));
    openssl(&[&["req", "-subj", &subject, "-keyout", &key, "-out", &request][..], &new_key].concat());
    let certificate = format!("{name}.crt");
    let sign = ["x509", "-req", "-days", "2", "-in", &request, "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"];
    let kind = if name.parse::<std::net::IpAddr>().is_ok() { "IP" } else { "DNS" };
    std::fs::write(folder.join("san"), format!("subjectAltName={kind}:{name}\n")).expect("write");
    openssl(&[&sign[..], &["-extfile", "san", "-out", &certificate]].concat());
    (path("crt"), path("key"))
}

/// Report of psql on a connection; an error if it was refused.
fn psql(bench: &Bench, user: &str, more: &str) -> Result<String, String> {
    let conninfo =
        format!("host=localhost hostaddr=127.0.0.1 port={} user={user} dbname=postgres {more}", bench.proxy.port());
    let output = Command::new("psql")
        .arg(conninfo)
        .args(["-XAt", "-c", "SELECT current_user"])
        .env("PGPASSWORD", "secret")
        .output()
        .expect("psql");
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

pub(crate) async fn rules(bench: &Bench) {
    channel_binding(bench);
    from_where_and_how(bench).await;
    certificates(bench).await;
    limits(bench).await;
    guessing(bench).await;
    configure(bench, &[]).await;
}

fn channel_binding(bench: &Bench) {
    for binding in ["require", "prefer", "disable"] {
        let more = format!("sslmode=require channel_binding={binding}");
        assert_eq!(psql(bench, "alice", &more).as_deref(), Ok("alice"), "{binding}");
    }
    assert!(psql(bench, "alice", "sslmode=disable channel_binding=require").is_err());
}

fn file(bench: &Bench, name: &str, text: &str) -> String {
    let path = bench.postgres.folder().join(name);
    std::fs::write(&path, text).expect("write");
    format!("{path:?}")
}

async fn from_where_and_how(bench: &Bench) {
    let hba = file(
        bench,
        "hba",
        "host manatee boss all scram-sha-256\n\
         host all watcher all reject\n\
         host all forever 10.0.0.0/8 md5\n\
         hostssl all alice all password\n\
         host all oldtimer,alice all scram-sha-256\n",
    );
    configure(bench, &[("auth", format!("hba_file = {hba}"))]).await;
    let (code, message) = bench.refused(&bench.client("watcher", "secret")).await;
    assert_eq!(code, "28000");
    assert!(
        message.starts_with("pg_hba.conf rejects connection for host \"127.0.0.1\", user \"watcher\""),
        "{message}"
    );
    let (code, message) = bench.refused(&bench.client("forever", "secret")).await;
    assert!(code == "28000" && message.starts_with("no pg_hba.conf entry"), "{message}");
    assert_eq!(bench.refused(&bench.client("oldtimer", "secret")).await.0, "28P01", "it has an md5 hash only");
    assert!(bench.client("alice", "secret").connect(NoTls).await.is_ok());
    assert_eq!(psql(bench, "alice", "sslmode=require").as_deref(), Ok("alice"), "in clear, within TLS");
    assert!(psql(bench, "alice", "sslmode=require password=wrong").is_err());
    // A mistake in the file changes nothing.
    file(bench, "hba", "host all all all nonsense\n");
    let boss = connect(bench, "boss", "boss's", "manatee").await;
    let error = boss.batch_execute("RELOAD").await.expect_err("a mistake");
    assert!(error.as_db_error().expect("told").message().contains("hba:1: `nonsense` is no method"), "{error:?}");
    assert_eq!(bench.refused(&bench.client("watcher", "secret")).await.0, "28000");
}

async fn certificates(bench: &Bench) {
    let folder = bench.postgres.folder();
    let (carol, carol_key) = sign(folder, "carol");
    let (web, web_key) = sign(folder, "web");
    let hba = file(
        bench,
        "hba",
        "host manatee boss all scram-sha-256\n\
         hostssl all carol all cert\n\
         hostssl all alice all scram-sha-256 clientcert=verify-full map=machines\n",
    );
    let ident = file(bench, "ident", "machines web alice\n");
    let ca = folder.join("ca.crt");
    configure(
        bench,
        &[("auth", format!("hba_file = {hba}\nident_file = {ident}")), ("tls", format!("client_ca_file = {ca:?}"))],
    )
    .await;
    let with = |certificate: &Path, key: &Path| {
        format!("sslmode=require sslcert={} sslkey={}", certificate.display(), key.display())
    };
    assert_eq!(psql(bench, "carol", &with(&carol, &carol_key)).as_deref(), Ok("carol"));
    let error = psql(bench, "carol", &with(&web, &web_key)).expect_err("somebody else's certificate");
    assert!(error.contains("certificate authentication failed for user \"carol\""), "{error}");
    let error = psql(bench, "carol", "sslmode=require sslcert=none").expect_err("no certificate");
    assert!(error.contains("requires a valid client certificate"), "{error}");
    assert_eq!(psql(bench, "alice", &with(&web, &web_key)).as_deref(), Ok("alice"), "by the map");
    assert!(psql(bench, "alice", &with(&carol, &carol_key)).is_err());
    assert!(psql(bench, "alice", &format!("{} password=wrong", with(&web, &web_key))).is_err());
    // One of another authority does not even get that far.
    let own = format!("sslmode=require sslcert={0} sslkey={1}", bench.certificate.display(), bench.key.display());
    assert!(psql(bench, "carol", &own).is_err());
}

/// Connects as soon as those who left before are gone for good.
async fn connect_soon(bench: &Bench, user: &str) -> tokio_postgres::Client {
    let begun = Instant::now();
    loop {
        match bench.client(user, "secret").connect(NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                return client;
            }
            Err(error) => assert!(begun.elapsed().as_secs() < 20, "the places must be given back: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn limits(bench: &Bench) {
    configure(bench, &[("pool", "max_clients_per_user = 2".to_owned())]).await;
    bench.postgres.run("ALTER ROLE alice CONNECTION LIMIT 1").await;
    let first = connect_soon(bench, "alice").await;
    let (code, message) = bench.refused(&bench.client("alice", "secret")).await;
    assert_eq!((code.as_str(), message.as_str()), ("53300", "too many connections for role \"alice\""));
    let _others =
        [connect(bench, "forever", "secret", "postgres").await, connect(bench, "forever", "secret", "postgres").await];
    assert_eq!(bench.refused(&bench.client("forever", "secret")).await.0, "53300");
    drop(first);
    bench.postgres.run("ALTER ROLE alice CONNECTION LIMIT -1").await;
    connect_soon(bench, "alice").await;
}

/// Wrong passwords from an address slow down wrong passwords from there, and nobody else.
async fn guessing(bench: &Bench) {
    let limit = "failure_burst = 3\nfailure_forgiven_after = \"1h\"";
    configure(bench, &[("auth", limit.to_owned())]).await;
    for _ in 0..3 {
        assert_eq!(bench.refused(&bench.client("alice", "wrong")).await.0, "28P01");
    }
    let begun = Instant::now();
    assert_eq!(bench.refused(&bench.client("alice", "wrong")).await.0, "28P01");
    assert!(begun.elapsed() > Duration::from_secs(1), "held back");
    // Ten wrong ones a second, and right ones beside them.
    let wrong = async {
        let mut every = tokio::time::interval(Duration::from_millis(100));
        let mut guesses = tokio::task::JoinSet::new();
        loop {
            every.tick().await;
            let client = bench.client("alice", "wrong");
            guesses.spawn(async move { client.connect(NoTls).await.err().expect("refused").code().cloned() });
            while let Some(refused) = guesses.try_join_next() {
                assert_eq!(refused.expect("a guess"), Some(SqlState::INVALID_PASSWORD));
            }
        }
    };
    let right = async {
        for _ in 0..25 {
            let login = bench.client("alice", "secret").connect(NoTls).await;
            assert!(login.is_ok(), "who has the right password gets in: {:?}", login.err());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        () = wrong => {}
        () = right => {}
    }
}
