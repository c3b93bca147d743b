//! `zfs`, run to its end, and what its listings mean.
//!
//! Only what both OpenZFS 2.x and zfs-fuse (pool version 23) have is used, unless [`Commands::is_open`]
//! says otherwise. zfs-fuse lacks: `list -p`, `holds`, `send -n`, `receive -u -s -o`, `mount -l`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;

use crate::host::Error;
use crate::host::osuser::OsUser;
use crate::host::tool::{Output, Tool};

/// Longest time for a command. Destroying a large data set on a busy pool takes minutes.
const COMMAND: Duration = Duration::from_secs(600);
/// Longest time for something to be busy that nobody uses any more.
const FREE: Duration = Duration::from_secs(5);
/// Between two looks.
const FREE_PAUSE: Duration = Duration::from_millis(30);
/// Search path of administrators' programs.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// A file system of the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dataset {
    pub(super) name: String,
    /// The snapshot that it is a clone of.
    pub(super) origin: Option<String>,
    pub(super) mounted: bool,
    pub(super) mountpoint: String,
}

/// The folder of the program, if it is installed.
fn folder() -> Option<PathBuf> {
    std::env::split_paths(PATH).find(|folder| folder.join("zfs").is_file())
}

/// Whether there is a `zfs`.
pub(crate) fn is_installed() -> bool {
    folder().is_some()
}

/// Runs `zfs`.
#[derive(Debug)]
pub(super) struct Commands {
    folder: PathBuf,
    user: OsUser,
    open: OnceCell<bool>,
}

impl Commands {
    pub(super) fn new() -> Self {
        Self {
            // Without the program the first command says so.
            folder: folder().unwrap_or_else(|| PathBuf::from("/usr/sbin")),
            user: OsUser::ourselves(),
            open: OnceCell::new(),
        }
    }

    /// The program, for streams.
    pub(super) fn program(&self) -> PathBuf {
        self.folder.join("zfs")
    }

    /// Runs it; its failure is an outcome.
    pub(super) async fn any(&self, arguments: &[&str]) -> Result<Output, Error> {
        let tool = Tool::new(&self.folder, "zfs").args(arguments).env("PATH", PATH).timeout(COMMAND);
        tool.run_any(&self.user).await
    }

    /// Runs it; returns what it printed.
    pub(super) async fn run(&self, arguments: &[&str]) -> Result<String, Error> {
        let output = self.any(arguments).await?;
        tracing::debug!(?arguments, success = output.success, "zfs");
        if output.success { Ok(output.stdout) } else { Err(output.into_error("zfs")) }
    }

    /// As [`Self::any`], for what an unmount precedes: zfs-fuse lets go of a file system only a moment after that
    /// has returned.
    pub(super) async fn any_once_free(&self, arguments: &[&str]) -> Result<Output, Error> {
        let begin = Instant::now();
        loop {
            let output = self.any(arguments).await?;
            if output.success || !output.stderr.contains("busy") || begin.elapsed() >= FREE {
                return Ok(output);
            }
            tokio::time::sleep(FREE_PAUSE).await;
        }
    }

    /// As [`Self::run`], like [`Self::any_once_free`].
    pub(super) async fn run_once_free(&self, arguments: &[&str]) -> Result<String, Error> {
        let output = self.any_once_free(arguments).await?;
        if output.success { Ok(output.stdout) } else { Err(output.into_error("zfs")) }
    }

    /// Whether this is OpenZFS with resumable, compressed and raw streams (0.8 and later: the first
    /// with `zfs version`).
    pub(super) async fn is_open(&self) -> Result<bool, Error> {
        let ask = || async { Ok(self.any(&["version"]).await?.success) };
        self.open.get_or_try_init(ask).await.copied()
    }

    /// `dataset` and the file systems below it; none if it is not there.
    pub(super) async fn tree(&self, dataset: &str) -> Result<Vec<Dataset>, Error> {
        let columns = "name,origin,mounted,mountpoint";
        let output = self.any(&["list", "-H", "-r", "-t", "filesystem", "-o", columns, dataset]).await?;
        if output.success {
            return Ok(parse_tree(&output.stdout));
        }
        if output.stderr.contains("does not exist") { Ok(Vec::new()) } else { Err(output.into_error("zfs")) }
    }

    /// Native properties, in numbers where they are such; those that are not set or not known are left out.
    pub(super) async fn properties(&self, dataset: &str, names: &str) -> Result<BTreeMap<String, String>, Error> {
        let text = self.run(&["get", "-Hp", "-o", "property,value", names, dataset]).await?;
        let pair = |line: &str| line.split_once('\t').map(|(name, value)| (name.to_owned(), value.to_owned()));
        Ok(text.lines().filter_map(pair).filter(|(_, value)| value != "-").collect())
    }

