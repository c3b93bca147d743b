//! Tablespaces of copied data: folders elsewhere, to which the data has links.
//!
//! `pg_basebackup` puts a tablespace into the folder that it has at the source, and wants that empty. On a host that is
//! copied to again it is not: the data set aside, which is kept until the peer is healthy, has its files there. So each
//! copy gets a new folder of its own *below* the one that the operator made, on the same disk:
//! `/fast/space/manatee-1764444444000-4711`. It goes when the data set that links to it does; what an operator's
//! CREATE TABLESPACE put there is never touched.

use std::path::{Path, PathBuf};

use crate::host::Error;

/// Prefix of the folders that copies made.
const OURS: &str = "manatee-";

/// The folder that an operator made, of a tablespace that lies there or in one that a copy made below.
fn base(location: &Path) -> &Path {
    if is_ours(location) { location.parent().unwrap_or(location) } else { location }
}

fn is_ours(location: &Path) -> bool {
    let name = location.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.strip_prefix(OURS).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Places for the source's tablespaces on this host, by their places there. Refuses, before anything is done, what
/// would fail in the end. `unique` is of this attempt.
pub(super) fn places(locations: &[PathBuf], unique: &str) -> Result<Vec<(PathBuf, PathBuf)>, Error> {
    let place = |location: &PathBuf| {
        let base = base(location);
        if !base.is_dir() {
            return Err(Error::DataNotFit(format!(
                "the shard has a tablespace in {0}, and this host has no such folder: create {0}, owned by the OS user of \
                 PostgreSQL, on the disk meant for it",
                base.display()
            )));
        }
        Ok((location.clone(), base.join(format!("{OURS}{unique}"))))
    };
    locations.iter().map(place).collect()
}

/// `pg_basebackup`'s argument. An equals sign in a path is escaped (manual, pg_basebackup, `--tablespace-mapping`).
pub(super) fn mapping((from, to): &(PathBuf, PathBuf)) -> String {
    let escaped = |path: &Path| path.to_string_lossy().replace('=', "\\=");
    format!("--tablespace-mapping={}={}", escaped(from), escaped(to))
}

/// The folders made by copies that the data set in `folder` links to.
fn linked(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder.join("pg_tblspc")) else { return Vec::new() };
    let targets = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    targets.filter(|target| target.is_absolute() && is_ours(target)).collect()
}

/// Those that go with the data set in `folder`: nothing that the data in use links to.
pub(super) fn going_with(folder: &Path, data_in_use: &Path) -> Vec<PathBuf> {
    let in_use = linked(data_in_use);
    linked(folder).into_iter().filter(|target| !in_use.contains(target)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_a_copy_lies_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let space = dir.path().join("space");
        std::fs::create_dir(&space).unwrap();
        let copied = space.join("manatee-1764444444000-12");
        let found = places(&[space.clone(), copied.clone()], "1764444445000-7").unwrap();
        let new = space.join("manatee-1764444445000-7");
        assert_eq!(found, [(space.clone(), new.clone()), (copied, new)]);
        let missing = places(&[dir.path().join("none")], "1").unwrap_err().to_string();
        assert!(missing.contains("create ") && missing.contains("/none"), "{missing}");
        let odd = (PathBuf::from("/a=b"), PathBuf::from("/c"));
        assert_eq!(mapping(&odd), "--tablespace-mapping=/a\\=b=/c");
    }

    #[test]
    fn only_what_copies_made_goes_and_nothing_that_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let link = |set: &str, oid: &str, target: &str| {
            let folder = dir.path().join(set).join("pg_tblspc");
            std::fs::create_dir_all(&folder).unwrap();
            std::os::unix::fs::symlink(target, folder.join(oid)).unwrap();
        };
        link("old", "16401", "/space/manatee-1-1");
        link("old", "16402", "/space/manatee-2-2");
        link("old", "16403", "/space");
        link("old", "16404", "/space/manatee-own");
        link("data", "16402", "/space/manatee-2-2");
        let going = going_with(&dir.path().join("old"), &dir.path().join("data"));
        assert_eq!(going, [PathBuf::from("/space/manatee-1-1")]);
        assert!(going_with(&dir.path().join("none"), &dir.path().join("data")).is_empty());
    }
}
