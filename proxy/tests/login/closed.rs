//! The database `postgres` lets nobody in: the proxy's own sessions go to another one.

use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};

use crate::Bench;

const PATIENCE: Duration = Duration::from_secs(30);

/// As superuser, over the socket.
async fn admin(bench: &Bench, database: &str) -> Client {
    let mut config = tokio_postgres::Config::new();
    config.host_path(bench.postgres.folder()).port(bench.postgres.port).user("postgres").dbname(database);
    let (client, connection) = config.connect(NoTls).await.expect(database);
    tokio::spawn(connection);
    client
}

pub(crate) async fn closed(bench: &Bench) {
    bench.postgres.run("CREATE DATABASE app").await;
    // As the primary's sitter makes them there.
    let roles =
        crate::ROLES.split(';').filter(|statement| statement.contains("manatee.") || statement.contains("SCHEMA"));
    let in_template = admin(bench, "template1").await;
    in_template.batch_execute(&roles.collect::<Vec<_>>().join(";")).await.expect("the look-up of roles");
    drop(in_template);
    let app = admin(bench, "app").await;
    app.batch_execute("ALTER DATABASE postgres ALLOW_CONNECTIONS false").await.expect("alter");
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'manatee_proxy'";
    app.query(end, &[]).await.expect("end");
    let begun = Instant::now();
    loop {
        let login = bench.client("alice", "secret").dbname("app").connect(NoTls).await;
        let served = match login {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                client.query_one("SELECT 1", &[]).await.map(drop)
            }
            Err(error) => Err(error),
        };
        match served {
            Ok(()) => break,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
        }
    }
    assert_eq!(bench.refused(&bench.client("alice", "wrong")).await.0, "28P01");
    // None of these sessions stays in the template.
    app.batch_execute("CREATE DATABASE another").await.expect("a database is made of the template");
    app.batch_execute("ALTER DATABASE postgres ALLOW_CONNECTIONS true").await.expect("alter");
}
