//! Settings, and what is run again: what PostgreSQL does with them, beside what a session behind the proxy sees.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use bytes::BytesMut;
use manatee_proxy::wire::backend::{self, ErrorFields};
use manatee_proxy::wire::{complete, frontend, put_cstr};

use super::harness::{Postgres, Proxy, Setup, catalog, until};

/// A client that reads every word of an answer.
struct Client {
    stream: TcpStream,
    rx: BytesMut,
    /// Parameters as it was told of them last.
    told: BTreeMap<String, String>,
}

impl Client {
    fn new(port: u16, parameters: &[(&str, &str)]) -> Self {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut client = Self { stream, rx: BytesMut::new(), told: BTreeMap::new() };
        let mut body = BytesMut::from(&[0, 3, 0, 0][..]);
        for (name, value) in [("user", "postgres"), ("database", "postgres")].iter().chain(parameters) {
            put_cstr(&mut body, name.as_bytes());
            put_cstr(&mut body, value.as_bytes());
        }
        body.extend_from_slice(&[0]);
        let size = u32::try_from(body.len() + 4).unwrap();
        client.stream.write_all(&[&size.to_be_bytes(), &body[..]].concat()).unwrap();
        client.read();
        client
    }

    /// Messages as words, up to ReadyForQuery or the end of the connection.
    fn read(&mut self) -> String {
        let mut words = Vec::new();
        loop {
            while let Ok(Some((header, _))) = complete(&self.rx) {
                let message = self.rx.split_to(header.size);
                let body = &message[5..];
                words.push(match header.tag {
                    b'E' => {
                        let fields = ErrorFields::read(body);
                        let fatal = if fields.is_fatal() { "FATAL" } else { "E" };
                        format!("{fatal}{}", String::from_utf8_lossy(fields.code))
                    }
                    b'C' => String::from_utf8_lossy(&body[..body.len() - 1]).replace(' ', "_"),
                    b'S' => {
                        let (name, value) = backend::parameter_status(body).unwrap();
                        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                        self.told.insert(text(name), text(value));
                        continue;
                    }
                    b'D' => {
                        let row = backend::data_row(body).unwrap();
                        row.into_iter()
                            .map(|value| value.map_or("null".to_owned(), |value| String::from_utf8_lossy(value).into()))
                            .collect::<Vec<_>>()
                            .join(",")
                    }
                    b'Z' => return words.join(" "),
                    _ => continue,
                });
            }
            let mut chunk = [0; 8192];
            match self.stream.read(&mut chunk) {
                Ok(0) => return words.join(" "),
                Ok(count) => self.rx.extend_from_slice(&chunk[..count]),
                // With a timeout a read is not taken up again after a signal (socket(7), signal(7)).
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("{error} after {words:?}"),
            }
        }
    }

    fn send(&mut self, text: &str) {
        let mut out = BytesMut::new();
        frontend::put_query(&mut out, text.as_bytes());
        self.stream.write_all(&out).unwrap();
    }

    fn query(&mut self, text: &str) -> String {
        self.send(text);
        self.read()
    }
}

/// A primary and a proxy with so many connections to it.
fn alone(size: usize) -> (Postgres, Proxy) {
    let primary = Postgres::primary().unwrap();
    let proxy = Proxy::start(Setup { size, ..Setup::default() }, Some(catalog(&primary).unwrap())).unwrap();
    proxy.topology(1, primary.node(), Some(&primary), &[]);
    (primary, proxy)
}

#[test]
fn what_commits_on_its_way_is_not_run_again() {
    let (primary, proxy) = alone(4);
    primary.psql("create table ci (a int); create table victims (n int)").unwrap();
    let mut holder = Client::new(primary.port, &[]);
    holder.query("begin");
    holder.query("insert into ci values (1)");
    let mut client = Client::new(proxy.port, &[]);
    client.send("create index concurrently if not exists ci_i on ci (a)");
    let waiting = "from pg_stat_activity where query like 'create index%' and wait_event_type = 'Lock'";
    until(|| primary.psql(&format!("select count(*) {waiting}")).unwrap() == "1");
    primary.psql(&format!("select pg_terminate_backend(pid) {waiting}")).unwrap();
    holder.query("commit");
    assert_eq!(client.read(), "E57P01");
    assert_eq!(client.query("select indisvalid from pg_index where indexrelid = 'ci_i'::regclass"), "f SELECT_1");
    // It ends itself: once is enough.
    assert!(client.query("select pg_terminate_backend(pg_backend_pid())").ends_with("E57P01"));
    assert_eq!(client.query("select 1"), "1 SELECT_1");
}

