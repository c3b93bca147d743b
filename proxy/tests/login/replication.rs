//! PostgreSQL's own programs that replicate, through the proxy: a base backup, a WAL stream, logical decoding.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use tokio_postgres::NoTls;

use crate::postgres::{self, Postgres};
use crate::{Bench, one_node};

const PATIENCE: Duration = Duration::from_secs(60);

/// A program of PostgreSQL's with its connection options.
fn program(bench: &Bench, name: &str, user: &str) -> Command {
    let mut command = postgres::program(name);
    command.args(["-h", "127.0.0.1", "-U", user, "-p", &bench.proxy.port().to_string()]);
    command.env("PGPASSWORD", "secret").env("PGSSLMODE", "disable");
    command
}

fn run(command: &mut Command) -> Output {
    let output = command.output().expect("started");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn ask(bench: &Bench, user: &str, kind: &str, sql: &str) -> Output {
    let conninfo = format!(
        "host=127.0.0.1 port={} user={user} dbname=postgres replication={kind} sslmode=disable",
        bench.proxy.port()
    );
    Command::new("psql").arg(conninfo).args(["-XAtc", sql]).env("PGPASSWORD", "secret").output().expect("psql")
}

pub(crate) async fn replication(bench: &Bench) {
    bench.postgres.run("CREATE ROLE keeper LOGIN REPLICATION PASSWORD 'secret'").await;
    let folder = bench.postgres.folder();

    // Walsenders answer; who may not replicate is told so in the server's words.
    let known = ask(bench, "keeper", "true", "IDENTIFY_SYSTEM");
    assert!(String::from_utf8_lossy(&known.stdout).contains("|1|"), "{known:?}");
    let logical = ask(bench, "keeper", "database", "SELECT current_database()");
    assert_eq!(String::from_utf8_lossy(&logical.stdout).trim(), "postgres", "{logical:?}");
    let refused = ask(bench, "alice", "true", "IDENTIFY_SYSTEM");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("walsender"), "{refused:?}");

    let copy = folder.join("copy");
    run(program(bench, "pg_basebackup", "keeper").args(["-c", "fast", "-X", "stream", "-D"]).arg(&copy));
    run(postgres::program("pg_verifybackup").arg(&copy));

    let decode = || {
        let mut command = program(bench, "pg_recvlogical", "keeper");
        command.args(["-d", "postgres", "-S", "changes"]);
        command
    };
    run(decode().args(["--create-slot", "-P", "test_decoding"]));
    bench.postgres.run("CREATE TABLE decoded AS SELECT 'a row' AS text").await;
    let admin = bench.postgres.admin().await.expect("connection");
    let end: String = admin.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.expect("position").get(0);
    let output = run(decode().args(["--start", "-n", "-f", "-", "--endpos", &end]));
    assert!(String::from_utf8_lossy(&output.stdout).contains("a row"), "{output:?}");
    run(decode().arg("--drop-slot"));
    names_of_peers(bench).await;
    refused_by_the_servers_rules(bench).await;
    // The others still get in.
    assert!(bench.client("alice", "secret").connect(NoTls).await.is_ok());

    when_the_primary_is_another(bench, folder).await;
}

/// A stream does not go on from a node that is no longer the primary.
async fn when_the_primary_is_another(bench: &Bench, folder: &Path) {
    let wal = folder.join("wal");
    std::fs::create_dir(&wal).expect("folder");
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("postgres").expect("users").expect("user postgres");
        nix::unistd::chown(&wal, Some(user.uid), Some(user.gid)).expect("chown");
    }
    let mut receive = program(bench, "pg_receivewal", "keeper");
    let mut receiving = receive.args(["-n", "-D"]).arg(&wal).spawn().expect("pg_receivewal");
    let admin = bench.postgres.admin().await.expect("connection");
    let streams = "SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'";
    let begun = Instant::now();
    while admin.query_opt(streams, &[]).await.expect("asked").is_none() {
        assert!(begun.elapsed() < PATIENCE, "it does not stream");
    }
    let other = Postgres::start().await;
    other.run(crate::ROLES).await;
    let mut state = one_node(other.port);
    (state.version, state.generation) = (2, 2);
    bench.state.send_replace(Some(state));
    let begun = Instant::now();
    while receiving.try_wait().expect("waited").is_none() {
        assert!(begun.elapsed() < PATIENCE, "it goes on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A rule that is missing is told at once, in the server's words: nothing is waited for.
async fn refused_by_the_servers_rules(bench: &Bench) {
    let file = bench.postgres.folder().join("data/pg_hba.conf");
    let before = std::fs::read_to_string(&file).expect("rules");
    std::fs::write(&file, before.replace("all,replication all", "all all")).expect("write");
    bench.postgres.run("SELECT pg_reload_conf()").await;
    let begun = Instant::now();
    loop {
        let answer = ask(bench, "keeper", "true", "IDENTIFY_SYSTEM");
        if !answer.status.success() {
            let said = String::from_utf8_lossy(&answer.stderr).into_owned();
            assert!(said.contains("no pg_hba.conf entry for replication connection"), "{said}");
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "the rules do not count");
    }
    std::fs::write(&file, before).expect("write");
    bench.postgres.run("SELECT pg_reload_conf()").await;
}

/// A replication client under a peer's name would be counted as the sync.
async fn names_of_peers(bench: &Bench) {
    const NAME: &str = "127.0.0.1:5432:12345";
    let psql = |more: &str, commands: &[&str]| {
        let conninfo = format!(
            "host=127.0.0.1 port={} user=keeper dbname=postgres replication=database sslmode=disable {more}",
            bench.proxy.port()
        );
        let mut psql = Command::new("psql");
        psql.arg(conninfo).arg("-XAt").env("PGPASSWORD", "secret");
        for command in commands {
            psql.args(["-c", command]);
        }
        let output = psql.output().expect("psql");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let refused = |more: &str, commands: &[&str]| {
        let (success, said) = psql(more, commands);
        assert!(!success && said.contains("is reserved for a peer"), "{more} {commands:?}: {said}");
    };
    let identify = "IDENTIFY_SYSTEM";
    refused(&format!("application_name={NAME}"), &[identify]);
    refused(&format!("application_name='' options='-c application_name={NAME}'"), &[identify]);
    // In the session, in any way; it is noticed before the next command.
    refused("", &[&format!("SET application_name = '{NAME}'"), identify]);
    refused("", &["SELECT set_config('application_name', '127.0.0.1' || ':5432:12345', false)", identify]);
    bench.postgres.run(&format!("ALTER ROLE keeper SET application_name = '{NAME}'")).await;
    refused("application_name=''", &[identify]);
    bench.postgres.run("ALTER ROLE keeper RESET application_name").await;
    assert!(psql("application_name=mine", &["SET application_name = 'another'", identify]).0);
    // Who does not replicate is called as they like.
    let mut client = bench.client("keeper", "secret");
    assert!(client.application_name(NAME).connect(NoTls).await.is_ok());
}
