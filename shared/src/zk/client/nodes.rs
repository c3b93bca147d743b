//! Names and contents of a shard's nodes (Manatee 2's layout).

use serde::{Deserialize, Serialize};

use crate::cluster::Peer;
use crate::ids::{PeerId, ShardName};
use crate::zk::ActivePeer;

/// Paths of a shard's nodes.
pub(super) struct Paths {
    /// The shard's folder.
    pub(super) shard: String,
    /// Folder of the election nodes.
    pub(super) election: String,
    /// The state.
    pub(super) state: String,
    /// Folder of the history entries.
    pub(super) history: String,
}

impl Paths {
    pub(super) fn new(root: &str, shard: &ShardName) -> Self {
        let shard = format!("{root}/{shard}");
        Self {
            election: format!("{shard}/election"),
            state: format!("{shard}/state"),
            history: format!("{shard}/history"),
            shard,
        }
    }

    /// Prefix of the paths of `id`'s election nodes; the server appends the sequence.
    pub(super) fn election_prefix(&self, id: PeerId) -> String {
        format!("{}/{id}-", self.election)
    }

    /// Prefix of the path of the history entry of `generation`.
    pub(super) fn history_prefix(&self, generation: u64) -> String {
        format!("{}/{generation}-", self.history)
    }
}

/// Content of an election node. The id is in the node's name.
#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Announcement {
    zone_id: Option<String>,
    ip: Option<String>,
    pg_url: Option<String>,
    backup_url: Option<String>,
}

/// Content of the election node that announces `peer`.
pub(super) fn announcement(peer: &Peer) -> Vec<u8> {
    let announcement = Announcement {
        zone_id: Some(peer.zone_id.clone()),
        ip: Some(peer.ip.clone()),
        pg_url: Some(peer.pg_url.clone()),
        backup_url: Some(peer.backup_url.clone()),
    };
    // A struct of strings always serialises.
    serde_json::to_vec(&announcement).unwrap_or_default()
}

/// Peer and sequence of the election node `name`; none if it is not one.
pub(super) fn election_node(name: &str) -> Option<(PeerId, u64)> {
    let (id, sequence) = name.rsplit_once('-')?;
    Some((id.parse().ok()?, sequence.parse().ok()?))
}

/// The peer that the election node `name` with content `data` announces. What is missing or
/// unreadable in the content is derived from the id.
pub(super) fn active_peer(name: &str, data: &[u8]) -> Option<ActivePeer> {
    let (id, sequence) = election_node(name)?;
    let announcement: Announcement = serde_json::from_slice(data).unwrap_or_default();
    let derived = Peer::new(id, id.to_string());
    let peer = Peer {
        zone_id: announcement.zone_id.unwrap_or(derived.zone_id),
        ip: announcement.ip.unwrap_or(derived.ip),
        pg_url: announcement.pg_url.unwrap_or(derived.pg_url),
        backup_url: announcement.backup_url.unwrap_or(derived.backup_url),
        ..derived
    };
    Some(ActivePeer { sequence, peer })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements_round_trip() {
        let id: PeerId = "10.0.0.1:5432:12345".parse().expect("id");
        let peer = Peer::new(id, "db1");
        let active = active_peer("10.0.0.1:5432:12345-0000000007", &announcement(&peer));
        assert_eq!(active, Some(ActivePeer { sequence: 7, peer }));
    }

    #[test]
    fn what_is_missing_is_derived() {
        let id: PeerId = "[fd00::1]:5432:12345".parse().expect("id");
        for (data, zone) in
            [("{\"zoneId\":\"db1\"}", "db1"), ("not json", "[fd00::1]:5432:12345"), ("", &id.to_string())]
        {
            let active = active_peer("[fd00::1]:5432:12345-0000000001", data.as_bytes()).expect("a peer");
            assert_eq!(active.peer, Peer::new(id, zone));
        }
        assert_eq!(active_peer("lock-0000000001", b"{}"), None);
    }
}
