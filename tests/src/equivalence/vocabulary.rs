//! Vocabulary: statements by kind, over the objects of `FIXTURE`.

use fastrand::Rng;

/// Fixture of each conversation. Run by a superuser, in the database of the lane.
pub(super) const FIXTURE: &str = "
drop schema if exists eq cascade; drop schema if exists eq2 cascade;
set client_min_messages = warning;
create schema eq authorization eq; create schema eq2 authorization eq;
set role eq; set search_path = eq;
create table t (id int primary key, v text, n numeric(10,2) default 1.5);
insert into t select g, 'v' || g, g from generate_series(1, 5) g;
create type mood as enum ('sad', 'ok');
create table m (id int, mood mood, j jsonb);
insert into m values (1, 'ok', '{\"a\": 1}');
create sequence s;
create view vt as select id, v from t where id < 1000;
create table eq2.t (id text, v int);
insert into eq2.t values ('1', 10), ('zwei', 20);
create function noisy(x int) returns int language plpgsql as
  $$ begin raise notice 'noisy %', x using detail = 'some', hint = 'none'; return x; end $$;
create function steady(x int) returns int stable language plpgsql as
  $$ begin raise warning 'steady %', x; return x + 1; end $$;
create function put(x int) returns int language plpgsql as
  $$ begin insert into eq.t values (x, 'put'); return x; end $$;
create function tenant(x text) returns void language plpgsql as
  $$ begin perform set_config('app.tenant', x, false); end $$;
create function fail(x int) returns int language plpgsql as
  $$ begin raise exception 'no %', x using errcode = '22012', detail = 'd', hint = 'h'; end $$;
create procedure twice(x int) language plpgsql as
  $$ begin insert into eq.t values (x, 'one'); commit; insert into eq.t values (x + 1, 'two'); end $$;
create function tell() returns trigger language plpgsql as
  $$ begin raise notice 'row %', new.id; return new; end $$;
create trigger tell before insert on m for each row execute function tell();
grant usage on schema eq to eq_other; grant select on t to eq_other;
reset role; reset search_path;
";

/// State in the end, and after a client has left: each query gives rows as text.
pub(super) const STATE: &[&str] = &[
    "select relnamespace::regnamespace, relname, relkind, relnatts from pg_class
     where relnamespace::regnamespace::text in ('eq', 'eq2') order by 1, 2",
    "select table_to_xml(c.oid::regclass, true, false, '')::text from pg_class c
     where relkind = 'r' and relnamespace::regnamespace::text in ('eq', 'eq2') order by relnamespace, relname",
    "select schemaname, sequencename, last_value from pg_sequences where schemaname in ('eq', 'eq2') order by 1, 2",
];

/// A statement, with parameters if it is prepared by the protocol.
#[derive(Clone, Debug, Default)]
pub(super) struct Statement {
    pub(super) text: Vec<u8>,
    pub(super) values: Vec<Option<Vec<u8>>>,
    pub(super) binds: bool,
    pub(super) alone: bool,
}

impl Statement {
    pub(super) fn plain(text: impl Into<Vec<u8>>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    fn with(text: impl Into<Vec<u8>>, values: Vec<Option<Vec<u8>>>) -> Self {
        Self { values, ..Self::plain(text) }
    }

    fn binding(text: impl Into<Vec<u8>>) -> Self {
        Self { binds: true, ..Self::plain(text) }
    }

    fn alone(text: impl Into<Vec<u8>>) -> Self {
        Self { alone: true, ..Self::plain(text) }
    }
}

fn pick<'a, T: ?Sized>(rng: &mut Rng, from: &[&'a T]) -> &'a T {
    from[rng.usize(..from.len())]
}

/// A row of `session` alone: nobody waits for another's lock.
fn own(rng: &mut Rng, session: usize) -> String {
    (100 * (session + 1) + rng.usize(..4)).to_string()
}

/// Words in the encodings of the world: UTF-8, Latin-1, and what is neither.
const WORDS: &[&[u8]] =
    &[b"plain", b"caf\xc3\xa9", b"caf\xe9", b"\xe2\x82\xac", b"it''s", b"back\\\\slash", b"", b"\xff\xfe"];

