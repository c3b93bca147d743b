//! The session without sockets: whatever a client sends, in whatever pieces, it reads what it would
//! read without the proxy, although every transaction runs on another server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]

#[path = "script/fake.rs"]
mod fake;

use std::sync::Arc;

use bytes::BytesMut;
use fake::{Fake, take};
use manatee_proxy::auth::Access;
use manatee_proxy::pool::Mode;
use manatee_proxy::route::Classifier;
use manatee_proxy::session::lost::How;
use manatee_proxy::session::{Awake, Cleanup, Config, Kept, Need, News, ServedBy, ServerState, Session, Shared, Step};
use manatee_proxy::topology::consistency::Consistency;
use manatee_proxy::wire::frontend::{self, Kind};
use proptest::prelude::*;

/// A session between a client and two servers that take turns.
struct Pair {
    session: Session,
    shared: Shared,
    rx: BytesMut,
    servers: [Fake; 2],
    states: [Option<Box<ServerState>>; 2],
    next: usize,
    attached: Option<usize>,
    /// Said by the attached server, not yet delivered.
    said: BytesMut,
    server_rx: BytesMut,
    received: BytesMut,
    needs: Vec<Need>,
    news: Vec<News>,
    ended: bool,
}

fn config() -> Config {
    Config { access: Access::ReadWrite, mode: Mode::Transaction, split: true, consistency: Consistency::Session }
}

impl Pair {
    fn new() -> Self {
        Self::of(config())
    }

    fn of(config: Config) -> Self {
        let mut shared = Shared::new(Classifier::new(7, 100, Arc::default()));
        let session = Session::of(Kept::new(config, &[], Vec::new(), &mut shared).unwrap());
        let states = [(); 2].map(|()| Some(ServerState::new(Vec::new(), &shared)));
        Self {
            session,
            shared,
            rx: BytesMut::new(),
            servers: Default::default(),
            states,
            next: 0,
            attached: None,
            said: BytesMut::new(),
            server_rx: BytesMut::new(),
            received: BytesMut::new(),
            needs: Vec::new(),
            news: Vec::new(),
            ended: false,
        }
    }

    /// Goes on; at most `deliveries` times bytes of the server are delivered, `piece` at a time.
    fn pump(&mut self, mut deliveries: usize, piece: usize) {
        while !self.ended {
            let step = self.session.advance(&mut self.rx, &mut self.shared);
            self.news.extend(std::iter::from_fn(|| self.session.poll_news()));
            self.received.unsplit(self.session.to_client().split());
            match step {
                Step::Wait => {
                    let to_server = self.session.to_server().split();
                    match self.attached {
                        Some(server) => self.servers[server].feed(&to_server, &mut self.said),
                        None => assert!(to_server.is_empty()),
                    }
                    if self.said.is_empty() || deliveries == 0 {
                        return;
                    }
                    deliveries -= 1;
                    self.server_rx.unsplit(take(&mut self.said, piece.max(1)));
                    if let Err(fault) = self.session.server_bytes(&mut self.server_rx, &mut self.shared) {
                        self.lose(fault.how());
                    }
                }
                Step::Acquire(need) => {
                    self.needs.push(need);
                    let server = self.next;
                    self.attached = Some(server);
                    let served_by = if need == Need::Primary { ServedBy::Primary } else { ServedBy::Standby };
                    self.session.attach(self.states[server].take().unwrap(), served_by);
                }
                Step::Release => {
                    let server = self.attached.take().unwrap();
                    let mut state = self.session.detach().unwrap();
                    assert!(self.said.is_empty() && self.server_rx.is_empty(), "released with bytes unread");
                    if state.cleanup != Cleanup::None {
                        self.servers[server].discard();
                        state.discarded(&self.shared.profiles);
                    }
                    self.states[server] = Some(state);
                    self.next = 1 - self.next;
                }
                Step::Cancel(_) => self.session.canceled_client(false, &mut self.rx),
                Step::End => self.ended = true,
            }
        }
    }

    fn lose(&mut self, how: How) {
        let server = self.attached.take().unwrap();
        self.servers[server] = Fake::default();
        self.states[server] = Some(ServerState::new(Vec::new(), &self.shared));
        self.next = 1 - server;
        self.said.clear();
        self.server_rx.clear();
        self.session.server_lost(how, &mut self.rx);
    }

    fn send(&mut self, message: &[u8]) {
        self.rx.extend_from_slice(message);
        self.pump(usize::MAX, usize::MAX);
    }

    /// Messages that have come, as tags with error codes: `1 2 D C Z`.
    fn read(&mut self) -> String {
        let mut words = Vec::new();
        let bytes = self.received.split();
        let mut rest = &bytes[..];
        while let Ok(Some((header, body))) = manatee_proxy::wire::complete(rest) {
            words.push(match header.tag {
                b'E' => {
                    format!("E{}", String::from_utf8_lossy(manatee_proxy::wire::backend::ErrorFields::read(body).code))
                }
                b'Z' => format!("Z{}", char::from(body[0])),
                b'C' => String::from_utf8_lossy(&body[..body.len() - 1]).replace(' ', "_"),
                tag => char::from(tag).to_string(),
            });
            rest = &rest[header.size..];
        }
        words.join(" ")
    }
}

