//! Messages that a client sees besides its answers: notices in their time, a cancel that is heard, an orderly end.
//! The same conversation is had with the server itself and through the proxy.

use std::sync::atomic::{AtomicBool, Ordering};

use manatee_proxy::wire::frontend::{COPY_DONE, FLUSH, SYNC, TERMINATE};

use super::alone;
use super::harness::{Postgres, Proxy, Setup, catalog, until};
use super::talk::{Raw, bind, data, empty, execute, parse, query};

/// A conversation with each, which must be the same.
fn both(primary: &Postgres, proxy: &Proxy, talk: impl Fn(u16) -> String) -> String {
    let direct = talk(primary.port);
    assert_eq!(talk(proxy.port), direct);
    direct
}

/// Somebody who holds an advisory lock on the server itself.
fn locked(primary: &Postgres) -> Raw {
    let mut holder = Raw::connect(primary.port);
    holder.ask("select pg_advisory_lock(7)");
    holder
}

#[test]
fn notices_come_while_the_statement_runs() {
    let (primary, proxy) = alone(Setup::default());
    primary.psql("create function slow() returns int language plpgsql as $$ begin raise notice 'one'; perform pg_advisory_xact_lock(7); return 1; end $$").unwrap();
    primary
        .psql(
            "create table slowed (a int);
             create function slow_down() returns trigger language plpgsql as $$ begin perform slow(); return new; end $$;
             create trigger slow_down before insert on slowed for each row execute function slow_down();",
        )
        .unwrap();
    for text in [
        "do $$ begin raise notice 'one'; perform pg_advisory_xact_lock(7); end $$",
        "select slow()",
        "select 1; select slow()",
        "begin; select slow(); commit",
        // It could run again if its server was shut down.
        "insert into slowed values (1)",
    ] {
        let answers = [primary.port, proxy.port].map(|port| {
            let mut holder = locked(&primary);
            let mut client = Raw::connect(port);
            client.send(&query(text));
            let notice = client.next(b'N');
            // Only now may it go on.
            holder.ask("select pg_advisory_unlock(7)");
            (notice, client.answer())
        });
        assert_eq!(answers[0], answers[1], "{text}");
    }
}

#[test]
fn many_notices_pass_and_are_not_kept() {
    let (primary, proxy) = alone(Setup::default());
    primary
        .psql(
            "create table t (a int);
             create function talk() returns trigger language plpgsql as $$ begin
               for i in 1..200 loop raise notice '%', repeat('x', 1000); end loop;
               perform pg_advisory_xact_lock(7);
               return new;
             end $$;
             create trigger talk before insert on t for each row execute function talk();",
        )
        .unwrap();
    let mut holder = locked(&primary);
    let mut client = Raw::connect(proxy.port);
    client.send(&query("insert into t values (1)"));
    client.next(b'N');
    holder.ask("select pg_advisory_unlock(7)");
    let answer = client.answer();
    assert_eq!(answer.matches("N00000").count(), 199);
    assert!(answer.ends_with(" INSERT_0_1 ZI"), "{answer}");
}

#[test]
fn long_notices_and_errors_pass_whole() {
    let (primary, proxy) = alone(Setup::default());
    let answer = both(&primary, &proxy, |port| {
        let mut client = Raw::connect(port);
        let notice = client.ask("do $$ begin raise notice '%', repeat('x', 3000000); end $$");
        let error = client.ask("do $$ begin raise exception '%', repeat('y', 3000000); end $$");
        let code = client.ask("do $$ begin raise warning 'w' using errcode = '57P01'; end $$");
        let after = client.ask("select 1");
        [notice, error, code, after].join("\n")
    });
    assert!(answer.len() > 6_000_000 && answer.contains("N57P01"));
}

/// A table `t` of numbers, and how many are in it.
fn numbers(primary: &Postgres) -> impl Fn() -> usize {
    primary.psql("create table t (a int)").unwrap();
    let port = primary.port;
    move || super::harness::psql(port, "select count(*) from t").unwrap().parse().unwrap()
}

/// Sends it and closes the connection.
fn leave_behind(port: u16, messages: &[Vec<u8>]) {
    Raw::connect(port).send(&messages.concat());
}