#[test]
fn a_limit_on_idleness_in_a_transaction_is_the_clients() {
    let (primary, proxy) = alone(4);
    for port in [primary.port, proxy.port] {
        let mut client = Client::new(port, &[]);
        client.query("set idle_in_transaction_session_timeout = '50ms'");
        client.query("begin");
        assert_eq!(client.read(), "FATAL25P03");
    }
}

#[test]
fn a_query_within_a_copy_leaves_nothing_in_doubt() {
    let (primary, proxy) = alone(4);
    primary.psql("create table copied (a int)").unwrap();
    let mut client = Client::new(proxy.port, &[]);
    client.send("copy copied from stdin");
    client.send("select 1");
    assert_eq!(client.read(), "E08P01");
    assert_eq!(client.query("select count(*) from copied"), "0 SELECT_1");
}

#[test]
fn one_sessions_settings_never_hurt_another() {
    let primary = Postgres::primary().unwrap();
    primary.psql("create table t (a int); create role r").unwrap();
    let standby = Postgres::standby_of(&primary).unwrap();
    let setup = Setup { size: 2, ..Setup::default() };
    let proxy = Proxy::start(setup, Some(catalog(&primary).unwrap())).unwrap();
    proxy.topology(1, primary.node(), Some(&primary), &[&standby]);
    for settings in [
        "set default_transaction_isolation = 'serializable'; select count(*) from t",
        "set default_transaction_isolation = 'serializable'; set default_transaction_deferrable = on; select 1",
        "set statement_timeout = 1; select 1",
        "set client_encoding = 'LATIN1'; set search_path = x; set standard_conforming_strings = off; select 1",
        "set role r; select 1",
    ] {
        for round in 0..4 {
            let mut one = Client::new(proxy.port, &[]);
            one.query(settings);
            drop(one);
            let mut other = Client::new(proxy.port, &[("options", "-c statement_timeout=3000"), ("timezone", "UTC")]);
            assert_eq!(other.query("select count(*) from t"), "0 SELECT_1", "{settings}, round {round}");
            assert_eq!(other.query("show statement_timeout"), "3s SHOW");
            assert_eq!(other.query("select current_user"), "postgres SELECT_1");
        }
    }
    // Who asks for serializable transactions gets them, where they can be had.
    let mut client = Client::new(proxy.port, &[]);
    assert_eq!(client.query("set default_transaction_isolation = 'serializable'"), "SET");
    for _ in 0..3 {
        assert_eq!(
            client.query("select count(*), current_setting('transaction_isolation') from t"),
            "0,serializable SELECT_1"
        );
        assert_eq!(client.query("begin read only"), "BEGIN");
        assert_eq!(client.query("select count(*) from t"), "0 SELECT_1");
        assert_eq!(client.query("commit"), "COMMIT");
    }
    // So does a database whose default it is.
    primary.psql("alter database postgres set default_transaction_isolation = 'serializable'").unwrap();
    until(|| standby.psql("show default_transaction_isolation").unwrap() == "serializable");
    let proxy = Proxy::start(Setup { size: 2, ..Setup::default() }, Some(catalog(&primary).unwrap())).unwrap();
    proxy.topology(1, primary.node(), Some(&primary), &[&standby]);
    let mut client = Client::new(proxy.port, &[("application_name", "a")]);
    for _ in 0..4 {
        assert_eq!(client.query("select count(*) from t"), "0 SELECT_1");
    }
}

