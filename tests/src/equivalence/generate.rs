//! A conversation from a seed: what each of some clients says, and in which order.

use fastrand::Rng;

use super::message::{Action, Message, Step};
use super::vocabulary::{self, Statement};
use super::wire::Kind;

/// Fewest and most clients.
const SESSIONS: std::ops::RangeInclusive<usize> = 2..=6;
/// Most steps of one client.
const MAX_STEPS: usize = 24;
/// The names that statements and portals have.
const NAMES: [&str; 4] = ["", "s1", "s2", "s3"];
const PORTALS: [&str; 3] = ["", "", "p1"];

/// Conversation: the units of each client, in its order.
#[derive(Clone, Debug)]
pub(super) struct Conversation {
    /// For each client its steps, the first one last.
    pub(super) queues: Vec<Vec<Step>>,
    /// Decides whose turn it is.
    pub(super) order: Rng,
}

/// Speaker: generates the units of one client.
struct Speaker<'a> {
    rng: &'a mut Rng,
    session: usize,
    steps: Vec<Step>,
    /// It may say what binds it to its server.
    may_bind: bool,
    /// By names, what it prepared last, to bind the right number of values most of the time.
    prepared: [Statement; NAMES.len()],
}

/// The conversation of a seed.
pub(super) fn conversation(seed: u64) -> Conversation {
    let mut rng = Rng::with_seed(seed);
    let sessions = rng.usize(SESSIONS);
    let queues = (0..sessions)
        .map(|session| {
            let may_bind = rng.usize(..4) == 0;
            let mut speaker =
                Speaker { rng: &mut rng, session, steps: Vec::new(), may_bind, prepared: Default::default() };
            speaker.speak();
            speaker.steps.reverse();
            speaker.steps
        })
        .collect();
    Conversation { queues, order: rng }
}