    /// Names, identities and ages of the snapshots of `dataset` itself, the oldest first.
    pub(super) async fn snapshots(&self, dataset: &str) -> Result<Vec<super::Snapshot>, Error> {
        let text = self.run(&["get", "-Hp", "-d", "1", "-o", "name,property,value", "guid,createtxg", dataset]).await?;
        Ok(parse_snapshots(&text, dataset))
    }
}

fn parse_tree(text: &str) -> Vec<Dataset> {
    let row = |line: &str| {
        let mut fields = line.split('\t');
        Some(Dataset {
            name: fields.next()?.to_owned(),
            origin: fields.next().filter(|origin| *origin != "-").map(str::to_owned),
            mounted: fields.next()? == "yes",
            mountpoint: fields.next()?.to_owned(),
        })
    };
    text.lines().filter_map(row).collect()
}

fn parse_snapshots(text: &str, dataset: &str) -> Vec<super::Snapshot> {
    let mut found: BTreeMap<&str, (Option<u64>, Option<u64>)> = BTreeMap::new();
    for line in text.lines() {
        let mut fields = line.split('\t');
        let (Some(name), Some(property), Some(value)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let Some(("", name)) = name.strip_prefix(dataset).and_then(|rest| rest.split_once('@')) else { continue };
        let entry = found.entry(name).or_default();
        match property {
            "guid" => entry.0 = value.parse().ok(),
            "createtxg" => entry.1 = value.parse().ok(),
            _ => {}
        }
    }
    let mut snapshots: Vec<_> = found
        .into_iter()
        .filter_map(|(name, (guid, age))| Some((age?, super::Snapshot { name: name.to_owned(), guid: guid? })))
        .collect();
    snapshots.sort_by(|(age, one), (other_age, other)| (age, &one.name).cmp(&(other_age, &other.name)));
    snapshots.into_iter().map(|(_, snapshot)| snapshot).collect()
}

/// Whether a snapshot's name is a time: 13 digits of milliseconds since 1970.
pub(super) fn is_time(name: &str) -> bool {
    name.len() == 13 && name.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a failure of `zfs destroy` means that somebody needs what was to go: a hold, a clone or a send.
pub(super) fn is_needed(stderr: &str) -> bool {
    ["busy", "has dependent clones", "has children"].iter().any(|sign| stderr.contains(sign))
}

/// The dataset's name is the pool's, or folders below it: what `zfs` itself allows (`zfs_namecheck.c`).
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let component = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
    };
    // A pool's name begins with a letter.
    let begins = name.starts_with(|first: char| first.is_ascii_alphabetic());
    // Room for "/isolated/…" and a snapshot's name within the 255 bytes of a name.
    if name.len() > 180 || !begins || !name.split('/').all(component) {
        return Err(format!("`{name}` is not the name of a ZFS dataset; write it as pool/name"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_are_read() {
        let tree = parse_tree("t/a\t-\tno\tnone\nt/a/data\tt/a/x@1\tyes\t/srv/a b/data\n");
        assert_eq!((tree[0].origin.as_deref(), tree[0].mounted), (None, false));
        assert_eq!((tree[1].origin.as_deref(), tree[1].mountpoint.as_str()), (Some("t/a/x@1"), "/srv/a b/data"));
    }

    #[test]
    fn snapshots_are_in_order_of_age() {
        let text = "t/a\tguid\t1\nt/a@1700000000002\tguid\t7\nt/a@1700000000002\tcreatetxg\t9\n\
            t/a@1700000000001\tguid\t6\nt/a@1700000000001\tcreatetxg\t10\nt/a@half\tguid\t5\nt/ab@1\tguid\t3\n";
        let found = parse_snapshots(text, "t/a");
        let guids: Vec<_> = found.iter().map(|snapshot| snapshot.guid).collect();
        assert_eq!(guids, [7, 6], "{found:?}");
    }

    #[test]
    fn names_are_checked() {
        assert!(["tank", "tank/manatee/db1", "t-1/a_b.c:d"].into_iter().all(|name| check_name(name).is_ok()));
        for name in ["", "/tank", "tank/", "tank//a", "tank/a@1", "tank/ä", "-o x;y/\n"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(is_time("1700000000001") && !is_time("170000000000") && !is_time("170000000000x"));
    }
}
