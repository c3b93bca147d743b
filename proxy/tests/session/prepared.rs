//! Prepared statements of clients that share servers: what a client is told and what its statements do is what
//! it would be without the proxy.

use super::harness::{Postgres, Proxy, Setup, catalog};
use super::raw::{Raw, bind, describe, describe_portal, execute, flush, parse, sync};

/// Two sessions whose settings differ prepare the unnamed statement in one unit and run it in another one, in
/// turns, on one server, as lib/pq and pg8000 do.
#[test]
fn an_unnamed_statement_outlives_what_the_proxy_does_between_units() {
    let (_primary, proxy) = super::alone(Setup { size: 1, ..Setup::default() });
    let mut clients = ["one", "two"].map(|name| Raw::connect(proxy.port, &[("application_name", name)]));
    let text = "select current_setting('application_name')";
    for round in 0..300 {
        for client in &mut clients {
            assert_eq!(client.ask(&[parse("", text), sync()].concat()), "1 ZI", "{round}");
        }
        for (client, name) in clients.iter_mut().zip(["one", "two"]) {
            let answer = client.ask(&[bind("", &[]), execute(), sync()].concat());
            assert_eq!(answer, format!("2 D({name}) SELECT_1 ZI"), "{round}");
        }
    }
}

/// A primary, and a proxy that knows it and what its functions do: it tells plain reads from others.
fn knowing(size: usize) -> (Postgres, Proxy) {
    let primary = Postgres::primary().unwrap();
    let proxy = Proxy::start(Setup { size, ..Setup::default() }, Some(catalog(&primary).unwrap())).unwrap();
    proxy.topology(1, primary.node(), Some(&primary), &[]);
    (primary, proxy)
}

/// Way in which a driver prepares a statement and runs it.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// Parse, Describe, Sync; Bind, Execute, Sync: pgx, tokio-postgres, pgjdbc.
    Sync,
    /// Parse, Describe, Flush; Bind, Execute, Sync: asyncpg, postgres.js.
    Flush,
    /// Parse, Sync; Bind, Describe of the portal, Execute, Sync: psycopg.
    Portal,
    /// Parse, Bind, Describe of the portal, Execute, Sync, and then without the Parse: node-postgres, libpq.
    AtOnce,
    /// The unnamed statement, in two units: lib/pq, pg8000.
    Unnamed,
}

const WAYS: [Way; 5] = [Way::Sync, Way::Flush, Way::Portal, Way::AtOnce, Way::Unnamed];

impl Way {
    fn name(self) -> &'static str {
        if matches!(self, Self::Unnamed) { "" } else { "s" }
    }

    fn prepare(self, client: &mut Raw, text: &str, values: &[&str]) -> String {
        let parse = parse(self.name(), text);
        match self {
            Self::Sync | Self::Unnamed => client.ask(&[parse, describe(self.name()), sync()].concat()),
            Self::Flush => {
                client.send(&[parse, describe(self.name()), flush()].concat());
                let described = client.read_to_any(b"TnE");
                [described, self.run(client, values)].join(" ")
            }
            Self::Portal => client.ask(&[parse, sync()].concat()),
            Self::AtOnce => client.ask(&[parse, self.run_bytes(values)].concat()),
        }
    }

    fn run_bytes(self, values: &[&str]) -> Vec<u8> {
        let portal = if matches!(self, Self::Portal | Self::AtOnce) { describe_portal() } else { Vec::new() };
        [bind(self.name(), values), portal, execute(), sync()].concat()
    }

    fn run(self, client: &mut Raw, values: &[&str]) -> String {
        client.ask(&self.run_bytes(values))
    }
}

/// A text that is prepared before and after a change.
struct Case {
    setup: &'static str,
    text: &'static str,
    /// Before and after the change.
    values: [&'static [&'static str]; 2],
    change: &'static str,
    /// Whether those who prepared it before are told the same as without the proxy.
    old_too: bool,
    check: &'static str,
}

