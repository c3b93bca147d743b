//! Sessions in front of real PostgreSQL servers: what clients send works as without the proxy.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]

#[path = "session/bound.rs"]
mod bound;
#[path = "session/drivers.rs"]
mod drivers;
#[path = "session/front.rs"]
mod front;
#[path = "session/harness.rs"]
mod harness;
#[path = "session/prepared.rs"]
mod prepared;
#[path = "session/raw.rs"]
mod raw;
#[path = "session/settings.rs"]
mod settings;
#[path = "session/talk.rs"]
mod talk;

use harness::{Postgres, Proxy, Setup, catalog, pgbench};

/// A primary, and a proxy that knows it.
fn alone(setup: Setup) -> (Postgres, Proxy) {
    let primary = Postgres::primary().unwrap();
    let proxy = Proxy::start(setup, None).unwrap();
    proxy.topology(1, primary.node(), Some(&primary), &[]);
    (primary, proxy)
}

#[test]
fn psql_works_as_without_the_proxy() {
    let (primary, proxy) = alone(Setup { size: 2, ..Setup::default() });
    for script in SCRIPTS {
        let through = proxy.psql(script).unwrap();
        let direct = primary.psql(script).unwrap();
        let without_pid = |text: &str| text.split(" with payload").next().unwrap_or_default().to_owned();
        assert_eq!(without_pid(&through), without_pid(&direct), "{script}");
    }
}

/// Each leaves nothing behind.
const SCRIPTS: &[&str] = &[
    "select 1; select 2 as two;",
    "select 1/0; select 'after';",
    "select 1 \\; select 2 \\; select 3;",
    "create table t (a int, b text); insert into t values (1, 'x'); select * from t; drop table t;",
    "create table t (a int); begin; insert into t values (2); rollback; select count(*) from t; drop table t;",
    "begin; select 1/0; select 2; commit; select 'done';",
    "begin; savepoint s; select 1/0; rollback to s; select 3; commit;",
    "create table t (a int, b text);\ncopy t from stdin;\n5\tfive\n6\tsix\n\\.\nselect * from t order by a;\n\
     copy t to stdout; drop table t;",
    "create table t (a int);\ncopy t from stdin;\nnonsense\n1\n\\.\nselect count(*) from t; drop table t;",
    "set work_mem = '5MB'; show work_mem; set application_name = 'abc'; show application_name;",
    "begin; set work_mem = '7MB'; rollback; show work_mem;",
    "begin; set work_mem = '7MB'; commit; show work_mem; reset work_mem; show work_mem;",
    "begin; set work_mem = '7MB'; savepoint s; set work_mem = '8MB'; rollback to s; commit; show work_mem;",
    "begin; set local work_mem = '9MB'; show work_mem; commit; show work_mem;",
    "set work_mem = '5MB' \\; select 1/0; show work_mem;",
    "set app.who = 'me'; select current_setting('app.who');",
    "select set_config('app.who', 'you', false); select current_setting('app.who');",
    "create temp table temporary_one (a int); insert into temporary_one values (1); select * from temporary_one;",
    "prepare p as select $1::int + 1; execute p(1); deallocate p; execute p(1);",
    "select pg_advisory_lock(1); select pg_advisory_unlock(1);",
    "do $$ begin raise notice 'hello'; end $$;",
    "listen c; notify c, 'x'; select 1;",
    "declare c cursor with hold for select 1; fetch c; close c;",
    "set datestyle = 'German'; select date '2026-11-23'; reset datestyle; select date '2026-11-23';",
    "discard all; select 4;",
    "set work_mem = '5MB'; discard all; show work_mem;",
    "set role pg_monitor; select current_user; reset role; select current_user;",
    "select 5 \\gdesc",
    "create sequence s; select nextval('s') \\; select currval('s'); drop sequence s;",
    ";",
    "selec 1;",
    "show application_name;",
    "set client_encoding = 'LATIN1'; show client_encoding;",
    "set statement_timeout = '50ms'; select pg_sleep(1); select 'after';",
];

#[test]
fn pgbench_runs_in_every_mode() {
    // pgbench prepares synchronously, all clients in one thread: with fewer servers than clients it
    // waits for itself, whatever is between it and the server.
    let (primary, proxy) = alone(Setup { size: 16, ..Setup::default() });
    pgbench(primary.port, &["-i", "-s", "1", "-q"]).unwrap();
    for mode in ["simple", "extended", "prepared"] {
        for kind in ["-S", "-N"] {
            let report = proxy.pgbench(&["-n", "-c", "16", "-T", "2", "-M", mode, kind]).unwrap();
            assert!(!report.contains("ERROR") && !report.contains("aborted"), "{report}");
            let tps = report.lines().find(|line| line.starts_with("tps")).unwrap_or_default();
            println!("{mode} {kind}: {tps}");
        }
    }
}

