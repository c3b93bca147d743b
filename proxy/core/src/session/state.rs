//! The states of a session, with what exists only in them, and the ways between them.
//!
//! ```text
//!          ┌───────────────────────── Gathering ◄────────────────────────────────┐
//!   client │ a unit is complete (gather)   ▲ answered here (choose_place)        │
//!          ▼                               │                                     │
//!      (Signalling)                        │                                     │ detach()
//!          ▼                               │                                     │
//!       Waiting ── attach() ──► Attached: Preparing ─► Replaying ─► Running ─► Releasing
//!          ▲                       ▲           │ (settings, BEGIN)   │  ▲         ▲
//!          │                       └───────────┘                     │  │  Refused, Probing
//!          └──── server_lost(), detach(): the unit runs again ◄──────┘  └ next unit, same server
//!
//!       SkippingToSync: an error was told within an open unit.  Ended: nothing more is read.
//! ```

use std::mem;
use std::rc::Rc;

use super::answer::{Answer, Withheld};
use super::bound::Crowd;
use super::ledger::Ledger;
use super::probe::Findings;
use super::profile::Profile;
use super::reply::Passing;
use super::run::Run;
use super::{Ids, Need, ServedBy, ServerState, Session};

/// State of a session, with the server that it has.
// Looked at for each message: its tag is a byte of its own, not packed into what the variants hold.
#[derive(Debug)]
#[repr(u8)]
pub(super) enum State {
    /// Reads a unit of the client, or waits for one. It has a server in a transaction, and while it is bound to one.
    Gathering(Option<Link>),
    /// The unit at hand needs a server of this kind.
    Waiting(Need),
    /// The unit at hand is to cancel what another client of the proxy runs: the one of this number.
    Signalling(u32, Option<Link>),
    /// The server at hand has something to do for the unit, or for the session.
    Attached(Link, Stage),
    /// An error was told within an open unit: its rest is ignored.
    SkippingToSync(Option<Link>),
    /// Nothing more is read of the client.
    Ended(Option<Link>),
}

/// Stage of a session with a server.
#[derive(Debug)]
#[repr(u8)]
pub(super) enum Stage {
    /// The server is looked at: it may need other settings for the unit at hand.
    Preparing,
    /// It runs what has to come before the unit.
    Replaying(Replay),
    /// The unit is sent and answered.
    Running(Box<Run>),
    /// It has refused the session's settings for good, in these words.
    Refused(Box<[u8]>),
    /// Between two units it is asked what still binds the session.
    Probing(Box<Findings>),
    /// It is free, and given back.
    Releasing(Then),
}

/// Replay: the proxy's own statements to the server before the unit at hand.
#[derive(Debug)]
pub(super) enum Replay {
    /// Take these settings; the words in which it has refused them.
    Settings(Rc<Profile>, Option<Box<[u8]>>),
    /// End the transaction that moves to the primary.
    Leaving,
    /// Begin the transaction that has moved here.
    Beginning,
}

/// Next step when a server has been given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// The next unit.
    Gather,
    /// The unit at hand goes to another server.
    Wait,
    /// The rest of an open unit is ignored.
    SkipToSync,
}

/// A server that the session has.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) server: Box<ServerState>,
    pub(super) served_by: ServedBy,
    pub(super) exchange: Box<Exchange>,
}

/// Exchange under way between the session and the server at hand.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    /// Requests that are not answered yet.
    pub(super) ledger: Ledger,
    /// The message of the server that is passed on in parts.
    pub(super) passing: Option<Passing>,
    /// The parameter types that it described last.
    pub(super) described: Vec<u8>,
    /// The FATAL with which it ended its connection, until its loss is dealt with.
    pub(super) last_words: Option<Box<[u8]>>,
    /// Its pool has no room for another bound session.
    pub(super) crowd: Option<Crowd>,
    /// Process ids.
    pub(super) ids: Ids,
}

