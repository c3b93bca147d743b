//! Where data sets live: what differs between plain folders and file systems with snapshots.
//!
//! A data set is never written in place by a copy. It is made in a *staging* place that nobody
//! mistakes for data, and becomes data by one rename when it is complete; what was there before is
//! set aside, not overwritten. So a crash at any point leaves the old, the new or nothing, never half.
//!
//! [`Storage`] is what every kind can do; [`Snapshots`] what those can besides that keep snapshots.

#[cfg(test)]
mod conformance;
pub mod directory;
mod tablespaces;
pub mod zfs;

use std::fmt::Debug;
use std::path::PathBuf;

use async_trait::async_trait;
use manatee_shared::ids::PeerId;

pub use self::directory::Directory;
pub use self::zfs::Zfs;
use self::zfs::stream::{Offer, Outgoing};
pub use crate::backup::Snapshot;
use crate::backup::Wish;
use crate::host::Error;
use crate::machine::local::SystemIdentifier;
pub use crate::status::CopyMethod;

/// What to copy, and from whom.
#[derive(Clone, Debug)]
pub struct Source {
    /// The peer.
    pub peer: PeerId,
    /// Replication slot there that keeps the WAL which the copy will need.
    pub slot: String,
    /// The cluster that it must be a copy of.
    pub system: SystemIdentifier,
    /// Whether what is here may be built upon; else everything is copied.
    pub incremental: bool,
    /// Further parameters of libpq for its PostgreSQL.
    pub conninfo: String,
    /// Where its tablespaces are.
    pub tablespaces: Vec<PathBuf>,
}

/// A kind of storage. Each method may be dropped halfway and repeated.
#[async_trait]
pub trait Storage: Debug + Send + Sync {
    /// Makes what is there visible at its place (mounts it), and makes what holds it if it is not
    /// there yet. To be called before anybody looks whether there is data.
    async fn attach(&self) -> Result<(), Error>;

    /// An empty place for a new data set, owned by PostgreSQL's user. What an earlier attempt
    /// left there is gone.
    async fn stage(&self) -> Result<PathBuf, Error>;

    /// Fills the staging place with a complete copy of the source's data, durable, with all WAL
    /// that it needs to become consistent. What an earlier attempt left there is gone or built upon.
    async fn fetch(&self, source: &Source) -> Result<CopyMethod, Error>;

    /// Makes the staged data set the data. There must be none.
    async fn publish(&self) -> Result<(), Error>;

    /// Moves the data out of the way, to be looked at by people. Returns where it went; None if there
    /// was nothing.
    async fn set_aside(&self, why: &'static str) -> Result<Option<PathBuf>, Error>;

    /// Forgets the oldest data sets set aside, all but `kept`. Returns how many.
    async fn prune_aside(&self, kept: usize) -> Result<usize, Error>;

    /// Snapshots, if this kind has them.
    fn snapshots(&self) -> Option<&dyn Snapshots>;
}

/// Why a snapshot is not there any more, or still is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destroyed {
    /// It is gone.
    Gone,
    /// A transfer, or data made from it, needs it.
    InUse,
}

/// What storage with snapshots can do besides.
#[async_trait]
pub trait Snapshots: Send + Sync {
    /// Records the data as it is at this moment, at once and as a whole.
    async fn take(&self) -> Result<Snapshot, Error>;

    /// Those of the data that are named by time, the oldest first.
    async fn list(&self) -> Result<Vec<Snapshot>, Error>;

    /// Removes one, unless something needs it.
    async fn destroy(&self, snapshot: &Snapshot) -> Result<Destroyed, Error>;

    /// Fills the staging place with the data as it was, without PostgreSQL's traces of having run; the
    /// data itself stays as it is. What an earlier attempt left in staging is gone.
    async fn stage_snapshot(&self, snapshot: &Snapshot) -> Result<PathBuf, Error>;

    /// Gives up what is staged.
    async fn unstage(&self) -> Result<(), Error>;

    /// What can be sent of the data to a peer with this wish; takes a snapshot if need be, which stays as long
    /// as the offer.
    async fn offer(&self, wish: &Wish) -> Result<Offer, Error>;

    /// Begins to send it.
    async fn send(&self, offer: Offer) -> Result<Outgoing, Error>;
}
