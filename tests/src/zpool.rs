//! A ZFS pool over a file, for as long as a value lives.
//!
//! ZFS is whatever this machine has: genuine OpenZFS if its module is loaded, else Debian's zfs-fuse, of
//! which a machine runs one daemon. It is shared: who needs a pool and finds no daemon starts it; who is
//! the last to drop one ends it, if it was started here. Locks of the kernel say who is alive, so that what a
//! killed process left is removed by the next one.

use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::process;

/// Longest time for the daemon to begin, or to end.
const DAEMON: Duration = Duration::from_secs(30);
/// Longest time for a pool to be busy that is to be destroyed: somebody's last process is ending.
const BUSY: Duration = Duration::from_secs(15);
/// Longest time for a command: one whose daemon dies meanwhile may wait for ever.
const COMMAND_SECONDS: &str = "300";
/// Of zfs-fuse's cache.
const CACHE_MIB: &str = "64";

/// Meeting place of those that use pools. Root's own.
const MEETING: &str = "/run/manatee-test-pools";

/// A pool. Destroyed when dropped, with all in it.
#[derive(Debug)]
pub struct Pool {
    name: String,
    folder: PathBuf,
    /// Locked while the pool is alive.
    claim: Option<File>,
    /// Locked, by all at once, while anybody needs the daemon.
    users: Option<File>,
}

/// Reason why there can be no pool here; None if there can.
pub fn unavailable() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("ZFS needs root");
    }
    if run("zfs", &["list"]).is_err() && !Path::new("/dev/fuse").exists() {
        return Some("neither OpenZFS nor /dev/fuse is here");
    }
    None
}

impl Pool {
    /// For a test: None, with a word on standard error, where there can be no pool. Panics where there should be one.
    #[allow(clippy::panic, reason = "a test may stop at the first surprise")]
    pub fn for_test(size_mib: u64) -> Option<Self> {
        if let Some(reason) = unavailable() {
            eprintln!("left out: {reason}");
            return None;
        }
        match Self::create(size_mib) {
            Ok(pool) => Some(pool),
            Err(error) => panic!("no ZFS pool: {error:#}"),
        }
    }