impl Exchange {
    fn clear(&mut self) {
        self.ledger.clear();
        self.described.clear();
        self.passing = None;
        self.last_words = None;
        self.crowd = None;
        self.ids = Ids::default();
    }
}

/// Room for states that come and go with each unit: they ask for no memory.
#[derive(Debug, Default)]
pub(super) struct Spare {
    exchange: Option<Box<Exchange>>,
    run: Option<Box<Run>>,
    pub(super) withheld: Option<Box<Withheld>>,
}

impl Spare {
    /// Number of requests that there is room for in it.
    pub(super) fn room(&self) -> usize {
        let exchange = self.exchange.as_ref().map_or(0, |exchange| exchange.ledger.room());
        self.withheld.as_ref().map_or(exchange, |withheld| withheld.room().max(exchange))
    }

    fn keep_stage(&mut self, stage: Stage) {
        if let Stage::Running(run) = stage {
            self.keep_run(run);
        }
    }

    pub(super) fn keep_run(&mut self, mut run: Box<Run>) {
        self.keep_answer(mem::take(&mut run.answer));
        *run = Run::default();
        self.run = Some(run);
    }

    pub(super) fn keep_answer(&mut self, answer: Answer) {
        if let Answer::Withheld(mut kept) = answer {
            kept.clear();
            self.withheld = Some(kept);
        }
    }

    fn keep_exchange(&mut self, mut exchange: Box<Exchange>) {
        exchange.clear();
        self.exchange = Some(exchange);
    }
}

impl State {
    pub(super) fn link(&self) -> Option<&Link> {
        match self {
            Self::Attached(link, _) => Some(link),
            Self::Gathering(link) | Self::Signalling(_, link) | Self::SkippingToSync(link) | Self::Ended(link) => {
                link.as_ref()
            }
            Self::Waiting(_) => None,
        }
    }

    pub(super) fn link_mut(&mut self) -> Option<&mut Link> {
        match self {
            Self::Attached(link, _) => Some(link),
            Self::Gathering(link) | Self::Signalling(_, link) | Self::SkippingToSync(link) | Self::Ended(link) => {
                link.as_mut()
            }
            Self::Waiting(_) => None,
        }
    }

    /// Takes the server away, where the state can be without.
    pub(super) fn take_link(&mut self) -> Option<Link> {
        match self {
            Self::Gathering(link) | Self::Signalling(_, link) | Self::SkippingToSync(link) | Self::Ended(link) => {
                link.take()
            }
            Self::Waiting(_) | Self::Attached(..) => None,
        }
    }

    pub(super) fn server(&self) -> Option<&ServerState> {
        self.link().map(|link| &*link.server)
    }

    pub(super) fn server_mut(&mut self) -> Option<&mut ServerState> {
        self.link_mut().map(|link| &mut *link.server)
    }

    pub(super) fn ledger(&self) -> Option<&Ledger> {
        self.link().map(|link| &link.exchange.ledger)
    }

    pub(super) fn ledger_mut(&mut self) -> Option<&mut Ledger> {
        self.link_mut().map(|link| &mut link.exchange.ledger)
    }

    /// The server at hand, if any, is a standby.
    pub(super) fn is_on_standby(&self) -> bool {
        self.link().is_some_and(|link| link.served_by == ServedBy::Standby)
    }

    pub(super) fn stage_mut(&mut self) -> Option<&mut Stage> {
        match self {
            Self::Attached(_, stage) => Some(stage),
            _ => None,
        }
    }

    /// The unit that is sent and answered.
    pub(super) fn run(&self) -> Option<&Run> {
        match self {
            Self::Attached(_, Stage::Running(run)) => Some(run),
            _ => None,
        }
    }

    pub(super) fn run_mut(&mut self) -> Option<&mut Run> {
        match self {
            Self::Attached(_, Stage::Running(run)) => Some(run),
            _ => None,
        }
    }

