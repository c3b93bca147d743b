//! A dataset for each data set of the peer, below one that the operator names:
//!
//! ```text
//! <dataset>                     properties for PostgreSQL, inherited by what is below
//! <dataset>/data                PGDATA, mounted at <dir>/data
//! <dataset>/data.new            staging, mounted at <dir>/data.new while it is worked on
//! <dataset>/isolated/<ms>-<why> set aside, mounted at <dir>/isolated/<ms>-<why>
//! ```
//!
//! Nothing is ever rolled back or overwritten in place. To go back to a snapshot, or to receive what
//! changed since one, staging is made a *clone* of it; when it becomes the data it is *promoted*, so that
//! the snapshots up to there are its own, and what was the data is the clone. A clone that is not wanted
//! is given up by the reverse.
//!
//! Works with OpenZFS 2.x and with zfs-fuse; see [`command`] for what the latter lacks.

mod clean;
pub(crate) mod command;
mod fetch;
pub(crate) mod stream;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use jiff::Timestamp;
use manatee_shared::ids::PeerId;
use tokio::sync::Mutex;

use self::command::{Commands, Dataset, is_needed, is_time};
use self::stream::Holds;
use super::progress::Progress;
use super::pull::Client;
use super::{CopyMethod, Destroyed, Outgoing, Snapshot, Snapshots, Source, Storage, StreamRequest};
use crate::host::osuser::OsUser;
use crate::host::{Error, Layout, files};

/// A peer's datasets.
#[derive(Debug)]
pub struct Zfs {
    me: PeerId,
    layout: Layout,
    bin_dir: PathBuf,
    user: OsUser,
    dataset: String,
    properties: BTreeMap<String, String>,
    progress: Progress,
    /// For streams from other peers.
    client: Client,
    commands: Arc<Commands>,
    holds: Holds,
    /// Held while `zfs receive` fills staging, also by one that was abandoned and is ending.
    receiving: Arc<Mutex<()>>,
    /// The holds of the process before us were given up.
    forgot: AtomicBool,
}

/// Parts of a [`Zfs`].
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) me: PeerId,
    pub(crate) layout: Layout,
    pub(crate) bin_dir: PathBuf,
    pub(crate) user: OsUser,
    /// Dataset that everything is below.
    pub(crate) dataset: String,
    /// ZFS properties of `dataset`.
    pub(crate) properties: BTreeMap<String, String>,
    pub(crate) progress: Progress,
    pub(crate) client: Client,
}

impl Zfs {
    /// Looks at nothing yet.
    pub(crate) fn new(parts: Parts) -> Self {
        let commands = Arc::new(Commands::new());
        let Parts { me, layout, bin_dir, user, dataset, properties, progress, client } = parts;
        let holds = Holds::new(Arc::clone(&commands));
        Self {
            me,
            layout,
            bin_dir,
            user,
            dataset,
            properties,
            progress,
            client,
            commands,
            holds,
            receiving: Arc::default(),
            forgot: AtomicBool::new(false),
        }
    }

    fn data(&self) -> String {
        format!("{}/data", self.dataset)
    }

    fn staging(&self) -> String {
        format!("{}/data.new", self.dataset)
    }

    fn isolated(&self) -> String {
        format!("{}/isolated", self.dataset)
    }

    async fn find(&self, name: &str) -> Result<Option<Dataset>, Error> {
        Ok(self.commands.tree(name).await?.into_iter().find(|dataset| dataset.name == name))
    }

