//! Record of what a lab must leave behind if it is killed, so that the next one can clean up.
//!
//! A lab owns a number on this machine by holding the lock of `<number>.json` in a folder of the
//! user's. The kernel drops the lock with the lab; an unlocked file is a dead lab's.

use std::fs::{self, DirBuilder, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{disk, network, process, zpool};

/// Most labs at a time on one machine.
const MAX_LABS: u8 = 250;

/// Everything needed to remove a lab from outside.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// Folder of the lab: processes with their working folder in it are the lab's.
    dir: PathBuf,
    /// Whether the folder goes as well.
    temporary: bool,
    /// Machines, for the names of links and namespaces; None: loopback.
    namespaces: Option<network::Size>,
}

/// A lab's claim on its number. Given back when dropped.
#[derive(Debug)]
pub struct RunFile {
    number: u8,
    path: PathBuf,
    file: File,
}

impl RunFile {
    /// Claims a free number, after removing what dead labs left.
    pub fn claim() -> Result<Self> {
        clean()?;
        let folder = folder()?;
        for number in 0..MAX_LABS {
            let path = folder.join(format!("{number}.json"));
            let file = File::options().create(true).truncate(false).read(true).write(true).open(&path)?;
            // The file could have been removed between open and lock: a lock on a nameless file
            // claims nothing.
            if file.try_lock().is_ok() && same_file(&file, &path) {
                return Ok(Self { number, path, file });
            }
        }
        bail!("{MAX_LABS} labs are running already");
    }

    /// The number.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Writes down what is about to be created.
    pub fn record(&mut self, dir: &Path, temporary: bool, namespaces: Option<network::Size>) -> Result<()> {
        let text = serde_json::to_vec(&Record { dir: dir.to_owned(), temporary, namespaces })?;
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&text)?;
        Ok(())
    }
}

impl Drop for RunFile {
    fn drop(&mut self) {
        // Removed while still locked, so that nobody locks a file about to vanish and keeps it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes what dead labs of this user left: processes, links, namespaces, temporary folders.
/// Returns how many labs that were.
pub fn clean() -> Result<usize> {
    let mut cleaned = 0;
    for entry in fs::read_dir(folder()?)? {
        let path = entry?.path();
        let Some(number) = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u8>().ok()) else { continue };
        let Ok(file) = File::options().read(true).write(true).open(&path) else { continue };
        if file.try_lock().is_err() || !same_file(&file, &path) {
            continue;
        }
        if let Some(record) = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Record>(&text).ok()) {
            remove(number, &record);
            cleaned += 1;
        }
        let _ = fs::remove_file(&path);
    }
    Ok(cleaned)
}

fn remove(number: u8, record: &Record) {
    for machine in record.namespaces.map(|size| network::names(number, size).1).unwrap_or_default() {
        process::kill_everything(&record.dir, Some(&machine));
    }
    process::kill_everything(&record.dir, None);
    // Its data may be on a pool that is mounted there.
    if let Err(error) = zpool::clean() {
        tracing::warn!("what a dead lab had on ZFS was not removed: {error:#}");
    }
    disk::unmount_below(&record.dir);
    if let Some(size) = record.namespaces {
        network::remove(number, size);
    }
    if record.temporary {
        let _ = fs::remove_dir_all(&record.dir);
    }
}

fn same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => open.ino() == named.ino() && open.dev() == named.dev(),
        _ => false,
    }
}

/// `/tmp/manatee-lab-<uid>`, the user's own.
fn folder() -> Result<PathBuf> {
    let uid = nix::unistd::geteuid();
    let folder = std::env::temp_dir().join(format!("manatee-lab-{uid}"));
    if let Err(error) = DirBuilder::new().mode(0o700).create(&folder)
        && error.kind() != std::io::ErrorKind::AlreadyExists
    {
        return Err(error).with_context(|| format!("cannot create {}", folder.display()));
    }
    let metadata = fs::symlink_metadata(&folder)?;
    if !metadata.is_dir() || metadata.uid() != uid.as_raw() {
        bail!("{} belongs to somebody else: remove it", folder.display());
    }
    Ok(folder)
}