#[test]
fn what_a_client_sent_before_it_left_is_done() {
    let (primary, proxy) = alone(Setup::default());
    let count = numbers(&primary);
    let (insert, leave) = (query("insert into t values (1)"), empty(TERMINATE));
    let slowly = query("insert into t select 1 from pg_sleep(0.3)");
    for _ in 0..20 {
        leave_behind(proxy.port, &[insert.clone(), leave.clone()]);
    }
    until(|| count() == 20);
    for _ in 0..5 {
        leave_behind(proxy.port, &[slowly.clone(), leave.clone()]);
        leave_behind(proxy.port, std::slice::from_ref(&slowly));
    }
    until(|| count() == 30);
    // In order: what stands behind a read, and a whole transaction.
    leave_behind(proxy.port, &[query("select pg_sleep(0.3)"), insert.clone(), leave.clone()]);
    leave_behind(proxy.port, &["begin", "insert into t select 1 from pg_sleep(0.3)", "commit"].map(query));
    until(|| count() == 32);
    // What was not committed is not: with and without a Sync.
    leave_behind(proxy.port, &[query("begin"), insert.clone(), leave.clone()]);
    leave_behind(proxy.port, &[parse("", "insert into t values (1)"), bind("", ""), execute(""), leave.clone()]);
    leave_behind(proxy.port, &[parse("", "insert into t values (1)"), bind("", ""), execute(""), empty(FLUSH), leave]);
    let others = "select count(*) from pg_stat_activity where backend_type = 'client backend' and state <> 'idle'";
    until(|| primary.psql(others).unwrap() == "1");
    assert_eq!(count(), 32);
    assert_eq!(proxy.psql("insert into t values (1); select count(*) from t").unwrap(), "33");
}

#[test]
fn what_waits_for_a_server_when_its_client_leaves_is_done_soon_or_not_at_all() {
    let (primary, proxy) = alone(Setup { size: 1, ..Setup::default() });
    let count = numbers(&primary);
    let mut holder = Raw::connect(proxy.port);
    holder.ask("begin");
    leave_behind(proxy.port, &[query("insert into t values (1)"), empty(TERMINATE)]);
    let mut other = Raw::connect(proxy.port);
    // It stands behind the one that has left.
    other.send(&query("select count(*) from t"));
    assert!(!other.hears_something());
    holder.ask("commit");
    assert_eq!(other.answer(), "T D(\\x00\\x00\\x00\\x011) SELECT_1 ZI");
    assert_eq!(count(), 1);
}

#[test]
fn a_client_that_only_listens_is_answered() {
    let (primary, proxy) = alone(Setup::default());
    primary.psql("create table t (a int)").unwrap();
    for messages in [
        vec![query("select 1")],
        vec![query("select 1 from pg_sleep(0.5)"), query("insert into t values (1) returning a")],
        vec![query("insert into t select 1 from pg_sleep(0.5) returning a"), empty(TERMINATE)],
        vec![query("begin"), query("select 1")],
        vec![parse("", "selec")],
        vec![parse("", "select 1"), bind("", ""), execute(""), empty(SYNC), query("select 2")],
        vec![],
    ] {
        let all = |port: u16| {
            let mut client = Raw::connect(port);
            client.send(&messages.concat());
            client.half_close();
            let mut answers = Vec::new();
            while answers.last().is_none_or(|answer: &String| !answer.ends_with("end")) {
                answers.push(client.answer());
            }
            answers.join(" ")
        };
        both(&primary, &proxy, all);
    }
}

#[test]
fn reads_of_a_client_that_is_gone_are_cancelled() {
    let primary = Postgres::primary().unwrap();
    // Without the catalog nothing is known to be a read.
    let proxy = Proxy::start(Setup::default(), Some(catalog(&primary).unwrap())).unwrap();
    proxy.topology(1, primary.node(), Some(&primary), &[]);
    leave_behind(proxy.port, &[query("select 1 from pg_sleep(600)")]);
    leave_behind(proxy.port, &[query("begin"), query("select 2 from pg_sleep(600)"), empty(TERMINATE)]);
    let running = || {
        let sql =
            "select count(*) from pg_stat_activity where query like 'select _ from pg_sleep(600)' and state = 'active'";
        primary.psql(sql).unwrap().parse::<usize>().unwrap()
    };
    until(|| running() == 0);
}

const CANCELED: &str = "E57014(canceling statement due to user request) ZI";

/// Asks for a cancel until there is an answer.
fn cancel(client: &mut Raw) -> String {
    while !client.hears_something() {
        client.canceller().cancel();
    }
    client.answer()
}

#[test]
fn a_cancel_is_heard_by_what_waits_for_a_server_or_a_primary() {
    let (primary, proxy) = alone(Setup { size: 1, ..Setup::default() });
    let count = numbers(&primary);
    let mut holder = Raw::connect(proxy.port);
    holder.ask("begin");
    let mut client = Raw::connect(proxy.port);
    client.send(&query("insert into t values (1)"));
    assert_eq!(cancel(&mut client), CANCELED);
    client.send(&[parse("", "insert into t values (1)"), bind("", ""), execute(""), empty(SYNC)].concat());
    assert_eq!(cancel(&mut client), CANCELED);
    holder.ask("commit");
    assert_eq!(client.ask("select 1"), "T D(\\x00\\x00\\x00\\x011) SELECT_1 ZI");

    proxy.topology(1, primary.node(), None, &[]);
    // The server that is there is taken back.
    drop(holder);
    let mut held = Raw::connect(proxy.port);
    held.send(&query("insert into t values (1)"));
    assert_eq!(cancel(&mut held), CANCELED);
    proxy.topology(2, primary.node(), Some(&primary), &[]);
    assert_eq!(held.ask("insert into t values (2)"), "INSERT_0_1 ZI");
    assert_eq!(count(), 1);
}