#[test]
fn a_setting_that_is_refused_is_an_error_of_each_statement() {
    let (primary, proxy) = alone(2);
    primary.psql("create role gone").unwrap();
    let mut client = Client::new(proxy.port, &[]);
    assert_eq!(client.query("set role gone"), "SET");
    primary.psql("drop role gone").unwrap();
    // The server that has the role set goes away.
    primary.psql("select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and usename = 'postgres'").unwrap();
    for _ in 0..3 {
        assert_eq!(client.query("select 1"), "E22023");
    }
    assert_eq!(client.query("reset role"), "RESET");
    assert_eq!(client.query("select current_user"), "postgres SELECT_1");
    // What a server has been through is not the session's fault.
    let mut client = Client::new(proxy.port, &[]);
    assert_eq!(client.query("set temp_buffers = '9MB'"), "SET");
    let mut others: Vec<Client> = (0..2).map(|_| Client::new(proxy.port, &[])).collect();
    for text in ["begin", "create temp table used (a int)", "commit", "drop table used"] {
        for other in &mut others {
            other.query(text);
        }
    }
    drop(others);
    for _ in 0..4 {
        assert_eq!(client.query("show temp_buffers"), "9MB SHOW");
    }
    // More than fit a target list.
    let many: String = (0..2000).map(|number| format!("set app.s{number} = 'x';")).collect();
    let mut client = Client::new(proxy.port, &[]);
    client.query(&many);
    let mut other = Client::new(proxy.port, &[("application_name", "other")]);
    other.query("begin");
    assert_eq!(client.query("select current_setting('app.s1999')"), "x SELECT_1");
}

#[test]
fn values_arrive_as_they_were_written() {
    let (primary, proxy) = alone(2);
    primary.psql("create table audit (who text default current_setting('app.user_name'), n int)").unwrap();
    let spoil = || {
        let mut clients: Vec<Client> =
            (0..2).map(|_| Client::new(proxy.port, &[("client_encoding", "LATIN1")])).collect();
        for text in ["begin", "select 1", "commit"] {
            for client in &mut clients {
                client.query(text);
            }
        }
    };
    spoil();
    for name in ["José €", r"back\slash 'quoted'", "😀"] {
        let mut client = Client::new(proxy.port, &[]);
        assert_eq!(client.query(&format!("set app.user_name = '{}'", name.replace('\'', "''"))), "SET");
        for _ in 0..3 {
            spoil();
            assert_eq!(client.query("select current_setting('app.user_name', true)"), format!("{name} SELECT_1"));
            assert_eq!(client.query("begin"), "BEGIN");
            assert_eq!(client.query("insert into audit (n) values (1)"), "INSERT_0_1");
            assert_eq!(client.query("commit"), "COMMIT");
        }
        let name = name.replace('\'', "''");
        assert_eq!(primary.psql(&format!("select count(*) from audit where who = '{name}'")).unwrap(), "3");
    }
    // Texts of other encodings are read as what they are.
    for (encoding, written, means) in
        [("LATIN1", &b"\xc3\xa9\xe9"[..], "Ã©é"), ("WIN1252", b"\x80\xe9", "€é"), ("LATIN9", b"\xa4", "€")]
    {
        let mut client = Client::new(proxy.port, &[("client_encoding", encoding)]);
        let mut text = BytesMut::new();
        frontend::put_query(&mut text, &[b"set app.user_name = '", written, b"'"].concat());
        client.stream.write_all(&text).unwrap();
        assert_eq!(client.read(), "SET");
        for _ in 0..3 {
            let mut other = Client::new(proxy.port, &[]);
            assert_eq!(other.query("select 1"), "1 SELECT_1");
            let same = format!("select current_setting('app.user_name') = U&'{}'", escaped(means));
            assert_eq!(client.query(&same), "t SELECT_1", "{encoding}");
        }
    }
}

fn escaped(text: &str) -> String {
    text.chars().map(|character| format!("\\+{:06x}", u32::from(character))).collect()
}

