//! Sessions that are bound to their server: no longer than they need it, and never so many that nothing is left for
//! the others.

use manatee_proxy::wire::frontend::SYNC;

use super::alone;
use super::harness::Setup;
use super::talk::{Raw, bind, empty, execute, parse, query};

/// Every one of these leaves the session free, or its setting is found again.
#[test]
fn what_binds_nothing_holds_nothing() {
    let (primary, proxy) = alone(Setup { size: 2, ..Setup::default() });
    primary.psql("create table t (a int)").unwrap();
    for (text, then, answer) in [
        ("select pg_try_advisory_lock(991)", "select 1", "x011"),
        ("with j as (select pg_try_advisory_lock(991) as got) select * from j where got", "select 1", "x011"),
        ("select pg_advisory_lock(a) from t", "select 1", "x011"),
        (
            "select set_config('bytea_output', 'hex', false) from pg_show_all_settings() where name = 'bytea_output'",
            "show bytea_output",
            "hex",
        ),
        ("select set_config('work_mem', '7MB', false) from t", "show work_mem", "4MB"),
        ("select upper(set_config('work_mem', '7MB', false))", "show work_mem", "7MB"),
        ("set work_mem from current", "show work_mem", "4MB"),
        ("set search_path = pg_temp, public", "show search_path", "pg_temp, public"),
        ("prepare p as selec", "select 1", "x011"),
        ("listen nowhere.at_all", "select 1", "x011"),
    ] {
        // Somebody has the lock.
        let mut holder = Raw::connect(primary.port);
        holder.ask("select pg_advisory_lock(991)");
        let mut clients: Vec<Raw> = (0..6).map(|_| Raw::connect(proxy.port)).collect();
        for client in &mut clients {
            let answer = client.ask(text);
            assert!(!answer.contains("E53300"), "{text}: {answer}");
        }
        for client in &mut clients {
            assert_eq!(client.ask("insert into t select 1 where false"), "INSERT_0_0 ZI", "{text}");
            let shown = client.ask(then);
            assert!(shown.contains(answer), "{text}: {shown}");
        }
    }
}

#[test]
fn a_lock_that_was_got_is_kept() {
    let (primary, proxy) = alone(Setup { size: 3, ..Setup::default() });
    let mut clients: Vec<Raw> = (0..6).map(|_| Raw::connect(proxy.port)).collect();
    let got: Vec<bool> =
        clients.iter_mut().map(|client| client.ask("select pg_try_advisory_lock(5)").contains("x01t")).collect();
    assert_eq!(got, [true, false, false, false, false, false]);
    let held = "select count(*) from pg_locks where locktype = 'advisory'";
    assert_eq!(primary.psql(held).unwrap(), "1");
    assert!(clients[0].ask("select pg_advisory_unlock(5)").contains("x01t"));
    assert_eq!(primary.psql(held).unwrap(), "0");
}

#[test]
fn a_table_made_where_temporary_ones_come_first_is_the_sessions_own() {
    let (_primary, proxy) = alone(Setup { size: 4, ..Setup::default() });
    let (mut one, mut other) = (Raw::connect(proxy.port), Raw::connect(proxy.port));
    one.ask("set search_path = pg_temp, public");
    assert_eq!(one.ask("create table mine (a int)"), "CREATE_TABLE ZI");
    for _ in 0..5 {
        assert!(other.ask("select * from mine").starts_with("E42P01"));
        assert_eq!(one.ask("insert into mine values (1)"), "INSERT_0_1 ZI");
    }
    one.ask("drop table mine");
    one.ask("begin");
    one.ask("set local search_path = pg_temp");
    one.ask("create table mine (a int)");
    one.ask("commit");
    assert!(other.ask("select * from mine").starts_with("E42P01"));
    assert_eq!(one.ask("insert into mine values (1)"), "INSERT_0_1 ZI");
}

#[test]
fn bound_sessions_never_take_the_last_servers() {
    let (primary, proxy) = alone(Setup { size: 4, ..Setup::default() });
    primary.psql("create table t (a int)").unwrap();
    let mut bound: Vec<Raw> = (0..3).map(|_| Raw::connect(proxy.port)).collect();
    for client in &mut bound {
        assert_eq!(client.ask("listen c"), "LISTEN ZI");
    }
    let mut other = Raw::connect(proxy.port);
    let words = "too many sessions are bound to a server connection: 3 of the 4 of this pool, by LISTEN, advisory locks, \
                 temporary tables or the like; the others are kept for sessions that are not";
    for text in ["listen c", "create temp table mine (a int)", "select setseed(0.5)", "prepare p as select 1"] {
        assert_eq!(other.ask(text), format!("E53300({words}) ZI"), "{text}");
        other.send(&[parse("", text), bind("", ""), execute(""), empty(SYNC)].concat());
        assert_eq!(other.answer(), format!("1 2 E53300({words}) ZI"), "{text}");
    }
    // In a transaction, which fails as it would by any other error.
    other.ask("begin");
    assert_eq!(other.ask("insert into t values (1)"), "INSERT_0_1 ZT");
    assert_eq!(other.ask("create temp table mine (a int)"), format!("E53300({words}) ZE"));
    assert_eq!(other.ask("commit"), "ROLLBACK ZI");
    // Whoever is bound goes on, and so does work.
    assert_eq!(bound[0].ask("create temp table mine (a int)"), "CREATE_TABLE ZI");
    assert_eq!(other.ask("insert into t values (2)"), "INSERT_0_1 ZI");
    bound[1].send(&query("unlisten c"));
    assert_eq!(bound[1].answer(), "UNLISTEN ZI");
    while other.ask("listen c") != "LISTEN ZI" {}
}

#[test]
fn where_there_is_one_server_there_is_another_beside_a_bound_one() {
    let (primary, proxy) = alone(Setup { size: 1, ..Setup::default() });
    primary.psql("create table t (a int)").unwrap();
    let (mut one, mut other) = (Raw::connect(proxy.port), Raw::connect(proxy.port));
    assert_eq!(one.ask("create temp table mine (a int)"), "CREATE_TABLE ZI");
    assert_eq!(other.ask("insert into t values (1)"), "INSERT_0_1 ZI");
    assert!(other.ask("listen c").starts_with("E53300"));
    assert_eq!(one.ask("insert into mine values (1)"), "INSERT_0_1 ZI");
}
