//! Replication slots for downstream peers: made, dropped, and kept from holding VACUUM up when nobody
//! streams from them; and a WAL sender for the sync, which others may have used up.
//!
//! A slot remembers two things of its peer: the WAL it needs next, and the oldest transaction that its
//! readers still see (`hot_standby_feedback`). The WAL is kept for a peer that comes back, bounded by
//! `max_slot_wal_keep_size`. The transaction is not: with nobody streaming, nobody moves it on, and VACUUM
//! removes nothing newer for as long as the slot is there, here and, by this server's own feedback, upstream.
//! A peer that comes back tells its own anew.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use manatee_shared::ids::PeerId;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::error::Error;
use super::inner::Inner;
use super::{feedback, slot_name};
use crate::machine::local::{Recovery, Synchronous};

/// Between two looks at slots that nobody uses.
const PERIOD: Duration = Duration::from_secs(2);

/// Makes the slots of `peers`, and drops unused ones of others and those that lost their WAL.
pub(super) async fn keep(session: &Client, peers: &BTreeSet<PeerId>) -> Result<(), Error> {
    let wanted: BTreeSet<String> = peers.iter().map(|peer| slot_name(*peer)).collect();
    let sql = "SELECT slot_name::text, active, wal_status = 'lost' FROM pg_replication_slots \
               WHERE slot_type = 'physical' AND NOT temporary AND starts_with(slot_name, 'manatee_')";
    let rows = session.query(sql, &[]).await.map_err(Error::query("look at the replication slots"))?;
    let mut present = BTreeSet::new();
    for row in &rows {
        let read = |problem| Error::query("look at the replication slots")(problem);
        let name: String = row.try_get(0).map_err(read)?;
        let (active, lost): (bool, Option<bool>) = (row.try_get(1).map_err(read)?, row.try_get(2).map_err(read)?);
        if active || (wanted.contains(&name) && lost != Some(true)) {
            present.insert(name);
            continue;
        }
        let dropped = session.execute("SELECT pg_drop_replication_slot($1::text::name)", &[&name]).await;
        if let Err(error) = dropped {
            // Taken up again just now.
            tracing::info!(slot = name, error = &error as &dyn std::error::Error, "a replication slot was not dropped");
            present.insert(name);
        }
    }
    for name in wanted.difference(&present) {
        let made = session.execute("SELECT pg_create_physical_replication_slot($1::text::name, true)", &[name]).await;
        made.map_err(Error::query("make a replication slot"))?;
    }
    Ok(())
}

/// Looks after unused slots until aborted.
pub(super) fn watch(inner: Arc<Inner>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut before = BTreeSet::new();
        let (mut was_short, mut strangers) = (false, BTreeSet::new());
        loop {
            tokio::time::sleep(PERIOD).await;
            let Ok(session) = inner.session() else {
                (before, was_short, strangers) = (BTreeSet::new(), false, BTreeSet::new());
                continue;
            };
            before = release(&inner, &session, &before).await;
            was_short = make_room(&inner, &session, was_short).await;
            strangers = end_namesakes(&session, &strangers).await;
        }
    })
}

/// Takes the old transaction off the slots that were unused at the look before as well: whoever is just
/// reconnecting needs its slot. Returns those unused now.
async fn release(inner: &Inner, session: &Client, before: &BTreeSet<String>) -> BTreeSet<String> {
    let sql = "SELECT slot_name::text FROM pg_replication_slots \
               WHERE slot_type = 'physical' AND NOT temporary AND starts_with(slot_name, 'manatee_') \
               AND NOT active AND wal_status IS DISTINCT FROM 'lost' AND xmin IS NOT NULL";
    // Of no consequence if it fails: the next look is near.
    let Ok(rows) = session.query(sql, &[]).await else { return BTreeSet::new() };
    let unused: BTreeSet<String> = rows.iter().filter_map(|row| row.try_get(0).ok()).collect();
    for slot in unused.intersection(before) {
        match feedback::clear(&inner.settings, inner.me, session, slot).await {
            Ok(()) => tracing::info!(slot, "an unused replication slot does not hold VACUUM up any more"),
            Err(error) => {
                tracing::debug!(
                    slot,
                    error = &error as &dyn std::error::Error,
                    "an unused replication slot is as it was"
                );
            }
        }
    }
    unused
}