#[test]
fn what_functions_set_is_kept() {
    let primary = Postgres::primary().unwrap();
    let setter = |name: &str, body: &str| {
        format!("create function {name}(v text) returns void language plpgsql as $$ begin {body}; end $$;")
    };
    primary.psql(&setter("set_tenant", "perform set_config('app.tenant', v, false)")).unwrap();
    primary.psql(&setter("set_memory", "set work_mem = '9MB'")).unwrap();
    primary.psql("create procedure set_by_call() language plpgsql as $$ begin set app.called = 'yes'; end $$").unwrap();
    primary.psql("create table rows_of (tenant text); insert into rows_of values ('t1'), ('t1'), ('t2')").unwrap();
    let standby = Postgres::standby_of(&primary).unwrap();
    let setup = Setup { size: 2, ..Setup::default() };
    let proxy = Proxy::start(setup, Some(catalog(&primary).unwrap())).unwrap();
    proxy.topology(1, primary.node(), Some(&primary), &[&standby]);
    let mut client = Client::new(proxy.port, &[]);
    client.query("select set_tenant('t1')");
    client.query("select set_memory('')");
    client.query("call set_by_call()");
    client.query("do $$ begin perform set_config('app.done', 'José', false); end $$");
    client.query("update pg_settings set setting = '7000' where name = 'statement_timeout'");
    for _ in 0..4 {
        let mut other = Client::new(proxy.port, &[("application_name", "other")]);
        // Null, or empty where it was set before.
        assert_eq!(other.query("select nullif(current_setting('app.tenant', true), '')"), "null SELECT_1");
        let rows = "select count(*) from rows_of where tenant = current_setting('app.tenant', true)";
        assert_eq!(client.query(rows), "2 SELECT_1");
        assert_eq!(client.query("show work_mem"), "9MB SHOW");
        assert_eq!(client.query("show statement_timeout"), "7s SHOW");
        assert_eq!(
            client.query("select current_setting('app.called'), current_setting('app.done')"),
            "yes,José SELECT_1"
        );
    }
}

#[test]
fn a_reset_goes_back_to_what_the_session_began_with() {
    let (primary, proxy) = alone(1);
    let startup = [("timezone", "Asia/Tokyo"), ("application_name", "mine"), ("options", "-c search_path=a,public")];
    let texts = [
        "set timezone = 'UTC'",
        "reset timezone",
        "show timezone",
        "set application_name = 'other'",
        "reset all",
        "show application_name",
        "show search_path",
        "begin",
        "set search_path = b",
        "reset search_path",
        "show search_path",
        "set transaction isolation level repeatable read",
        "select 1",
        "rollback",
        "set local timezone to default",
        "discard all",
        "show timezone",
        "begin",
        "set local timezone = 'UTC'",
        "set local timezone to default",
        "show timezone",
        "commit",
        "set role pg_monitor",
        "reset role",
    ];
    let run = |port: u16| {
        let mut client = Client::new(port, &startup);
        // The login of these tests tells less than PostgreSQL's.
        for (name, value) in [("TimeZone", "Asia/Tokyo"), ("application_name", "mine"), ("is_superuser", "on")] {
            client.told.insert(name.to_owned(), value.to_owned());
        }
        texts.map(|text| {
            let answer = client.query(text);
            let told = ["TimeZone", "application_name", "is_superuser"].map(|name| client.told[name].clone());
            format!("{text}: {answer} {told:?}")
        })
    };
    let (direct, proxied) = (run(primary.port), run(proxy.port));
    for (direct, proxied) in direct.iter().zip(&proxied) {
        assert_eq!(proxied.replace("a, public", "a,public"), *direct);
    }
    // Others have what is theirs.
    let mut other = Client::new(proxy.port, &[]);
    assert_eq!(other.query("show search_path"), "\"$user\", public SHOW");
}

#[test]
fn an_authorization_that_was_reset_is_over() {
    let (primary, proxy) = super::alone(Setup::default());
    primary.psql("create role plain").unwrap();
    let texts = [
        "set session authorization plain",
        "select session_user, current_user",
        "reset session authorization",
        "select session_user, current_user",
        "create role made_afterwards",
        "drop role made_afterwards",
        "select session_user, current_user",
    ];
    let run = |port: u16| {
        let mut client = Client::new(port, &[]);
        texts.map(|text| format!("{text}: {}", client.query(text)))
    };
    assert_eq!(run(proxy.port), run(primary.port));
}

#[test]
fn what_a_standby_does_not_know_yet_is_asked_of_the_primary() {
    let primary = Postgres::primary().unwrap();
    primary.psql("create type mood as enum ('sad')").unwrap();
    let standby = Postgres::standby_of(&primary).unwrap();
    let proxy = Proxy::start(Setup::default(), Some(catalog(&primary).unwrap())).unwrap();
    proxy.topology(1, primary.node(), Some(&primary), &[&standby]);
    standby.psql("select pg_wal_replay_pause()").unwrap();
    primary.psql("create role jr1; alter type mood add value 'glad'").unwrap();
    let mut client = Client::new(proxy.port, &[]);
    for _ in 0..3 {
        assert_eq!(client.query("set role jr1"), "SET");
        assert_eq!(client.query("select current_user"), "jr1 SELECT_1");
        assert_eq!(client.query("select 'glad'::mood"), "glad SELECT_1");
        assert_eq!(client.query("reset role"), "RESET");
    }
    assert_eq!(client.query("set role nobody"), "E22023");
    standby.psql("select pg_wal_replay_resume()").unwrap();
}

