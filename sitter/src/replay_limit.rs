//! Keeps the replay of the sync close behind what it received: what it has to replay at a takeover is time in which
//! nobody writes.
//!
//! Readers of a sync may hold replay up for a moment, not for `max_standby_streaming_delay` (30 s by default, or
//! without end). Asyncs are as patient as that setting says: long reports belong there.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use manatee_shared::cluster::Role;
use tokio::sync::watch;

use crate::driver::status::Status;
use crate::machine::local::Server;
use crate::postgres::Postgres;

/// So long readers may hold up replay on the sync. Replay is several times as quick as the writes that it repeats:
/// what gathers in this time is replayed well within what a takeover may take.
const LIMIT_MS: u64 = 2_000;
/// Between two looks.
const PERIOD: Duration = Duration::from_millis(250);

/// Whether the readers in the way are to be ended.
fn is_due(role: Role, server: &Server) -> bool {
    let Server::Standby(standby) = server else { return false };
    role == Role::Sync && standby.replay.waits_for.is_some() && standby.replay.waits_ms >= LIMIT_MS
}

/// Looks for as long as it is polled.
pub async fn keep(postgres: Arc<Postgres>, status: watch::Receiver<Arc<Status>>) -> Infallible {
    loop {
        tokio::time::sleep(PERIOD).await;
        let role = status.borrow().role;
        let due = is_due(role, &postgres.local().borrow().server);
        if due && let Err(error) = postgres.clear_replay().await {
            tracing::debug!(error = &error as &dyn std::error::Error, "what replay waits for is not known");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::status::samples::{primary, standby};
    use crate::machine::local::{Obstacle, Replay};

    #[test]
    fn only_the_syncs_replay_is_kept_going() {
        let waits = |waits_ms| {
            let mut server = standby(true);
            if let Server::Standby(standby) = &mut server {
                standby.replay = Replay { waits_for: Some(Obstacle::Lock), waits_ms, ..Replay::default() };
            }
            server
        };
        assert!(is_due(Role::Sync, &waits(LIMIT_MS)));
        assert!(!is_due(Role::Sync, &waits(LIMIT_MS - 1)), "a moment is granted");
        assert!(!is_due(Role::Async(0), &waits(30_000)));
        assert!(!is_due(Role::Sync, &standby(true)));
        assert!(!is_due(Role::Sync, &primary()));
    }
}