impl Speaker<'_> {
    fn speak(&mut self) {
        self.connect();
        for _ in 0..self.rng.usize(3..MAX_STEPS) {
            match self.rng.usize(..40) {
                0..=3 => self.transaction(),
                4 if self.rng.bool() => self.leave(),
                5 if self.rng.bool() => self.cancel(),
                _ => {
                    let messages = self.unit();
                    self.step(Action::Say, messages);
                }
            }
        }
    }

    fn connect(&mut self) {
        let mut settings: Vec<(&'static str, Vec<u8>)> = Vec::new();
        for (name, values) in [
            ("client_encoding", &["UTF8", "LATIN1", "SQL_ASCII", "win1252"][..]),
            ("application_name", &["app", "caf\u{e9}", "other"]),
            ("TimeZone", &["UTC", "Asia/Tokyo"]),
            ("DateStyle", &["ISO", "German"]),
            (
                "options",
                &["-c search_path=eq2,eq", "-c work_mem=7MB -c app.tenant=o", "-c client_min_messages=warning"],
            ),
            ("extra_float_digits", &["2", "0"]),
        ] {
            if self.rng.usize(..4) == 0 {
                settings.push((name, values[self.rng.usize(..values.len())].into()));
            }
        }
        self.steps.push(Step { session: self.session, action: Action::Connect(settings), binds: false, alone: false });
    }

    /// A step of what was made.
    fn step(&mut self, action: impl FnOnce(Vec<Message>) -> Action, unit: Unit) {
        let action = action(unit.messages);
        self.steps.push(Step { session: self.session, action, binds: unit.binds, alone: unit.alone });
    }

    /// A transaction in several steps, most of the time ended.
    fn transaction(&mut self) {
        let begin = vocabulary::begin(self.rng);
        let begin = self.run(begin);
        self.step(Action::Say, begin);
        for _ in 0..self.rng.usize(1..6) {
            let unit = if self.rng.usize(..3) == 0 {
                let statement = vocabulary::within(self.rng);
                self.run(statement)
            } else {
                self.unit()
            };
            self.step(Action::Say, unit);
        }
        if self.rng.usize(..12) != 0 {
            let end = vocabulary::end(self.rng);
            let end = self.run(end);
            self.step(Action::Say, end);
            // What began with `and chain`.
            self.step(Action::Say, Unit::of(vec![Message::Query(b"rollback".to_vec())]));
        }
    }

    /// It goes, in one way or the other, and comes again.
    fn leave(&mut self) {
        let mut unit = self.unit();
        match self.rng.usize(..4) {
            0 => self.step(Action::HalfClose, unit),
            1 => self.step(Action::Leave, unit),
            2 => {
                // Perhaps before its Sync.
                if self.rng.bool() && matches!(unit.messages.last(), Some(Message::Sync)) {
                    unit.messages.pop();
                }
                unit.messages.push(Message::Terminate);
                self.step(Action::Leave, unit);
            }
            _ => self.step(Action::Leave, Unit::of(vec![Message::Terminate])),
        }
        self.prepared = Default::default();
        self.connect();
    }

    fn cancel(&mut self) {
        let text = |rng: &mut Rng| {
            let text = [
                "select pg_sleep(30)",
                "insert into t select 900, 'late' from pg_sleep(30)",
                "select 1; select pg_sleep(30)",
                "do $$ begin perform pg_sleep(30); end $$",
            ];
            format!("{} /* to be cancelled {} */", text[rng.usize(..text.len())], rng.u32(..)).into_bytes()
        };
        match self.rng.usize(..4) {
            0 => self.steps.push(Step {
                session: self.session,
                action: Action::CancelNothing,
                binds: false,
                alone: false,
            }),
            _ => {
                let text = text(self.rng);
                self.step(Action::Cancel, Unit::of(vec![Message::Query(text)]));
            }
        }
    }

    /// Unit: messages up to a Sync or Flush or the end of a Query.
    fn unit(&mut self) -> Unit {
        match self.rng.usize(..20) {
            0 | 1 => self.copy(),
            2 => self.several(),
            3 => Unit::of(vec![Message::FunctionCall(
                [177, 177, 154][self.rng.usize(..3)],
                vec![self.rng.i32(..100), self.rng.i32(..3)],
            )]),
            4..=8 => self.pipeline(),
            _ => {
                let statement = self.statement();
                self.run(statement)
            }
        }
    }

    fn statement(&mut self) -> Statement {
        match self.rng.usize(..30) {
            0..=6 => vocabulary::setting(self.rng),
            7..=11 => vocabulary::write(self.rng, self.session),
            12 | 13 => vocabulary::definition(self.rng),
            14..=17 if self.may_bind => vocabulary::binding(self.rng),
            18 => vocabulary::within(self.rng),
            19..=22 => vocabulary::read_with_values(self.rng),
            _ => vocabulary::read(self.rng),
        }
    }

    /// Runs a statement by one protocol or the other.
    fn run(&mut self, statement: Statement) -> Unit {
        if statement.values.is_empty() && self.rng.bool() {
            return Unit {
                messages: vec![Message::Query(statement.text)],
                binds: statement.binds,
                alone: statement.alone,
            };
        }
        let mut unit = Unit { binds: statement.binds, alone: statement.alone, messages: Vec::new() };
        let name = self.rng.usize(..NAMES.len());
        self.parse(name, statement, &mut unit);
        // Drivers prepare in one unit and run in the next, or do all at once.
        match self.rng.usize(..4) {
            0 => unit.messages.extend([Message::Describe(Kind::Statement, NAMES[name]), Message::Sync]),
            1 => unit.messages.extend([Message::Describe(Kind::Statement, NAMES[name]), Message::Flush]),
            _ => {}
        }
        self.bind_and_execute(name, &mut unit);
        unit.messages.push(Message::Sync);
        unit
    }

    fn parse(&mut self, name: usize, statement: Statement, unit: &mut Unit) {
        // A name is free again once it is closed; sometimes it is forgotten.
        if name != 0 && !self.prepared[name].text.is_empty() && self.rng.usize(..8) != 0 {
            unit.messages.push(Message::Close(Kind::Statement, NAMES[name]));
        }
        let types = if self.rng.usize(..4) == 0 && !statement.values.is_empty() { vec![25] } else { Vec::new() };
        unit.messages.push(Message::Parse(NAMES[name], statement.text.clone(), types));
        self.prepared[name] = statement;
    }

    fn bind_and_execute(&mut self, name: usize, unit: &mut Unit) {
        let portal = PORTALS[self.rng.usize(..PORTALS.len())];
        let statement = &self.prepared[name];
        unit.binds |= statement.binds;
        unit.alone |= statement.alone;
        let mut values = statement.values.clone();
        if self.rng.usize(..25) == 0 {
            values.push(Some(b"1".to_vec()));
        }
        if portal == "p1" && self.rng.usize(..4) != 0 {
            unit.messages.push(Message::Close(Kind::Portal, portal));
        }
        let binary = self.rng.usize(..5) == 0;
        unit.messages.push(Message::Bind(portal, NAMES[name], values, binary));
        if self.rng.bool() {
            unit.messages.push(Message::Describe(Kind::Portal, portal));
        }
        let rows = [0, 0, 0, 1, 2][self.rng.usize(..5)];
        unit.messages.push(Message::Execute(portal, rows));
        if rows > 0 && self.rng.bool() {
            unit.messages.push(Message::Execute(portal, self.rng.u32(..3)));
        }
    }

    /// Extended messages as they come, with one Sync or more, or a Flush at the end and the Sync later.
    fn pipeline(&mut self) -> Unit {
        let mut unit = Unit::default();
        for _ in 0..self.rng.usize(1..6) {
            let name = self.rng.usize(..NAMES.len());
            match self.rng.usize(..12) {
                0..=4 => {
                    let statement = self.statement();
                    self.parse(name, statement, &mut unit);
                    self.bind_and_execute(name, &mut unit);
                }
                5..=7 => self.bind_and_execute(name, &mut unit),
                8 => unit.messages.push(Message::Describe(Kind::Statement, NAMES[name])),
                9 => {
                    unit.messages.push(Message::Close(Kind::Statement, NAMES[name]));
                    self.prepared[name] = Statement::default();
                }
                10 => unit.messages.push(Message::Sync),
                _ => unit.messages.push(Message::Flush),
            }
        }
        unit.messages.push(if self.rng.usize(..6) == 0 { Message::Flush } else { Message::Sync });
        unit
    }

    /// Several statements in one Query.
    fn several(&mut self) -> Unit {
        let mut unit = Unit::default();
        let mut text = Vec::new();
        for _ in 0..self.rng.usize(2..5) {
            let statement = match self.rng.usize(..8) {
                0 => vocabulary::begin(self.rng),
                1 => vocabulary::end(self.rng),
                2 => vocabulary::within(self.rng),
                _ => self.statement(),
            };
            unit.binds |= statement.binds;
            unit.alone |= statement.alone;
            text.extend_from_slice(&statement.text);
            text.extend_from_slice(b"; ");
        }
        unit.messages.push(Message::Query(text));
        unit
    }

    fn copy(&mut self) -> Unit {
        let id = 100 * (self.session + 1) + 50 + self.rng.usize(..4);
        let text = [
            "copy t (id, v) from stdin",
            "copy t from stdin",
            "copy m (id) from stdin",
            "copy (select id, v from t order by id) to stdout",
            "copy t to stdout (format binary)",
            "copy nosuch from stdin",
        ][self.rng.usize(..6)];
        let mut data = vec![];
        if text.contains("from") && !text.contains("select") {
            let row = match self.rng.usize(..4) {
                0 => format!("{id}\tcopied\t1.5\n"),
                1 => "nonsense\n".to_owned(),
                _ => format!("{id}\tcaf\u{e9}\n{}\tcopied\n", id + 10),
            };
            data.push(Message::CopyData(row.into_bytes()));
            data.push(if self.rng.usize(..6) == 0 { Message::CopyFail("changed my mind") } else { Message::CopyDone });
        }
        if self.rng.bool() {
            return Unit::of([vec![Message::Query(text.into())], data].concat());
        }
        let head = vec![
            Message::Parse("", text.into(), Vec::new()),
            Message::Bind("", "", Vec::new(), false),
            Message::Execute("", 0),
        ];
        self.prepared[0] = Statement::default();
        // Nobody runs it again without data: PostgreSQL would wait for them for ever.
        let tail = vec![Message::Sync, Message::Close(Kind::Statement, ""), Message::Sync];
        Unit::of([head, data, tail].concat())
    }
}

/// Unit of a conversation.
#[derive(Debug, Default)]
struct Unit {
    messages: Vec<Message>,
    binds: bool,
    alone: bool,
}

impl Unit {
    fn of(messages: Vec<Message>) -> Self {
        Self { messages, ..Self::default() }
    }
}
