//! Processes the lab starts, and finding all processes of a host.
//!
//! Every process started here has a session of its own (so that Ctrl-C in the terminal reaches
//! the lab only), dies with the lab where the kernel can arrange it, and has its working folder
//! inside the lab's folder: that, inherited by whatever it starts, is how stray descendants such
//! as a PostgreSQL that outlived its sitter are found.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, setsid};

/// Program to start.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Name for messages: `peer1's sitter`.
    pub name: String,
    /// Executable.
    pub program: PathBuf,
    /// Arguments.
    pub args: Vec<OsString>,
    /// Working folder; inside the lab's folder.
    pub dir: PathBuf,
    /// Standard output and standard error are appended here.
    pub log: PathBuf,
    /// Named network namespace to start in.
    pub namespace: Option<String>,
    /// Added to the environment.
    pub env: Vec<(OsString, OsString)>,
}

/// A child of the lab, killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts it. Call from a thread that lives as long as the lab: the kernel ties the child's
    /// life to the thread, not to the process.
    pub fn start(launch: &Launch) -> Result<Self> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&launch.log)
            .with_context(|| format!("cannot write the log {}", launch.log.display()))?;
        let namespace = launch
            .namespace
            .as_ref()
            .map(|name| {
                let path = namespace_path(name);
                File::open(&path).with_context(|| format!("network namespace {} is gone", path.display()))
            })
            .transpose()?;
        let mut command = Command::new(&launch.program);
        command
            .args(&launch.args)
            .envs(launch.env.iter().cloned())
            .current_dir(&launch.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        // The kernel tells a child of its parent's death only if the parent still lives when it asks.
        let lab = Pid::this();
        let prepare = move || {
            if let Some(namespace) = &namespace {
                setns(namespace, CloneFlags::CLONE_NEWNET)?;
            }
            setsid()?;
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            if Pid::parent() == lab { Ok(()) } else { Err(io::Error::from(nix::Error::ESRCH)) }
        };
        // SAFETY: `prepare` makes system calls only; it neither allocates nor takes locks.
        unsafe { command.pre_exec(prepare) };
        let child =
            command.spawn().with_context(|| format!("cannot start {} ({})", launch.name, launch.program.display()))?;
        Ok(Self { child, name: launch.name.clone(), log: launch.log.clone(), ended: None })
    }

    /// Process id; reused by the system only after [`Process::ended`] has said that it ended.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(i32::MAX)
    }

    /// Name for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// An error with the end of the log if the process ended.
    pub fn check(&mut self) -> Result<()> {
        match self.ended() {
            None => Ok(()),
            Some(status) => anyhow::bail!("{} ended: {status}\n{}", self.name, tail(&self.log, 15)),
        }
    }

    /// Sends a signal; nothing happens if it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            // It may end at this very moment; then there is nothing to signal.
            let _ = kill(Pid::from_raw(self.pid()), signal);
        }
    }

    /// Waits for the end, at most `limit`.
    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            anyhow::ensure!(Instant::now() < deadline, "{} did not end within {limit:?}", self.name);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// SIGKILL, and collects it.
    pub fn kill(&mut self) {
        if self.ended().is_none() {
            let _ = self.child.kill();
            self.ended = self.child.wait().ok();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Path at which `ip netns` keeps a namespace.
pub fn namespace_path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// Processes, other than this one and those at a terminal (a person looking around), whose
/// working folder lies in `dir` or whose network namespace is `namespace`. Zombies are left out.
pub fn find(dir: &Path, namespace: Option<&str>) -> Vec<i32> {
    let namespace = namespace.and_then(|name| namespace_inode(&namespace_path(name)));
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|&pid| pid != Pid::this().as_raw())
        .filter(|&pid| {
            let inside = fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
            let in_namespace =
                namespace.is_some() && namespace == namespace_inode(Path::new(&format!("/proc/{pid}/ns/net")));
            (inside || in_namespace) && !at_terminal(pid)
        })
        .collect()
}

/// The child of `parent` whose title begins with `title`.
pub fn child_titled(parent: i32, title: &str) -> Option<i32> {
    let entries = fs::read_dir("/proc").ok()?;
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok()).find(|pid| {
        // Field 4, the parent.
        let is_child = stat_fields(*pid).is_some_and(|fields| fields.get(1) == Some(&parent.to_string()));
        is_child && fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|text| text.starts_with(title.as_bytes()))
    })
}

/// Sends `signal` to each; those already gone are no matter.
pub fn signal_all(pids: &[i32], signal: Signal) {
    for &pid in pids {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// SIGKILLs what [`find`] finds until nothing is left (a process may fork while it is counted).
/// Gives up after five seconds: what the kernel cannot end by then hangs in the kernel.
pub fn kill_everything(dir: &Path, namespace: Option<&str>) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let pids = find(dir, namespace);
        if pids.is_empty() || Instant::now() > deadline {
            return;
        }
        signal_all(&pids, Signal::SIGKILL);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether `pid` is a living process (not a zombie).
pub fn alive(pid: i32) -> bool {
    stat_fields(pid).is_some_and(|fields| !matches!(fields.first().map(String::as_str), None | Some("Z" | "X")))
}

/// The last `lines` lines of a log, indented, under its name.
pub fn tail(log: &Path, lines: usize) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    let mut shown = format!("  {}:", log.display());
    for line in &all[all.len().saturating_sub(lines)..] {
        shown.push_str("\n    ");
        shown.push_str(line);
    }
    shown
}

/// Fields of `/proc/PID/stat` from the third (the state) on; the second, the name, may hold
/// spaces and parentheses.
fn stat_fields(pid: i32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

fn at_terminal(pid: i32) -> bool {
    // Field 7, tty_nr: 0 is none.
    stat_fields(pid).and_then(|fields| fields.get(4).cloned()).is_some_and(|tty| tty != "0")
}

fn namespace_inode(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    // `/proc/PID/ns/net` is followed to the namespace's own inode, as is the mount under /run/netns.
    fs::metadata(path).ok().map(|metadata| metadata.ino())
}