fn word(rng: &mut Rng) -> &'static [u8] {
    pick(rng, WORDS)
}

fn quoted(before: &str, word: &[u8], after: &str) -> Vec<u8> {
    [before.as_bytes(), b"'", word, b"'", after.as_bytes()].concat()
}

const READS: &[&str] = &[
    "select 1",
    "select * from t order by id",
    "select id, v from t where id <= 3 order by id",
    "select count(*) from m",
    "select * from m order by id",
    "select * from vt order by id",
    "select current_setting('app.tenant', true)",
    "select current_schemas(false), current_user, session_user",
    "show search_path",
    "show work_mem",
    "show datestyle",
    "show transaction isolation level",
    "show transaction_read_only",
    "show client_encoding",
    "select date '2026-02-03', interval '1 day 2 hours', timestamptz '2026-01-01 12:00+00'",
    "select '\\x00ff'::bytea, 1.1::float8, 0.1::float4, true",
    "select 'a\\nb', E'a\\nb', $q$x$q$",
    "select noisy(3)",
    "select steady(2)",
    "select noisy(id) from t where id < 3 order by id",
    "select g from generate_series(1, 7) g",
    "select 1/0",
    "select * from nosuch",
    "select nosuch from t",
    "selec 1",
    "select v::int from t order by id",
    "select fail(1)",
    "select id from t order by id for update",
    "explain (costs off) select * from t where id = 1",
    "select E'\\u00e9', U&'\\20ac'",
    "select upper('x'), now() is not null",
    "table eq2.t",
    "",
    ";",
    "-- nothing",
    "select $1",
    "select null::text, ''::text",
    "select mood, j->>'a' from m",
    "select setting from pg_settings where name in ('work_mem', 'TimeZone') order by name",
    "select currval('s')",
    "with w as (select 2 as a) select a from w union all select 3",
    "select pg_is_in_recovery() is not null",
    "values (1, 'a'), (2, 'b')",
];

pub(super) fn read(rng: &mut Rng) -> Statement {
    if rng.usize(..6) == 0 {
        let before = pick(rng, &["select ", "select length(", "select octet_length("]);
        let after = if before.ends_with('(') { ")" } else { " as w" };
        return Statement::plain(quoted(before, word(rng), after));
    }
    Statement::plain(pick(rng, READS))
}

pub(super) fn read_with_values(rng: &mut Rng) -> Statement {
    let number = |rng: &mut Rng| Some(rng.usize(..7).to_string().into_bytes());
    match rng.usize(..7) {
        0 => Statement::with("select $1::int + 1", vec![number(rng)]),
        1 => Statement::with("select * from t where id = $1", vec![number(rng)]),
        2 => Statement::with("select v, n from t where id > $1 order by id limit $2", vec![number(rng), number(rng)]),
        3 => Statement::with("select $1::text", vec![Some(word(rng).to_vec())]),
        4 => Statement::with("select id from m where mood = $1", vec![Some(pick(rng, &["ok", "sad", "bad"]).into())]),
        5 => Statement::with("select $1::int", vec![Some(pick(rng, &["x", "1", "99999999999"]).into())]),
        _ => Statement::with(
            "select * from t where n >= $1 order by id",
            vec![if rng.bool() { number(rng) } else { None }],
        ),
    }
}

