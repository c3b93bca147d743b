//! Stopping in an orderly way, and being told to reload.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit status after a second SIGTERM or SIGINT: the shell's for SIGINT.
const IMPATIENT_EXIT: i32 = 130;

/// A token that the first SIGTERM or SIGINT cancels; a second one ends the process at once.
/// Call within a runtime, once per process.
pub fn on_signals() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        // `recv` of a signal is cancel-safe: a pending signal is not lost.
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        };
        let name = next().await;
        tracing::info!(signal = name, "stopping");
        stop.cancel();
        let name = next().await;
        tracing::warn!(signal = name, "told to stop again: exiting at once");
        std::process::exit(IMPATIENT_EXIT);
    });
    Ok(token)
}

/// Waits for SIGUSR2: to make room for another process that takes over what this one keeps running.
/// Cancel-safe.
pub async fn told_to_leave() {
    // If it cannot be listened to, it ends the process: which is what it asks for.
    if let Ok(mut signals) = signal(SignalKind::user_defined2())
        && signals.recv().await.is_some()
    {
        return;
    }
    std::future::pending().await
}

/// Requests to read the configuration again (SIGHUP).
#[derive(Debug)]
pub struct Hangups(Signal);

impl Hangups {
    /// Starts listening; from here on a SIGHUP no longer ends the process.
    pub fn listen() -> io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }

    /// Waits for the next request. Several at once count as one. Cancel-safe.
    pub async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            // The runtime is going down.
            std::future::pending::<()>().await;
        }
    }
}
