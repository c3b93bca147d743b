//! Another password for the proxy's own role, while it serves: with one that was announced nothing is noticed, with
//! one that was not the refusal is shown, and a reload is the end of it.

use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};

use crate::Bench;
use crate::console::connect;
use crate::front::get;

const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn rotation(bench: &Bench) {
    let boss = connect(bench, "boss", "boss's", "manatee").await;
    announced(bench, &boss).await;
    forgotten(bench, &boss).await;
    of_the_users_file(bench, &boss).await;
}

/// Contents of the file, once it has been read.
async fn write_passwords(bench: &Bench, boss: &Client, lines: &str) {
    std::fs::write(bench.postgres.folder().join("proxy.password"), lines).expect("write");
    boss.batch_execute("RELOAD").await.expect("reload");
}

/// As a restart of the servers does: all that was opened before is gone.
async fn end_own_connections(bench: &Bench) {
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'manatee_proxy'";
    bench.postgres.run(end).await;
}

/// Login of the own role according to `SHOW TOPOLOGY`.
async fn own_login(boss: &Client) -> String {
    boss.query_one("SHOW TOPOLOGY", &[]).await.expect("topology").get("own_login")
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Old and new password are in the file while the role's changes: at no moment does a login fail.
async fn announced(bench: &Bench, boss: &Client) {
    write_passwords(bench, boss, "next\nproxy\n").await;
    end_own_connections(bench).await;
    assert!(bench.client("alice", "secret").connect(NoTls).await.is_ok(), "with the one from before");
    bench.postgres.run("ALTER ROLE manatee_proxy PASSWORD 'next'").await;
    end_own_connections(bench).await;
    assert!(bench.client("alice", "secret").connect(NoTls).await.is_ok(), "with the new one");
    write_passwords(bench, boss, "next\n").await;
    end_own_connections(bench).await;
    assert!(bench.client("alice", "secret").connect(NoTls).await.is_ok());
    assert_eq!(own_login(boss).await, "ok");
}

/// The file still has the old one: it is shown wherever an operator looks, and a reload mends it.
async fn forgotten(bench: &Bench, boss: &Client) {
    bench.postgres.run("ALTER ROLE manatee_proxy PASSWORD 'elsewhere'").await;
    end_own_connections(bench).await;
    until("a refusal that is shown", async || own_login(boss).await.starts_with("refused: password auth")).await;
    let (_, ready) = get(bench, "/readyz").await;
    assert!(ready.contains("own role refused by 127.0.0.1:"), "{ready}");
    write_passwords(bench, boss, "elsewhere\n").await;
    until("the new password in use", async || own_login(boss).await == "ok").await;
    until("logins", async || bench.client("alice", "secret").connect(NoTls).await.is_ok()).await;
    assert!(!get(bench, "/readyz").await.1.contains("refused"));
    bench.postgres.run("ALTER ROLE manatee_proxy PASSWORD 'proxy'").await;
    write_passwords(bench, boss, "proxy\n").await;
    until("logins", async || bench.client("alice", "secret").connect(NoTls).await.is_ok()).await;
}

/// Clients of a role of the users' file go on with its new password.
async fn of_the_users_file(bench: &Bench, boss: &Client) {
    let carol = connect(bench, "carol", "carol's", "postgres").await;
    bench.postgres.run("ALTER ROLE carol PASSWORD 'new'").await;
    let users = bench.postgres.folder().join("users");
    let before = std::fs::read_to_string(&users).expect("users");
    std::fs::write(&users, before.replace("carol's", "new")).expect("write");
    boss.batch_execute("RELOAD; RECONNECT postgres").await.expect("reload");
    carol.batch_execute("SELECT 1").await.expect("with the new password");
    std::fs::write(&users, before).expect("write");
    bench.postgres.run("ALTER ROLE carol PASSWORD 'carol''s'").await;
    boss.batch_execute("RELOAD; RECONNECT postgres").await.expect("reload");
}