    /// Makes the operator's dataset, if it is not there, with the configured properties.
    async fn make_root(&self) -> Result<(), Error> {
        if self.find(&self.dataset).await?.is_none() {
            tracing::info!(dataset = self.dataset, "making the ZFS dataset");
            self.commands.run(&["create", "-p", "-o", "mountpoint=none", &self.dataset]).await?;
        }
        if self.properties.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = self.properties.keys().map(String::as_str).collect();
        let text = self.commands.run(&["get", "-H", "-o", "property,value", &names.join(","), &self.dataset]).await?;
        let found: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('\t')).collect();
        for (name, value) in &self.properties {
            if found.get(name.as_str()).is_none_or(|found| !found.eq_ignore_ascii_case(value)) {
                self.commands.run(&["set", &format!("{name}={value}"), &self.dataset]).await?;
            }
        }
        Ok(())
    }

    /// Sees to it that a dataset is mounted at `path`.
    async fn mount(&self, name: &str, path: &Path) -> Result<(), Error> {
        let wanted = path.display().to_string();
        let missing = || Error::DataNotFit(format!("the ZFS dataset {name} is gone"));
        let mut dataset = self.find(name).await?.ok_or_else(missing)?;
        if dataset.mountpoint != wanted {
            self.unmount(&dataset).await?;
            // Some versions mount it by that, some do not.
            self.commands.run(&["set", &format!("mountpoint={wanted}"), name]).await?;
            dataset = self.find(name).await?.ok_or_else(missing)?;
        }
        if !dataset.mounted {
            std::fs::create_dir_all(path).map_err(Error::io("make", path))?;
            // An encrypted one needs its key, which its `keylocation` may give.
            let load = if self.commands.is_open().await? { &["mount", "-l", name][..] } else { &["mount", name][..] };
            self.commands.run(load).await?;
        }
        Ok(())
    }

    async fn unmount(&self, dataset: &Dataset) -> Result<(), Error> {
        if dataset.mounted {
            self.commands.run_once_free(&["unmount", &dataset.name]).await?;
        }
        Ok(())
    }

    /// Renames a dataset that is not mounted. What counts is what is there afterwards: zfs-fuse may say that one
    /// is busy and have renamed it all the same.
    async fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        let renamed = self.commands.run_once_free(&["rename", from, to]).await;
        if renamed.is_err() && self.find(from).await?.is_none() && self.find(to).await?.is_some() {
            return Ok(());
        }
        renamed.map(drop)
    }

    /// Gives the top folder of a mounted dataset to PostgreSQL's user.
    fn own(&self, path: &Path) -> Result<(), Error> {
        files::make_folder(path, &self.user)
    }

    /// Makes staging a clone of a snapshot, not mounted.
    async fn clone_to_staging(&self, snapshot: &Snapshot) -> Result<(), Error> {
        self.unstage_all().await?;
        let from = format!("{}@{}", self.data(), snapshot.name);
        self.commands.run(&["clone", "-o", "mountpoint=none", &from, &self.staging()]).await?;
        Ok(())
    }

    /// Destroys staging with all that only it needs: snapshots of the data that a promotion gave to it go
    /// back to the data first.
    async fn unstage_all(&self) -> Result<(), Error> {
        let staging = self.staging();
        // Bounded by how many there are; usually one.
        for _ in 0..64 {
            let tree = self.commands.tree(&self.dataset).await?;
            let Some(staged) = tree.iter().find(|dataset| dataset.name == staging) else { return Ok(()) };
            let depends =
                |dataset: &&Dataset| dataset.origin.as_ref().is_some_and(|o| o.starts_with(&format!("{staging}@")));
            if let Some(dependent) = tree.iter().find(depends) {
                self.commands.run(&["promote", &dependent.name]).await?;
                continue;
            }
            self.unmount(staged).await?;
            self.commands.run_once_free(&["destroy", "-r", &staging]).await?;
        }
        Err(Error::DataNotFit(format!("{staging} cannot be destroyed: too much depends on it")))
    }

    /// A name for a snapshot or a data set set aside: now, in milliseconds, or the next that is free.
    fn free_time(taken: &BTreeSet<i64>) -> i64 {
        let mut time = Timestamp::now().as_millisecond();
        while taken.contains(&time) {
            time += 1;
        }
        time
    }

    async fn isolated_sets(&self) -> Result<Vec<Dataset>, Error> {
        let prefix = format!("{}/", self.isolated());
        let tree = self.commands.tree(&self.isolated()).await?;
        let mut sets: Vec<_> = tree.into_iter().filter(|dataset| dataset.name.starts_with(&prefix)).collect();
        // By time: see [`Self::free_time`].
        sets.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(sets)
    }
}

#[async_trait]
impl Storage for Zfs {
    async fn attach(&self) -> Result<(), Error> {
        self.make_root().await?;
        if self.find(&self.data()).await?.is_some() {
            self.mount(&self.data(), &self.layout.data()).await?;
            if self.forgot.swap(true, Ordering::Relaxed) {
                return Ok(());
            }
            // No transfer outlives the process that serves it.
            for snapshot in self.commands.snapshots(&self.data()).await? {
                self.holds.forget(&format!("{}@{}", self.data(), snapshot.name)).await;
            }
        }
        Ok(())
    }

    async fn stage(&self) -> Result<PathBuf, Error> {
        self.unstage_all().await?;
        let path = self.layout.staging();
        super::directory::remove_tree(&path).await?;
        self.make_root().await?;
        self.commands.run(&["create", "-o", &format!("mountpoint={}", path.display()), &self.staging()]).await?;
        self.mount(&self.staging(), &path).await?;
        self.own(&path)?;
        Ok(path)
    }

    async fn fetch(&self, source: &Source) -> Result<CopyMethod, Error> {
        fetch::fetch(self, source).await
    }

    async fn publish(&self) -> Result<(), Error> {
        if self.find(&self.data()).await?.is_some() {
            return Err(Error::DataPresent);
        }
        let staging = self.staging();
        let staged = self.find(&staging).await?;
        let staged = staged.ok_or_else(|| Error::DataNotFit("nothing is staged".to_owned()))?;
        self.unmount(&staged).await?;
        if staged.origin.is_some() {
            self.commands.run_once_free(&["promote", &staging]).await?;
        }
        self.rename(&staging, &self.data()).await?;
        self.mount(&self.data(), &self.layout.data()).await
    }