fn query(text: &str) -> Vec<u8> {
    let mut out = BytesMut::new();
    frontend::put_query(&mut out, text.as_bytes());
    out.to_vec()
}

fn build(fill: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    let mut out = BytesMut::new();
    fill(&mut out);
    out.to_vec()
}

fn parse(name: &str, text: &str) -> Vec<u8> {
    build(|out| frontend::put_parse(out, name.as_bytes(), text.as_bytes(), &[0, 0]))
}

fn bind(portal: &str, statement: &str) -> Vec<u8> {
    build(|out| frontend::put_bind(out, portal.as_bytes(), statement.as_bytes(), &[0; 6]))
}

fn target(tag: u8, kind: Kind, name: &str) -> Vec<u8> {
    build(|out| frontend::put_target(out, tag, kind, name.as_bytes()))
}

fn execute(portal: &str) -> Vec<u8> {
    build(|out| {
        manatee_proxy::wire::put_message(out, frontend::EXECUTE, |out| {
            manatee_proxy::wire::put_cstr(out, portal.as_bytes());
            out.extend_from_slice(&[0; 4]);
        });
    })
}

fn empty(tag: u8) -> Vec<u8> {
    build(|out| frontend::put_empty(out, tag))
}

fn sync() -> Vec<u8> {
    empty(frontend::SYNC)
}

fn text() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "select 1",
        "select 1",
        "select 2",
        "insert into t values (1)",
        "fail",
        "fail parse",
        "begin",
        "commit",
        "rollback",
        "",
    ])
}

fn name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["", "", "a", "b", "manatee_1"])
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let extended = (name(), name(), text()).prop_map(|(portal, statement, text)| {
        [parse(statement, text), bind(portal, statement), execute(portal), sync()].concat()
    });
    prop_oneof![
        4 => text().prop_map(query),
        1 => Just([query("copy t from stdin"), empty(frontend::COPY_DATA), empty(frontend::COPY_DONE)].concat()),
        4 => extended,
        3 => (name(), text()).prop_map(|(name, text)| parse(name, text)),
        3 => (name(), name()).prop_map(|(portal, statement)| bind(portal, statement)),
        3 => name().prop_map(execute),
        2 => (any::<bool>(), any::<bool>(), name()).prop_map(|(close, statement, name)| {
            let tag = if close { frontend::CLOSE } else { frontend::DESCRIBE };
            target(tag, if statement { Kind::Statement } else { Kind::Portal }, name)
        }),
        1 => Just(empty(frontend::FLUSH)),
        4 => Just(sync()),
    ]
}

/// Shown as text when a case fails.
struct Readable(Vec<u8>);

impl std::fmt::Debug for Readable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

fn tags(bytes: &[u8]) -> String {
    let mut pair = Pair::new();
    pair.received.extend_from_slice(bytes);
    pair.read()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_client_reads_what_it_would_read_without_the_proxy(
        messages in prop::collection::vec(message().prop_map(Readable), 1..24),
        pieces in prop::collection::vec(1_usize..40, 1..12),
        deliveries in prop::collection::vec((0_usize..4, 1_usize..60), 1..12),
    ) {
        let mut stream = BytesMut::from(&messages.iter().flat_map(|message| message.0.clone()).collect::<Vec<_>>()[..]);
        stream.extend_from_slice(&sync());
        let mut direct = Fake::default();
        let mut expected = BytesMut::new();
        direct.feed(&stream, &mut expected);

        let mut pair = Pair::new();
        let (mut pieces, mut deliveries) = (pieces.iter().cycle(), deliveries.iter().cycle());
        while !stream.is_empty() {
            let piece = take(&mut stream, *pieces.next().unwrap());
            pair.rx.unsplit(piece);
            let (count, size) = deliveries.next().unwrap();
            pair.pump(*count, *size);
        }
        pair.pump(usize::MAX, 13);
        prop_assert!(!pair.ended);
        prop_assert_eq!(tags(&pair.received), tags(&expected));
        prop_assert_eq!(String::from_utf8_lossy(&pair.received), String::from_utf8_lossy(&expected));
    }

    #[test]
    fn nor_does_a_client_that_dawdles_and_leaves_read_anything_else(
        messages in prop::collection::vec(message().prop_map(Readable), 1..24),
        pieces in prop::collection::vec((1_usize..60, any::<bool>()), 1..12),
        says_so in any::<bool>(),
    ) {
        let mut stream = BytesMut::from(&messages.iter().flat_map(|message| message.0.clone()).collect::<Vec<_>>()[..]);
        let mut direct = Fake::default();
        let mut expected = BytesMut::new();
        direct.feed(&stream, &mut expected);
        if says_so {
            stream.extend_from_slice(&empty(frontend::TERMINATE));
        }

        let mut pair = Pair::new();
        let mut pieces = pieces.iter().cycle();
        while !stream.is_empty() {
            let (size, dawdles) = pieces.next().unwrap();
            let piece = take(&mut stream, *size);
            pair.rx.unsplit(piece);
            pair.pump(usize::MAX, 13);
            if *dawdles && pair.session.is_stalled(pair.rx.len()) {
                pair.session.end_stall();
                pair.pump(usize::MAX, 13);
            }
        }
        pair.session.client_ended();
        pair.pump(usize::MAX, 13);
        prop_assert_eq!(pair.ended, says_so);
        prop_assert!(pair.ended || pair.session.is_stuck());
        prop_assert_eq!(tags(&pair.received), tags(&expected));
        prop_assert_eq!(String::from_utf8_lossy(&pair.received), String::from_utf8_lossy(&expected));
    }
}

