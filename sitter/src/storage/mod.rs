//! Storage of data sets: the differences between plain folders and file systems with snapshots.
//!
//! A data set is never written in place by a copy. It is made in a *staging* place that nobody
//! mistakes for data, and becomes data by one rename when it is complete; what was there before is
//! set aside, not overwritten. So a crash at any point leaves the old, the new or nothing, never half.
//!
//! [`Storage`] is what every kind can do; [`Snapshots`] what those can besides that keep snapshots.

#[cfg(test)]
mod conformance;
pub mod directory;
pub mod progress;
pub mod pull;
mod tablespaces;
pub mod types;
pub mod zfs;

use std::fmt::Debug;
use std::path::PathBuf;

use async_trait::async_trait;

pub use self::directory::Directory;
pub use self::types::{Destroyed, Outgoing, Snapshot, Source, StorageSettings, StreamRequest};
pub use self::zfs::Zfs;
use crate::host::Error;
pub use crate::status::CopyMethod;

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

/// Abilities of storage with snapshots.
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

    /// Begins to send what a peer asks for. Takes a snapshot if need be, which is kept as long as the stream.
    async fn send(&self, request: &StreamRequest) -> Result<Outgoing, Error>;
}
