//! One client's session: bytes in from both sides, bytes and [`Step`]s out. Pure: no sockets, no
//! clock, no pool.
//!
//! ```text
//!          ┌────────────────────────── Gather ◄───────────────────────────┐
//!   client │ a unit is complete          │ answered without a server      │
//!          ▼                             ▼                                │
//!       Acquire ──attach()──► Prepare ─► Replay ─► Dispatch ◄─► Compare ─► Run ─► Finish (Release)
//!          ▲                       (settings)         │       (row types)
//!          └───────────── runs again ◄── server_lost() ◄────────┤          Probe (pins), Release
//!                                                               └──► SkipToSync, Ended
//! ```
//!
//! Invariants: at most one unit is outstanding; a server is released only when the ledger is empty
//! and its status is idle; a unit's bytes stay in the client's buffer until something of its answer
//! is forwarded, so that until then it can be run again.

use std::mem;
use std::rc::{Rc, Weak};

use bytes::{BufMut, BytesMut};

use crate::error::{ProxyError, SqlState};
use crate::route::class::{Route, setting_needs_primary};
use crate::route::{Class, Classifier, Effects, Hint, TransactionControl};
use crate::terms::Access;
use crate::terms::Mode;
use crate::topology::consistency::Consistency;
use crate::wire::backend::{self, TxStatus};
use crate::wire::put_message;

mod answer;
pub mod bound;
pub mod buffers;
mod compare;
pub mod copies;
mod dispatch;
mod finish;
mod gather;
mod inject;
mod leaving;
mod ledger;
mod local;
pub mod lost;
mod moving;
mod news;
mod probe;
pub mod profile;
mod refusal;
mod reply;
mod rest;
mod restore;
mod run;
pub mod signal;
mod state;
pub mod statements;
mod unit;

use answer::Answer;
use buffers::Buffers;
use copies::Prepared;
use ledger::Expect;
use lost::{How, Sent, Verdict};
use moving::Opening;
use news::Untold;
use probe::Doubts;
use profile::{Profile, Profiles};
use reply::Passing;
use run::{Course, Run};
use state::{Spare, Stage, State, Then};
use statements::{Held, Interner, Statement};
use unit::{Input, Unit};

pub use leaving::CancelAim;
pub use news::News;
pub use reply::Fault;
pub use rest::{Awake, Kept, Spares};

/// A unit of this many bytes is sent on before its end is seen.
pub const GATHER_LIMIT_BYTES: usize = 1 << 20;

/// What the sessions of one thread and database share.
#[derive(Debug)]
pub struct Shared {
    /// Classes of texts.
    pub classifier: Classifier,
    /// Prepared statements.
    pub interner: Interner,
    /// Settings.
    pub profiles: Profiles,
    /// Buffers.
    pub buffers: Buffers,
    /// What idle sessions do not need.
    pub spares: Spares,
    /// Somebody has asked for sequence values of their own session (`lastval`, `currval`) here: from
    /// then on who may have made some stays on their server.
    pub sequences_are_read: bool,
}

impl Shared {
    /// Before the first session.
    pub fn new(classifier: Classifier) -> Self {
        Self {
            classifier,
            interner: Interner::default(),
            profiles: Profiles::default(),
            buffers: Buffers::default(),
            spares: Spares::default(),
            sequences_are_read: false,
        }
    }
}

/// By which a server knows the session that left something on it. Nothing but an identity, which most sessions
/// never need.
#[derive(Clone, Debug, Default)]
pub struct Mark(Option<Rc<()>>);

impl Mark {
    /// Whether it may be on a server.
    pub fn is_left(&self) -> bool {
        self.0.is_some()
    }

    /// To be left on a server.
    fn leave(&mut self) -> Weak<()> {
        Rc::downgrade(self.0.get_or_insert_default())
    }
}

/// What is known about one server connection; it travels with it through the pool.
#[derive(Debug)]
pub struct ServerState {
    /// Settings it has been given.
    pub profile: Rc<Profile>,
    /// Named statements it has.
    pub prepared: Prepared,
    /// Its unnamed statement, if a session's.
    pub unnamed: Option<Held>,
    /// ParameterStatus values.
    pub parameters: Vec<(String, String)>,
    /// What must be done before another session gets it.
    pub cleanup: Cleanup,
    /// The session that last did something which may live on in the server process: sequence values,
    /// what a function left.
    owner: Weak<()>,
}