#[test]
fn reads_go_to_standbys_and_writes_to_the_primary() {
    let mut pair = Pair::new();
    pair.send(&query("select 1"));
    pair.send(&query("insert into t values (1)"));
    pair.send(&[parse("", "select 1"), bind("", ""), execute(""), sync()].concat());
    pair.send(&query("begin"));
    pair.send(&query("select 1"));
    pair.send(&query("commit"));
    assert_eq!(pair.needs, [Need::Standby, Need::Primary, Need::Standby, Need::Primary]);
    pair.read();
}

#[test]
fn what_pools_send_when_they_take_a_connection_back_needs_no_primary() {
    let mut pair = Pair::new();
    pair.send(&query("select 1"));
    pair.send(&query("SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;"));
    pair.send(&query("select 1"));
    assert_eq!(pair.needs, [Need::Standby, Need::Standby, Need::Standby]);
    pair.read();
}

#[test]
fn a_write_in_disguise_runs_again_on_the_primary() {
    let mut pair = Pair::new();
    pair.servers[0].read_only = true;
    let text = "select writes";
    pair.send(&query(text));
    assert_eq!(pair.read(), "T D SELECT_1 ZI");
    assert_eq!(pair.needs, [Need::Standby, Need::Primary]);
    assert_eq!(pair.news, [News::Rerun, News::Used(ServedBy::Primary)], "each is told once");
    pair.send(&query(text));
    assert_eq!(pair.needs.split_off(2), [Need::Primary], "it is remembered");

    // As a prepared statement: its class is found anew.
    let mut pair = Pair::new();
    pair.servers[1].read_only = true;
    pair.send(&[parse("a", text), sync()].concat());
    let run = [bind("", "a"), execute(""), sync()].concat();
    pair.send(&run);
    pair.servers[1].read_only = false;
    pair.send(&run);
    assert_eq!(pair.read(), "1 ZI 2 D SELECT_1 ZI 2 D SELECT_1 ZI");
    assert_eq!(pair.needs, [Need::Standby, Need::Standby, Need::Primary, Need::Primary]);
}

#[test]
fn a_session_rests_although_its_standby_was_lost_while_it_refused_a_write() {
    let mut pair = Pair::new();
    pair.servers[0].read_only = true;
    pair.rx.extend_from_slice(&query("select writes"));
    pair.pump(0, 1);
    // The error comes, ReadyForQuery does not.
    pair.pump(1, pair.said.len() - 6);
    pair.lose(How::Gone);
    pair.pump(usize::MAX, usize::MAX);
    assert_eq!(pair.read(), "T D SELECT_1 ZI");
    assert_eq!(pair.needs, [Need::Standby, Need::Primary]);
    assert!(Awake { session: pair.session, rx: pair.rx }.may_rest());
}

#[test]
fn what_was_parsed_can_be_deallocated_by_sql() {
    let mut pair = Pair::new();
    pair.send(&[parse("a", "select 1"), sync()].concat());
    let run = |text: &str| [parse("", text), bind("", ""), execute(""), sync()].concat();
    pair.send(&run("deallocate a"));
    assert_eq!(pair.read(), "1 ZI 1 2 DEALLOCATE ZI");
    pair.send(&[bind("", "a"), sync()].concat());
    assert_eq!(pair.read(), "E26000 ZI");
    pair.send(&run("deallocate a"));
    assert_eq!(pair.read(), "1 2 E26000 ZI");
    // In a text of several statements the server is asked, too.
    pair.send(&[parse("a", "select 1"), sync(), query("begin"), query("deallocate a"), query("commit")].concat());
    assert_eq!(pair.read(), "1 ZI BEGIN ZT DEALLOCATE ZT COMMIT ZI");
}

const RUN_A: fn() -> Vec<u8> = || [bind("", "a"), execute(""), sync()].concat();

