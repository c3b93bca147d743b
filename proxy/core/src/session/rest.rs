//! Between two units a session is no more than what it keeps. The rest of it, several times as large, is the
//! same for all idle sessions: it serves others meanwhile.

use std::rc::Rc;

use bytes::BytesMut;

use super::moving::Opening;
use super::news::Untold;
use super::probe::Doubts;
use super::profile::{self, Profile};
use super::state::{Spare, State};
use super::statements::{Held, Names};
use super::unit::Unit;
use super::{Config, Mark, Session, Shared};
use crate::error::ProxyError;
use crate::route::Effects;
use crate::route::class::{Route, SqlContext, TextEncoding};
use crate::topology::consistency::Consistency;
use crate::wire::backend::TxStatus;

/// Spares kept for the next who has something to do: about as many as have something to do at a time. More
/// are given back to the system.
const MOST_SPARE: usize = 256;

/// Requests there is room for in a spare. One that has grown above this is not kept: it was for a long pipeline.
const MOST_REQUESTS: usize = 256;

/// Parts that a session keeps while it is idle.
#[derive(Debug)]
pub struct Kept {
    pub(super) config: Config,
    pub(super) mark: Mark,
    pub(super) startup: Rc<Profile>,
    pub(super) profile: Rc<Profile>,
    /// ParameterStatus values the client knows.
    pub(super) reported: Rc<Profile>,
    pub(super) sql: SqlContext,
    pub(super) route: Route,
    pub(super) consistency: Option<Consistency>,
    pub(super) statements: Names,
    pub(super) unnamed: Option<Held>,
    /// The last transaction was ended by COMMIT.
    pub(super) ended_by_commit: bool,
    /// A standby has said that transactions are SERIALIZABLE by default, and the session has not said otherwise: its
    /// role or database has it so.
    pub(super) serializable_by_default: bool,
    /// Settings that no server takes: only the primary is asked whether that is still so.
    pub(super) refused: Option<Rc<Profile>>,
}

impl Kept {
    /// Of a client that has just logged in.
    ///
    /// # Errors
    /// Startup options that are not understood.
    pub fn new(
        config: Config,
        startup: &[(String, String)],
        reported: Vec<(String, String)>,
        shared: &mut Shared,
    ) -> Result<Self, ProxyError> {
        let mut entries = profile::from_startup(startup)
            .map_err(|option| ProxyError::Unsupported(format!("startup option `{option}`")))?;
        let consistency = match entries.remove("manatee.consistency") {
            Some(text) => Some(Consistency::parse(&text).ok_or_else(|| {
                ProxyError::NotAllowed(format!("invalid value for parameter \"manatee.consistency\": \"{text}\""))
            })?),
            None => None,
        };
        let route = match entries.remove("manatee.route").as_deref() {
            None | Some("auto") => Route::Auto,
            Some("primary") => Route::Primary,
            Some("standby") => Route::Standby,
            Some(text) => {
                return Err(ProxyError::NotAllowed(format!(
                    "invalid value for parameter \"manatee.route\": \"{text}\""
                )));
            }
        };
        // What a server has made of them says more than they do: `DateStyle=ISO` sets one half of it, and the other
        // one must not be what another session has left on a server (`check_datestyle` in variable.c).
        for (name, value) in reported.iter().filter(|(_, value)| value.is_ascii()) {
            if let Some(given) = entries.get_mut(name.to_ascii_lowercase().as_str()) {
                *given = value.as_str().into();
            }
        }
        let profile = shared.profiles.intern(entries);
        let reported = reported.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let reported = shared.profiles.intern(reported);
        let mut kept =
            Self { startup: profile.clone(), profile, reported, route, consistency, ..Self::nobodys(config, shared) };
        kept.read_sql_context();
        Ok(kept)
    }

    /// Of no client: what a spare has.
    fn nobodys(config: Config, shared: &Shared) -> Self {
        let empty = shared.profiles.empty();
        Self {
            config,
            mark: Mark::default(),
            startup: empty.clone(),
            profile: empty.clone(),
            reported: empty,
            sql: SqlContext::default(),
            route: Route::Auto,
            consistency: None,
            statements: Names::default(),
            unnamed: None,
            ended_by_commit: false,
            serializable_by_default: false,
            refused: None,
        }
    }

    /// The statement of this name.
    pub(super) fn held(&self, name: &[u8]) -> Option<&Held> {
        if name.is_empty() { self.unnamed.as_ref() } else { self.statements.get(name) }
    }