impl ServerState {
    /// Of a new connection that was given no settings.
    pub fn new(parameters: Vec<(String, String)>, shared: &Shared) -> Box<Self> {
        Box::new(Self {
            profile: shared.profiles.empty(),
            prepared: Prepared::default(),
            unnamed: None,
            parameters,
            cleanup: Cleanup::None,
            owner: Weak::new(),
        })
    }

    /// Whether what was left on it is this session's.
    pub fn is_of(&self, mark: &Mark) -> bool {
        mark.0.as_ref().is_some_and(|own| self.owner.as_ptr() == Rc::as_ptr(own))
    }

    /// Whether something was left on it by a session that still exists.
    pub fn is_owned(&self) -> bool {
        self.owner.strong_count() > 0
    }

    /// After DISCARD ALL.
    pub fn discarded(&mut self, profiles: &Profiles) {
        self.profile = profiles.empty();
        self.prepared.clear();
        self.unnamed = None;
        self.cleanup = Cleanup::None;
        self.owner = Weak::new();
    }

    /// Takes note of a ParameterStatus.
    pub fn set_parameter(&mut self, name: &str, value: &str) {
        reply::remember(&mut self.parameters, name, value);
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// What must be done with a server before another session gets it. Ordered by strictness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cleanup {
    /// Nothing.
    #[default]
    None,
    /// DISCARD ALL.
    DiscardAll,
    /// It cannot be cleaned.
    Close,
}

/// Which kind of server a unit needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The primary.
    Primary,
    /// A standby that is fit for this session; the primary if there is none.
    Standby,
    /// A standby; never the primary.
    StandbyOnly,
}

/// What a server is to the session that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServedBy {
    /// The node that was primary when it was attached.
    Primary,
    /// A standby.
    Standby,
}

/// What the driver has to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Read and write.
    Wait,
    /// Attach a server of this kind.
    Acquire(Need),
    /// Take the server off and give it back.
    Release,
    /// Cancel what the client of this number runs, if it is of the same role, and say so by
    /// [`Session::canceled_client`].
    Cancel(u32),
    /// Write what is left for the client and close.
    End,
}

/// The process ids of BackendKeyData: what the client was told, and what the server says; 0 if none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// The client's.
    pub client: u32,
    /// The server's.
    pub server: u32,
}

/// How a session was opened.
#[derive(Clone, Debug)]
pub struct Config {
    /// By listen address.
    pub access: Access,
    /// When the server is given back.
    pub mode: Mode,
    /// Reads go to standbys.
    pub split: bool,
    /// Unless the session says otherwise.
    pub consistency: Consistency,
}

/// One client's session.
#[derive(Debug)]
pub struct Session {
    kept: Kept,
    state: State,
    /// As the client believes it to be.
    status: TxStatus,
    unit: Unit,
    news: Untold,

    /// Portals whose Execute changes the session or ends a failed transaction.
    portals: Vec<(Box<[u8]>, Rc<Statement>)>,
    /// The statement of the last BindComplete: whose Execute an error is about.
    last_bound: Option<Rc<Statement>>,
    /// Texts run in the open transaction that change settings.
    staged: Vec<Rc<Class>>,
    /// A text that changes settings was run in the open transaction.
    sets: bool,
    /// How the open transaction can be begun on the primary instead.
    opening: Opening,
    /// What binds the session to its server.
    pins: Effects,
    /// What is to be asked about that.
    doubts: Doubts,
    /// The client sends nothing more than what was read of it.
    ended: bool,

    to_client: BytesMut,
    to_server: BytesMut,
    before: BytesMut,
    after: BytesMut,
    spare: Spare,
}

/// What is known of a server that is lost.
struct Lost {
    sent: Sent,
    how: How,
    on_standby: bool,
    passing: Option<Passing>,
    words: Option<Box<[u8]>>,
}

