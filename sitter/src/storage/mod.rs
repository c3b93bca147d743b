//! Where data sets live: what differs between plain folders and file systems with snapshots.
//!
//! A data set is never written in place by a copy. It is made in a *staging* place that nobody
//! mistakes for data, and becomes data by one rename when it is complete; what was there before is
//! set aside, not overwritten. So a crash at any point leaves the old, the new or nothing, never half.

pub mod directory;

use std::fmt::Debug;
use std::path::PathBuf;

use async_trait::async_trait;
use manatee_shared::ids::PeerId;

pub use self::directory::Directory;
use crate::postgres::Error;

/// Whom to copy from.
#[derive(Clone, Debug)]
pub struct Source {
    /// The peer.
    pub peer: PeerId,
    /// Replication slot there that keeps the WAL which the copy will need.
    pub slot: String,
}

/// A kind of storage. Each method may be dropped halfway and repeated.
#[async_trait]
pub trait Storage: Debug + Send + Sync {
    /// An empty place for a new data set, owned by PostgreSQL's user. What an earlier attempt
    /// left there is gone.
    async fn stage(&self) -> Result<PathBuf, Error>;

    /// Fills the staging place with a complete copy of the source's data, durable, with all WAL
    /// that it needs to become consistent.
    async fn copy_from(&self, source: &Source) -> Result<(), Error>;

    /// Makes the staged data set the data. There must be none.
    async fn publish(&self) -> Result<(), Error>;

    /// Moves the data out of the way, to be looked at by people, and forgets the oldest such when
    /// there are too many. Returns where it went; None if there was nothing.
    async fn set_aside(&self, why: &'static str) -> Result<Option<PathBuf>, Error>;
}
