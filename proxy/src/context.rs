//! Context that all parts of the process share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::console::Console;
use crate::auth::Gatekeeper;
use crate::config::Config;
use crate::own_role::OwnRole;
use crate::pool::HeldTotals;
use crate::pool::control::Scope;
use crate::session_threads::{SessionTarget, ThreadAction};
use crate::shards::Shards;
use crate::tls::servers::Servers;

/// Longest time for clients that are cut off at the end to hear of it, and the interval of looking whether they have.
const GOODBYE_LIMIT: Duration = Duration::from_secs(1);
const GOODBYE_INTERVAL: Duration = Duration::from_millis(10);
/// State that all threads share. Nothing in it is written on the hot path.
pub struct ProxyContext {
    /// The configuration, as last read.
    pub config: Arc<ArcSwap<Config>>,
    /// Shards that clients can reach.
    pub shards: Arc<Shards>,
    /// Logins.
    pub gate: Gatekeeper,
    /// TLS towards servers.
    pub servers: Arc<Servers>,
    /// The proxy's own role.
    pub own: Arc<OwnRole>,
    /// State that consoles share.
    pub console: Arc<Console>,
    /// Cancelled when nobody new is let in any more.
    pub closed: CancellationToken,
    /// Cancelled when the proxy stops, `closed` before it: idle clients are sent away.
    pub drain: CancellationToken,
    /// Cancelled when a successor has the listeners: it alone answers HTTP from then on.
    pub handed_over: CancellationToken,
    /// Totals of the clients that wait for a primary, in all shards.
    pub held: Arc<HeldTotals>,
    /// HTTP, which ends once the requests it has taken are answered.
    pub answers: TaskTracker,
    /// Connections, logins included.
    pub(crate) connections: AtomicUsize,
}

impl ProxyContext {
    /// Connections, logins included.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// The end: all clients that are still here are told so (57P01), whatever they are doing.
    pub async fn send_everybody_away(&self) {
        self.stop();
        let everybody = SessionTarget { shard: None, scope: Scope::All };
        self.console.threads().order(ThreadAction::Kill(everybody)).await;
        let begun = Instant::now();
        while self.connections() > 0 && begun.elapsed() < GOODBYE_LIMIT {
            tokio::time::sleep(GOODBYE_INTERVAL).await;
        }
    }

    /// Begins the end: nobody new is let in, idle clients are sent away.
    pub fn stop(&self) {
        self.closed.cancel();
        self.drain.cancel();
    }
}