/// What pins a session, beyond [`Effects::PINS`]: a loaded library stays; a session that asks for
/// its own sequence values needs the server that made them.
const PINS: Effects = Effects::PINS.union(Effects::LOAD).union(Effects::SEQUENCE_READ);

impl Session {
    /// Goes on as far as what has arrived allows. Call after every arrival, attachment or loss,
    /// until it says [`Step::Wait`].
    pub fn advance(&mut self, rx: &mut BytesMut, shared: &mut Shared) -> Step {
        loop {
            match &self.state {
                State::Gathering(_) => match self.gather(rx, shared) {
                    Ok(true) => self.choose_place(rx),
                    Ok(false) if self.is_gathering() => return Step::Wait,
                    Ok(false) => {}
                    Err(error) => self.end_with(&error),
                },
                State::Waiting(need) => return Step::Acquire(*need),
                State::Signalling(client, _) => return Step::Cancel(*client),
                State::Attached(_, Stage::Preparing) => self.prepare(shared),
                State::Attached(_, Stage::Replaying(_) | Stage::Probing(_)) => return Step::Wait,
                State::Attached(_, Stage::Running(run)) => match run.course {
                    Course::Starting | Course::Resuming => {
                        if let Err(error) = self.dispatch(rx, shared) {
                            self.end_with(&error);
                        }
                    }
                    Course::Answering => {
                        if let Err(error) = self.feed(rx, shared) {
                            self.end_with(&error);
                        }
                        if self.course() == Some(Course::Answering) {
                            return Step::Wait;
                        }
                    }
                    Course::Describing => return Step::Wait,
                    Course::Answered => self.finish(rx, shared),
                },
                State::Attached(_, Stage::Refused(_)) => self.tell_refused(rx),
                State::Attached(_, Stage::Releasing(_)) => return Step::Release,
                State::SkippingToSync(_) => {
                    if !self.skip_to_sync(rx) {
                        return Step::Wait;
                    }
                }
                State::Ended(_) => return Step::End,
            }
        }
    }

    /// Says which process ids the client and the server at hand have.
    pub fn set_ids(&mut self, ids: Ids) {
        if let Some(link) = self.state.link_mut() {
            link.exchange.ids = ids;
        }
    }

    /// A unit is read, or waited for.
    fn is_gathering(&self) -> bool {
        matches!(self.state, State::Gathering(_))
    }

    /// How far the try of the unit is.
    fn course(&self) -> Option<Course> {
        self.state.run().map(|run| run.course)
    }

    fn set_course(&mut self, course: Course) {
        if let Some(run) = self.state.run_mut() {
            run.course = course;
        }
    }

    /// A request was sent to the server at hand: it will be answered as this says.
    fn expect(&mut self, expect: Expect) {
        if let Some(ledger) = self.state.ledger_mut() {
            ledger.push(expect);
        }
    }

    /// The oldest request that is not answered yet.
    fn head(&self) -> Option<&Expect> {
        self.state.ledger()?.head()
    }

    /// The oldest request was answered.
    fn pop(&mut self) -> Option<Expect> {
        self.state.ledger_mut()?.pop()
    }

    /// The server asked for cannot be had.
    pub fn refuse(&mut self, error: &ProxyError, rx: &mut BytesMut) {
        match error.severity() {
            crate::error::Severity::Fatal => self.end_with(error),
            crate::error::Severity::Error => {
                let status = self.fail_moving();
                self.tell(error, status, rx);
            }
        }
    }

