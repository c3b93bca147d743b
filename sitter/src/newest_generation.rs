//! Memory of a sitter across its own restarts: the newest generation of its shard that it
//! has seen. A state of an earlier one is an old one that somebody put there, and is not obeyed.
//!
//! One small file in `peer.dir`, which names the system identifier it is about: for other data it
//! means nothing. Losing it loses only that protection.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::driver::status::Status;
use crate::machine::local::Data;

/// Name of the file.
const FILE: &str = "newest-generation.json";

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    system_identifier: String,
    generation: u64,
}

/// The newest generation remembered in `dir` for `data`.
pub fn recall(dir: &Path, data: &Data) -> Option<u64> {
    let Data::Present(system) = data else { return None };
    let text = std::fs::read(dir.join(FILE)).ok()?;
    let remembered: Remembered = serde_json::from_slice(&text).ok()?;
    (remembered.system_identifier == system.0).then_some(remembered.generation)
}

/// Writes it down in `dir` whenever it changes. Returns when the driver has ended.
pub async fn keep(dir: PathBuf, mut status: watch::Receiver<Arc<Status>>) {
    let mut written = None;
    loop {
        let remembered = remembered(&status.borrow_and_update());
        if remembered.is_some() && remembered != written {
            match remembered.as_ref().map(|remembered| write(&dir, remembered)) {
                Some(Err(error)) => tracing::warn!(%error, "cannot write down the newest generation"),
                _ => written = remembered,
            }
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}

fn remembered(status: &Status) -> Option<Remembered> {
    let Data::Present(system) = &status.report.local.data else { return None };
    Some(Remembered { system_identifier: system.0.clone(), generation: status.report.newest_generation? })
}

/// Replaces the file whole, so that a crash leaves the old or the new one.
fn write(dir: &Path, remembered: &Remembered) -> io::Result<()> {
    let (path, new) = (dir.join(FILE), dir.join(format!("{FILE}.new")));
    std::fs::write(&new, serde_json::to_vec(remembered)?)?;
    std::fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::*;
    use crate::machine::local::SystemIdentifier;

    #[test]
    fn it_is_about_one_systems_data() {
        let dir = tempfile::tempdir().unwrap();
        let data = |system: &str| Data::Present(SystemIdentifier(system.to_owned()));
        assert_eq!(recall(dir.path(), &data("7")), None);
        write(dir.path(), &Remembered { system_identifier: "7".to_owned(), generation: 4 }).unwrap();
        assert_eq!(recall(dir.path(), &data("7")), Some(4));
        assert_eq!(recall(dir.path(), &data("8")), None);
        assert_eq!(recall(dir.path(), &Data::Absent), None);
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(recall(dir.path(), &data("7")), None);
    }
}
