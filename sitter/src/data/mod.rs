//! The local data: what makes, copies and mends it, with PostgreSQL on one side and the storage on the other.
//!
//! Nothing here decides. Each method of [`LocalData`] is one action of the sitter's machine; it may be dropped halfway
//! and repeated, and shares with the actions of [`Postgres`] the one permit: one action at a time.

mod bootstrap;
mod extent;
mod initialise;
mod marker;
pub mod rejoin;
mod staged;
mod survey;

use std::sync::Arc;

use manatee_shared::config::Secret;
use manatee_shared::ids::PeerId;
use manatee_shared::lsn::WalPosition;
use tokio::sync::watch;

use self::extent::Extent;
use self::marker::MarkerReason;
pub use self::rejoin::Rejoined;
use crate::host::Error;
use crate::machine::action::{Rung, StopMode};
use crate::machine::local::{Local, SystemIdentifier};
use crate::postgres::inner::Inner;
use crate::postgres::{Postgres, lifecycle};
use crate::storage::progress::Progress;
use crate::storage::pull::Client;
use crate::storage::{Directory, Outgoing, Storage, StorageSettings, StreamRequest, Zfs, zfs};

/// Settings of the local data, from the sitter's configuration.
#[derive(Clone, Debug)]
pub struct DataSettings {
    /// Storage of the data.
    pub storage: StorageSettings,
    /// Number of data sets set aside that a healthy peer keeps.
    pub isolated_kept: usize,
    /// Shared secret of the shard's sitters, for streams from other peers.
    pub api_token: Option<Secret>,
}

impl Default for DataSettings {
    /// Plain folders.
    fn default() -> Self {
        Self { storage: StorageSettings::default(), isolated_kept: 1, api_token: None }
    }
}

impl DataSettings {
    /// Storage of the data according to the settings.
    fn storage(&self, inner: &Inner, progress: &Progress) -> Box<dyn Storage> {
        let (layout, bin_dir, user) = (inner.layout.clone(), inner.settings.bin_dir.clone(), inner.user.clone());
        match &self.storage {
            StorageSettings::Directory => Box::new(Directory::new(layout, bin_dir, user, progress.clone())),
            StorageSettings::Zfs { dataset, properties } => Box::new(Zfs::new(zfs::Parts {
                me: inner.me,
                layout,
                bin_dir,
                user,
                dataset: dataset.clone(),
                properties: properties.clone(),
                progress: progress.clone(),
                client: Client::new(self.api_token.clone()),
            })),
        }
    }
}

/// The data of the local PostgreSQL.
#[derive(Debug)]
pub struct LocalData {
    postgres: Arc<Postgres>,
    storage: Box<dyn Storage>,
    progress: Progress,
    extent: Extent,
    isolated_kept: usize,
}

impl LocalData {
    /// The data of `postgres`. Needs a tokio runtime; changes nothing yet.
    pub fn new(postgres: Arc<Postgres>, settings: &DataSettings) -> Self {
        let progress = Progress::new();
        let storage = settings.storage(postgres.inner(), &progress);
        let extent = Extent::watch(postgres.inner(), &settings.storage);
        Self { postgres, storage, progress, extent, isolated_kept: settings.isolated_kept }
    }

    fn inner(&self) -> &Arc<Inner> {
        self.postgres.inner()
    }

    /// State of PostgreSQL, kept current.
    pub fn local(&self) -> watch::Receiver<Local> {
        self.postgres.local()
    }

    /// Copies of data to this peer.
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Part of the data outside of the ZFS dataset: peers cannot be copied from here.
    pub fn outside(&self) -> watch::Receiver<Option<String>> {
        self.extent.outside()
    }

    /// Storage of the data, for its upkeep and for tests.
    pub fn storage(&self) -> &dyn Storage {
        self.storage.as_ref()
    }

    /// Makes the data visible, and looks at what is there: finds a running postmaster of it and reads back the
    /// configuration it was given. To be called once, first. Returns whether one was found.
    pub async fn adopt(&self) -> Result<bool, Error> {
        let _one = self.inner().begin().await?;
        self.storage.attach().await?;
        lifecycle::adopt(self.inner()).await
    }

    /// Makes a new cluster with Manatee's roles, left stopped and [`crate::machine::local::Data::Fresh`]. Only without a
    /// data directory that was ever in use.
    pub async fn initialise(&self) -> Result<SystemIdentifier, Error> {
        let _one = self.inner().begin().await?;
        initialise::initialise(self.inner(), self.storage.as_ref()).await
    }

    /// Copies from `source` what is not here; ends with a standby's directory, stopped. What was there is
    /// set aside. Without `may_roll_back` what was acknowledged here is never left out on the way.
    pub async fn bootstrap(&self, source: PeerId, may_roll_back: bool) -> Result<Rung, Error> {
        let _one = self.inner().begin().await?;
        let task = bootstrap::Task { source, may_roll_back, isolated_kept: self.isolated_kept };
        bootstrap::bootstrap(self.inner(), self.storage.as_ref(), task).await
    }

    /// Brings the data back in line with `source`, a primary, beginning with the rung `from`. Stops the
    /// server; leaves a standby's directory, stopped, or one that is to be replaced by [`Self::bootstrap`].
    pub async fn rejoin(
        &self,
        source: PeerId,
        from: Rung,
        init: Option<WalPosition>,
        may_roll_back: bool,
    ) -> Result<Rejoined, Error> {
        let _one = self.inner().begin().await?;
        let task = rejoin::Task { source, from, init, may_roll_back };
        rejoin::rejoin(self.inner(), self.storage.as_ref(), task).await
    }

    /// Begins to send the data to a peer; None if the storage has no streams.
    pub async fn send(&self, request: &StreamRequest) -> Result<Option<Outgoing>, Error> {
        let Some(snapshots) = self.storage.snapshots() else { return Ok(None) };
        snapshots.send(request).await.map(Some)
    }

    /// Finds out how far the WAL of a server goes that does not run, and shows it in
    /// [`crate::machine::local::Local`]. Reads only.
    pub async fn survey(&self) -> Result<(), Error> {
        survey::survey(self.inner()).await
    }

    /// Finds out where the WAL of a server ends that does not run, and shows it in
    /// [`crate::machine::local::Local::end`]. Reads only.
    pub async fn survey_end(&self) -> Result<(), Error> {
        let _one = self.inner().begin().await?;
        survey::survey_end(self.inner()).await
    }

    /// An operator's order: what is here is to be replaced by a full copy of another peer's data.
    /// Stops the server; from then on the data is [`crate::machine::local::Data::Incomplete`], also for the next sitter.
    pub async fn order_rebuild(&self) -> Result<(), Error> {
        let _one = self.inner().begin().await?;
        marker::mark_for_replacement(self.inner(), MarkerReason::Rebuild)?;
        // Only now is the data looked at anew.
        lifecycle::stop(self.inner(), StopMode::Fast).await
    }
}