    /// The server is gone, or was given up; the driver has closed it.
    pub fn server_lost(&mut self, how: How, rx: &mut BytesMut) {
        let sent = if self.to_server.is_empty() { Sent::Whole } else { Sent::Partly };
        self.to_server.clear();
        // Until it is known what follows: reading, without a server.
        let (mut link, stage) = match mem::replace(&mut self.state, State::Gathering(None)) {
            State::Attached(link, stage) => (link, Some(stage)),
            State::Gathering(Some(link)) => (link, None),
            elsewhere => return self.lose_unused(elsewhere),
        };
        self.lose_ties();
        let lost = Lost {
            sent,
            how,
            on_standby: link.served_by == ServedBy::Standby,
            passing: link.exchange.passing.take(),
            words: link.exchange.last_words.take(),
        };
        self.drop_link(link);
        if self.is_own_end(lost.words.as_deref()) || !self.pins.is_empty() {
            if lost.passing.is_some() {
                self.to_client.clear();
                return self.go_end();
            }
            return self.end_with_words(lost.words.as_deref());
        }
        match stage {
            // A lost transaction is told when the client next asks for something of it.
            None | Some(Stage::Probing(_) | Stage::Releasing(Then::Gather)) => {}
            Some(Stage::Releasing(Then::SkipToSync)) => self.go_skip(),
            Some(Stage::Releasing(Then::Wait)) => self.go_elsewhere(),
            Some(Stage::Preparing | Stage::Replaying(_) | Stage::Refused(_))
                if self.unit.started == TxStatus::Idle || self.opening.is_moving() =>
            {
                self.unit.rewind();
                self.go_elsewhere();
            }
            Some(Stage::Preparing | Stage::Replaying(_) | Stage::Refused(_)) => {
                self.opening = Opening::Never;
                self.tell(&ProxyError::TransactionLost, TxStatus::Failed, rx);
            }
            Some(Stage::Running(mut run)) => {
                self.lose_run(&mut run, &lost, rx);
                self.spare.keep_run(run);
            }
        }
    }

    /// A server was lost that the unit at hand, if any, does not use.
    fn lose_unused(&mut self, state: State) {
        self.lose_ties();
        self.state = state;
        if let Some(link) = self.leave_state_without_server() {
            self.drop_link(link);
        }
    }

    /// What the session has had on the server that is lost.
    fn lose_ties(&mut self) {
        if self.status != TxStatus::Idle {
            // What the transaction may have set is rolled back.
            self.pins = self.pins.minus(Effects::SETTINGS_DOUBT);
            self.doubts.forget_names();
        }
        // Sequence values are gone with it: whoever asks for them is told that there are none.
        self.pins = self.pins.minus(Effects::SEQUENCE_READ);
    }

    /// The server of a unit that was sent, or was about to be, is lost.
    fn lose_run(&mut self, run: &mut Run, lost: &Lost, rx: &mut BytesMut) {
        match run.course {
            Course::Answered => {
                self.consume(rx);
                // It was answered, so it happened; only the server's own state is lost.
                return self.unit.reset(self.status);
            }
            // Nothing had been executed, at most was the server asked what a statement returns.
            Course::Starting | Course::Describing | Course::Resuming if self.unit.can_rerun() && !run.executed => {
                return self.rerun_lost(run);
            }
            _ => {}
        }
        self.opening = Opening::Never;
        if run.answer.is_discarded() && self.unit.started == TxStatus::Idle {
            return self.rerun_lost(run);
        }
        if lost.passing.is_some_and(Passing::is_forwarded) {
            // The client is in the middle of a message: no error fits there.
            self.to_client.clear();
            return self.go_end();
        }
        if matches!(run.answer, Answer::ErrorSent) {
            backend::put_ready(&mut self.to_client, TxStatus::Idle);
            return self.forget_unit(TxStatus::Idle, rx);
        }
        match lost::verdict(&self.unit, run, lost.sent, lost.how, lost.on_standby) {
            Verdict::Rerun => self.rerun_lost(run),
            Verdict::NothingCommitted(status) => self.tell(&ProxyError::TransactionLost, status, rx),
            Verdict::InDoubt => self.tell(&ProxyError::CommitInDoubt, TxStatus::Idle, rx),
            Verdict::Answered(status) => self.end_told(status, rx),
            Verdict::ServersWords => {
                let mut error = BytesMut::new();
                lost::as_error(lost.words.as_deref().unwrap_or_default(), lost::HINT, &mut error);
                self.tell_words(&error, TxStatus::Idle, rx);
            }
            Verdict::Completed(tag) => self.complete_lost(tag, rx),
        }
    }

    /// Its unit runs again elsewhere: nothing that was answered is known any more.
    fn rerun_lost(&mut self, run: &mut Run) {
        if let Answer::Withheld(withheld) = &mut run.answer {
            withheld.undo(&mut self.kept);
        }
        self.run_again();
    }

