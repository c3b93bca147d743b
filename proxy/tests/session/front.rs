//! What a client sees besides its answers: notices in their time, a cancel that is heard, an orderly end.
//! The same conversation is had with the server itself and through the proxy.

use super::alone;
use super::harness::{Postgres, Proxy, Setup};
use super::talk::{Raw, query};

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
fn notices_come_while_the_statement_runs_if_it_cannot_run_again() {
    let (primary, proxy) = alone(Setup::default());
    primary.psql("create function slow() returns int language plpgsql as $$ begin raise notice 'one'; perform pg_advisory_xact_lock(7); return 1; end $$").unwrap();
    for text in [
        "do $$ begin raise notice 'one'; perform pg_advisory_xact_lock(7); end $$",
        "select slow()",
        "select 1; select slow()",
        "begin; select slow(); commit",
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
fn what_is_withheld_of_an_answer_is_bounded() {
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
    // It could run again, so that its notices are kept back; but not so many.
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