const CASES: &[Case] = &[
    Case {
        setup: "create table w (id int, name text); insert into w values (1, 'x')",
        text: "update w set name = name where id = $1",
        values: [&["0"], &["3000000000"]],
        change: "alter table w alter id type bigint; insert into w values (3000000000, 'y')",
        old_too: true,
        check: "select count(*) from w",
    },
    Case {
        setup: "create table w (id int, name text); insert into w values (1, 'x')",
        text: "select * from w where id = $1",
        values: [&["1"]; 2],
        change: "alter table w alter id type text",
        old_too: true,
        check: "select count(*) from w",
    },
    Case {
        setup: "create table w (amount real)",
        text: "insert into w values ($1)",
        values: [&["12345678.91"]; 2],
        change: "truncate w; alter table w alter amount type numeric",
        old_too: false,
        check: "select distinct amount from w order by 1 desc limit 1",
    },
    Case {
        setup: "create table w (id int)",
        text: "insert into w values ($1) returning *",
        values: [&["1"]; 2],
        change: "truncate w; alter table w add other int",
        old_too: true,
        check: "select count(*) > 0, count(other) from w",
    },
    // PostgreSQL does not see what comes to stand in front of a table that a prepared statement uses.
    Case {
        setup: "create schema a1; create schema b1; create table b1.t (v text)",
        text: "insert into t values ($1)",
        values: [&["new"]; 2],
        change: "truncate b1.t; create table a1.t (v text)",
        old_too: false,
        check: "select count(*) from b1.t",
    },
    Case {
        setup: "create type mood as enum ('sad'); create table w (m mood)",
        text: "insert into w values ($1)",
        values: [&["sad"]; 2],
        change: "drop table w; drop type mood; create type mood as enum ('sad'); create table w (m mood)",
        old_too: false,
        check: "select count(*) > 0 from w",
    },
];

/// Servers of the proxy.
const SIZE: usize = 4;

/// Has a client run its statement on one server after the other: the ones used last are taken by others meanwhile.
fn everywhere(port: u16, mut run: impl FnMut() -> String) -> Vec<String> {
    let mut holding = Vec::new();
    let mut said = Vec::new();
    for _ in 0..SIZE {
        said.push(run());
        let mut holder = Raw::connect(port, &[]);
        holder.query("begin");
        holder.query("select 1");
        if holding.len() + 2 < SIZE {
            holding.push(holder);
        }
    }
    said
}

/// Answers to clients about a statement that some prepared before a change and others after it.
fn converse(port: u16, case: &Case, way: Way) -> Vec<String> {
    const DROP: &str = "drop schema if exists a1, b1 cascade; drop table if exists w; drop type if exists mood";
    const PATH: &[(&str, &str)] = &[("options", "-c search_path=a1,b1,public")];
    let [before, after] = case.values;
    let connect = || Raw::connect(port, PATH);
    let mut said = Vec::new();
    let mut admin = connect();
    admin.query(DROP);
    admin.query(case.setup);
    // One on each server at a time.
    let mut old: Vec<Raw> = (0..SIZE - 1).map(|_| connect()).collect();
    for client in &mut old {
        client.query("begin");
        said.push(way.prepare(client, case.text, before));
        said.push(way.run(client, before));
    }
    old.iter_mut().for_each(|client| said.push(client.query("commit")));
    admin.query(case.change);
    let mut new = connect();
    said.push(way.prepare(&mut new, case.text, after));
    said.extend(everywhere(port, || way.run(&mut new, after)));
    let mut new = connect();
    said.push(new.query("begin"));
    said.push(way.prepare(&mut new, case.text, after));
    said.push(way.run(&mut new, after));
    said.push(new.query("commit"));
    if case.old_too {
        for client in &mut old {
            said.push(way.run(client, after));
            said.push(client.query("begin"));
            said.push(way.run(client, after));
            said.push(client.query("rollback"));
        }
    }
    said.push(admin.query(case.check));
    said
}

#[test]
fn who_prepares_a_statement_is_told_what_it_is_now() {
    let (primary, proxy) = knowing(SIZE);
    for case in CASES {
        for way in WAYS {
            let direct = converse(primary.port, case, way);
            let through = converse(proxy.port, case, way);
            assert_eq!(through, direct, "{way:?}: {} after {}", case.text, case.change);
        }
    }
}