pub(super) fn write(rng: &mut Rng, session: usize) -> Statement {
    let id = own(rng, session);
    match rng.usize(..16) {
        0 | 1 => Statement::plain(quoted(&format!("insert into t values ({id}, "), word(rng), ")")),
        2 => Statement::with("insert into t values ($1, $2)", vec![Some(id.into()), Some(word(rng).to_vec())]),
        3 => Statement::with(
            "insert into t (id, n) values ($1, $2) returning *",
            vec![Some(id.into()), Some("12345678.91".into())],
        ),
        4 => Statement::plain(format!("update t set v = v || 'x' where id = {id}")),
        5 => Statement::plain(format!("delete from t where id = {id} returning v")),
        6 => Statement::plain(format!("insert into t values ({id}, 'c') on conflict (id) do update set v = 'again'")),
        7 => Statement::plain("insert into t values (1, 'there is one')"),
        8 => Statement::plain(format!("insert into m values ({id}, 'ok', '[1]')")),
        9 => Statement::with("insert into m values ($1, $2, $3)", vec![Some(id.into()), Some("sad".into()), None]),
        10 => Statement::plain(format!("select put({id})")),
        11 => Statement::plain(format!("call twice({id})")),
        12 => Statement::plain(format!("do $$ begin raise notice 'do'; insert into eq.t values ({id}, 'do'); end $$")),
        13 => Statement::plain("select nextval('s')"),
        14 => Statement::plain("select nextval('s'), currval('s'), lastval()"),
        _ => Statement::plain(format!("with w as (insert into t values ({id}, 'w') returning id) select id from w")),
    }
}

/// Names of settings and values, right ones and wrong ones.
const SETTINGS: &[(&str, &[&str])] = &[
    ("work_mem", &["'5MB'", "'6MB'", "'nonsense'", "0"]),
    ("datestyle", &["'German'", "'ISO, DMY'", "'SQL, MDY'", "'x'"]),
    ("timezone", &["'Asia/Tokyo'", "'UTC'", "'Europe/Berlin'", "'Nowhere'"]),
    ("extra_float_digits", &["0", "3", "-2"]),
    ("bytea_output", &["'escape'", "'hex'"]),
    ("intervalstyle", &["'iso_8601'", "'postgres_verbose'"]),
    ("client_min_messages", &["'warning'", "'notice'", "'error'"]),
    ("standard_conforming_strings", &["off", "on"]),
    ("app.tenant", &["'a'", "'b'", "''"]),
    ("search_path", &["eq2, eq", "eq", "'eq2'", "nosuch", "eq, public"]),
    ("application_name", &["'one'", "'two'", "'caf\u{e9}'"]),
    ("default_transaction_isolation", &["'serializable'", "'repeatable read'", "'read committed'"]),
    ("default_transaction_read_only", &["on", "off"]),
    ("client_encoding", &["'LATIN1'", "'UTF8'", "'SQL_ASCII'", "'WIN1252'", "'nosuch'"]),
    ("role", &["eq_other", "none", "'nosuch'"]),
    ("statement_timeout", &["'20s'", "0"]),
    ("plan_cache_mode", &["force_generic_plan", "auto"]),
    ("nosuch_setting", &["1"]),
    ("server_version", &["'1'"]),
    ("log_statement", &["'all'"]),
];

pub(super) fn setting(rng: &mut Rng) -> Statement {
    let (name, values) = SETTINGS[rng.usize(..SETTINGS.len())];
    let value = pick(rng, values);
    Statement::plain(match rng.usize(..16) {
        0..=4 => format!("set {name} = {value}"),
        5 => format!("set session {name} to {value}"),
        6 | 7 => format!("set local {name} = {value}"),
        8 => format!("reset {name}"),
        9 => format!("set {name} to default"),
        10 if value.starts_with('\'') => format!("select set_config('{name}', {value}, {})", rng.bool()),
        11 => format!("show {name}"),
        12 => pick(
            rng,
            &[
                "reset all",
                "discard all",
                "discard plans",
                "set session characteristics as transaction read only",
                "set session characteristics as transaction read write",
            ],
        )
        .to_owned(),
        13 => pick(
            rng,
            &[
                "set names 'LATIN1'",
                "set names 'UTF8'",
                "set time zone 'Asia/Tokyo'",
                "reset timezone",
                "set role none",
                "reset session authorization",
            ],
        )
        .to_owned(),
        14 => pick(
            rng,
            &[
                "select tenant('a')",
                "select tenant('b')",
                "reset app.tenant",
                "do $$ begin perform set_config('app.tenant', 'done', false); end $$",
            ],
        )
        .to_owned(),
        _ => format!("select current_setting('{name}', true)"),
    })
}

