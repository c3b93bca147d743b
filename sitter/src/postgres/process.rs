//! The postmaster process: started, found, signalled, and known to have ended at once (pidfd).
//!
//! It is not bound to the sitter's life: its own session, its output in a file. Nobody but
//! PostgreSQL writes or removes `postmaster.pid`; two postmasters on one data directory are
//! prevented by PostgreSQL's own lock.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::conf;
use super::error::Error;
use super::files;
use super::logfile;
use super::osuser::OsUser;
use super::settings::{Layout, Settings};
use crate::machine::capacity::Capacity;

/// A running postmaster.
#[derive(Debug)]
pub(crate) struct Postmaster {
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
    /// Present if it is our child, to be reaped. Owned here; the lock is for the moment of reaping.
    child: Mutex<Option<Child>>,
    /// Moment at which it was started or found.
    pub(crate) since: Instant,
}

impl Postmaster {
    fn new(pid: Pid, pidfd: OwnedFd, child: Option<Child>) -> Result<Self, Error> {
        // SAFETY: an OwnedFd stays the same open descriptor until the AsyncFd that owns it is dropped.
        let registered = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
        let pidfd = registered.map_err(std::io::Error::from).map_err(Error::io("watch", "pidfd"))?;
        Ok(Self { pid, pidfd, child: Mutex::new(child), since: Instant::now() })
    }

    /// Process id.
    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Starts PostgreSQL on `layout.data()`, with settings that win over those of its files.
    pub(crate) fn spawn(
        settings: &Settings,
        layout: &Layout,
        user: &OsUser,
        given: &[(Capacity, u32)],
    ) -> Result<Self, Error> {
        let log_path = layout.log();
        logfile::put_away(&log_path, settings.log_bytes, settings.log_kept)?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&log_path)
            .map_err(Error::io("open", &log_path))?;
        user.own(&log_path)?;
        let duplicate = log.try_clone().map_err(Error::io("open", &log_path))?;
        let program = settings.bin_dir.join("postgres");
        let mut command = Command::new(&program);
        command
            .arg("-D")
            .arg(layout.data())
            .args(conf::FIXED.iter().flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]))
            .args(given.iter().flat_map(|(setting, value)| ["-c".to_owned(), format!("{}={value}", setting.name())]))
            .current_dir("/")
            // Nothing of the sitter's, which may hold secrets and settings for libpq.
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(duplicate)
            .stderr(log);
        if let Some(stranger) = stranger_in_pid_file(&layout.data()) {
            tracing::warn!(pid = stranger, "postmaster.pid is left over: its number has been given to another process");
            command.env("PG_GRANDPARENT_PID", stranger.to_string());
        }
        user.apply(&mut command);
        let child = command.spawn().map_err(Error::io("run", &program))?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let open = |pid| rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(std::io::Error::from);
        // Not yet reaped, so the id cannot have been given to another process.
        let watched = pid.ok_or_else(|| std::io::Error::other("no process id")).and_then(|pid| Ok((pid, open(pid)?)));
        let (pid, pidfd) = watched.map_err(Error::io("watch", &program))?;
        Self::new(pid, pidfd, Some(child))
    }

    /// The postmaster that runs on `data`, if one does, from `postmaster.pid`.
    pub(crate) fn find(data: &Path) -> Result<Option<Self>, Error> {
        let Ok(text) = std::fs::read_to_string(data.join("postmaster.pid")) else { return Ok(None) };
        let Some(pid) = parse_pid(&text) else { return Ok(None) };
        // Opened first: what is checked afterwards is then true of the process watched.
        let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK) else { return Ok(None) };
        if !is_postmaster_of(pid, data) {
            return Ok(None);
        }
        Self::new(pid, pidfd, None).map(Some)
    }

    /// Waits until the process has ended; then reaps it. Any number may wait; safe to drop.
    pub(crate) async fn ended(&self) {
        // A pidfd is readable once its process has ended and stays so. The readiness is never
        // cleared, so that every waiter sees it.
        if self.pidfd.readable().await.is_err() {
            // Only when the runtime shuts down.
            std::future::pending::<()>().await;
        }
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        match child.take() {
            Some(mut child) => drop(child.wait()),
            // Found: still a child of ours if this process is a sitter that started itself anew. Unreaped, it would look
            // alive to the next postmaster (`CreateLockFile`). Anybody else's cannot be waited for.
            None => {
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
                let _ = rustix::process::waitid(WaitId::PidFd(self.pidfd.get_ref().as_fd()), options);
            }
        }
    }

    /// Waits for the end with a bound; whether it came.
    pub(crate) async fn ended_within(&self, bound: Duration) -> bool {
        tokio::time::timeout(bound, self.ended()).await.is_ok()
    }

    /// Sends a signal; to nobody else, even if the process has ended.
    pub(crate) fn signal(&self, signal: Signal) {
        // ESRCH: it has ended, which `ended` reports.
        let _ = rustix::process::pidfd_send_signal(self.pidfd.get_ref().as_fd(), signal);
    }

    /// Interrupts the sleep of one of its children: SIGHUP, upon which it reads its settings again.
    pub(crate) fn wake_child(&self, pid: i32) {
        let Some(child) = Pid::from_raw(pid) else { return };
        let Ok(pidfd) = rustix::process::pidfd_open(child, PidfdFlags::NONBLOCK) else { return };
        // Asked after the pidfd was opened, so that it is true of the same process.
        if stat_of(pid).is_some_and(|(_, parent)| parent == self.pid()) {
            let _ = rustix::process::pidfd_send_signal(pidfd.as_fd(), Signal::HUP);
        }
    }

    /// Whether somebody stopped it (SIGSTOP): sessions may still answer, but none is let in.
    pub(crate) fn is_stopped(&self) -> bool {
        is_stopped(self.pid())
    }

    /// SIGKILL for it and its children. Children have sessions of their own, and one that hangs
    /// would keep the shared memory, with which no new postmaster starts.
    pub(crate) fn kill_all(&self) {
        let children = children_of(self.pid());
        self.signal(Signal::KILL);
        for (_, child) in children {
            let _ = rustix::process::pidfd_send_signal(child.as_fd(), Signal::KILL);
        }
    }
}