    /// A new pool of this size.
    pub fn create(size_mib: u64) -> Result<Self> {
        if let Some(reason) = unavailable() {
            bail!("{reason}");
        }
        let meeting = meeting()?;
        let gate = lock(&meeting.join("gate"))?;
        remove_dead(&meeting)?;
        let users = File::options().create(true).append(true).open(meeting.join("users"))?;
        users.lock_shared()?;
        start_daemon(&meeting)?;
        let name = format!("mtpool{:08x}", fastrand::u32(..));
        let folder = std::env::temp_dir().join(&name);
        let claim = lock(&meeting.join("pools").join(&name))?;
        let pool = Self { name, folder, claim: Some(claim), users: Some(users) };
        DirBuilder::new().mode(0o755).create(&pool.folder)?;
        let disk = pool.folder.join("disk");
        File::create(&disk)?.set_len(size_mib << 20)?;
        let disk = disk.display().to_string();
        run("zpool", &["create", "-f", "-o", "cachefile=none", "-O", "mountpoint=none", &pool.name, &disk])?;
        drop(gate);
        Ok(pool)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `zfs`; returns what it printed.
    pub fn zfs(&self, arguments: &[&str]) -> Result<String> {
        run("zfs", arguments)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut end = || -> Result<()> {
            let meeting = meeting()?;
            let _gate = lock(&meeting.join("gate"))?;
            destroy(&self.name)?;
            fs::remove_file(meeting.join("pools").join(&self.name))?;
            self.claim = None;
            self.users = None;
            end_daemon(&meeting)
        };
        if let Err(error) = end() {
            eprintln!("the ZFS pool was not removed: {error:#}");
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Removes the pools of processes that died.
pub fn clean() -> Result<()> {
    if !Path::new(MEETING).exists() {
        return Ok(());
    }
    let meeting = meeting()?;
    let _gate = lock(&meeting.join("gate"))?;
    remove_dead(&meeting)?;
    end_daemon(&meeting)
}

fn meeting() -> Result<PathBuf> {
    let folder = PathBuf::from(MEETING);
    DirBuilder::new().recursive(true).mode(0o700).create(folder.join("pools")).context(MEETING)?;
    Ok(folder)
}

/// Opens and locks a file, waiting for whoever has it.
fn lock(path: &Path) -> Result<File> {
    let file = File::options().create(true).append(true).open(path).with_context(|| path.display().to_string())?;
    file.lock()?;
    Ok(file)
}

/// Removes the pools of processes that died.
fn remove_dead(meeting: &Path) -> Result<()> {
    for entry in fs::read_dir(meeting.join("pools"))? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if File::open(&path)?.try_lock().is_err() {
            continue;
        }
        let known = run("zpool", &["list", "-H", "-o", "name"]).unwrap_or_default();
        if known.lines().any(|line| line == name)
            && let Err(error) = destroy(name)
        {
            // Somebody still uses it: the next one may have more luck.
            eprintln!("a dead process's ZFS pool is left for later: {error:#}");
            continue;
        }
        let _ = fs::remove_dir_all(std::env::temp_dir().join(name));
        fs::remove_file(&path)?;
    }
    Ok(())
}

fn destroy(name: &str) -> Result<()> {
    let deadline = Instant::now() + BUSY;
    loop {
        match run("zpool", &["destroy", "-f", name]) {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Sees to it that `zpool` has somebody to talk to.
fn start_daemon(meeting: &Path) -> Result<()> {
    if run("zpool", &["list"]).is_ok() {
        return Ok(());
    }
    let pid_file = meeting.join("daemon.pid");
    // One that was killed, or ended with the machine, left it; with it, none starts.
    let _ = fs::remove_file(&pid_file);
    let mut command = Command::new("zfs-fuse");
    command.args(["--no-kstat-mount", "--max-arc-size", CACHE_MIB, "--pidfile"]).arg(&pid_file);
    let begun = command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    match begun {
        Ok(status) => ensure!(status.success(), "zfs-fuse: {status}"),
        Err(error) if error.kind() == ErrorKind::NotFound => bail!("no ZFS is installed: run config/dev/install.sh"),
        Err(error) => return Err(error).context("zfs-fuse"),
    }
    let deadline = Instant::now() + DAEMON;
    while let Err(error) = run("zpool", &["list"]) {
        ensure!(Instant::now() < deadline, "zfs-fuse does not answer: {error:#}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Ends the daemon if nobody needs it and it was started here. The gate is ours.
fn end_daemon(meeting: &Path) -> Result<()> {
    let users = File::options().create(true).append(true).open(meeting.join("users"))?;
    if users.try_lock().is_err() {
        return Ok(());
    }
    let pid_file = meeting.join("daemon.pid");
    let Ok(text) = fs::read_to_string(&pid_file) else { return Ok(()) };
    let pid: i32 = text.trim().parse().context("daemon.pid")?;
    let is_it = fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "zfs-fuse");
    let pools = run("zpool", &["list", "-H", "-o", "name"]).unwrap_or_default();
    // Somebody else's pool: left alone.
    let in_use = pools.lines().any(|line| !line.trim().is_empty() && !line.contains("no pools"));
    if !is_it || in_use {
        return Ok(());
    }
    process::signal_all(&[pid], Signal::SIGTERM);
    let deadline = Instant::now() + DAEMON;
    while process::alive(pid) {
        ensure!(Instant::now() < deadline, "zfs-fuse ({pid}) does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
    fs::remove_file(&pid_file)?;
    Ok(())
}

/// Runs one of ZFS's programs.
fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let path = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";
    let mut command = Command::new("env");
    command
        .arg(format!("PATH={path}"))
        .args(["timeout", COMMAND_SECONDS])
        .arg(program)
        .args(arguments)
        .stdin(Stdio::null());
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("`{program} {}`: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
