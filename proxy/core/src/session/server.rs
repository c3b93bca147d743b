//! State of one server connection.

use std::rc::{Rc, Weak};

use super::copies::Prepared;
use super::profile::{Profile, Profiles};
use super::statements::Held;
use super::{Shared, reply};

/// Mark by which a server knows the session that left something on it. Nothing but an identity, which most sessions
/// never need.
#[derive(Clone, Debug, Default)]
pub struct Mark(Option<Rc<()>>);

impl Mark {
    /// Whether it may be on a server.
    pub fn is_left(&self) -> bool {
        self.0.is_some()
    }

    /// To be left on a server.
    pub(super) fn leave(&mut self) -> Weak<()> {
        Rc::downgrade(self.0.get_or_insert_default())
    }
}

/// State of one server connection; it travels with it through the pool.
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
    /// Cleanup that is due before another session gets it.
    pub cleanup: Cleanup,
    /// The session that last did something which may live on in the server process: sequence values,
    /// what a function left.
    pub(super) owner: Weak<()>,
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

    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Cleanup of a server that is due before another session gets it. Ordered by strictness.
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