/// Whether somebody stopped this process: SIGSTOP, or a debugger.
pub(crate) fn is_stopped(pid: i32) -> bool {
    stat_of(pid).is_some_and(|(state, _)| matches!(state, 'T' | 't'))
}

/// Processes whose parent is `parent`, each with a pidfd.
fn children_of(parent: i32) -> Vec<(Pid, OwnedFd)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let fd = rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::NONBLOCK).ok()?;
        // Asked after the pidfd was opened, so that it is true of the same process.
        stat_of(pid).filter(|(_, its_parent)| *its_parent == parent).and_then(|_| Some((Pid::from_raw(pid)?, fd)))
    })
    .collect()
}

/// State letter and parent from `/proc/PID/stat` (proc(5)); the name, in parentheses, may hold anything.
fn stat_of(pid: i32) -> Option<(char, i32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    let mut words = rest.split_whitespace();
    Some((words.next()?.chars().next()?, words.next()?.parse().ok()?))
}

/// First line of `postmaster.pid`; negative for a single-user server, which is not adopted.
fn parse_pid(text: &str) -> Option<Pid> {
    text.lines().next()?.trim().parse::<i32>().ok().filter(|&pid| pid > 1).and_then(Pid::from_raw)
}

/// A postmaster works in its data directory and shows its arguments; its children show a title
/// ("postgres: checkpointer") instead.
fn is_postmaster_of(pid: Pid, data: &Path) -> bool {
    let pid = pid.as_raw_nonzero();
    let works_in = std::fs::read_link(format!("/proc/{pid}/cwd")).ok();
    let Some(works_in) = works_in.filter(|folder| std::fs::canonicalize(data).is_ok_and(|data| data == *folder)) else {
        return false;
    };
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let is_postgres = program
        .file_name()
        .and_then(|name| name.to_str())
        // An upgraded package leaves the running program "… (deleted)".
        .is_some_and(|name| name.split(' ').next() == Some("postgres"));
    let title = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    is_postgres && !title.starts_with(b"postgres: ") && !works_in.as_os_str().is_empty()
}

/// The process that `postmaster.pid` names, if that is alive and has nothing to do with this data.
///
/// PostgreSQL cannot tell and refuses to start for as long as that process lives, unless it takes the number for its
/// grandparent's, as after a restart of the host (`CreateLockFile`, miscinit.c; pg_ctl says so by PG_GRANDPARENT_PID). It
/// then goes on to look whether anybody still uses the shared memory named in the file: its own interlock stays in force,
/// and nobody but PostgreSQL removes the file.
fn stranger_in_pid_file(data: &Path) -> Option<i32> {
    let pid = parse_pid(&std::fs::read_to_string(data.join("postmaster.pid")).ok()?)?.as_raw_nonzero().get();
    let data = std::fs::canonicalize(data).ok()?;
    // Every process of a server works in its data directory. One that cannot be looked at is not taken for a stranger.
    std::fs::read_link(format!("/proc/{pid}/cwd")).ok().filter(|folder| *folder != data).map(|_| pid)
}