/// A client that was told what rows its statement returns.
fn told(config: Config) -> Pair {
    let mut pair = Pair::of(config);
    pair.send(&[parse("a", "select 1"), target(frontend::DESCRIBE, Kind::Statement, "a"), sync()].concat());
    assert_eq!(pair.read(), "1 t T ZI");
    pair
}

fn on_the_primary() -> Config {
    Config { access: Access::PrimaryOnly, ..config() }
}

#[test]
fn a_statement_never_returns_other_rows_than_its_client_was_told() {
    let mut pair = told(on_the_primary());
    // The table changes; the other server prepares the statement only now.
    pair.servers.iter_mut().for_each(|server| server.columns = 1);
    for server in [1, 0, 1] {
        assert_eq!(pair.next, server);
        pair.send(&RUN_A());
        assert_eq!(pair.read(), "E0A000 ZI", "wherever it runs");
    }
    let again = [target(frontend::CLOSE, Kind::Statement, "a"), parse("a", "select 1"), RUN_A()].concat();
    pair.send(&again);
    assert_eq!(pair.read(), "3 1 2 D SELECT_1 ZI");
    pair.send(&RUN_A());
    assert_eq!(pair.read(), "2 D SELECT_1 ZI");
    // A standby that has not heard of it yet, or has heard of more, is not asked any more.
    let mut pair = told(config());
    pair.servers[1].columns = 1;
    pair.send(&RUN_A());
    assert_eq!(pair.read(), "2 D SELECT_1 ZI");
    assert_eq!(pair.needs, [Need::Standby, Need::Standby, Need::Primary]);
}

#[test]
fn what_is_prepared_is_prepared_once_on_each_server() {
    let mut pair = told(config());
    let parsed = |pair: &Pair| pair.servers.iter().map(|server| server.parsed).collect::<Vec<_>>();
    for _ in 0..4 {
        pair.send(&RUN_A());
    }
    assert_eq!(parsed(&pair), [1, 1]);
    // Who prepares it now is told what it is now, and on each server it is prepared once more: names in it may
    // mean something else.
    let prepare = [target(frontend::CLOSE, Kind::Statement, "a"), parse("a", "select 1"), sync()].concat();
    pair.send(&prepare);
    for _ in 0..4 {
        pair.send(&RUN_A());
    }
    assert_eq!(parsed(&pair), [2, 2]);
    // Bound by nobody else meanwhile, the old ones are closed.
    pair.send(&prepare);
    pair.send(&prepare);
    assert!(pair.servers.iter().all(|server| server.statement_names().len() <= 2));
}

/// Begins a transaction on the server which does not have the statement.
fn in_a_transaction(before: &[u8], change: impl Fn(&mut Fake), unit: &[u8]) -> (String, Vec<String>) {
    let mut pair = told(on_the_primary());
    pair.servers.iter_mut().for_each(change);
    pair.send(before);
    assert_eq!(pair.attached, Some(1));
    pair.read();
    pair.servers[1].ran.clear();
    pair.send(unit);
    (pair.read(), pair.servers[1].ran.clone())
}

#[test]
fn nothing_is_asked_in_front_of_what_a_client_says_in_a_transaction() {
    let nothing = Vec::<String>::new();
    let begin = query("begin");
    let same = in_a_transaction(&begin, |_| {}, &RUN_A());
    assert_eq!(same, ("2 D SELECT_1 ZT".to_owned(), vec!["select 1".to_owned()]));
    let gone = in_a_transaction(&begin, |server| server.gone = true, &RUN_A());
    assert_eq!(gone, ("E42P01 ZE".to_owned(), nothing.clone()), "the server's own first error");
    let other = in_a_transaction(&begin, |server| server.columns = 1, &RUN_A());
    assert_eq!(other, ("E0A000 ZE".to_owned(), nothing), "and it is not run");
    // What stands in front of it in the pipeline is run before.
    let behind = [parse("", "insert"), bind("", ""), execute(""), RUN_A()].concat();
    let (said, ran) = in_a_transaction(&begin, |server| server.gone = true, &behind);
    assert_eq!((&*said, &*ran), ("1 2 INSERT_0_1 E42P01 ZE", &["insert".to_owned()][..]));
    let (said, ran) =
        in_a_transaction(&begin, |server| server.columns = 1, &[&behind[..], &query("select 2")].concat());
    assert_eq!((&*said, &*ran), ("1 2 INSERT_0_1 E0A000 ZE E25P02 ZE", &["insert".to_owned()][..]));
    // Before a Flush as well, and with a Query at the end.
    let flushed = [&behind[..behind.len() - 5], &empty(frontend::FLUSH), &bind("", "a"), &sync()].concat();
    let (said, _) = in_a_transaction(&begin, |server| server.columns = 1, &flushed);
    assert_eq!(said, "1 2 INSERT_0_1 E0A000 ZE");
    let (said, _) = in_a_transaction(&begin, |server| server.columns = 0, &flushed);
    assert_eq!(said, "1 2 INSERT_0_1 2 D SELECT_1 2 ZT");
    let queried = [&behind[..behind.len() - 5], &query("select 2"), &sync()].concat();
    let (said, ran) = in_a_transaction(&begin, |server| server.gone = true, &queried);
    assert_eq!((&*said, &*ran), ("1 2 INSERT_0_1 E42P01 ZE", &["insert".to_owned()][..]));
    let (said, _) = in_a_transaction(&begin, |_| {}, &queried);
    assert_eq!(said, "1 2 INSERT_0_1 2 D SELECT_1 T D SELECT_1 ZT ZT");
}