#[test]
fn a_read_only_transaction_runs_where_its_first_statement_can() {
    let primary = Postgres::primary().unwrap();
    primary.psql("create table t (a int); create unlogged table scratch (a int); create sequence s").unwrap();
    let standby = Postgres::standby_of(&primary).unwrap();
    let proxy = Proxy::start(Setup::default(), Some(catalog(&primary).unwrap())).unwrap();
    proxy.topology(1, primary.node(), Some(&primary), &[&standby]);
    let mut client = Client::new(proxy.port, &[]);
    let mut direct = Client::new(primary.port, &[]);
    for first in [
        "select count(*) from scratch",
        "select pg_current_wal_lsn() is null",
        "select txid_current() > 0",
        "select pg_notify('c', 'x')",
        "notify c",
        "lock table t in share mode",
        "analyze t",
        "select pg_is_in_recovery()",
        "select pg_advisory_xact_lock(7)",
        "insert into t values (1)",
        "select no_such_function()",
        "select 1",
    ] {
        let run = |client: &mut Client| {
            ["begin isolation level repeatable read read only", first, "select 2", "rollback"]
                .map(|text| client.query(text))
        };
        assert_eq!(run(&mut client), run(&mut direct), "{first}");
    }
    // Reads stay on the standby.
    client.query("begin read only");
    assert_eq!(client.query("select count(*) from t"), "0 SELECT_1");
    assert_eq!(client.query("select current_setting('transaction_read_only')"), "on SELECT_1");
    client.query("commit");
    // Its characteristics go with it.
    client.query("begin read only");
    assert_eq!(client.query("set transaction isolation level repeatable read"), "SET");
    assert_eq!(client.query("select txid_current() > 0"), "t SELECT_1");
    assert_eq!(client.query("show transaction_isolation"), "repeatable read SHOW");
    assert_eq!(client.query("insert into t values (1)"), "E25006");
    client.query("rollback");
    // One's own sequence values.
    client.query("select nextval('s')");
    client.query("begin read only");
    assert_eq!(client.query("select currval('s')"), "1 SELECT_1");
    client.query("commit");
    // A snapshot can be imported.
    let mut importer = Client::new(proxy.port, &[]);
    client.query("begin isolation level repeatable read read only");
    let exported = client.query("select pg_export_snapshot()");
    let snapshot = exported.split(' ').next().unwrap();
    importer.query("begin isolation level repeatable read read only");
    assert_eq!(importer.query(&format!("set transaction snapshot '{snapshot}'")), "SET");
    assert_eq!(importer.query("select count(*) from t"), "0 SELECT_1");
    // What a lagging standby does not know.
    standby.psql("select pg_wal_replay_pause()").unwrap();
    primary.psql("create table late (a int)").unwrap();
    let mut client = Client::new(proxy.port, &[]);
    client.query("begin read only");
    assert_eq!(client.query("select count(*) from late"), "0 SELECT_1");
    assert_eq!(client.query("commit"), "COMMIT");
    standby.psql("select pg_wal_replay_resume()").unwrap();
}

#[test]
fn servers_opened_before_a_change_of_defaults_are_retired() {
    let (primary, proxy) = alone(4);
    let mut clients: Vec<Client> = (0..4).map(|_| Client::new(proxy.port, &[])).collect();
    for text in ["begin", "select 1", "commit"] {
        for client in &mut clients {
            client.query(text);
        }
    }
    primary.psql("alter role postgres set search_path = neu, public").unwrap();
    proxy.learn(catalog(&primary).unwrap());
    until(|| proxy.psql("show search_path").unwrap() == "neu, public");
    for _ in 0..2 {
        for text in ["begin", "show search_path", "commit"] {
            for client in &mut clients {
                let answer = client.query(text);
                assert!(!text.starts_with("show") || answer == "neu, public SHOW", "{answer}");
            }
        }
    }
}