pub(super) fn begin(rng: &mut Rng) -> Statement {
    Statement::plain(pick(
        rng,
        &[
            "begin",
            "begin",
            "start transaction read write",
            "begin read only",
            "begin isolation level repeatable read read only",
            "begin isolation level repeatable read",
            "begin isolation level serializable",
            "begin isolation level serializable read only deferrable",
        ],
    ))
}

pub(super) fn end(rng: &mut Rng) -> Statement {
    Statement::plain(pick(
        rng,
        &["commit", "commit", "commit", "rollback", "end", "abort", "commit and chain", "rollback and chain"],
    ))
}

/// Statement that has a sense in a transaction only.
pub(super) fn within(rng: &mut Rng) -> Statement {
    Statement::plain(pick(
        rng,
        &[
            "savepoint a",
            "savepoint b",
            "rollback to a",
            "rollback to savepoint b",
            "release a",
            "set transaction read only",
            "set transaction isolation level repeatable read",
            "declare c cursor for select id from t order by id",
            "declare c scroll cursor for select v from t order by id",
            "fetch 2 from c",
            "fetch all from c",
            "move 1 in c",
            "close c",
            "close all",
            "begin",
            "prepare transaction 'x'",
            "lock table m in row exclusive mode",
            "set constraints all deferred",
        ],
    ))
}

/// Statement that binds a session, and what comes after it.
pub(super) fn binding(rng: &mut Rng) -> Statement {
    Statement::binding(pick(
        rng,
        &[
            "create temp table tt (a int)",
            "create temp table tt on commit drop as select 1 as a",
            "insert into tt values (1), (2)",
            "select * from tt",
            "drop table tt",
            "discard temp",
            "prepare p as select $1::int + 1",
            "prepare p as select v from t where id = $1",
            "execute p(1)",
            "deallocate p",
            "deallocate all",
            "listen c",
            "notify c, 'x'",
            "unlisten c",
            "select pg_advisory_lock(5), pg_advisory_unlock(5)",
            "select pg_try_advisory_lock(6)",
            "select pg_advisory_unlock_all()",
            "declare h cursor with hold for select id from t order by id",
            "fetch 1 from h",
            "close h",
            "discard all",
            "create temp view tv as select 1 as one",
        ],
    ))
}

pub(super) fn definition(rng: &mut Rng) -> Statement {
    Statement::alone(pick(
        rng,
        &[
            "alter table t add column extra int",
            "alter table t drop column extra",
            "alter table t alter n type numeric",
            "alter table t alter n type text",
            "alter table t alter n set default 2.5",
            "alter table m alter id type bigint",
            "alter table m add column more text default 'm'",
            "drop table m",
            "create table m (id int, mood text, j text)",
            "drop table if exists m; create table m (id text, mood mood, j jsonb)",
            "drop type mood cascade",
            "drop type if exists mood cascade; create type mood as enum ('sad', 'ok', 'new')",
            "alter type mood add value if not exists 'bad'",
            "alter type mood rename value 'sad' to 'blue'",
            "create or replace view vt as select id, v from t where id < 3",
            "drop view vt",
            "create index on t (v)",
            "create or replace function noisy(x int) returns int language plpgsql as $$ begin raise notice 'new %', x; return x; end $$",
            "drop function if exists noisy(int); create function noisy(x int) returns text language sql as $$ select 'text'::text $$",
            "alter table t rename to u",
            "alter table if exists u rename to t",
            "create table eq2.m (id int, v text)",
            "create table if not exists eq2.nosuch (a int)",
            "drop table if exists eq2.t",
            "create schema nosuch; drop schema nosuch",
            "truncate m",
            "revoke select on t from eq_other",
            "grant select on t to eq_other",
            "comment on table t is 'c'",
            "alter function steady(int) volatile",
            "alter sequence s restart with 50",
            "alter table t set schema eq2",
            "alter table m disable trigger tell",
            "create table t3 as select * from t",
            "drop table if exists nosuch",
            "analyze t",
            "vacuum m",
        ],
    ))
}