    /// The server at hand and the unit that it runs.
    pub(super) fn at_run(&mut self) -> Option<(&mut Link, &mut Run)> {
        match self {
            Self::Attached(link, Stage::Running(run)) => Some((link, run)),
            _ => None,
        }
    }

    /// Progress of the answer to the unit. Between two units, what a server says of its own accord is passed on.
    pub(super) fn answer(&self) -> &Answer {
        self.run().map_or(&Answer::Streaming, |run| &run.answer)
    }
}

// A unit passes through half a dozen states in less than a microsecond: where the server stays, the state is changed in
// its place, so that what was just written need not be read back to be moved.
impl Session {
    /// Leaves the state at hand for another one. The server, if there is one.
    pub(super) fn leave_state(&mut self) -> Option<Link> {
        match mem::replace(&mut self.state, State::Ended(None)) {
            State::Gathering(link) | State::Signalling(_, link) | State::SkippingToSync(link) | State::Ended(link) => {
                link
            }
            State::Waiting(_) => None,
            State::Attached(link, stage) => {
                self.spare.keep_stage(stage);
                Some(link)
            }
        }
    }

    /// Reads the next unit.
    pub(super) fn go_gather(&mut self) {
        self.state = State::Gathering(self.leave_state());
    }

    /// Reads nothing more.
    pub(super) fn go_end(&mut self) {
        self.state = State::Ended(self.leave_state());
    }

    /// Ignores the rest of an open unit.
    pub(super) fn go_skip(&mut self) {
        self.state = State::SkippingToSync(self.leave_state());
    }

    /// The unit at hand goes to another server, once the one at hand, if any, is given back.
    pub(super) fn go_elsewhere(&mut self) {
        self.go_attached(Stage::Releasing(Then::Wait));
    }

    /// Has the server at hand do something. Without one the unit waits for it.
    pub(super) fn go_attached(&mut self, stage: Stage) {
        if let State::Attached(_, at) = &mut self.state {
            let before = mem::replace(at, stage);
            return self.spare.keep_stage(before);
        }
        let link = self.state.take_link();
        self.state = match link {
            Some(link) => State::Attached(link, stage),
            None => State::Waiting(self.need()),
        };
    }

    /// The unit at hand is sent to the server at hand, from its beginning.
    pub(super) fn go_run(&mut self) {
        let mut run = self.spare.run.take().unwrap_or_default();
        // What goes on while it is answered cannot be said again.
        if !self.unit.input.is_open() {
            run.answer = Answer::Withheld(self.spare.withheld.take().unwrap_or_default());
        }
        self.kept.ended_by_commit = false;
        self.go_attached(Stage::Running(run));
    }

    /// Hands over the server asked for by [`Step::Acquire`](super::Step::Acquire).
    pub fn attach(&mut self, server: Box<ServerState>, served_by: ServedBy) {
        let exchange = self.spare.exchange.take().unwrap_or_default();
        self.state = State::Attached(Link { server, served_by, exchange }, Stage::Preparing);
    }

    /// Takes the server off, after [`Step::Release`](super::Step::Release) or when the client is gone.
    pub fn detach(&mut self) -> Option<Box<ServerState>> {
        let next = match &self.state {
            State::Attached(_, Stage::Releasing(Then::Gather)) => State::Gathering(None),
            State::Attached(_, Stage::Releasing(Then::Wait)) => State::Waiting(self.need()),
            State::Attached(_, Stage::Releasing(Then::SkipToSync)) => State::SkippingToSync(None),
            State::Attached(..) => State::Ended(None),
            _ => {
                let link = self.state.take_link()?;
                return Some(self.drop_link(link));
            }
        };
        match mem::replace(&mut self.state, next) {
            State::Attached(link, stage) => {
                self.spare.keep_stage(stage);
                Some(self.drop_link(link))
            }
            _ => None,
        }
    }

    /// The session has the server no more.
    pub(super) fn drop_link(&mut self, link: Link) -> Box<ServerState> {
        self.spare.keep_exchange(link.exchange);
        link.server
    }
}
