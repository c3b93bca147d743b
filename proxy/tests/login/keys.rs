//! Passwords that change while clients are logged in: they go on, as with PostgreSQL, and never as
//! somebody else.

use std::time::{Duration, Instant};

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, NoTls};

use crate::Bench;
use crate::console::connect;

const PATIENCE: Duration = Duration::from_secs(30);

async fn login(bench: &Bench, user: &str, password: &str) -> Client {
    connect(bench, user, password, "postgres").await
}

/// From now on every server connection has to be opened anew.
async fn close_servers(bench: &Bench) {
    let boss = connect(bench, "boss", "boss's", "manatee").await;
    boss.batch_execute("RECONNECT postgres").await.expect("reconnect");
}

async fn role(client: &Client) -> Result<u32, Error> {
    let row = client.query_one("SELECT oid FROM pg_roles WHERE rolname = session_user", &[]);
    tokio::time::timeout(PATIENCE, row).await.expect("an answer in time").map(|row| row.get(0))
}

fn code(error: &Error) -> &str {
    error.code().map_or("none", SqlState::code)
}

pub(crate) async fn keys(bench: &Bench) {
    bench.postgres.run("CREATE ROLE turner LOGIN PASSWORD 'one'").await;
    whoever_is_logged_in_goes_on(bench).await;
    connections_from_before_are_shared(bench).await;
    another_role_of_that_name(bench).await;
    another_kind_of_password(bench).await;
}

async fn whoever_is_logged_in_goes_on(bench: &Bench) {
    let before = login(bench, "turner", "one").await;
    bench.postgres.run("ALTER ROLE turner PASSWORD 'two'").await;
    let after = login(bench, "turner", "two").await;
    close_servers(bench).await;
    role(&before).await.expect("with the key that was proved last");
    close_servers(bench).await;
    role(&after).await.expect("with its own");
    // The way back counts as much.
    bench.postgres.run("ALTER ROLE turner PASSWORD 'one'").await;
    login(bench, "turner", "one").await;
    close_servers(bench).await;
    for client in [&before, &after] {
        role(client).await.expect("with the key that was proved last");
    }
}

/// Nobody has proved the new password yet: what is open serves all.
async fn connections_from_before_are_shared(bench: &Bench) {
    let (first, second) = (login(bench, "turner", "one").await, login(bench, "turner", "one").await);
    close_servers(bench).await;
    first.batch_execute("BEGIN; SELECT 1").await.expect("the only server connection");
    bench.postgres.run("ALTER ROLE turner PASSWORD 'two'").await;
    {
        let waiting = role(&second);
        tokio::pin!(waiting);
        // Longer than one attempt's pause.
        assert!(tokio::time::timeout(Duration::from_millis(1500), &mut waiting).await.is_err(), "nothing is free");
        first.batch_execute("COMMIT").await.expect("commit");
        waiting.await.expect("the other's server connection");
    }
    // With none left there is nothing to be done; a client that knows the password is to come.
    close_servers(bench).await;
    assert_eq!(code(&role(&second).await.expect_err("no key")), "28P01");
    let begun = Instant::now();
    while !second.is_closed() {
        assert!(begun.elapsed() < PATIENCE, "it must end, so that its pool opens another");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    login(bench, "turner", "two").await;
    role(&first).await.expect("it was idle meanwhile and has noticed nothing");
}

/// A role that was dropped and made again is another: no key and no server connection is shared.
async fn another_role_of_that_name(bench: &Bench) {
    let old = login(bench, "turner", "two").await;
    bench.postgres.run("DROP ROLE turner; CREATE ROLE turner LOGIN PASSWORD 'two'").await;
    close_servers(bench).await;
    let new = login(bench, "turner", "two").await;
    role(&new).await.expect("the new one");
    assert_eq!(code(&role(&old).await.expect_err("nobody's any more")), "28P01");
    role(&new).await.expect("the new one");
}

/// From md5 to SCRAM: the old hash is of no use for a proof of the new kind.
async fn another_kind_of_password(bench: &Bench) {
    let old = login(bench, "oldtimer", "secret").await;
    bench.postgres.run("SET password_encryption = 'scram-sha-256'; ALTER ROLE oldtimer PASSWORD 'new'").await;
    close_servers(bench).await;
    assert_eq!(code(&role(&old).await.expect_err("no key")), "28P01");
    let (old, _driver) = {
        bench.postgres.run("SET password_encryption = md5; ALTER ROLE oldtimer PASSWORD 'secret'").await;
        let (client, connection) = bench.client("oldtimer", "secret").connect(NoTls).await.expect("login");
        (client, tokio::spawn(connection))
    };
    bench.postgres.run("SET password_encryption = 'scram-sha-256'; ALTER ROLE oldtimer PASSWORD 'new'").await;
    let new = login(bench, "oldtimer", "new").await;
    close_servers(bench).await;
    role(&old).await.expect("with the key that was proved last");
    role(&new).await.expect("with its own");
    bench.postgres.run("SET password_encryption = md5; ALTER ROLE oldtimer PASSWORD 'secret'").await;
}