/// A WAL sender that streams under a peer's name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    pid: i32,
    peer: PeerId,
    /// It uses that peer's slot, as only the peer does: whoever else wants it is refused.
    holds_slot: bool,
}

/// WAL senders that stream under a peer's name and are not that peer: certainly where the peer streams as well, and
/// else if it was so at the look `before`, because names and slots are not read at one instant. And those to be looked
/// at again.
fn namesakes(senders: &[Named], before: &BTreeSet<i32>) -> (Vec<i32>, BTreeSet<i32>) {
    let is_there = |peer: PeerId| senders.iter().any(|sender| sender.peer == peer && sender.holds_slot);
    let strangers = || senders.iter().filter(|sender| !sender.holds_slot);
    let certain = strangers().filter(|sender| is_there(sender.peer) || before.contains(&sender.pid));
    (certain.map(|sender| sender.pid).collect(), strangers().map(|sender| sender.pid).collect())
}

/// Ends the WAL senders of others under a peer's name. PostgreSQL counts WAL senders, not names: what another program
/// confirms under the sync's name (a clone of its host, `pg_receivewal` with a copied connection string) would pass for the
/// sync's confirmation, and two of one name for two peers.
async fn end_namesakes(session: &Client, before: &BTreeSet<i32>) -> BTreeSet<i32> {
    let sql = "SELECT r.pid, r.application_name, s.slot_name::text FROM pg_stat_replication r \
               LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid WHERE r.state IN ('catchup', 'streaming')";
    // Of no consequence if it fails: the next look is near.
    let Ok(rows) = session.query(sql, &[]).await else { return BTreeSet::new() };
    let named = |row: &tokio_postgres::Row| -> Option<Named> {
        let peer: PeerId = row.try_get::<_, &str>(1).ok()?.parse().ok()?;
        let slot: Option<&str> = row.try_get(2).ok()?;
        Some(Named { pid: row.try_get(0).ok()?, peer, holds_slot: slot == Some(slot_name(peer).as_str()) })
    };
    let senders: Vec<Named> = rows.iter().filter_map(named).collect();
    let (certain, strangers) = namesakes(&senders, before);
    for pid in certain {
        let done = session.execute("SELECT pg_terminate_backend($1)", &[&pid]).await.is_ok();
        let peer = senders.iter().find(|sender| sender.pid == pid).map(|sender| sender.peer.to_string());
        tracing::error!(
            pid,
            peer,
            done,
            "ended a WAL sender that had a peer's name and is not that peer's: what it confirmed may have passed for the peer's"
        );
    }
    strangers
}

/// Whether the WAL senders of this name are the shard's own: followers under their name or as guests, and the sitters'
/// copies and questions.
fn is_own(name: &str) -> bool {
    name.starts_with("manatee-") || name.strip_prefix("guest ").unwrap_or(name).parse::<PeerId>().is_ok()
}

/// Peers that commits wait for.
fn awaited(synchronous: Synchronous) -> Vec<PeerId> {
    match synchronous {
        Synchronous::Peer(peer) => vec![peer],
        Synchronous::Both { new, old } => vec![new, old],
        Synchronous::Impossible | Synchronous::Nobody => Vec::new(),
    }
}

/// Of the WAL senders, newest first: the one to be ended so that a sync that is not there finds a place.
fn to_be_ended(senders: &[(i32, String)], most: usize, awaited: &[PeerId]) -> Option<i32> {
    // A guest is not served yet: its question, which makes it more than that, takes a WAL sender as well.
    let follows = |peer: &PeerId| senders.iter().any(|(_, name)| name.parse() == Ok(*peer));
    if senders.len() < most || awaited.iter().all(follows) {
        return None;
    }
    senders.iter().find(|(_, name)| !is_own(name)).map(|(pid, _)| *pid)
}

