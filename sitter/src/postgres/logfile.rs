//! The size of PostgreSQL's log, which the sitter bounds: `log_size` for the one being written, and as much for
//! each of `log_kept` older ones.
//!
//! Every process of the server has the file open as its standard error, and keeps it for as long as the server runs.
//! A file that was renamed would still be the one written to, and a pipe would need a reader that outlives the
//! sitter. So a log that is full is copied, and cut: what is written next goes to its beginning, because all append
//! (O_APPEND). A line that is written in the microseconds between the end of the copy and the cut is lost.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::osuser::OsUser;

/// `postgresql.log.1`: the newest of the older ones.
fn older(log: &Path, number: usize) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn is_full(log: &Path, bytes: u64) -> bool {
    std::fs::metadata(log).is_ok_and(|facts| facts.len() > bytes)
}

/// Makes room for a newest older log: each gets the next number, and the oldest goes.
fn make_room(log: &Path, kept: usize) -> io::Result<()> {
    for number in (1..=kept).rev() {
        let from = older(log, number);
        let moved =
            if number == kept { std::fs::remove_file(&from) } else { std::fs::rename(&from, older(log, number + 1)) };
        match moved {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Puts a full log away that nobody writes to: before a start.
pub(super) fn put_away(log: &Path, bytes: u64, kept: usize) -> Result<(), Error> {
    if !is_full(log, bytes) {
        return Ok(());
    }
    let done = make_room(log, kept)
        .and_then(|()| if kept == 0 { std::fs::remove_file(log) } else { std::fs::rename(log, older(log, 1)) });
    done.map_err(Error::io("put away", log))
}

/// Copies a full log that is being written to, and cuts it; whether it was full. Takes as long as the disk does.
pub(super) fn cut(log: &Path, bytes: u64, kept: usize, owner: &OsUser) -> Result<bool, Error> {
    if !is_full(log, bytes) {
        return Ok(false);
    }
    let copied = make_room(log, kept).and_then(|()| {
        let mut from = File::open(log)?;
        if kept > 0 {
            let mut options = OpenOptions::new();
            // The folder is PostgreSQL's user's, who must not lead us elsewhere by a link.
            options
                .write(true)
                .create_new(true)
                .mode(0o600)
                .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
            let mut to = options.open(older(log, 1))?;
            // What came meanwhile is little, and copied by the last round.
            while io::copy(&mut from, &mut to)? > 0 {}
        }
        OpenOptions::new().write(true).open(log)?.set_len(0)
    });
    copied.map_err(Error::io("cut", log))?;
    if kept > 0 {
        owner.own(&older(log, 1))?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_log_in_use_goes_on_at_its_beginning_and_so_many_older_ones_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("postgresql.log");
        let mut server = OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let owner = OsUser::ourselves();
        for number in 1..=4 {
            writeln!(server, "line {number}").unwrap();
            assert!(!cut(&log, 100, 2, &owner).unwrap(), "not full");
            assert!(cut(&log, 3, 2, &owner).unwrap());
        }
        writeln!(server, "line 5").unwrap();
        let text = |path: &Path| std::fs::read_to_string(path).unwrap();
        assert_eq!([text(&log), text(&older(&log, 1)), text(&older(&log, 2))], ["line 5\n", "line 4\n", "line 3\n"]);
        assert!(!older(&log, 3).exists());
        drop(server);
        put_away(&log, 3, 2).unwrap();
        assert_eq!([text(&older(&log, 1)), text(&older(&log, 2))], ["line 5\n", "line 4\n"]);
        assert!(!log.exists());
    }

    #[test]
    fn without_older_ones_it_is_only_cut() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("postgresql.log");
        std::fs::write(&log, "some lines\n").unwrap();
        assert!(cut(&log, 3, 0, &OsUser::ourselves()).unwrap());
        assert_eq!(std::fs::metadata(&log).unwrap().len(), 0);
        assert!(!older(&log, 1).exists());
    }
}