#[test]
fn a_cancel_never_hits_what_the_proxy_asks_for_itself() {
    let (_primary, proxy) = alone(Setup { size: 1, ..Setup::default() });
    let mut others = ["one", "two"].map(|name| Raw::connect_with(proxy.port, &[("application_name", name)]));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let [one, two] = &mut others;
        let (pid, canceller, stop) = (one.pid, one.canceller(), &stop);
        // Also when an assertion fails: the scope waits for its threads.
        let _end = SetOnDrop(stop);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                canceller.cancel();
            }
        });
        assert!(pid >= 4_194_304, "no process has such an id");
        for _ in 0..300 {
            let answer = one.ask("select 1");
            // PostgreSQL may have sent the row already when the cancel arrives.
            assert!(answer.ends_with(CANCELED) || answer.ends_with("SELECT_1 ZI"), "{answer}");
            let answer = two.ask("select current_setting('application_name')");
            assert!(answer.contains("two") && answer.ends_with("SELECT_1 ZI"), "{answer}");
        }
    });
}

/// Sets a flag when it goes out of scope.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn an_error_is_told_though_no_sync_was_sent() {
    let (primary, proxy) = alone(Setup::default());
    for messages in [
        vec![parse("", "selec")],
        vec![parse("", "select 1/0"), bind("", ""), execute("")],
        vec![parse("", "select 1"), bind("", ""), execute(""), bind("", "nosuch"), execute("")],
    ] {
        let answer = both(&primary, &proxy, |port| {
            let mut client = Raw::connect(port);
            client.send(&messages.concat());
            let error = client.next(b'E').escape_ascii().to_string();
            client.send(&empty(SYNC));
            [error, client.answer()].join(" ")
        });
        assert!(answer.ends_with("ZI"), "{answer}");
    }
}

#[test]
fn a_session_knows_its_own_notifications() {
    let (_primary, proxy) = alone(Setup::default());
    let (mut one, mut other) = (Raw::connect(proxy.port), Raw::connect(proxy.port));
    one.ask("listen c");
    one.send(&query("notify c, 'mine'"));
    let from = |body: Vec<u8>| u32::from_be_bytes(body[..4].try_into().unwrap());
    assert_eq!(from(one.next(b'A')), one.pid);
    one.answer();
    other.ask("notify c, 'theirs'");
    let theirs = from(one.next(b'A'));
    assert!(theirs != one.pid && theirs != 0);
}

#[test]
fn a_client_is_cancelled_by_the_process_id_that_it_was_told() {
    let (_primary, proxy) = alone(Setup::default());
    let (mut client, mut other) = (Raw::connect(proxy.port), Raw::connect(proxy.port));
    client.send(&query("select pg_sleep(600)"));
    while !client.hears_something() {
        let answer = other.ask(&format!("SELECT pg_cancel_backend({});", client.pid));
        assert_eq!(answer, "T D(\\x00\\x00\\x00\\x01t) SELECT_1 ZI");
    }
    assert!(client.answer().ends_with(CANCELED));
    let answer = other.ask(&format!("SELECT pg_cancel_backend({})", u32::MAX / 2));
    assert!(answer.contains("is not a PostgreSQL") && answer.contains("x01f)"), "{answer}");
}

#[test]
fn a_copy_may_be_sent_in_one_go() {
    let (primary, proxy) = alone(Setup::default());
    let count = numbers(&primary);
    let run = |text: &str| [parse("", text), bind("", ""), execute("")].concat();
    let rows = [data("1\n"), data("2\n"), empty(COPY_DONE)].concat();
    let copy = [run("copy t from stdin"), rows.clone()].concat();
    let (sync, other) = (empty(SYNC), query("select 1"));
    for messages in [
        vec![&copy, &sync],
        // More comes behind it, so that it is all there at once.
        vec![&copy, &sync, &other],
        vec![&copy, &copy, &sync, &other],
        vec![&other, &copy, &sync],
        vec![&run("select 2"), &copy, &run("select 3"), &sync, &other],
        // Nothing waits for them.
        vec![&run("select 2"), &rows, &sync, &other],
        vec![&run("select 2"), &rows, &run("select 3"), &rows, &sync],
        vec![&run("copy nosuch from stdin"), &rows, &sync, &other],
        vec![&run("copy t from stdin"), &data("x\n"), &rows, &sync, &other],
    ] {
        let answer = both(&primary, &proxy, |port| {
            let mut client = Raw::connect(port);
            client.send(&messages.iter().copied().flatten().copied().collect::<Vec<u8>>());
            let ready = messages.iter().filter(|message| [&sync, &other].contains(*message)).count();
            (0..ready).map(|_| client.answer()).collect::<Vec<String>>().join(" ")
        });
        assert!(answer.ends_with("ZI"), "{answer}");
    }
    // Both ways of each.
    assert_eq!(count(), 2 * 2 * 6);
}