#[test]
fn who_waits_for_a_description_loses_its_server_as_others_do() {
    let lose = |unit: &[u8]| {
        let mut pair = told(on_the_primary());
        pair.rx.extend_from_slice(unit);
        pair.pump(0, 1);
        pair.lose(How::Gone);
        pair.pump(usize::MAX, usize::MAX);
        pair.read()
    };
    // With a Parse in front of it, it waits.
    let parse = parse("b", "insert");
    assert_eq!(lose(&[&parse[..], &RUN_A()].concat()), "1 2 D SELECT_1 ZI");
    let insert = [&parse[..], &bind("", "b"), &execute(""), &RUN_A()].concat();
    assert_eq!(lose(&insert), "E08007 ZI");
}

#[test]
fn the_unnamed_statement_outlives_the_proxys_own_queries() {
    let run = |name: &str, text: &str| [parse(name, text), bind("", name), execute(""), sync()].concat();
    let unnamed = [bind("", ""), execute(""), sync()].concat();
    // The first server lacks the settings when the session comes back to it: they are given by a Query.
    let mut pair = Pair::new();
    pair.send(&[parse("", "select 1"), sync()].concat());
    pair.send(&run("a", "set work_mem = '5MB'"));
    pair.send(&unnamed);
    assert_eq!(pair.read(), "1 ZI 1 2 INSERT_0_1 ZI 2 D SELECT_1 ZI");
    // So are questions about what binds a session to its server.
    let mut pair = Pair::new();
    pair.servers.iter_mut().for_each(|server| server.pins = vec!["a"]);
    pair.send(&run("a", "select pg_advisory_lock(1)"));
    let server = pair.attached.unwrap();
    pair.send(&[parse("", "select 1"), sync()].concat());
    pair.send(&run("b", "select pg_advisory_unlock(2)"));
    assert_eq!(pair.attached, Some(server));
    pair.send(&unnamed);
    assert_eq!(pair.read(), "1 2 D SELECT_1 ZI 1 ZI 1 2 D SELECT_1 ZI 2 D SELECT_1 ZI");
}

#[test]
fn a_pin_lasts_as_long_as_what_made_it() {
    let mut pair = Pair::new();
    pair.send(&query("select pg_try_advisory_lock(1)"));
    assert_eq!((pair.attached, pair.read()), (None, "T D SELECT_1 ZI".to_owned()), "somebody else has it");
    pair.servers.iter_mut().for_each(|server| server.pins = vec!["a"]);
    pair.send(&query("select pg_advisory_lock(1)"));
    assert!(pair.attached.is_some(), "pinned");
    let server = pair.attached.unwrap();
    pair.send(&query("select pg_advisory_unlock(2)"));
    assert_eq!(pair.attached, Some(server), "the server still has a lock");
    assert_eq!(pair.read(), "T D SELECT_1 ZI T D SELECT_1 ZI", "questions and answers are not the client's");
    pair.servers[server].pins.clear();
    pair.send(&query("select pg_advisory_unlock(1)"));
    assert_eq!(pair.attached, None);
    pair.send(&query("select 1"));
    assert_eq!(pair.read(), "T D SELECT_1 ZI T D SELECT_1 ZI");

    // What is made in a transaction may go with it.
    let mut pair = Pair::new();
    for text in ["begin", "create temp table t (a int) on commit drop", "commit"] {
        pair.send(&query(text));
    }
    assert_eq!(pair.attached, None);
    for text in ["begin", "listen a", "rollback"] {
        pair.send(&query(text));
    }
    assert_eq!(pair.attached, None);
    pair.send(&query("listen a"));
    assert!(pair.attached.is_some());
}

#[test]
fn settings_of_a_doubtful_transaction_are_read_off_the_server() {
    let mut pair = Pair::new();
    for text in ["begin", "set work_mem = '5MB'", "savepoint s", "set work_mem = '6MB'", "rollback to s", "commit"] {
        pair.send(&query(text));
    }
    assert_eq!(pair.attached, None, "not bound to the server");
    let asked = pair.servers.iter().flat_map(|server| &server.ran).filter(|text| text.contains("pg_settings")).count();
    assert_eq!(asked, 1);
}

