//! A clock of a host's own, by Debian's `libfaketime`: the wall clock jumps, the monotonic one does not.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Interval (s) at which programs look at the file.
const LOOK_S: &str = "1";

/// The clock, and PostgreSQL's programs wrapped so that they go by it.
#[derive(Debug)]
pub struct Clock {
    library: PathBuf,
    file: PathBuf,
    programs: PathBuf,
}

impl Clock {
    /// Makes a clock that is right, under `folder`, for the programs in `postgres`.
    pub fn create(folder: &Path, postgres: &Path) -> Result<Self> {
        let library = find_library().context("clocks of the hosts' own need the Debian package libfaketime")?;
        let programs = folder.join("bin");
        fs::create_dir_all(&programs)?;
        let clock = Self { library, file: folder.join("time"), programs };
        clock.shift(0)?;
        for entry in fs::read_dir(postgres)? {
            let entry = entry?;
            if entry.file_name() != "postgres" {
                symlink(entry.path(), clock.programs.join(entry.file_name()))?;
            }
        }
        // The sitter gives PostgreSQL an environment of its own making.
        let settings: Vec<String> = clock
            .environment()
            .iter()
            .map(|(name, value)| format!("{}='{}'", name.to_string_lossy(), value.to_string_lossy()))
            .collect();
        let script = format!("#!/bin/sh\nexec env {} {}/postgres \"$@\"\n", settings.join(" "), postgres.display());
        let wrapper = clock.programs.join("postgres");
        fs::write(&wrapper, script)?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        Ok(clock)
    }

    /// Folder of PostgreSQL's programs that go by this clock.
    pub fn programs(&self) -> PathBuf {
        self.programs.clone()
    }

    /// Environment that makes a program go by this clock.
    pub fn environment(&self) -> Vec<(OsString, OsString)> {
        vec![
            ("LD_PRELOAD".into(), self.library.clone().into()),
            ("FAKETIME_TIMESTAMP_FILE".into(), self.file.clone().into()),
            ("FAKETIME_CACHE_DURATION".into(), LOOK_S.into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC".into(), "1".into()),
            ("DONT_FAKE_MONOTONIC".into(), "1".into()),
        ]
    }

    /// Wrong by so many seconds from now on.
    pub fn shift(&self, seconds: i64) -> Result<()> {
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{seconds:+}\n"))?;
        fs::rename(&new, &self.file)?;
        Ok(())
    }
}

/// The library for programs with threads.
fn find_library() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|library| library.is_file())
}