/// PostgreSQL reserves no WAL sender for anybody. When all are taken and a peer that commits wait for is not among those
/// served, at this look and the one before, the newest that is not the shard's is ended: the peer tries ten times a second,
/// and others (`pg_receivewal`) every few. Returns whether there was no place for it.
async fn make_room(inner: &Inner, session: &Client, was_short: bool) -> bool {
    let Some(config) = inner.known().record.as_ref().map(|record| record.config.clone()) else { return false };
    let awaited = awaited(config.synchronous);
    if config.recovery != Recovery::Primary || awaited.is_empty() {
        return false;
    }
    let sql = "SELECT pid, application_name, current_setting('max_wal_senders')::int FROM pg_stat_activity \
               WHERE backend_type = 'walsender' ORDER BY backend_start DESC";
    let Ok(rows) = session.query(sql, &[]).await else { return false };
    let most = rows.first().and_then(|row| usize::try_from(row.try_get::<_, i32>(2).ok()?).ok()).unwrap_or(usize::MAX);
    let senders: Vec<(i32, String)> =
        rows.iter().filter_map(|row| Some((row.try_get(0).ok()?, row.try_get(1).ok()?))).collect();
    let Some(pid) = to_be_ended(&senders, most, &awaited) else { return false };
    if was_short {
        let ended = session.execute("SELECT pg_terminate_backend($1)", &[&pid]).await;
        let name = senders.iter().find(|(sender, _)| *sender == pid).map(|(_, name)| name.as_str());
        tracing::warn!(
            pid,
            name,
            done = ended.is_ok(),
            max_wal_senders = most,
            "ended a WAL sender that is not the shard's: all are taken, and the sync finds no place; raise max_wal_senders"
        );
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_a_peers_name_without_its_slot_is_ended() {
        let peer = |number: u8| format!("10.0.0.{number}:5432:12345").parse().unwrap();
        let sender = |pid, number, holds_slot| Named { pid, peer: peer(number), holds_slot };
        let senders = [sender(1, 2, true), sender(2, 2, false), sender(3, 3, false), sender(4, 4, true)];
        assert_eq!(namesakes(&senders, &BTreeSet::new()), (vec![2], [2, 3].into()));
        assert_eq!(namesakes(&senders[2..], &[3].into()), (vec![3], [3].into()));
        assert_eq!(namesakes(&senders[3..], &[4].into()), (vec![], BTreeSet::new()));
    }

    #[test]
    fn the_newest_stranger_makes_room_for_a_sync_that_is_not_served() {
        let sync: PeerId = "10.0.0.2:5432:12345".parse().unwrap();
        let sender = |pid: i32, name: &str| (pid, name.to_owned());
        let strangers = [sender(9, "pg_receivewal"), sender(8, "manatee-sitter"), sender(7, "10.0.0.3:5432:12345")];
        assert_eq!(to_be_ended(&strangers, 3, &[sync]), Some(9));
        assert_eq!(to_be_ended(&strangers, 4, &[sync]), None, "there is room");
        assert_eq!(to_be_ended(&strangers[1..], 2, &[sync]), None, "only the shard's own");
        let guest = [sender(9, "pg_receivewal"), sender(7, "guest 10.0.0.2:5432:12345")];
        assert_eq!(to_be_ended(&guest, 2, &[sync]), Some(9), "a guest needs another one, to ask");
        let served = [sender(9, "pg_receivewal"), sender(7, "10.0.0.2:5432:12345")];
        assert_eq!(to_be_ended(&served, 2, &[sync]), None);
        assert_eq!(to_be_ended(&strangers, 3, &[]), None, "nobody is waited for");
    }
}