#[test]
fn drivers_work_with_fewer_servers_than_clients() {
    let (_primary, proxy) = alone(Setup { size: 2, ..Setup::default() });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        drivers::statements_follow_their_client(&proxy).await;
        drivers::errors_stay_where_they_are(&proxy).await;
        drivers::portals_and_transactions(&proxy).await;
        drivers::copy_both_ways(&proxy).await;
        drivers::a_cancel_hits_its_query_only(&proxy).await;
        drivers::changed_tables(&proxy).await;
        drivers::settings_follow_their_client(&proxy).await;
        drivers::a_vanished_client_is_rolled_back(&proxy).await;
    });
}

#[test]
fn reads_go_to_standbys_and_everything_survives_a_takeover() {
    let mut primary = Postgres::primary().unwrap();
    pgbench(primary.port, &["-i", "-s", "1", "-q"]).unwrap();
    let standby = Postgres::standby_of(&primary).unwrap();
    let proxy = Proxy::start(Setup::default(), Some(catalog(&primary).unwrap())).unwrap();
    proxy.topology(1, primary.node(), Some(&primary), &[&standby]);

    assert_eq!(proxy.psql("select abalance from pgbench_accounts where aid = 1").unwrap(), "0");
    proxy.pgbench(&["-n", "-c", "16", "-t", "50", "-M", "prepared", "-S"]).unwrap();
    let reads = |server: &Postgres| -> i64 {
        let sql = "select idx_scan + seq_scan from pg_stat_user_tables where relname = 'pgbench_accounts'";
        server.psql(sql).unwrap().parse().unwrap()
    };
    // Servers report their statistics with a delay.
    harness::until(|| reads(&standby) >= 800);
    assert!(reads(&primary) < 50, "reads on the primary: {}", reads(&primary));

    // An open transaction is told; a new one waits for the next primary.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let client = drivers::connect(&proxy).await;
        client.batch_execute("begin; insert into pgbench_history (tid) values (6)").await.unwrap();
        tokio::task::block_in_place(|| {
            primary.crash().unwrap();
            proxy.topology(1, primary.node(), None, &[&standby]);
        });
        let told = client.batch_execute("select 1").await.unwrap_err();
        assert_eq!(told.code().map(|code| code.code()), Some("40001"));
        client.batch_execute("rollback").await.unwrap();
        let held = client.execute("insert into pgbench_history (tid) values (7)", &[]);
        let takeover = async {
            tokio::task::block_in_place(|| {
                standby.promote().unwrap();
                proxy.topology(2, standby.node(), Some(&standby), &[]);
            });
        };
        let (held, ()) = tokio::join!(held, takeover);
        assert_eq!(held.unwrap(), 1);
        let row = client.query_one("select count(*), max(tid) from pgbench_history", &[]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i32>(1)), (1, 7));
    });
}

/// The primary is stopped as an operator would: whoever writes sees a delay and no error, whoever
/// reads sees nothing.
#[test]
fn a_planned_stop_costs_no_errors() {
    let mut primary = Postgres::primary().unwrap();
    primary.psql("create table written (client int, number int)").unwrap();
    let standby = Postgres::standby_of(&primary).unwrap();
    let proxy = Proxy::start(Setup::default(), Some(catalog(&primary).unwrap())).unwrap();
    proxy.topology(1, primary.node(), Some(&primary), &[&standby]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (errors, acknowledged) = runtime.block_on(async {
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let done = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let work = || done.load(std::sync::atomic::Ordering::Relaxed);
        let mut tasks = Vec::new();
        for number in 0..6 {
            let client = drivers::connect(&proxy).await;
            let stop = stop.clone();
            tasks.push(tokio::spawn(drivers::keep_working(client, number, stop, done.clone())));
        }
        tokio::task::block_in_place(|| {
            harness::until(|| work() > 50);
            primary.stop_fast().unwrap();
            let former = primary.node();
            proxy.topology(1, former, None, &[&standby]);
            standby.promote().unwrap();
            proxy.topology(2, standby.node(), Some(&standby), &[]);
            let before = work();
            harness::until(|| work() > before + 50);
        });
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let mut sum = (Vec::new(), 0);
        for task in tasks {
            let (errors, acknowledged) = task.await.unwrap();
            sum.0.extend(errors);
            sum.1 += acknowledged;
        }
        sum
    });
    assert_eq!(errors, Vec::<String>::new());
    let there: usize = standby.psql("select count(*) from written").unwrap().parse().unwrap();
    assert_eq!(there, acknowledged);
}
