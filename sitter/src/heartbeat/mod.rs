//! Heartbeats: how the other peers of the shard look from here.
//!
//! Each peer is asked for `GET /heartbeat` once per interval over one kept-alive connection, by a
//! task of its own ([`poll`]). What they learn is kept in a [`table::Table`], which is pure: the
//! driver derives [`PeerHealth`] from it as of *now* each time it decides.
//!
//! Ownership: [`Heartbeats`] owns the table and the tasks; dropping it ends them.

mod poll;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use manatee_shared::ids::PeerId;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::machine::view::PeerHealth;
pub use manatee_sitter_core::heartbeat::{Timing, table};
use table::Table;

/// The table as the tasks share it.
#[derive(Debug)]
struct Shared {
    /// Held for a few map operations only, never across an await.
    table: Mutex<Table>,
    /// Counts what the driver should look at without waiting for its next tick.
    news: watch::Sender<u64>,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        // A panic while it is held leaves at worst one peer's entry old, which only delays.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies `change`; wakes the driver if it says that something of weight changed.
    fn update(&self, change: impl FnOnce(&mut Table, Instant) -> bool) {
        let news = change(&mut self.table(), Instant::now());
        if news {
            self.wake();
        }
    }

    /// Wakes the driver.
    fn wake(&self) {
        self.news.send_modify(|count| *count += 1);
    }
}

/// The heartbeats of one sitter.
#[derive(Debug)]
pub struct Heartbeats {
    shared: Arc<Shared>,
    timing: Timing,
    tasks: BTreeMap<PeerId, JoinHandle<()>>,
    ticker: JoinHandle<()>,
}

impl Heartbeats {
    /// Begins with nobody to ask.
    pub fn new(timing: Timing) -> Self {
        let table = Mutex::new(Table::new(timing));
        let shared = Arc::new(Shared { table, news: watch::Sender::new(0) });
        let ticking = Arc::clone(&shared);
        // Only so that a pause of our own is noticed although nobody asks for anything.
        let ticker = tokio::spawn(async move {
            loop {
                tokio::time::sleep(timing.interval).await;
                ticking.update(|table, now| table.tick(now));
            }
        });
        Self { shared, timing, tasks: BTreeMap::new(), ticker }
    }

    /// Asks exactly `peers` from now on.
    pub fn follow(&mut self, peers: &BTreeSet<PeerId>) {
        self.tasks.retain(|peer, task| {
            let keep = peers.contains(peer);
            if !keep {
                task.abort();
            }
            keep
        });
        for &peer in peers {
            if !self.tasks.contains_key(&peer) {
                let task = tokio::spawn(poll::poll(peer, self.timing, Arc::clone(&self.shared)));
                self.tasks.insert(peer, task);
            }
        }
        self.shared.table().retain(peers);
    }

    /// Wakes when a peer's health changed otherwise than by time passing.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.shared.news.subscribe()
    }

    /// Health of the followed peers.
    pub fn health(&self, now: Instant) -> BTreeMap<PeerId, PeerHealth> {
        let mut table = self.shared.table();
        table.tick(now);
        table.health(now)
    }
}

impl Drop for Heartbeats {
    fn drop(&mut self) {
        self.ticker.abort();
        self.tasks.values().for_each(JoinHandle::abort);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use axum::routing::get;
    use axum::{Json, Router};
    use tokio::net::TcpListener;

    use std::time::Duration;

    use super::*;
    use crate::machine::local::Data;
    use crate::status::Heartbeat;

    const TIMING: Timing = Timing { interval: Duration::from_millis(50), suspicion: Duration::from_millis(500) };

    /// Waits until `condition` holds for the peer's health, and says how long that took.
    async fn until(heartbeats: &Heartbeats, peer: PeerId, condition: impl Fn(&PeerHealth) -> bool) -> Duration {
        let began = Instant::now();
        let mut news = heartbeats.news();
        loop {
            let health = heartbeats.health(Instant::now()).remove(&peer).unwrap_or_default();
            if condition(&health) {
                return began.elapsed();
            }
            assert!(began.elapsed() < Duration::from_secs(10), "{health:?}");
            let _ = tokio::time::timeout(Duration::from_millis(10), news.changed()).await;
        }
    }

    fn sitter(listener: TcpListener, peer: PeerId) -> JoinHandle<()> {
        let answer = Heartbeat {
            id: peer,
            stopping: false,
            postgres_down_ms: Some(7),
            unready_ms: None,
            suspects: BTreeSet::new(),
            data: Some(Data::Absent),
            streaming: Some(false),
            generation: Some(3),
            older: false,
            wal: None,
            newest_generation: Some(3),
            capacities: None,
        };
        let router = Router::new().route("/heartbeat", get(move || async move { Json(answer) }));
        tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        })
    }

    /// A runtime of its own dies with all its sockets, as a killed process does.
    #[test]
    fn a_killed_process_is_noticed_at_once_and_its_return_too() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let other = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = other.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let peer = PeerId { ip: "127.0.0.1".parse().unwrap(), pg_port: 1, backup_port: port };
        let _server = {
            let _guard = other.enter();
            sitter(listener, peer)
        };
        runtime.block_on(async {
            let mut heartbeats = Heartbeats::new(TIMING);
            heartbeats.follow(&BTreeSet::from([peer]));
            until(&heartbeats, peer, |health| health.generation == Some(3) && health.postgres_down_ms.is_some()).await;
            other.shutdown_background();
            let took = until(&heartbeats, peer, |health| health.refused).await;
            assert!(took < Duration::from_secs(2), "{took:?}");
            let again = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
            let _server = sitter(again, peer);
            until(&heartbeats, peer, |health| !health.refused && health.silent_ms < Some(500)).await;
        });
    }
}