    /// Sees how the session's texts are to be read.
    pub(super) fn read_sql_context(&mut self) {
        let value = |name: &str| {
            let reported = || self.reported.entries().find(|(key, _)| key.eq_ignore_ascii_case(name));
            self.profile.get(name).or_else(|| reported().map(|(_, value)| value))
        };
        self.sql = SqlContext {
            standard_conforming_strings: value("standard_conforming_strings") != Some("off"),
            encoding: value("client_encoding").map_or(TextEncoding::Utf8, TextEncoding::named),
        };
    }
}

/// A session that may have something to do, and what its client has said and was not dealt with.
#[derive(Debug)]
pub struct Awake {
    /// The session.
    pub session: Session,
    /// Its client's bytes.
    pub rx: BytesMut,
}

/// Parts that idle sessions do not need, for the next one that has something to do. Nobody's while they are here.
// Boxed because they travel.
#[allow(clippy::vec_box, reason = "the boxes are handed on as they are")]
#[derive(Debug, Default)]
pub struct Spares(Vec<Box<Awake>>);

impl Awake {
    /// The client has said something. `kept` is nobody's from now on, until [`Awake::rest`].
    pub fn new(kept: &mut Kept, rx: BytesMut, shared: &mut Shared) -> Box<Self> {
        let mut awake = shared.spares.0.pop().unwrap_or_else(|| {
            let session = Session::of(Kept::nobodys(kept.config.clone(), shared));
            Box::new(Self { session, rx: BytesMut::new() })
        });
        std::mem::swap(&mut awake.session.kept, kept);
        awake.rx = rx;
        awake
    }

    /// Whether nothing is lost if the session rests: it is idle, everything was said, and no server is its own.
    pub fn may_rest(&self) -> bool {
        self.rx.is_empty() && self.session.may_rest()
    }

    /// The session is idle, and [may rest](Awake::may_rest).
    pub fn rest(mut self: Box<Self>, kept: &mut Kept, shared: &mut Shared) {
        debug_assert!(self.may_rest());
        let session = &mut self.session;
        std::mem::swap(&mut session.kept, kept);
        session.last_bound = None;
        session.ended = false;
        session.trim(&mut shared.buffers);
        let has_grown = session.spare.room().max(session.unit.room()) > MOST_REQUESTS
            || session.portals.capacity().max(session.staged.capacity()) > MOST_REQUESTS;
        shared.buffers.give_back(&mut self.rx);
        if shared.spares.0.len() < MOST_SPARE && !has_grown {
            shared.spares.0.push(self);
        }
    }
}

impl Session {
    /// Session with what it keeps, and nothing to do.
    pub fn of(kept: Kept) -> Self {
        let mut unit = Unit::default();
        unit.reset(TxStatus::Idle);
        Self {
            kept,
            state: State::Gathering(None),
            status: TxStatus::Idle,
            unit,
            news: Untold::default(),
            portals: Vec::new(),
            last_bound: None,
            staged: Vec::new(),
            opening: Opening::Never,
            pins: Effects::NONE,
            doubts: Doubts::default(),
            sets: false,
            ended: false,
            to_client: BytesMut::new(),
            to_server: BytesMut::new(),
            spare: Spare::default(),
            before: BytesMut::new(),
            after: BytesMut::new(),
        }
    }

    fn may_rest(&self) -> bool {
        self.is_idle()
            && self.state.link().is_none()
            && self.pins.is_empty()
            && [&self.to_client, &self.to_server, &self.before, &self.after].iter().all(|buffer| buffer.is_empty())
            && (self.portals.is_empty() && self.staged.is_empty() && self.doubts.is_empty())
            && !self.sets
            && self.news.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::*;
    use crate::route::Classifier;
    use crate::terms::Access;

    #[test]
    fn settings_of_the_start_are_what_a_server_made_of_them() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let config = Config {
            access: Access::ReadWrite,
            mode: crate::terms::Mode::Transaction,
            split: true,
            consistency: Consistency::Session,
        };
        let startup = [pair("DateStyle", "ISO"), pair("application_name", "caf\u{e9}"), pair("work_mem", "5MB")];
        let reported =
            vec![pair("DateStyle", "ISO, MDY"), pair("application_name", "caf\u{e9}"), pair("TimeZone", "UTC")];
        let mut shared = Shared::new(Classifier::new(1, 16, std::sync::Arc::default()));
        let kept = Kept::new(config, &startup, reported, &mut shared).expect("a session");
        let entries: Vec<_> = kept.startup.entries().collect();
        assert_eq!(
            entries,
            [("application_name", "caf\u{e9}"), ("datestyle", "ISO, MDY"), ("work_mem", "5MB")],
            "a half of DateStyle is not another session's"
        );
    }
}
