//! One client's session: bytes in from both sides, bytes and [`Step`]s out. Pure: no sockets, no
//! clock, no pool. What it does when is in [`state`].
//!
//! # The contract with the driver
//!
//! The driver owns the sockets, the pool and the clock. It calls methods of four kinds:
//!
//! | kind | methods |
//! |---|---|
//! | events | bytes of the client at the end of `rx`; [`server_bytes`], [`server_lost`], [`client_ended`], [`end_stall`], [`end_linger`], [`end_with`] |
//! | answers to a step | [`attach`] with [`set_ids`], or [`refuse`]; [`detach`]; [`canceled_client`] |
//! | polls | [`advance`], [`poll_news`]; what is to be written, [`to_client`] and [`to_server`] |
//! | getters | whatever takes `&self`; [`trim`], [`prod_client`] and [`disown`] touch nothing but buffers and the session's name on servers |
//!
//! In this order:
//!
//! 1. After each event and each answer: [`set_crowd`] if there is a server, then [`advance`], then [`poll_news`] until
//!    there is none, then what the step says.
//! 2. [`Step::Wait`]: write both buffers, wait for the next event.
//! 3. [`Step::Acquire`]: [`attach`] or [`refuse`]. Events of the client's side may come before.
//! 4. [`Step::Release`]: [`detach`], and give the server back as its [`Cleanup`] says. Nothing is outstanding at it.
//! 5. On [`Step::Cancel`]: [`canceled_client`].
//! 6. [`Step::End`]: write what is left for the client and close. [`disown`] and [`detach`] for a server that there
//!    still is.
//! 7. A [`Fault`] of [`server_bytes`], like the end of the server's connection: close it, then [`server_lost`].
//!
//! `rx` belongs to the session as much as to the driver: only the session takes bytes from its head.
//!
//! # Invariants
//!
//! At most one unit is outstanding; a server is released only when the ledger is empty and its status is idle; a
//! unit's bytes stay in the client's buffer until something of its answer is shown, so that until then it can run again.
//!
//! [`server_bytes`]: Session::server_bytes
//! [`server_lost`]: Session::server_lost
//! [`client_ended`]: Session::client_ended
//! [`end_stall`]: Session::end_stall
//! [`end_linger`]: Session::end_linger
//! [`end_with`]: Session::end_with
//! [`attach`]: Session::attach
//! [`set_ids`]: Session::set_ids
//! [`refuse`]: Session::refuse
//! [`detach`]: Session::detach
//! [`canceled_client`]: Session::canceled_client
//! [`advance`]: Session::advance
//! [`poll_news`]: Session::poll_news
//! [`to_client`]: Session::to_client
//! [`to_server`]: Session::to_server
//! [`trim`]: Session::trim
//! [`prod_client`]: Session::prod_client
//! [`disown`]: Session::disown
//! [`set_crowd`]: Session::set_crowd

use std::rc::Rc;

use bytes::BytesMut;

use crate::route::{Class, Classifier, Effects};
use crate::terms::{Access, Mode};
use crate::topology::consistency::Consistency;
use crate::wire::backend::TxStatus;

mod answer;
pub mod bound;
pub mod buffers;
mod compare;
pub mod copies;
mod dispatch;
mod ends;
mod errors;
mod finish;
mod gather;
mod inject;
mod leaving;
mod ledger;
mod local;
mod loss;
pub mod lost;
mod moving;
mod need;
mod news;
mod probe;
pub mod profile;
mod ready;
mod refusal;
mod reply;
mod rest;
mod restore;
mod run;
mod server;
pub mod signal;
mod state;
pub mod statements;
mod unit;

use buffers::Buffers;
use ledger::Expect;
use lost::How;
use moving::Opening;
use news::Untold;
use probe::Doubts;
use profile::Profiles;
use run::Course;
use state::{Spare, Stage, State, Then};
use statements::{Interner, Statement};
use unit::{Input, Unit};

pub use leaving::CancelAim;
pub use news::News;
pub use reply::Fault;
pub use rest::{Awake, Kept, Spares};
pub use server::{Cleanup, Mark, ServerState};

/// A unit of this many bytes is sent on before its end is seen.
pub const GATHER_LIMIT_BYTES: usize = 1 << 20;

/// State that the sessions of one thread and database share.
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
    /// Parts that idle sessions do not need.
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

/// Kind of server that a unit needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The primary.
    Primary,
    /// A standby that is fit for this session; the primary if there is none.
    Standby,
    /// A standby; never the primary.
    StandbyOnly,
}

/// Kind of server, to the session that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServedBy {
    /// The node that was primary when it was attached.
    Primary,
    /// A standby.
    Standby,
}

/// Next step of the driver.
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

/// Settings with which a session was opened.
#[derive(Clone, Debug)]
pub struct Config {
    /// By listen address.
    pub access: Access,
    /// Moment at which the server is given back.
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
    /// Beginning of the open transaction, for beginning it again on the primary instead.
    opening: Opening,
    /// Effects that bind the session to its server.
    pins: Effects,
    /// Question about these.
    doubts: Doubts,
    /// The client sends nothing more than what was read of it.
    ended: bool,

    to_client: BytesMut,
    to_server: BytesMut,
    before: BytesMut,
    after: BytesMut,
    spare: Spare,
}

/// Effects that pin a session, beyond [`Effects::PINS`]: a loaded library stays; a session that asks for
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

    /// Progress of the unit's try.
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

    /// Mark by which servers know this session.
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

    /// Bytes to write to the client.
    pub fn to_client(&mut self) -> &mut BytesMut {
        &mut self.to_client
    }

    /// Bytes to write to the server.
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

    /// Strictness of the session now.
    pub fn consistency(&self) -> Consistency {
        self.kept.consistency.unwrap_or(self.kept.config.consistency)
    }
}
