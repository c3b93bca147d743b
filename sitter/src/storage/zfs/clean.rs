//! Removal from a copy of a running server of what a new one must not find.

use std::path::Path;

use crate::host::osuser::OsUser;
use crate::host::{Error, files};

/// Files that say that a server runs, or which recovery was under way there.
const FILES: [&str; 3] = ["postmaster.pid", "postmaster.opts", "recovery.signal"];
/// Folders whose contents are of the server that ran: what `pg_basebackup` leaves out as well
/// (manual, section 55.4, "BASE_BACKUP"), as far as PostgreSQL does not empty it at a start itself.
const FOLDERS: [&str; 3] = ["pg_replslot", "pg_stat_tmp", "pg_dynshmem"];

/// Removes PostgreSQL's traces of having run from a copy made by snapshot, and gives it to PostgreSQL's
/// user.
pub(super) async fn clean(data: &Path, user: &OsUser) -> Result<(), Error> {
    let (path, owner) = (data.to_owned(), user.clone());
    let work = tokio::task::spawn_blocking(move || clean_now(&path, &owner)).await;
    work.unwrap_or_else(|error| Err(Error::io("clean", data)(std::io::Error::other(error))))
}

fn clean_now(data: &Path, user: &OsUser) -> Result<(), Error> {
    if !data.join("PG_VERSION").is_file() {
        return Err(Error::DataNotFit("what was copied is not a data directory".to_owned()));
    }
    for name in FILES {
        files::remove(&data.join(name))?;
    }
    for name in FOLDERS {
        empty(&data.join(name))?;
    }
    give(data, user)
}

/// Empties a folder as the copy's source made it, without trusting it: a link would lead out of the copy.
fn empty(folder: &Path) -> Result<(), Error> {
    if std::fs::symlink_metadata(folder).is_ok_and(|found| !found.is_dir()) {
        return Err(Error::DataNotFit(format!("{} is not a folder", folder.display())));
    }
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(Error::io("list", folder))?,
    };
    for entry in entries {
        let entry = entry.map_err(Error::io("list", folder))?;
        let path = entry.path();
        let removed = if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.map_err(Error::io("remove", path))?;
    }
    Ok(())
}

/// The numbers of users travel with a stream; the same user may have another one here.
fn give(data: &Path, user: &OsUser) -> Result<(), Error> {
    use std::os::unix::fs::MetadataExt;
    let Some(wanted) = user.uid() else { return Ok(()) };
    let control = data.join("global/pg_control");
    let found = std::fs::symlink_metadata(&control).map_err(Error::io("look at", &control))?.uid();
    if found == wanted {
        return Ok(());
    }
    tracing::info!(found, wanted, "the copy is of another user's number: giving it to ours");
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
            let entry = entry.map_err(Error::io("list", &folder))?;
            user.own(&entry.path())?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
        }
    }
    user.own(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_of_a_copy_is_touched() {
        let (copy, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(outside.path().join("precious"), "").unwrap();
        std::fs::write(copy.path().join("PG_VERSION"), "15\n").unwrap();
        std::fs::create_dir_all(copy.path().join("pg_replslot")).unwrap();
        std::os::unix::fs::symlink(outside.path(), copy.path().join("pg_replslot/link")).unwrap();
        std::os::unix::fs::symlink(outside.path(), copy.path().join("pg_stat_tmp")).unwrap();
        let error = clean_now(copy.path(), &OsUser::ourselves()).unwrap_err();
        assert!(error.to_string().contains("pg_stat_tmp"), "{error}");
        assert!(!copy.path().join("pg_replslot/link").exists());
        assert!(outside.path().join("precious").exists());
    }
}
