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

use std::rc::{Rc, Weak};

use bytes::{BufMut, BytesMut};

use crate::error::{Origin, ProxyError, SqlState};
use crate::route::class::{Route, setting_needs_primary};
use crate::route::{Class, Classifier, Effects, Hint, TransactionControl};
use crate::terms::Access;
use crate::terms::Mode;
use crate::topology::consistency::Consistency;
use crate::wire::backend::{self, TxStatus};
use crate::wire::put_message;

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
mod probe;
pub mod profile;
mod refusal;
mod reply;
mod rest;
mod restore;
pub mod signal;
pub mod statements;
mod unit;

use buffers::Buffers;
use copies::Prepared;
use ledger::Ledger;
use lost::{How, Sent, Verdict};
use profile::{Profile, Profiles};
use statements::{Held, Interner, Statement};
use unit::{Copy, Extent, Forwarding, Unit};

pub use leaving::CancelAim;
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Gather,
    Acquire,
    Cancel(u32),
    Prepare,
    Replay,
    /// The server is given back for another one.
    Replace,
    /// The session's settings were refused for good.
    Refused,
    Compare,
    Dispatch,
    Run,
    Finish,
    Probe,
    Release,
    SkipToSync,
    Ended,
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
    phase: Phase,
    /// As the client believes it to be.
    status: TxStatus,
    unit: Unit,
    ledger: Ledger,
    server: Option<Box<ServerState>>,
    served_by: ServedBy,
    /// Units run again since the driver last asked.
    reruns: u64,
    /// Served something since the driver last asked.
    used: Option<ServedBy>,
    /// The proxy's own error that the client was told last.
    told: Option<(SqlState, Origin)>,

    /// Portals whose Execute changes the session or ends a failed transaction.
    portals: Vec<(Box<[u8]>, Rc<Statement>)>,
    /// The statement of the last BindComplete: whose Execute an error is about.
    last_bound: Option<Rc<Statement>>,
    /// Texts run in the open transaction that change settings.
    staged: Vec<Rc<Class>>,
    /// A text that changes settings was run in the open transaction.
    sets: bool,
    /// How the open transaction can be begun on the primary instead.
    opening: moving::Opening,
    /// What binds the session to its server.
    pins: Effects,
    /// What is to be asked about that.
    probe: probe::Probe,
    /// A standby refused this statement as a write…
    relearn: Option<Rc<Statement>>,
    /// …or the unit's Query.
    learn_text: bool,
    /// The parameter types that the server described last.
    described: Vec<u8>,
    /// The settings that were sent to the server.
    replaying: Option<Rc<Profile>>,
    /// They were refused: the server's words.
    replay_error: Option<Vec<u8>>,
    /// The client sends nothing more than what was read of it.
    ended: bool,
    /// As processes.
    ids: Ids,
    /// There is no room for another bound session.
    crowd: Option<bound::Crowd>,
    /// The FATAL with which the server ended its connection, until its loss is dealt with.
    last_words: Option<Box<[u8]>>,

    to_client: BytesMut,
    to_server: BytesMut,
    withheld: BytesMut,
    /// Bytes of the server's current message that are passed on without being looked at.
    passing: usize,
    /// …or not.
    passing_fate: reply::Fate,
    before: BytesMut,
    after: BytesMut,
}

/// What pins a session, beyond [`Effects::PINS`]: a loaded library stays; a session that asks for
/// its own sequence values needs the server that made them.
const PINS: Effects = Effects::PINS.union(Effects::LOAD).union(Effects::SEQUENCE_READ);

impl Session {
    /// Databases that the unit at hand needs nobody to be connected to, once.
    pub fn take_vacates(&mut self) -> Vec<Box<str>> {
        std::mem::take(&mut self.unit.vacates)
    }

