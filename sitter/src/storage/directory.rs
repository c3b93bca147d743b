//! Plain folders: copies by `pg_basebackup`, no snapshots.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

use super::progress::{Begin, Progress};
use super::{Snapshots, Source, Storage, tablespaces};
use crate::host::osuser::OsUser;
use crate::host::tool::Tool;
use crate::host::{Error, Layout, REPLICATION_ROLE, files};
use crate::status::CopyMethod;

/// Longest time for `pg_basebackup` to tell no progress. While it copies it tells some each second; before that the
/// source makes a checkpoint, which a receiver that hangs may hold up for minutes (PostgreSQL 15).
const SILENCE: Duration = Duration::from_secs(300);

/// A peer's folders on one file system.
#[derive(Debug)]
pub struct Directory {
    layout: Layout,
    bin_dir: PathBuf,
    user: OsUser,
    progress: Progress,
}

impl Directory {
    /// Folders below `layout`.
    pub(crate) fn new(layout: Layout, bin_dir: PathBuf, user: OsUser, progress: Progress) -> Self {
        Self { layout, bin_dir, user, progress }
    }
}

/// Fills the staging place by `pg_basebackup`.
pub(crate) async fn base_backup(
    bin_dir: &Path,
    layout: &Layout,
    user: &OsUser,
    source: &Source,
    progress: &Progress,
) -> Result<(), Error> {
    // Before the source makes a checkpoint for nothing.
    let unique = format!("{}-{}", Timestamp::now().as_millisecond(), std::process::id());
    let places = tablespaces::places(&source.tablespaces, &unique)?;
    let connection = format!(
        "host={} port={} user={REPLICATION_ROLE} application_name=manatee-basebackup connect_timeout=5 \
         keepalives_idle=5 keepalives_interval=2 keepalives_count=3 tcp_user_timeout=15000 {}",
        source.peer.ip, source.peer.pg_port, source.conninfo
    );
    let copying = Arc::new(progress.begin(Begin {
        source: source.peer,
        port: source.peer.pg_port,
        dataset: "postgresql".to_owned(),
        method: CopyMethod::BaseBackup,
        size: None,
    }));
    let watched = Arc::clone(&copying);
    let run = Tool::new(bin_dir, "pg_basebackup")
        .args(["--wal-method=stream", "--checkpoint=fast", "--no-password", "--progress"])
        .arg(format!("--slot={}", source.slot))
        .args(places.iter().map(tablespaces::mapping))
        .arg("--pgdata")
        .arg(layout.staging())
        .arg("--dbname")
        .arg(connection)
        .env("PGPASSFILE", layout.passfile())
        .silence(SILENCE)
        .watch(move |line| {
            if let Some((completed, size)) = parse_progress(line) {
                watched.size(size);
                watched.completed(completed);
            }
        })
        .run(user)
        .await;
    // Nothing of the run is left that holds the other one.
    let copying = Arc::into_inner(copying);
    match (&run, copying) {
        (Ok(_), Some(copying)) => copying.done(),
        (Err(error), Some(copying)) => copying.failed(error),
        (_, None) => {}
    }
    run.map(drop).map_err(|error| match error {
        // What the server says of its files is about that host.
        Error::Program { output, .. } if output.contains("ERROR:  ") => {
            Error::NotCopyable { source_peer: source.peer, problem: output }
        }
        other => other,
    })
}

/// `  24576/23245 kB (100%), 0/1 tablespace`: bytes completed and expected.
fn parse_progress(line: &str) -> Option<(u64, u64)> {
    let (completed, rest) = line.split_once('/')?;
    let (size, _) = rest.split_once(" kB (")?;
    let bytes = |text: &str| text.trim().parse::<u64>().ok()?.checked_mul(1024);
    Some((bytes(completed)?, bytes(size)?))
}

/// Removes a folder with all in it, if there, away from the runtime's threads.
pub(super) async fn remove_tree(folder: &Path) -> Result<(), Error> {
    let path = folder.to_owned();
    let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(path)).await;
    match removed.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", folder)(error)),
        _ => Ok(()),
    }
}

/// Removes a data set that is not in use, with the tablespaces that were made for it.
async fn remove_data(folder: &Path, data_in_use: &Path) -> Result<(), Error> {
    for tablespace in tablespaces::going_with(folder, data_in_use) {
        remove_tree(&tablespace).await?;
    }
    remove_tree(folder).await
}

/// Whether there is no such folder, or nothing in it.
fn is_empty(folder: &Path) -> Result<bool, Error> {
    match std::fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(Error::io("list", folder)(error)),
    }
}

#[async_trait]
impl Storage for Directory {
    /// It always is.
    async fn attach(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn stage(&self) -> Result<PathBuf, Error> {
        let staging = self.layout.staging();
        remove_data(&staging, &self.layout.data()).await?;
        files::make_folder(&staging, &self.user)?;
        Ok(staging)
    }

    async fn fetch(&self, source: &Source) -> Result<CopyMethod, Error> {
        // Links of a copy that broke off lead to what it left in tablespaces.
        self.stage().await?;
        base_backup(&self.bin_dir, &self.layout, &self.user, source, &self.progress).await?;
        Ok(CopyMethod::BaseBackup)
    }

    async fn publish(&self) -> Result<(), Error> {
        let (staging, data) = (self.layout.staging(), self.layout.data());
        if !is_empty(&data)? {
            return Err(Error::DataPresent);
        }
        // Replaces an empty folder, and nothing else.
        std::fs::rename(&staging, &data).map_err(Error::io("replace", &data))?;
        files::sync_folder(&data)
    }

    async fn set_aside(&self, why: &'static str) -> Result<Option<PathBuf>, Error> {
        let data = self.layout.data();
        if is_empty(&data)? {
            return Ok(None);
        }
        files::make_folder(&self.layout.isolated(), &self.user)?;
        let mut time = Timestamp::now().as_millisecond();
        let place = |time: i64| self.layout.isolated().join(format!("{time}-{why}"));
        while place(time).exists() {
            time += 1;
        }
        let place = place(time);
        std::fs::rename(&data, &place).map_err(Error::io("set aside", &data))?;
        files::sync_folder(&data)?;
        files::sync_folder(&place)?;
        tracing::info!(place = %place.display(), "set the data aside");
        Ok(Some(place))
    }

    /// Their names begin with the time, in digits of equal number until the year 2286.
    async fn prune_aside(&self, kept: usize) -> Result<usize, Error> {
        let isolated = self.layout.isolated();
        let entries = match std::fs::read_dir(&isolated) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            entries => entries.map_err(Error::io("list", &isolated))?,
        };
        let mut folders: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        folders.sort();
        let surplus = folders.len().saturating_sub(kept);
        for folder in folders.into_iter().take(surplus) {
            tracing::info!(folder = %folder.display(), "removing the oldest data set aside");
            remove_data(&folder, &self.layout.data()).await?;
        }
        Ok(surplus)
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_from_pg_basebackup() {
        assert_eq!(parse_progress("24576/23245 kB (100%), 0/1 tablespace"), Some((24576 << 10, 23245 << 10)));
        assert_eq!(parse_progress("waiting for checkpoint"), None);
        assert_eq!(parse_progress("pg_basebackup: error: a/b"), None);
    }
}