#[test]
fn own_sequence_values_are_asked_of_their_server_only() {
    let mut pair = Pair::new();
    pair.send(&query("insert into t values (1)"));
    let ran =
        |pair: &Pair, text: &str| pair.servers.iter().flat_map(|server| &server.ran).filter(|ran| *ran == text).count();
    pair.send(&query("select lastval()"));
    assert_eq!(ran(&pair, "DISCARD SEQUENCES"), 1, "the other server knows nothing of them");
    // From now on who writes stays.
    let mut pair = Pair { shared: pair.shared, ..Pair::new() };
    pair.send(&query("insert into t values (1)"));
    assert!(pair.attached.is_some());
    pair.send(&query("select lastval()"));
    assert_eq!(ran(&pair, "DISCARD SEQUENCES"), 0);
    // For a moment only. On another server there are none.
    assert!(pair.session.is_lingering());
    pair.session.end_linger();
    pair.send(&query("select lastval()"));
    assert_eq!(ran(&pair, "DISCARD SEQUENCES"), 1);
    // Their loss ends no session.
    assert!(pair.attached.is_some());
    pair.read();
    pair.lose(How::Gone);
    pair.send(&query("select 1"));
    assert_eq!(pair.read(), "T D SELECT_1 ZI");
}

#[test]
fn who_asks_for_a_standby_is_told_what_it_refuses() {
    let mut pair = Pair::new();
    pair.servers[0].read_only = true;
    pair.send(&query("/* manatee: standby */ insert into t values (1)"));
    assert_eq!(pair.read(), "E25006 ZI");
    assert_eq!(pair.needs, [Need::Standby]);
}

/// Client's bytes before the loss; what it reads then; whether the server had answered.
#[test]
fn a_lost_server_is_told_as_the_table_says() {
    let cases: &[(&[&str], &str)] = &[
        // Nothing under way: nothing is told.
        (&["select 1"], "T D SELECT_1 ZI"),
        (&["begin", "insert into t values (1)"], "BEGIN ZT INSERT_0_1 ZT"),
    ];
    for (before, answer) in cases {
        let mut pair = Pair::new();
        for text in *before {
            pair.send(&query(text));
        }
        assert_eq!(pair.read(), *answer);
        if pair.attached.is_some() {
            pair.lose(How::Gone);
            pair.pump(usize::MAX, usize::MAX);
            assert_eq!(pair.read(), "");
            pair.send(&query("insert into t values (2)"));
            assert_eq!(pair.read(), "E40001 ZE");
            pair.send(&query("insert into t values (3)"));
            assert_eq!(pair.read(), "E25P02 ZE");
            pair.send(&[parse("", "rollback"), bind("", ""), execute(""), sync()].concat());
            assert_eq!(pair.read(), "1 2 ROLLBACK ZI");
        }
        pair.send(&query("select 2"));
        assert_eq!(pair.read(), "T D SELECT_1 ZI");
    }
}

#[test]
fn a_failed_transaction_refuses_a_name_as_postgresql_does() {
    let mut pair = Pair::new();
    pair.send(&[parse("a", "commit"), sync()].concat());
    pair.send(&query("begin"));
    pair.send(&query("fail"));
    pair.read();
    // Bound only, the COMMIT ends nothing.
    pair.send(&[bind("p", "a"), parse("a", "select 1"), sync()].concat());
    assert_eq!(pair.read(), "2 E25P02 ZE");
    // Bound in another unit, it does.
    pair.send(&[execute("p"), parse("a", "select 1"), sync()].concat());
    assert_eq!(pair.read(), "ROLLBACK E42P05 ZI");

    // A Bind that is skipped does not replace the portal of the COMMIT.
    pair.send(&query("begin"));
    pair.send(&[parse("", "select 1"), bind("p", "a"), bind("", "b"), bind("p", ""), sync()].concat());
    pair.read();
    pair.send(&[execute("p"), parse("a", "select 1"), sync()].concat());
    assert_eq!(pair.read(), "ROLLBACK E42P05 ZI");
}

#[test]
fn a_named_statement_outlives_the_unnamed_one_of_the_same_text() {
    let mut pair = Pair::new();
    let run = [parse("a", "rollback"), bind("", "a"), execute(""), sync()].concat();
    pair.send(&run);
    pair.send(&[parse("", "rollback"), sync()].concat());
    pair.read();
    // Back on the first server; the injected Parse of the unnamed statement is skipped there.
    pair.send(&[bind("", "b"), target(frontend::DESCRIBE, Kind::Statement, ""), sync()].concat());
    pair.send(&query("select 1"));
    pair.send(&[bind("", "a"), execute(""), sync()].concat());
    assert_eq!(pair.read(), "E26000 ZI T D SELECT_1 ZI 2 ROLLBACK ZI");
}