/// Whether `postmaster.pid` is left over: its server did not end by itself.
pub(crate) fn left_pid_file(data: &Path) -> bool {
    data.join("postmaster.pid").exists()
}

/// Reason why the server ended, by its log, for error messages.
pub(crate) fn log_tail(layout: &Layout) -> String {
    last_words(&files::tail(&layout.log(), 8192))
}

/// Message that decided the last run in `log`: the first FATAL or PANIC, with its detail and hint; without one, the
/// last lines. Without time and process.
fn last_words(log: &str) -> String {
    let last_run = log.rsplit("starting PostgreSQL ").next().unwrap_or(log);
    let lines: Vec<&str> = last_run.lines().collect();
    let has = |line: &str, levels: &[&str]| levels.iter().any(|level| line.contains(level));
    let text = |line: &&str| line.split_once("] ").map_or(*line, |(_, text)| text).trim().to_owned();
    // Whoever is turned away meanwhile is not why it ended.
    let client = |line: &str| has(line, &["client backend ", "not yet accepting", "walsender "]);
    let Some(at) = lines.iter().position(|line| has(line, &["FATAL:  ", "PANIC:  "]) && !client(line)) else {
        return lines.iter().skip(lines.len().saturating_sub(6)).map(text).collect::<Vec<_>>().join(" | ");
    };
    // A configuration file's errors come before the FATAL that only says that there are some.
    let before = lines
        .iter()
        .take(at)
        .filter(|line| has(line, &["configuration parameter", "for parameter", "syntax error in file"]));
    let after = lines.iter().skip(at + 1).take_while(|line| has(line, &["DETAIL:  ", "HINT:  ", "CONTEXT:  "]));
    before.chain(lines.get(at)).chain(after).map(text).collect::<Vec<_>>().join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_postmasters_pid_is_taken() {
        assert_eq!(parse_pid("4711\n/data\n").map(|pid| pid.as_raw_nonzero().get()), Some(4711));
        for text in ["", "-12\n", "0", "1", "x"] {
            assert!(parse_pid(text).is_none(), "{text}");
        }
    }

    #[test]
    fn the_words_that_decide_are_kept() {
        let log = "2026 [1] postmaster LOG:  starting PostgreSQL 15.14\n2026 [1] LOG:  old\n\
            2026 [2] postmaster LOG:  starting PostgreSQL 15.14\n\
            2026 [2] startup FATAL:  recovery aborted because of insufficient parameter settings\n\
            2026 [2] startup DETAIL:  max_connections = 100 is a lower setting than on the primary server.\n\
            2026 [2] startup HINT:  You can restart the server\n\
            2026 [2] postmaster LOG:  startup process exited\n2026 [2] LOG:  a\n2026 [2] LOG:  b\n2026 [2] LOG:  c\n\
            2026 [2] LOG:  d\n2026 [2] LOG:  database system is shut down\n";
        assert_eq!(
            last_words(log),
            "startup FATAL:  recovery aborted because of insufficient parameter settings | \
             startup DETAIL:  max_connections = 100 is a lower setting than on the primary server. | \
             startup HINT:  You can restart the server"
        );
        assert_eq!(last_words("2026 [1] LOG:  a\n2026 [1] LOG:  b\n"), "LOG:  a | LOG:  b");
    }

    #[test]
    fn another_process_is_not_a_postmaster() {
        let dir = tempfile::tempdir().unwrap();
        let me = std::process::id();
        std::fs::write(dir.path().join("postmaster.pid"), format!("{me}\n")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert!(runtime.block_on(async { Postmaster::find(dir.path()) }).unwrap().is_none());
    }

    #[test]
    fn only_a_living_process_of_other_folders_is_a_stranger() {
        let dir = tempfile::tempdir().unwrap();
        let write = |pid: u32| std::fs::write(dir.path().join("postmaster.pid"), format!("{pid}\n")).unwrap();
        assert_eq!(stranger_in_pid_file(dir.path()), None, "no file");
        write(std::process::id());
        assert_eq!(stranger_in_pid_file(dir.path()), i32::try_from(std::process::id()).ok());
        let mut ours = std::process::Command::new("sleep").arg("60").current_dir(dir.path()).spawn().unwrap();
        write(ours.id());
        assert_eq!(stranger_in_pid_file(dir.path()), None, "it works in the data directory");
        ours.kill().unwrap();
        ours.wait().unwrap();
        assert_eq!(stranger_in_pid_file(dir.path()), None, "it has ended");
    }
}
