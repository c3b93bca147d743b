//! The local PostgreSQL: its data directory, its process, its configuration and what it is seen
//! to do.
//!
//! The manager decides nothing. Each method of [`Postgres`] is one action of the sitter's machine;
//! it may be dropped halfway and repeated. What PostgreSQL is, is told by [`Postgres::local`],
//! which one task of its own keeps current: a death is noticed at once (pidfd), everything else by
//! one small query every 50 ms.
//!
//! PostgreSQL outlives this object and this process on purpose: dropping [`Postgres`] stops
//! nothing, and [`Postgres::adopt`] takes a running server over.

mod conf;
pub mod error;
pub mod settings;

use manatee_shared::ids::PeerId;
use manatee_shared::lsn::WalPosition;
use tokio::sync::watch;

pub use self::error::Error;
pub use self::settings::{Layout, Secret, Settings};
use crate::machine::action::StopMode;
use crate::machine::local::{Data, Local, Server, ServerConfig, SystemIdentifier};
use crate::rejoin::Rung;

/// Role that streams WAL, copies data and rewinds.
pub const REPLICATION_ROLE: &str = "manatee_replication";
/// Role of the proxies: looks up verifiers, asks for roles and positions.
pub const PROXY_ROLE: &str = "manatee_proxy";
/// `application_name` of the sitter's own sessions.
pub const APPLICATION_NAME: &str = "manatee-sitter";

/// Name of the physical replication slot that `peer` uses on whatever it follows.
pub fn slot_name(peer: PeerId) -> String {
    let id: String = peer.to_string().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    format!("manatee_{id}")
}

/// The local PostgreSQL. One action at a time: a second one fails with [`Error::Busy`].
#[derive(Debug)]
pub struct Postgres {
    local: watch::Sender<Local>,
}

impl Postgres {
    /// A manager for the data under `settings.dir`. Needs a tokio runtime; touches nothing yet.
    pub fn new(settings: Settings, me: PeerId) -> Result<Self, Error> {
        settings.check(me)?;
        let local = Local {
            data: Data::Absent,
            server: Server::Down { crashed: false, standby: false },
            config: None,
            last_position: None,
        };
        Ok(Self { local: watch::Sender::new(local) })
    }

    /// What is known of PostgreSQL, kept current.
    pub fn local(&self) -> watch::Receiver<Local> {
        self.local.subscribe()
    }

    /// The shard's system identifier, once the state names it: data of another cluster is refused.
    pub fn expect_system_identifier(&self, _identifier: Option<SystemIdentifier>) {}

    /// Looks at what is there: finds a running postmaster of this data directory and reads back
    /// the configuration it was given. To be called once, first. Returns whether one was found.
    pub async fn adopt(&self) -> Result<bool, Error> {
        Err(Error::NotAnswering)
    }

    /// Makes a new cluster with Manatee's roles, left stopped. Only without a data directory.
    pub async fn initialise(&self) -> Result<SystemIdentifier, Error> {
        Err(Error::NotAnswering)
    }

    /// Starts the server. Returns when it answers queries with the configuration in effect, or,
    /// for a long recovery, after [`Settings::start_wait`]: then [`Local::config`] stays None until
    /// it was configured again.
    pub async fn start(&self, _config: &ServerConfig) -> Result<(), Error> {
        Err(Error::NotAnswering)
    }

    /// Gives the running server this configuration without a restart, and confirms that it is in
    /// effect everywhere that matters.
    pub async fn configure(&self, _config: &ServerConfig) -> Result<(), Error> {
        Err(Error::NotAnswering)
    }

    /// Leaves recovery and confirms it.
    pub async fn promote(&self, _config: &ServerConfig) -> Result<(), Error> {
        Err(Error::NotAnswering)
    }

    /// Stops the server, if it runs, and confirms that no process is left.
    pub async fn stop(&self, _mode: StopMode) -> Result<(), Error> {
        Err(Error::NotAnswering)
    }

    /// Copies everything from `source`. What was there is set aside first.
    pub async fn bootstrap(&self, _source: PeerId) -> Result<(), Error> {
        Err(Error::NotAnswering)
    }

    /// Brings the data back in line with `source`, a primary, from this rung of the ladder on.
    /// Stops the server; leaves it stopped.
    pub async fn rejoin(&self, _source: PeerId, _from: Rung, _init: Option<WalPosition>) -> Result<Rung, Error> {
        Err(Error::NotAnswering)
    }
}