/// Tables of one name and other types, by search path.
#[test]
fn tenants_do_not_share_what_is_not_the_same() {
    let (primary, proxy) = knowing(2);
    primary
        .psql(
            "create schema a; create schema b; create table a.t (v int); create table b.t (v text, w int);
             insert into a.t values (1); insert into b.t values ('1', 2)",
        )
        .unwrap();
    for way in WAYS {
        let talk = |port: u16| {
            let mut clients: Vec<Raw> = (0..6)
                .map(|number| {
                    let path = if number % 2 == 0 { "a" } else { "b" };
                    Raw::connect(port, &[("options", &format!("-c search_path={path}"))])
                })
                .collect();
            let text = "select * from t where v = $1";
            let mut said: Vec<String> = clients.iter_mut().map(|client| way.prepare(client, text, &["1"])).collect();
            for _ in 0..5 {
                said.extend(clients.iter_mut().map(|client| way.run(client, &["1"])));
            }
            said
        };
        assert_eq!(talk(proxy.port), talk(primary.port), "{way:?}");
    }
}

/// A client whose statement another server than before has to run says this in one pipeline, in a transaction.
fn in_a_transaction(port: u16, before: &[&str], change: &str, pipeline: &[Vec<u8>]) -> Vec<String> {
    let mut admin = Raw::connect(port, &[]);
    admin.query("drop table if exists zt; drop table if exists zu; create table zt (v int)");
    let mut client = Raw::connect(port, &[]);
    let mut said = vec![client.ask(&[parse("q", "select v from zt"), describe("q"), sync()].concat())];
    said.push(client.ask(&[bind("q", &[]), execute(), sync()].concat()));
    admin.query(change);
    // They have the servers that know the statement.
    let mut others: Vec<Raw> = (0..SIZE - 2).map(|_| Raw::connect(port, &[])).collect();
    for other in &mut others {
        other.query("begin");
        other.query("select 1");
    }
    for text in before {
        said.push(client.query(text));
    }
    said.push(client.ask(&[&pipeline.concat()[..], &sync()].concat()));
    said.push(client.query("select 'after'"));
    said.push(client.query("rollback"));
    said
}

#[test]
fn the_proxys_questions_do_not_touch_a_transaction() {
    let (primary, proxy) = knowing(SIZE);
    let run = |text: &str| [parse("", text), bind("", &[]), execute()].concat();
    let q = || [bind("q", &[]), execute()].concat();
    /// Statements of the client before, the change, and the messages of the pipeline.
    type Talk<'a> = (&'a [&'a str], &'a str, Vec<Vec<u8>>);
    let cases: &[Talk<'_>] = &[
        (&["begin"], "drop table zt", vec![q()]),
        (&["begin"], "alter table zt add w int", vec![q()]),
        (&["begin"], "alter table zt add w int", vec![run("create table zu ()"), q()]),
        (&["begin"], "", vec![run("set transaction isolation level serializable"), q()]),
        (&["begin"], "alter table zt set schema za", vec![run("set local search_path = za"), q()]),
        (&["begin"], "drop table zt", vec![run("create table zt (v int)"), q()]),
        (&[], "drop table zt", vec![run("create table zt (v int)"), q()]),
        (&[], "drop table zt", vec![run("begin"), run("create table zt (v int)"), q()]),
        (&[], "alter table zt add w int", vec![q()]),
        (&[], "drop table zt", vec![q()]),
        (&["begin"], "drop table zt", vec![run("savepoint s"), q()]),
        (&["begin", "savepoint s"], "drop table zt", vec![q()]),
    ];
    for port in [primary.port, proxy.port] {
        Raw::connect(port, &[]).query("create schema if not exists za");
    }
    for (before, change, pipeline) in cases {
        let talk = |port| {
            Raw::connect(port, &[]).query("drop table if exists za.zt");
            in_a_transaction(port, before, change, pipeline)
        };
        assert_eq!(talk(proxy.port), talk(primary.port), "{before:?} after {change:?}");
    }
}

#[test]
fn errors_name_statements_as_their_client_does() {
    let (primary, proxy) = knowing(2);
    let talk = |port| {
        let mut client = Raw::connect(port, &[]);
        client.query("drop table if exists gone; create table gone ()");
        let said = [
            client.ask(&[parse("mine", "select $1::int"), sync()].concat()),
            client.ask(&[bind("mine", &[]), sync()].concat()),
            client.ask(&[parse("mine", "select 2"), sync()].concat()),
            client.ask(&[bind("nobodys", &[]), sync()].concat()),
            client.ask(&[parse("of", "select from gone"), sync()].concat()),
            client.query("drop table gone"),
            client.ask(&[parse("again", "select from gone"), sync()].concat()),
        ];
        (said, client.errors)
    };
    assert_eq!(talk(proxy.port), talk(primary.port));
}
