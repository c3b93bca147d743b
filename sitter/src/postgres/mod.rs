//! The local PostgreSQL: its process, its configuration and what it is seen to do. What makes and mends its data is
//! `data`, beside it.
//!
//! The manager decides nothing. Each method of [`Postgres`] is one action of the sitter's machine;
//! it may be dropped halfway and repeated. What PostgreSQL is, is told by [`Postgres::local`],
//! which one task of its own keeps current: a death is noticed at once (pidfd), everything else by
//! one small query every 50 ms.
//!
//! PostgreSQL outlives this object and this process on purpose: dropping [`Postgres`] stops
//! nothing, and [`Postgres::adopt`] takes a running server over.

mod apply;
mod ask;
mod capacity;
mod clients;
mod condition;
mod conf;
pub mod drain;
mod feedback;
mod guard;
mod hba;
mod horizon;
mod in_force;
pub(crate) mod inner;
pub(crate) mod lifecycle;
mod logfile;
mod observe;
mod probe;
mod process;
mod refused;
mod rehearsal;
pub(crate) mod render;
mod replay;
mod replication_tls;
pub(crate) mod roles;
pub(crate) mod same_wal;
mod serverlog;
pub(crate) mod session;
pub mod settings;
mod slots;
pub(crate) mod source;
mod walsender;

use std::sync::Arc;

use manatee_shared::ids::PeerId;
use manatee_shared::lsn::Timeline;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use self::condition::Condition;
use self::inner::Inner;
use self::observe::Observer;
pub use self::refused::leave_out;
pub use self::replication_tls::ReplicationTls;
pub use self::settings::{Secret, Settings};
pub use crate::host::{Error, Layout, REPLICATION_ROLE};
pub(crate) use crate::host::{control, error, files, osuser, tool};
use crate::machine::action::StopMode;
use crate::machine::capacity::Capacities;
use crate::machine::local::{Data, Local, Obstacle, Server, ServerConfig, SystemIdentifier};

/// Role of the proxies: looks up verifiers, asks for roles and positions.
pub const PROXY_ROLE: &str = "manatee_proxy";
/// `application_name` of the sitter's own sessions.
pub const APPLICATION_NAME: &str = "manatee-sitter";

/// The databases that sessions are opened in: the second if the first refuses them. Every cluster has both.
pub(crate) const DATABASES: [&str; 2] = ["postgres", "template1"];

/// Name of the physical replication slot that `peer` uses on whatever it follows.
pub fn slot_name(peer: PeerId) -> String {
    let id: String = peer.to_string().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    format!("manatee_{id}")
}

/// The local PostgreSQL. One action at a time: a second one fails with [`Error::Busy`].
#[derive(Debug)]
pub struct Postgres {
    inner: Arc<Inner>,
    /// Keeps [`Local`] current; ends with this object.
    observer: JoinHandle<()>,
    /// Kept current by `watching`.
    condition: watch::Receiver<Condition>,
    watching: JoinHandle<()>,
    rehearsing: JoinHandle<()>,
    /// Looks after slots that nobody uses.
    slots: JoinHandle<()>,
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.observer.abort();
        self.watching.abort();
        self.rehearsing.abort();
        self.slots.abort();
    }
}

impl Postgres {
    /// A manager for the data under `settings.dir`. Needs a tokio runtime; changes nothing yet.
    pub fn new(settings: Settings, me: PeerId) -> Result<Self, Error> {
        let server = Server::Down { crashed: false, standby: false };
        let local = Local::new(Data::Absent, server);
        let (inner, looks) = Inner::new(settings, me, local)?;
        let observer = tokio::spawn(Observer::new(Arc::clone(&inner), looks).run());
        let (sender, condition) = watch::channel(Condition::default());
        let rehearsing = rehearsal::watch(Arc::clone(&inner), sender.clone());
        let watching = condition::watch(Arc::clone(&inner), sender);
        let slots = slots::watch(Arc::clone(&inner));
        Ok(Self { inner, observer, condition, watching, rehearsing, slots })
    }

    /// State of PostgreSQL, kept current. Means nothing before [`Self::adopt`].
    pub fn local(&self) -> watch::Receiver<Local> {
        self.inner.local.subscribe()
    }

    /// To be told the lowest of what the standbys of the shard run with: a primary is not started with more.
    pub fn standbys(&self) -> watch::Sender<Option<Capacities>> {
        self.inner.standbys.clone()
    }

    /// Room on the disk, settings that wait for a restart, and who keeps old row versions.
    pub fn condition(&self) -> watch::Receiver<Condition> {
        self.condition.clone()
    }

    /// Process id of the postmaster, for people and tests.
    pub fn pid(&self) -> Option<i32> {
        self.inner.postmaster().map(|postmaster| postmaster.pid())
    }

    /// The shard's system identifier, once the state names it: copies of another cluster are
    /// refused from then on (rule 10).
    pub fn expect_system_identifier(&self, identifier: Option<SystemIdentifier>) {
        self.inner.known().expected_system = identifier;
    }

    /// Looks at what is there: finds a running postmaster of this data directory and reads back
    /// the configuration it was given. To be called once, first. Returns whether one was found.
    pub async fn adopt(&self) -> Result<bool, Error> {
        let _one = self.inner.begin().await?;
        lifecycle::adopt(&self.inner).await
    }

    /// Starts the server. Returns when it answers queries with the configuration in effect, or,
    /// for a long recovery, after [`Settings::start_wait`]: then [`Local::config`] stays None until
    /// it was configured again.
    pub async fn start(&self, config: &ServerConfig) -> Result<(), Error> {
        let _one = self.inner.begin().await?;
        lifecycle::start(&self.inner, config).await
    }

    /// Gives the running server this configuration without a restart, and confirms that it is in
    /// effect everywhere that matters.
    pub async fn configure(&self, config: &ServerConfig) -> Result<(), Error> {
        let _one = self.inner.begin().await?;
        apply::apply(&self.inner, config).await
    }

    /// Leaves recovery and confirms it. The new timeline is the next one, but at least `timeline`.
    pub async fn promote(&self, config: &ServerConfig, timeline: Option<Timeline>) -> Result<(), Error> {
        let _one = self.inner.begin().await?;
        lifecycle::promote(&self.inner, config, timeline).await
    }

    /// Waits until no client is at work, not longer than a second.
    pub async fn drain(&self) -> Result<(), Error> {
        let _one = self.inner.begin().await?;
        drain::drain(&self.inner).await
    }

    /// Stops the server, if it runs, and confirms that it ended. Bounded; harder and harder.
    pub async fn stop(&self, mode: StopMode) -> Result<(), Error> {
        let _one = self.inner.begin().await?;
        lifecycle::stop(&self.inner, mode).await
    }

    /// Ends the sessions of readers that replay waits for just now, if it does.
    pub async fn clear_replay(&self) -> Result<Option<Obstacle>, Error> {
        replay::clear(&self.inner, &*self.inner.session()?).await
    }

    /// State that actions and the observation share, for actions on the data.
    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}