    /// Goes on as far as what has arrived allows. Call after every arrival, attachment or loss,
    /// until it says [`Step::Wait`].
    pub fn advance(&mut self, rx: &mut BytesMut, shared: &mut Shared) -> Step {
        loop {
            match self.phase {
                Phase::Gather => match self.gather(rx, shared) {
                    Ok(true) => self.choose_place(rx, shared),
                    Ok(false) => {
                        if self.phase == Phase::Gather {
                            return Step::Wait;
                        }
                    }
                    Err(error) => self.end_with(&error),
                },
                Phase::Acquire => return Step::Acquire(self.need()),
                Phase::Cancel(client) => return Step::Cancel(client),
                Phase::Prepare => self.prepare(shared),
                Phase::Replay | Phase::Compare | Phase::Probe => return Step::Wait,
                Phase::Release => {
                    self.phase = Phase::Gather;
                    return Step::Release;
                }
                Phase::Replace => {
                    self.phase = Phase::Acquire;
                    return Step::Release;
                }
                Phase::Refused => {
                    if self.tell_refused(rx) {
                        return Step::Release;
                    }
                }
                Phase::Dispatch => {
                    if let Err(error) = self.dispatch(rx, shared) {
                        self.end_with(&error);
                    }
                }
                Phase::Run => {
                    if let Err(error) = self.feed(rx, shared) {
                        self.end_with(&error);
                    }
                    if self.phase == Phase::Run {
                        return Step::Wait;
                    }
                }
                Phase::Finish => {
                    if self.finish(rx, shared) {
                        return Step::Release;
                    }
                }
                Phase::SkipToSync => {
                    if !self.skip_to_sync(rx) {
                        return Step::Wait;
                    }
                }
                Phase::Ended => return Step::End,
            }
        }
    }

    /// Says which process ids the client and the server at hand have.
    pub fn set_ids(&mut self, ids: Ids) {
        self.ids = ids;
    }

    /// Hands over the server asked for by [`Step::Acquire`].
    pub fn attach(&mut self, server: Box<ServerState>, served_by: ServedBy) {
        self.server = Some(server);
        self.served_by = served_by;
        self.phase = Phase::Prepare;
    }