    async fn set_aside(&self, why: &'static str) -> Result<Option<PathBuf>, Error> {
        let Some(data) = self.find(&self.data()).await? else { return Ok(None) };
        self.unmount(&data).await.map_err(|error| {
            Error::DataNotFit(format!("it cannot be set aside while somebody uses {}: {error}", data.mountpoint))
        })?;
        if self.find(&self.isolated()).await?.is_none() {
            self.commands.run(&["create", "-o", "mountpoint=none", &self.isolated()]).await?;
        }
        let taken = self.isolated_sets().await?;
        let time = |dataset: &Dataset| dataset.name.rsplit('/').next()?.split('-').next()?.parse().ok();
        let time = Self::free_time(&taken.iter().filter_map(time).collect());
        let name = format!("{time}-{why}");
        let (place, dataset) = (self.layout.isolated().join(&name), format!("{}/{name}", self.isolated()));
        self.rename(&self.data(), &dataset).await?;
        files::make_folder(&self.layout.isolated(), &self.user)?;
        if let Err(error) = self.mount(&dataset, &place).await {
            // For people only.
            tracing::warn!(error = &error as &dyn std::error::Error, dataset, "what was set aside is not mounted");
        }
        tracing::info!(dataset, "set the data aside");
        Ok(Some(place))
    }

    async fn prune_aside(&self, kept: usize) -> Result<usize, Error> {
        let sets = self.isolated_sets().await?;
        let surplus = sets.len().saturating_sub(kept);
        let mut gone = 0;
        for dataset in sets.iter().take(surplus) {
            tracing::info!(dataset = dataset.name, "removing the oldest data set aside");
            // A transfer that began before the data was set aside could not give them up by their new names.
            for snapshot in self.commands.snapshots(&dataset.name).await? {
                self.holds.forget(&format!("{}@{}", dataset.name, snapshot.name)).await;
            }
            let output = self.commands.any_once_free(&["destroy", "-r", &dataset.name]).await?;
            match output.success {
                true => {
                    gone += 1;
                    // Some versions leave the folder that it was mounted at. Never with anything in it.
                    let _ = std::fs::remove_dir(&dataset.mountpoint);
                }
                // The data was made from it, or a person looks at it.
                false if is_needed(&output.stderr) => {
                    tracing::info!(dataset = dataset.name, problem = output.stderr.trim(), "it is still needed");
                }
                false => return Err(output.into_error("zfs")),
            }
        }
        Ok(gone)
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }
}

#[async_trait]
impl Snapshots for Zfs {
    async fn take(&self) -> Result<Snapshot, Error> {
        let taken = self.commands.snapshots(&self.data()).await?;
        let time = Self::free_time(&taken.iter().filter_map(|snapshot| snapshot.name.parse().ok()).collect());
        let name = format!("{time:013}");
        self.commands.run(&["snapshot", &format!("{}@{name}", self.data())]).await?;
        let found = self.commands.snapshots(&self.data()).await?.into_iter().find(|snapshot| snapshot.name == name);
        found.ok_or_else(|| Error::DataNotFit(format!("the snapshot {name} is gone again")))
    }

    async fn list(&self) -> Result<Vec<Snapshot>, Error> {
        if self.find(&self.data()).await?.is_none() {
            return Ok(Vec::new());
        }
        let all = self.commands.snapshots(&self.data()).await?;
        Ok(all.into_iter().filter(|snapshot| is_time(&snapshot.name)).collect())
    }

    async fn destroy(&self, snapshot: &Snapshot) -> Result<Destroyed, Error> {
        let full = format!("{}@{}", self.data(), snapshot.name);
        let output = self.commands.any(&["destroy", &full]).await?;
        if output.success || output.stderr.contains("could not find any snapshots") {
            return Ok(Destroyed::Gone);
        }
        if output.stderr.contains("does not exist") {
            return Ok(Destroyed::Gone);
        }
        if is_needed(&output.stderr) { Ok(Destroyed::InUse) } else { Err(output.into_error("zfs")) }
    }

    async fn stage_snapshot(&self, snapshot: &Snapshot) -> Result<PathBuf, Error> {
        self.clone_to_staging(snapshot).await?;
        let path = self.layout.staging();
        self.mount(&self.staging(), &path).await?;
        clean::clean(&path, &self.user).await?;
        Ok(path)
    }

    async fn unstage(&self) -> Result<(), Error> {
        self.unstage_all().await
    }

    async fn send(&self, request: &StreamRequest) -> Result<Outgoing, Error> {
        stream::send(self, request).await
    }
}