/// Begins a transaction, loses its server between two units, and says what the client reads then.
fn lose_between(units: &[Vec<u8>]) -> String {
    let mut pair = Pair::new();
    pair.send(&query("begin"));
    pair.send(&query("insert into t values (1)"));
    pair.read();
    pair.lose(How::Gone);
    for unit in units {
        pair.send(unit);
    }
    pair.read()
}

#[test]
fn a_lost_transaction_is_never_committed_and_ends_as_any_other() {
    let commit = [parse("", "commit"), bind("", ""), execute(""), sync()].concat();
    let next = query("select 1");
    assert_eq!(lose_between(&[query("commit"), next.clone()]), "E40001 ZI T D SELECT_1 ZI");
    assert_eq!(lose_between(&[commit, next.clone()]), "E40001 ZI T D SELECT_1 ZI");
    assert_eq!(lose_between(&[query("rollback"), next.clone()]), "ROLLBACK ZI T D SELECT_1 ZI");
    assert_eq!(lose_between(&[next.clone(), query("commit"), next.clone()]), "E40001 ZE ROLLBACK ZI T D SELECT_1 ZI");
    // With more behind it in the same Query.
    assert_eq!(lose_between(&[query("commit; select 1"), next.clone()]), "E40001 ZI T D SELECT_1 ZI");
    assert_eq!(lose_between(&[next.clone(), query("commit; select 1"), next]), "E40001 ZE E40001 ZI T D SELECT_1 ZI");
}

/// Sends a unit, loses its server before it answers, and says what the client reads in the end.
fn lose_during(before: &[&str], unit: &[u8], how: How) -> String {
    let mut pair = Pair::new();
    for text in before {
        pair.send(&query(text));
    }
    pair.read();
    pair.rx.extend_from_slice(unit);
    pair.pump(0, 1);
    pair.lose(how);
    pair.pump(usize::MAX, usize::MAX);
    pair.read()
}

#[test]
fn a_unit_under_way_runs_again_or_is_told() {
    assert_eq!(lose_during(&[], &query("select 1"), How::Gone), "T D SELECT_1 ZI");
    assert_eq!(lose_during(&[], &query("begin"), How::Gone), "BEGIN ZT");
    let write = query("insert into t values (1)");
    assert_eq!(lose_during(&[], &write, How::Gone), "E08007 ZI");
    assert_eq!(lose_during(&[], &write, How::Refused), "INSERT_0_1 ZI");
    assert_eq!(lose_during(&[], &query("insert into t values (1); commit"), How::Refused), "E08007 ZI");
    assert_eq!(lose_during(&["begin"], &write, How::Gone), "E40001 ZE");
    assert_eq!(lose_during(&["begin"], &query("commit"), How::Gone), "E08007 ZI");
    assert_eq!(lose_during(&["begin"], &query("rollback"), How::Gone), "ROLLBACK ZI");
    let extended = [parse("", "insert into t values (1)"), bind("", ""), execute(""), sync()].concat();
    assert_eq!(lose_during(&[], &extended, How::Gone), "E08007 ZI");
    let extended = [parse("a", "select 1"), bind("", "a"), execute(""), sync()].concat();
    assert_eq!(lose_during(&[], &extended, How::Gone), "1 2 D SELECT_1 ZI");
}

/// As the server says it, without length: severity, code, routine.
fn words(tag: u8, severity: &str, code: &str, routine: &str) -> Vec<u8> {
    build(|out| {
        manatee_proxy::wire::put_message(out, tag, |out| {
            out.extend_from_slice(format!("S{severity}\0V{severity}\0C{code}\0Mwhatever\0R{routine}\0\0").as_bytes());
        });
    })
}

/// Sends a unit whose server ends with this code instead of an answer, and says what the client reads then.
fn end_during(before: &[&str], unit: &[u8], code: &str) -> (String, Pair) {
    let mut pair = Pair::new();
    for text in before {
        pair.send(&query(text));
    }
    pair.read();
    pair.rx.extend_from_slice(unit);
    pair.pump(0, 1);
    pair.said = words(b'E', "FATAL", code, "ProcessInterrupts")[..].into();
    pair.pump(usize::MAX, usize::MAX);
    (pair.read(), pair)
}

#[test]
fn what_no_rollback_undoes_is_not_run_again() {
    let read = |text: &str| end_during(&[], &query(text), "57P01").0;
    assert_eq!(read("insert into t values (1)"), "INSERT_0_1 ZI");
    assert_eq!(read("create index on t (a)"), "INSERT_0_1 ZI");
    for text in [
        "create index concurrently if not exists i on t (a)",
        "drop index concurrently i",
        "reindex table t",
        "vacuum t",
        "cluster",
        "alter table t detach partition p concurrently",
        "call p()",
        "do $$ begin commit; end $$",
        "create database d",
        "select dblink_exec('x', 'y')",
        "copy t to program 'x'",
    ] {
        assert_eq!(read(text), "E57P01 ZI", "{text}");
    }
    let extended = [parse("", "vacuum t"), bind("", ""), execute(""), sync()].concat();
    assert_eq!(end_during(&[], &extended, "57P01").0, "E57P01 ZI");
}