    /// Whether the server ended the connection because of a limit that the client has set itself, or that is
    /// set for its role: then its connection ends, as without the proxy. Between two transactions a server
    /// that is nobody's is idle.
    fn is_own_end(&self, words: Option<&[u8]>) -> bool {
        let limit = words.is_some_and(|words| reply::is_own_limit(backend::ErrorFields::read(words).code));
        let is_idle_pooled = self.status == TxStatus::Idle
            && self.pins.is_empty()
            && words.is_some_and(|words| backend::ErrorFields::read(words).code == b"57P05");
        limit && !is_idle_pooled
    }

    /// The session ends with its server, in that one's words if it said any.
    fn end_with_words(&mut self, words: Option<&[u8]>) {
        let Some(words) = words else {
            return self.end_with(&ProxyError::SessionLost);
        };
        self.news.servers_error(backend::ErrorFields::read(words).code);
        put_message(&mut self.to_client, backend::ERROR_RESPONSE, |out| out.put_slice(words));
        self.go_end();
    }

    /// By which servers know this session.
    pub fn mark(&self) -> &Mark {
        &self.kept.mark
    }

    /// The client is gone: what it left on servers is nobody's any more. Says how strictly the one
    /// that the session has must be cleaned.
    pub fn disown(&mut self) -> Cleanup {
        self.kept.mark = Mark::default();
        // A server process keeps its temporary schema, even if emptied, and what it has loaded.
        let lasting = self.pins.intersects(Effects::TEMP_OBJECT.union(Effects::LOAD));
        if lasting { Cleanup::Close } else { Cleanup::DiscardAll }
    }

    /// What to write to the client.
    pub fn to_client(&mut self) -> &mut BytesMut {
        &mut self.to_client
    }

    /// What to write to the server.
    pub fn to_server(&mut self) -> &mut BytesMut {
        &mut self.to_server
    }

    /// Gives back the buffers in which nothing is. For idle sessions.
    pub fn trim(&mut self, buffers: &mut Buffers) {
        let Self { to_client, to_server, before, after, .. } = self;
        for buffer in [to_client, to_server, before, after] {
            buffers.give_back(buffer);
        }
        if let Some(withheld) = &mut self.spare.withheld {
            withheld.trim(buffers);
        }
    }

    /// Whether the client may be left alone: no transaction and nothing under way.
    pub fn is_idle(&self) -> bool {
        self.is_gathering() && self.status == TxStatus::Idle && self.unit.end == 0
    }

    /// Whether the idle client keeps its server only because it may ask for its own sequence values: for a
    /// moment, for others may need the server.
    pub fn is_lingering(&self) -> bool {
        self.state.link().is_some()
            && self.is_idle()
            && self.kept.config.mode == Mode::Transaction
            && self.pins == Effects::SEQUENCE_READ
    }

    /// That moment is over: the server is given back. What the session left there it finds again, unless
    /// another one needs the server meanwhile.
    pub fn end_linger(&mut self) {
        if self.is_lingering() {
            self.pins = Effects::NONE;
            self.go_attached(Stage::Releasing(Then::Gather));
        }
    }

    /// Whether requests are outstanding at the server.
    pub fn is_outstanding(&self) -> bool {
        self.head().is_some()
    }

    /// Whether a transaction is open, or a unit under way.
    pub fn is_in_transaction(&self) -> bool {
        // A unit without its Sync has its transaction open.
        self.status != TxStatus::Idle
            || self.unit.input.is_open()
            || matches!(
                self.state,
                State::Attached(_, Stage::Replaying(_) | Stage::Running(_) | Stage::Refused(_) | Stage::Probing(_))
            )
    }

    /// Whether the client's next bytes are needed to go on.
    pub fn wants_client(&self) -> bool {
        match &self.state {
            State::Gathering(_) | State::SkippingToSync(_) => true,
            State::Attached(_, Stage::Running(run)) if run.course == Course::Answering => {
                self.unit.input != Input::Whole
            }
            _ => false,
        }
    }

