//! Collects processes that outlive their parents, as a machine's init does at once.
//!
//! A PostgreSQL that outlived its sitter becomes the lab's child. Were it left to an init that
//! takes its time (in containers some do), its process id would look alive after its end, and a
//! data directory would look in use.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getsid};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// A running collector; it ends with this value.
#[derive(Debug)]
pub struct Reaper {
    stop: Arc<AtomicBool>,
}

impl Reaper {
    /// Makes this process the heir of its descendants' children, and collects those that end.
    pub fn start() -> Result<Self> {
        nix::sys::prctl::set_child_subreaper(true).context("cannot become the heir of orphans")?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                orphans().into_iter().for_each(collect);
                std::thread::sleep(PAUSE);
            }
        });
        Ok(Self { stop })
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn collect(pid: Pid) {
    // Whatever it says, there is nothing more to do about it.
    let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
}

/// Ended children that were not started by the lab itself, which waits for its own. Those are
/// recognised by their names, or by being of the lab's own session (see [`crate::process`]).
fn orphans() -> Vec<Pid> {
    let Ok(own) = getsid(None) else { return Vec::new() };
    let children = fs::read_dir("/proc/self/task").into_iter().flatten().filter_map(|task| {
        let children = fs::read_to_string(task.ok()?.path().join("children")).ok()?;
        Some(children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()).collect::<Vec<_>>())
    });
    children.flatten().filter(|&pid| is_orphan(pid, own)).map(Pid::from_raw).collect()
}

fn is_orphan(pid: i32, own_session: Pid) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let Some((before, after)) = stat.rsplit_once(')') else { return false };
    let name = before.split_once('(').map_or("", |(_, name)| name);
    let mut fields = after.split_whitespace();
    // Fields 3, state, and 6, session.
    let (state, session) = (fields.next(), fields.nth(2).and_then(|session| session.parse().ok()));
    let ours = name == "java" || name.starts_with("manatee-") || session == Some(own_session.as_raw());
    state == Some("Z") && !ours
}