#[test]
fn a_limit_that_the_client_has_set_ends_its_connection() {
    let (read, pair) = end_during(&["begin"], &query("select 1"), "25P04");
    assert_eq!((read.as_str(), pair.ended), ("E25P04", true));
    let mut pair = Pair::new();
    pair.send(&query("begin"));
    pair.read();
    pair.said = words(b'E', "FATAL", "25P03", "ProcessInterrupts")[..].into();
    pair.pump(usize::MAX, usize::MAX);
    assert_eq!((pair.read().as_str(), pair.ended), ("E25P03", true));
    // A server that was idle for too long in the pool is nobody's.
    let (read, pair) = end_during(&[], &query("insert into t values (1)"), "57P05");
    assert_eq!((read.as_str(), pair.ended), ("INSERT_0_1 ZI", false));
    // An administrator's word is not the client's.
    let (read, pair) = end_during(&["begin"], &query("select 1"), "57P01");
    assert_eq!((read.as_str(), pair.ended), ("E40001 ZE", false));
}

#[test]
fn who_is_bound_to_a_server_ends_with_its_words() {
    let (read, pair) = end_during(&["listen a"], &query("select 1"), "57P01");
    assert_eq!((read.as_str(), pair.ended), ("E57P01", true));
}

#[test]
fn a_statement_that_was_answered_by_an_error_is_not_in_doubt() {
    let mut pair = Pair::new();
    pair.rx.extend_from_slice(&query("insert into t values (1)"));
    pair.pump(0, 1);
    let said = [words(b'E', "ERROR", "08P01", "CopyGetData"), words(b'E', "FATAL", "08P01", "PostgresMain")].concat();
    pair.said = said[..].into();
    pair.pump(usize::MAX, usize::MAX);
    assert_eq!(pair.read(), "E08P01 ZI");
}

#[test]
fn warnings_of_users_are_passed_on_whatever_their_code() {
    let mut pair = Pair::new();
    pair.rx.extend_from_slice(&query("select 1"));
    pair.pump(0, 1);
    let own = words(b'N', "WARNING", "57P01", "exec_stmt_raise");
    let servers = words(b'N', "WARNING", "57P02", "quickdie");
    pair.said = [&own[..], &servers, &pair.said].concat()[..].into();
    pair.pump(usize::MAX, usize::MAX);
    assert_eq!(pair.read(), "N T D SELECT_1 ZI");
}

#[test]
fn what_a_lost_server_had_answered_is_forgotten_before_the_unit_runs_again() {
    let mut pair = Pair::new();
    let unit = [parse("a", "select 1"), target(frontend::DESCRIBE, Kind::Statement, "a"), sync()].concat();
    pair.rx.extend_from_slice(&unit);
    // ParseComplete arrives, the rest does not.
    pair.pump(1, 5);
    pair.lose(How::Gone);
    pair.pump(usize::MAX, usize::MAX);
    assert_eq!(pair.read(), "1 t T ZI");
}

#[test]
fn a_commit_without_the_sync_is_never_a_success() {
    let notice = build(|out| {
        manatee_proxy::wire::put_message(out, b'N', |out| {
            out.extend_from_slice(b"SWARNING\0VWARNING\0C01000\0Mwhatever\0RSyncRepWaitForLSN\0\0");
        });
    });
    let mut pair = Pair::new();
    pair.rx.extend_from_slice(&query("insert into t values (1)"));
    pair.pump(0, 1);
    pair.said = [&notice[..], &pair.said].concat()[..].into();
    pair.pump(usize::MAX, 7);
    assert_eq!(pair.read(), "E08007 ZI");

    // In the extended protocol the commit comes with the Sync.
    let mut pair = Pair::new();
    pair.rx.extend_from_slice(&[parse("", "insert into t values (1)"), bind("", ""), execute(""), sync()].concat());
    pair.pump(0, 1);
    let ready = pair.said.split_off(pair.said.len() - 6);
    pair.said.extend_from_slice(&notice);
    pair.said.extend_from_slice(&ready);
    pair.pump(usize::MAX, 7);
    assert_eq!(pair.read(), "1 2 INSERT_0_1 E08007 ZI");
}

#[test]
fn garbage_ends_the_session_with_a_protocol_violation() {
    for garbage in [&b"Q\0\0\0\x01"[..], b"\x01\0\0\0\x04", b"Q\xff\xff\xff\xff", b"P\0\0\0\x05x", b"D\0\0\0\x06Xa"] {
        let mut pair = Pair::new();
        pair.send(garbage);
        assert!(pair.ended);
        assert_eq!(pair.read(), "E08P01", "{garbage:?}");
    }
}