    /// How strict the session is now.
    pub fn consistency(&self) -> Consistency {
        self.kept.consistency.unwrap_or(self.kept.config.consistency)
    }

    /// The proxy is about to close the connection for this reason.
    pub fn end_with(&mut self, error: &ProxyError) {
        if !self.is_within_message() {
            self.news.error(error);
            error.encode(&mut self.to_client);
            if error.severity() == crate::error::Severity::Error {
                // The connection ends all the same.
                crate::error::encode_response(
                    &mut self.to_client,
                    b'E',
                    "FATAL",
                    SqlState::CONNECTION_FAILURE,
                    "closing the connection after an error",
                    None,
                );
            }
        }
        self.go_end();
    }

    /// Where the unit at hand has to run.
    fn need(&self) -> Need {
        match self.kept.config.access {
            Access::PrimaryOnly => return Need::Primary,
            Access::ReadOnly => return Need::StandbyOnly,
            Access::ReadWrite => {}
        }
        if self.unit.needs_primary
            || self.unit.input.is_open()
            || !self.kept.config.split
            || self.kept.config.mode == Mode::Session
            || self.unit.effects.intersects(PINS)
            // A lock may be among what the session has left somewhere without its text saying so.
            || (self.unit.effects.intersects(Effects::ADVISORY_UNLOCK) && self.kept.mark.is_left())
        {
            return Need::Primary;
        }
        match (self.unit.hint, self.kept.route) {
            (Some(Hint::Primary), _) | (None, Route::Primary) => return Need::Primary,
            (Some(Hint::Standby), _) | (None, Route::Standby) => return Need::Standby,
            (None, Route::Auto) => {}
        }
        let begins_read_only = || {
            matches!(self.unit.alone(), Some(TransactionControl::Begin { read_only: None, serializable: false }))
                && matches!(self.kept.profile.get("default_transaction_read_only"), Some("on" | "true" | "yes" | "1"))
        };
        let needs_primary = match self.kept.profile.get("default_transaction_isolation") {
            Some(level) => setting_needs_primary("default_transaction_isolation", level),
            None => self.kept.serializable_by_default,
        };
        if (self.unit.read_only || begins_read_only()) && !needs_primary { Need::Standby } else { Need::Primary }
    }

    /// Says `error` as the unit's answer. The client is in `status` afterwards.
    fn tell(&mut self, error: &ProxyError, status: TxStatus, rx: &mut BytesMut) {
        self.news.error(error);
        error.encode(&mut self.to_client);
        self.end_told(status, rx);
    }

    /// As [`Session::tell`], in the words of a server: an ErrorResponse.
    fn tell_words(&mut self, error: &[u8], status: TxStatus, rx: &mut BytesMut) {
        let code = error.get(crate::wire::HEADER_BYTES..).map(|body| backend::ErrorFields::read(body).code);
        self.news.servers_error(code.unwrap_or_default());
        self.to_client.put_slice(error);
        self.end_told(status, rx);
    }

    /// The unit's answer was an error of the proxy.
    fn end_told(&mut self, status: TxStatus, rx: &mut BytesMut) {
        if self.unit.input.is_open() {
            self.consume(rx);
            self.status = status;
            return self.go_skip();
        }
        backend::put_ready(&mut self.to_client, status);
        self.forget_unit(status, rx);
    }

    /// The unit is over; the client is in `status`.
    fn forget_unit(&mut self, status: TxStatus, rx: &mut BytesMut) {
        self.consume(rx);
        self.status = status;
        if status == TxStatus::Idle {
            self.staged.clear();
            self.portals.clear();
            self.sets = false;
        }
        self.unit.reset(status);
        self.go_gather();
    }

    /// The unit runs on another server. It began outside a transaction.
    fn run_again(&mut self) {
        // Nothing was staged before it.
        self.staged.clear();
        self.news.rerun();
        self.unit.rewind();
        self.go_elsewhere();
    }

    /// Takes the unit's bytes from the client's buffer.
    fn consume(&mut self, rx: &mut BytesMut) {
        if self.unit.is_here() {
            buffers::consume(rx, self.unit.end);
            self.unit.end = 0;
        }
    }
}
