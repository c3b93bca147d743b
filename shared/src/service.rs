//! Notifications to a service manager that has started us: sd_notify(3). Without one, nothing happens.
//!
//! By hand, and not with a library: those at hand wait for the manager to read, so that one that
//! hangs would stop the loop it is to watch.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// The service manager's ear.
#[derive(Debug)]
struct Manager(UnixDatagram);

impl Manager {
    /// At `address`: a path, or an abstract name behind `@`.
    fn at(address: &str) -> io::Result<Self> {
        let address = match address.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(address)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.connect_addr(&address)?;
        Ok(Self(socket))
    }

    fn of_environment() -> Option<Self> {
        let address = std::env::var("NOTIFY_SOCKET").ok()?;
        let manager = Self::at(&address);
        manager.inspect_err(|error| tracing::warn!(%error, address, "the service manager cannot be told")).ok()
    }

    /// Not told if it does not listen just now.
    fn tell(&self, state: &str) {
        if let Err(error) = self.0.send(state.as_bytes()) {
            tracing::debug!(%error, state, "the service manager was not told");
        }
    }
}

/// The program does its work from now on.
pub fn ready() {
    if let Some(manager) = Manager::of_environment() {
        manager.tell("READY=1");
    }
}

/// The program does the work from now on that its predecessor did, and is the service's main process. The manager takes
/// this only with `NotifyAccess=all`, because it is not the main process that says so (sd_notify(3)).
pub fn ready_as_successor() {
    if let Some(manager) = Manager::of_environment() {
        manager.tell(&format!("MAINPID={}\nREADY=1", std::process::id()));
    }
}

/// The program is about to end in an orderly way.
pub fn stopping() {
    if let Some(manager) = Manager::of_environment() {
        manager.tell("STOPPING=1");
    }
}

/// Tells the service manager that we are not stuck, as often as it wants to hear it (`WatchdogSec`).
/// Belongs into the loop that must not get stuck. The default does nothing.
#[derive(Debug, Default)]
pub struct Watchdog {
    manager: Option<Manager>,
    every: Duration,
    last: Option<Instant>,
}

impl Watchdog {
    /// As the environment says: twice in the time that the manager allows, as sd_watchdog_enabled(3) advises.
    pub fn of_environment() -> Self {
        let number = |name| std::env::var(name).ok().and_then(|value: String| value.parse::<u64>().ok());
        let for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        match number("WATCHDOG_USEC").filter(|_| for_us) {
            Some(limit_us) => {
                Self { manager: Manager::of_environment(), every: Duration::from_micros(limit_us / 2), last: None }
            }
            None => Self::default(),
        }
    }

    /// To be called at least as often as the loop is meant to turn.
    pub fn alive(&mut self, now: Instant) {
        if let Some(manager) = &self.manager
            && self.last.is_none_or(|last| now.saturating_duration_since(last) >= self.every)
        {
            self.last = Some(now);
            manager.tell("WATCHDOG=1");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::*;

    #[test]
    fn a_manager_hears_us_as_often_as_it_wants_and_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let ear = UnixDatagram::bind(&path).unwrap();
        ear.set_nonblocking(true).unwrap();
        let manager = Manager::at(path.to_str().unwrap()).unwrap();
        let mut watchdog = Watchdog { manager: Some(manager), every: Duration::from_secs(1), last: None };
        let start = Instant::now();
        for ms in [0, 10, 999, 1000, 1500, 2100] {
            watchdog.alive(start + Duration::from_millis(ms));
        }
        let mut buffer = [0; 64];
        let mut heard = 0;
        while let Ok(length) = ear.recv(&mut buffer) {
            assert_eq!(&buffer[..length], b"WATCHDOG=1");
            heard += 1;
        }
        assert_eq!(heard, 3);
        // Nobody reads: the queue of a socket is short.
        for second in 3..2000 {
            watchdog.alive(start + Duration::from_secs(second));
        }
    }
}