    /// Takes the server off, after [`Step::Release`] or when the client is gone.
    pub fn detach(&mut self) -> Option<Box<ServerState>> {
        self.server.take()
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
        let words = self.last_words.take();
        (self.replaying, self.replay_error) = (None, None);
        if self.status != TxStatus::Idle {
            // What the transaction may have set is rolled back.
            self.pins = self.pins.minus(Effects::SETTINGS_DOUBT);
            self.probe.forget_names();
        }
        self.server = None;
        self.to_server.clear();
        self.ledger.clear();
        let passing = std::mem::take(&mut self.passing);
        // Sequence values are gone with it: whoever asks for them is told that there are none.
        self.pins = self.pins.minus(Effects::SEQUENCE_READ);
        match self.phase {
            Phase::Acquire | Phase::Cancel(_) | Phase::SkipToSync | Phase::Ended => return,
            _ if self.is_own_end(words.as_deref()) || !self.pins.is_empty() => {
                if passing > 0 {
                    self.to_client.clear();
                    return self.phase = Phase::Ended;
                }
                return self.end_with_words(words.as_deref());
            }
            // A lost transaction is told when the client next asks for something of it.
            Phase::Gather | Phase::Probe | Phase::Release => {
                self.phase = Phase::Gather;
                return;
            }
            Phase::Finish => {
                self.consume(rx);
                // It was answered, so it happened; only the server's own state is lost.
                self.phase = Phase::Gather;
                self.unit.reset(self.status);
                return;
            }
            Phase::Prepare | Phase::Replay | Phase::Replace | Phase::Refused
                if self.unit.started == TxStatus::Idle || self.opening.moving =>
            {
                self.unit.rewind();
                self.phase = Phase::Acquire;
                return;
            }
            // Nothing had been executed, at most was the server asked what a statement returns.
            Phase::Compare | Phase::Dispatch if self.unit.can_rerun() && !self.unit.executed => {
                return self.run_again();
            }
            Phase::Prepare
            | Phase::Replay
            | Phase::Replace
            | Phase::Refused
            | Phase::Compare
            | Phase::Dispatch
            | Phase::Run => {}
        }
        self.opening = moving::Opening::default();
        if let Forwarding::Rerun { .. } = self.unit.forwarding
            && self.unit.started == TxStatus::Idle
        {
            return self.run_again();
        }
        if passing > 0 && self.passing_fate == reply::Fate::Forward {
            // The client is in the middle of a message: no error fits there.
            self.to_client.clear();
            self.phase = Phase::Ended;
            return;
        }
        if self.unit.forwarding == Forwarding::Told {
            backend::put_ready(&mut self.to_client, TxStatus::Idle);
            return self.forget_unit(TxStatus::Idle, rx);
        }
        match lost::verdict(&self.unit, sent, how, self.served_by == ServedBy::Standby) {
            Verdict::Rerun => self.run_again(),
            Verdict::NothingCommitted(status) => self.tell(&ProxyError::TransactionLost, status, rx),
            Verdict::InDoubt => self.tell(&ProxyError::CommitInDoubt, TxStatus::Idle, rx),
            Verdict::Answered(status) => {
                if self.unit.extent == Extent::Open {
                    return self.end_told(status, rx);
                }
                backend::put_ready(&mut self.to_client, status);
                self.forget_unit(status, rx);
            }
            Verdict::ServersWords => {
                let mut error = BytesMut::new();
                lost::as_error(words.as_deref().unwrap_or_default(), lost::HINT, &mut error);
                self.tell_words(&error, TxStatus::Idle, rx);
            }
            Verdict::Completed(tag) => self.complete_lost(tag, rx),
        }
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
        self.withheld.clear();
        self.told = Some((SqlState::parse(backend::ErrorFields::read(words).code), Origin::Server));
        put_message(&mut self.to_client, backend::ERROR_RESPONSE, |out| out.put_slice(words));
        self.phase = Phase::Ended;
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

    /// What served the session since this was last asked, once its transaction is over.
    pub fn take_used(&mut self) -> Option<ServedBy> {
        self.used.take()
    }

    /// How many units were run again since this was last asked.
    pub fn take_reruns(&mut self) -> u64 {
        std::mem::take(&mut self.reruns)
    }

    /// The proxy's own error that the client was told since this was last asked, for the metrics.
    pub fn take_told(&mut self) -> Option<(SqlState, Origin)> {
        self.told.take()
    }

    /// Gives back the buffers in which nothing is. For idle sessions.
    pub fn trim(&mut self, buffers: &mut Buffers) {
        let Self { to_client, to_server, withheld, before, after, .. } = self;
        for buffer in [to_client, to_server, withheld, before, after] {
            buffers.give_back(buffer);
        }
    }

    /// Whether the client may be left alone: no transaction and nothing under way.
    pub fn is_idle(&self) -> bool {
        self.phase == Phase::Gather && self.status == TxStatus::Idle && self.unit.end == 0
    }

    /// Whether the idle client keeps its server only because it may ask for its own sequence values: for a
    /// moment, for others may need the server.
    pub fn is_lingering(&self) -> bool {
        self.server.is_some()
            && self.is_idle()
            && self.kept.config.mode == Mode::Transaction
            && self.pins == Effects::SEQUENCE_READ
    }

    /// That moment is over: the server is given back. What the session left there it finds again, unless
    /// another one needs the server meanwhile.
    pub fn end_linger(&mut self) {
        if self.is_lingering() {
            self.pins = Effects::NONE;
            self.phase = Phase::Release;
        }
    }

    /// Whether requests are outstanding at the server.
    pub fn is_outstanding(&self) -> bool {
        !self.ledger.is_empty()
    }

    /// Whether a transaction is open, or a unit under way.
    pub fn is_in_transaction(&self) -> bool {
        // A unit without its Sync has its transaction open.
        self.status != TxStatus::Idle
            || self.unit.extent == Extent::Open
            || matches!(
                self.phase,
                Phase::Run | Phase::Replay | Phase::Replace | Phase::Refused | Phase::Compare | Phase::Probe
            )
    }

    /// Whether the client's next bytes are needed to go on.
    pub fn wants_client(&self) -> bool {
        match self.phase {
            Phase::Gather | Phase::SkipToSync => true,
            Phase::Run => self.unit.extent == Extent::Open || self.unit.copy == Copy::In,
            _ => false,
        }
    }

    /// How strict the session is now.
    pub fn consistency(&self) -> Consistency {
        self.kept.consistency.unwrap_or(self.kept.config.consistency)
    }

    /// The proxy is about to close the connection for this reason.
    pub fn end_with(&mut self, error: &ProxyError) {
        self.withheld.clear();
        if self.passing == 0 || self.passing_fate == reply::Fate::Swallow {
            self.told = Some((error.sqlstate(), error.origin()));
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
        self.phase = Phase::Ended;
    }

    /// Where the unit at hand has to run.
    fn need(&self) -> Need {
        match self.kept.config.access {
            Access::PrimaryOnly => return Need::Primary,
            Access::ReadOnly => return Need::StandbyOnly,
            Access::ReadWrite => {}
        }
        if self.unit.needs_primary
            || self.unit.extent == Extent::Open
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
        if self.unit.forwarding != Forwarding::On {
            self.withheld.clear();
        }
        self.told = Some((error.sqlstate(), error.origin()));
        error.encode(&mut self.to_client);
        self.end_told(status, rx);
    }

    /// As [`Session::tell`], in the words of a server: an ErrorResponse.
    fn tell_words(&mut self, error: &[u8], status: TxStatus, rx: &mut BytesMut) {
        if self.unit.forwarding != Forwarding::On {
            self.withheld.clear();
        }
        let code = error.get(crate::wire::HEADER_BYTES..).map(|body| backend::ErrorFields::read(body).code);
        self.told = Some((SqlState::parse(code.unwrap_or_default()), Origin::Server));
        self.to_client.put_slice(error);
        self.end_told(status, rx);
    }

    /// The unit's answer was an error of the proxy.
    fn end_told(&mut self, status: TxStatus, rx: &mut BytesMut) {
        let open = self.unit.extent == Extent::Open;
        if open {
            self.consume(rx);
            self.status = status;
            self.phase = Phase::SkipToSync;
            return;
        }
        backend::put_ready(&mut self.to_client, status);
        self.forget_unit(status, rx);
    }

    /// The unit is over; the client is in `status`.
    fn forget_unit(&mut self, status: TxStatus, rx: &mut BytesMut) {
        self.consume(rx);
        self.withheld.clear();
        self.status = status;
        if status == TxStatus::Idle {
            self.staged.clear();
            self.portals.clear();
            self.sets = false;
        }
        self.unit.reset(status);
        self.phase = Phase::Gather;
    }

    fn run_again(&mut self) {
        if let Forwarding::Rerun { on_primary: true } = self.unit.forwarding {
            self.unit.needs_primary = true;
        }
        self.withheld.clear();
        self.ledger.clear();
        self.undo_definitions();
        // It began outside a transaction: nothing was staged before it.
        self.staged.clear();
        self.reruns += 1;
        self.unit.rewind();
        self.phase = Phase::Acquire;
    }

    /// Takes the unit's bytes from the client's buffer.
    fn consume(&mut self, rx: &mut BytesMut) {
        if !self.unit.consumed {
            self.unit.consumed = true;
            buffers::consume(rx, self.unit.end);
            self.unit.end = 0;
        }
    }
}
