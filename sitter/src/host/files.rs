//! Small files, written so that a crash leaves either the old or the new one.

use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::error::Error;
use super::osuser::OsUser;

/// Replaces `path` by `text`, readable by `owner` only. Durable.
pub(crate) fn replace(path: &Path, text: &str, owner: &OsUser) -> Result<(), Error> {
    put(path, text, owner, true)?;
    sync_folder(path)
}

/// As [`replace`], for what only has to outlive the sitter, not the host: rendered anew at every
/// start. A flush would cost a failover tens of milliseconds on a busy disk.
pub(crate) fn replace_volatile(path: &Path, text: &str, owner: &OsUser) -> Result<(), Error> {
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    put(path, text, owner, false)
}

/// As [`replace`], for a file that is to take effect before it is durable: [`make_durable`] follows.
pub(crate) fn replace_at_once(path: &Path, text: &str, owner: &OsUser) -> Result<(), Error> {
    put(path, text, owner, false)
}

/// Flushes a file that was just replaced, and its name.
pub(crate) fn make_durable(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::io("sync", path))?;
    sync_folder(path)
}

fn put(path: &Path, text: &str, owner: &OsUser, durable: bool) -> Result<(), Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let temporary = Path::new(&name);
    let write = || {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        // The folder may be PostgreSQL's user's, who must not lead us elsewhere by a link.
        let mut file = options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed()).open(temporary)?;
        // An older file of that name may have had other permissions.
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(text.as_bytes())?;
        if durable { file.sync_all() } else { Ok(()) }
    };
    write().map_err(Error::io("write", temporary))?;
    owner.own(temporary)?;
    std::fs::rename(temporary, path).map_err(Error::io("replace", path))
}

/// Removes a file, if there.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_folder(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("remove", path)(error)),
    }
}

/// Makes a folder that only `owner` may use.
pub(crate) fn make_folder(path: &Path, owner: &OsUser) -> Result<(), Error> {
    std::fs::create_dir_all(path).map_err(Error::io("make", path))?;
    std::fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(Error::io("protect", path))?;
    owner.own(path)
}

/// Makes a rename or removal in the folder of `path` durable.
pub(crate) fn sync_folder(path: &Path) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("sync", folder))
}

/// The last `bytes` of a text file.
pub(crate) fn tail(path: &Path, bytes: u64) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
        let mut text = Vec::new();
        file.take(bytes).read_to_end(&mut text)?;
        std::io::Result::Ok(String::from_utf8_lossy(&text).into_owned())
    };
    read().unwrap_or_default()
}
