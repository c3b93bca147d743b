//! The cluster state: what ZooKeeper's `state` node says about a shard, in Manatee 2's JSON.
//!
//! Parsing validates: a [`ClusterState`] in hand obeys [`invariants::check_state`]. Fields this
//! version does not know are kept and written back.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::ids::PeerId;
use crate::invariants::{self, Violation};
use crate::lsn::{Lsn, Timeline, WalPosition};

/// A peer as the state and the election nodes list it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Identity; everything else can be derived from it.
    pub id: PeerId,
    /// Name for people (Manatee 2: the zone's UUID); defaults to the id.
    pub zone_id: String,
    /// Address as text, kept as written.
    pub ip: String,
    /// `tcp://postgres@IP:PORT/postgres`.
    pub pg_url: String,
    /// `http://IP:PORT` of the sitter's API.
    pub backup_url: String,
    /// Fields of other versions.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Peer {
    /// The peer that `id` describes, its URLs derived.
    pub fn new(id: PeerId, zone_id: impl Into<String>) -> Self {
        let host = match id.ip {
            std::net::IpAddr::V4(ip) => ip.to_string(),
            std::net::IpAddr::V6(ip) => format!("[{ip}]"),
        };
        Self {
            id,
            zone_id: zone_id.into(),
            ip: id.ip.to_string(),
            pg_url: format!("tcp://postgres@{host}:{}/postgres", id.pg_port),
            backup_url: format!("http://{host}:{}", id.backup_port),
            extra: Map::new(),
        }
    }
}

/// An operator's stop to all topology changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Freeze {
    /// Manatee 2's short form. `false` means not frozen.
    Flag(bool),
    /// With date and reason.
    Reason {
        /// Moment, ISO-8601.
        date: String,
        /// Reason, in the operator's words.
        reason: String,
    },
}

/// Role a `promote` request speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromoteRole {
    /// The sync is to become primary.
    Sync,
    /// The async at `asyncIndex` is to move one place up.
    Async,
}

impl Freeze {
    /// A freeze made at `now` because of `reason`.
    pub fn because(now: Timestamp, reason: impl Into<String>) -> Self {
        Self::Reason { date: format!("{now:.3}"), reason: reason.into() }
    }
}

/// An operator's request to promote a peer. Ignored when anything in it no longer matches the
/// state, or when it has expired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Promote {
    /// The peer to promote.
    pub id: PeerId,
    /// Its role when the request was made.
    pub role: PromoteRole,
    /// Its place among the asyncs, for role async.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub async_index: Option<usize>,
    /// Generation the request was made in.
    pub generation: u64,
    /// Moment at which the request lapses.
    pub expire_time: Timestamp,
}

/// Key among the extra fields: an operator asked for the end of one-node-write mode.
const LEAVES_ONE_NODE_WRITE: &str = "oneNodeWriteModeEnds";

/// Key among the extra fields: the `expireTime` of the request to promote the sync for which the
/// primary's clients have come to rest.
const DRAINED: &str = "drainedFor";

/// Key among the extra fields: the generation that an operator began by restoring a lost state.
const RESTORED: &str = "restoredGeneration";

/// State of a shard, valid by construction when it came from [`ClusterState::parse`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterState {
    /// Number of the current (primary, sync) pair; from 1.
    pub generation: u64,
    /// The one peer that may acknowledge writes.
    pub primary: Peer,
    /// The peer that must have each write before it is acknowledged; none only in one-node-write mode.
    #[serde(rename = "sync")]
    pub sync_peer: Option<Peer>,
    /// Further peers in replication order.
    #[serde(rename = "async", default)]
    pub async_peers: Vec<Peer>,
    /// Former primaries that must be rejoined before they serve again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deposed: Vec<Peer>,
    /// Position of the primary when the generation began.
    pub init_wal: Lsn,
    /// Timeline of `init_wal`. Absent in states written by Manatee 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_wal_timeline: Option<Timeline>,
    /// Operator's stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<Freeze>,
    /// A lone primary accepts writes with no sync.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub one_node_write_mode: bool,
    /// Pending request of an operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promote: Option<Promote>,
    /// PostgreSQL's system identifier, the same in all of a shard's data directories (rule 10).
    /// A string, because it exceeds what JSON numbers carry. Absent in states of Manatee 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_identifier: Option<String>,
    /// Reason for replacing the state before, for the history and for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Fields of other versions.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Reason why a text is not a valid state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Not JSON of the expected shape.
    #[error("the cluster state is not readable")]
    Json(#[from] serde_json::Error),
    /// Readable, but contradicts the rules.
    #[error("the cluster state contradicts itself: {}", invariants::join(.0))]
    Invalid(Vec<Violation>),
}

/// A peer's place in the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "role", content = "index")]
pub enum Role {
    /// Acknowledges writes.
    Primary,
    /// Must have each write before it is acknowledged.
    Sync,
    /// Follows, at this place among the asyncs (from 0).
    Async(usize),
    /// Former primary, to be rejoined.
    Deposed,
    /// Not listed.
    Unassigned,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Primary => "primary",
            Self::Sync => "sync",
            Self::Async(_) => "async",
            Self::Deposed => "deposed",
            Self::Unassigned => "unassigned",
        })
    }
}

impl ClusterState {
    /// Reads and validates the bytes of the `state` node (or of a history entry).
    pub fn parse(bytes: &[u8]) -> Result<Self, StateError> {
        let state: Self = serde_json::from_slice(bytes)?;
        let violations = invariants::check_state(&state);
        if violations.is_empty() { Ok(state) } else { Err(StateError::Invalid(violations)) }
    }

    /// The JSON to write.
    pub fn to_json(&self) -> Vec<u8> {
        // A struct of strings, numbers and string-keyed maps always serialises.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Role of `id`. A peer listed as deposed and elsewhere is a [`Violation`].
    pub fn role_of(&self, id: PeerId) -> Role {
        if self.primary.id == id {
            Role::Primary
        } else if self.sync_peer.as_ref().is_some_and(|peer| peer.id == id) {
            Role::Sync
        } else if let Some(index) = self.async_peers.iter().position(|peer| peer.id == id) {
            Role::Async(index)
        } else if self.deposed.iter().any(|peer| peer.id == id) {
            Role::Deposed
        } else {
            Role::Unassigned
        }
    }

    /// Primary, sync and asyncs in replication order: node-manatee's `topology`.
    pub fn chain(&self) -> impl Iterator<Item = &Peer> {
        std::iter::once(&self.primary).chain(&self.sync_peer).chain(&self.async_peers)
    }

    /// Everyone listed, the deposed last.
    pub fn everyone(&self) -> impl Iterator<Item = &Peer> {
        self.chain().chain(&self.deposed)
    }

    /// Whether an operator stopped topology changes.
    pub fn is_frozen(&self) -> bool {
        !matches!(self.freeze, None | Some(Freeze::Flag(false)))
    }

    /// Whether an operator asked for the end of one-node-write mode: other peers may then come in,
    /// and the primary takes the first that is fit for its sync.
    pub fn leaves_one_node_write_mode(&self) -> bool {
        self.one_node_write_mode && self.extra.get(LEAVES_ONE_NODE_WRITE) == Some(&Value::Bool(true))
    }

    /// Asks for the end of one-node-write mode, or takes that back.
    pub fn set_leaves_one_node_write_mode(&mut self, leaves: bool) {
        if leaves {
            self.extra.insert(LEAVES_ONE_NODE_WRITE.to_owned(), Value::Bool(true));
        } else {
            self.extra.remove(LEAVES_ONE_NODE_WRITE);
        }
    }

    /// The request to promote the sync, while nothing in this state speaks against it. Whether it
    /// has lapsed is for those with a clock to say. While there is one, proxies admit no new
    /// transactions to the primary, for a bounded time.
    pub fn hand_over(&self) -> Option<&Promote> {
        let stands = |promote: &&Promote| {
            promote.role == PromoteRole::Sync
                && promote.generation == self.generation
                && self.role_of(promote.id) == Role::Sync
        };
        let possible = !self.is_frozen() && !self.one_node_write_mode && !self.async_peers.is_empty();
        self.promote.as_ref().filter(stands).filter(|_| possible)
    }

    /// Whether the primary has said that its clients are at rest, for the present hand-over.
    pub fn is_drained(&self) -> bool {
        let drained = self.extra.get(DRAINED).and_then(Value::as_str);
        self.hand_over().is_some_and(|promote| drained == Some(promote.expire_time.to_string().as_str()))
    }

    /// Says so.
    pub fn mark_drained(&mut self) {
        if let Some(promote) = self.hand_over() {
            let request = promote.expire_time.to_string();
            self.extra.insert(DRAINED.to_owned(), request.into());
        }
    }

    /// Removes the request to promote and what was said about it.
    pub fn end_request(&mut self) {
        self.promote = None;
        self.extra.remove(DRAINED);
    }

    /// Whether this state's generation was begun by an operator, in place of a state that was lost.
    pub fn is_restored(&self) -> bool {
        self.extra.get(RESTORED).and_then(Value::as_u64) == Some(self.generation)
    }

    /// Says that the present generation was begun by an operator, in place of a state that was lost.
    pub fn mark_restored(&mut self) {
        self.extra.insert(RESTORED.to_owned(), self.generation.into());
    }

    /// `init_wal` with its timeline, where the state knows it.
    pub fn init_position(&self) -> Option<WalPosition> {
        self.init_wal_timeline.map(|timeline| WalPosition { timeline, lsn: self.init_wal })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANATEE2: &str = r#"{"generation":3,
        "primary":{"id":"10.0.0.1:5432:12345","zoneId":"bb348824","ip":"10.0.0.1","pgUrl":"tcp://postgres@10.0.0.1:5432/postgres","backupUrl":"http://10.0.0.1:12345"},
        "sync":{"id":"10.0.0.2:5432:12345","zoneId":"a376df2b","ip":"10.0.0.2","pgUrl":"tcp://postgres@10.0.0.2:5432/postgres","backupUrl":"http://10.0.0.2:12345"},
        "async":[],"initWal":"0/671FEDF8","somebodyElses":{"field":1}}"#;

    #[test]
    fn manatee2_state_is_read_and_unknown_fields_are_written_back() {
        let state = ClusterState::parse(MANATEE2.as_bytes()).expect("valid");
        assert_eq!((state.generation, state.init_wal), (3, Lsn(0x671F_EDF8)));
        assert!(!state.is_frozen());
        let before: Value = serde_json::from_str(MANATEE2).expect("json");
        let after: Value = serde_json::from_slice(&state.to_json()).expect("json");
        assert_eq!(before, after);
    }

    #[test]
    fn freeze_has_three_spellings() {
        for (text, frozen) in
            [("false", false), ("true", true), (r#"{"date":"2026-01-01T00:00:00Z","reason":"move"}"#, true)]
        {
            let json = MANATEE2.replacen("\"async\"", &format!("\"freeze\":{text},\"async\""), 1);
            assert_eq!(ClusterState::parse(json.as_bytes()).expect("valid").is_frozen(), frozen);
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let twice = MANATEE2.replace("10.0.0.2:5432:12345", "10.0.0.1:5432:12345");
        assert!(matches!(ClusterState::parse(twice.as_bytes()), Err(StateError::Invalid(_))));
        let no_sync = MANATEE2.replacen("\"sync\":{", "\"sync\":null,\"x\":{", 1);
        assert!(matches!(ClusterState::parse(no_sync.as_bytes()), Err(StateError::Invalid(_))));
        assert!(matches!(ClusterState::parse(b"{"), Err(StateError::Json(_))));
    }

    mod any {
        use super::super::*;
        use proptest::prelude::*;

        fn peers() -> impl Strategy<Value = Vec<Peer>> {
            let peer = (any::<std::net::IpAddr>(), 1u16.., 1u16.., "[ -~]{0,12}", unknown());
            let peer = peer.prop_map(|(ip, pg_port, backup_port, zone, extra)| Peer {
                extra,
                ..Peer::new(PeerId { ip, pg_port, backup_port }, zone)
            });
            prop::collection::vec(peer, 2..8).prop_map(|mut peers| {
                peers.sort_by_key(|peer| peer.id);
                peers.dedup_by_key(|peer| peer.id);
                peers
            })
        }

        /// Fields of other versions: anything JSON, under names that are nobody's.
        fn unknown() -> impl Strategy<Value = Map<String, Value>> {
            let leaf = prop_oneof![
                Just(Value::Null),
                any::<bool>().prop_map(Value::from),
                any::<i64>().prop_map(Value::from),
                ".{0,8}".prop_map(Value::from),
            ];
            let value = leaf.prop_recursive(2, 8, 3, |inner| {
                prop_oneof![
                    prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                    prop::collection::btree_map(".{0,4}", inner, 0..3)
                        .prop_map(|map| Value::Object(map.into_iter().collect())),
                ]
            });
            prop::collection::btree_map("x-[a-zA-Z]{1,8}", value, 0..3).prop_map(|map| map.into_iter().collect())
        }

        fn states() -> impl Strategy<Value = ClusterState> {
            let freeze = prop_oneof![
                Just(None),
                any::<bool>().prop_map(|flag| Some(Freeze::Flag(flag))),
                (".{0,9}", ".{0,9}").prop_map(|(date, reason)| Some(Freeze::Reason { date, reason })),
            ];
            let rest = (1u64.., any::<u64>(), any::<Option<u32>>(), freeze, any::<Option<u32>>(), unknown());
            (peers(), 0usize..4, rest).prop_filter_map("two peers", |(mut peers, deposed, rest)| {
                let (generation, lsn, timeline, freeze, index, extra) = rest;
                let deposed = peers.split_off(peers.len().saturating_sub(deposed).max(2).min(peers.len()));
                let mut chain = peers.into_iter();
                let (primary, sync_peer) = (chain.next()?, chain.next()?);
                let promote = index.map(|index| Promote {
                    id: sync_peer.id,
                    role: if index % 2 == 0 { PromoteRole::Sync } else { PromoteRole::Async },
                    async_index: (index % 2 == 1).then_some(index as usize),
                    generation,
                    expire_time: Timestamp::UNIX_EPOCH,
                });
                Some(ClusterState {
                    generation,
                    primary,
                    sync_peer: Some(sync_peer),
                    async_peers: chain.collect(),
                    deposed,
                    init_wal: Lsn(lsn),
                    init_wal_timeline: timeline.map(Timeline),
                    freeze,
                    one_node_write_mode: false,
                    promote,
                    system_identifier: timeline.map(|timeline| timeline.to_string()),
                    reason: None,
                    extra,
                })
            })
        }

        proptest! {
            #[test]
            fn state_is_read_back_as_written(state in states()) {
                prop_assert_eq!(ClusterState::parse(&state.to_json()).map_err(|error| error.to_string()), Ok(state));
            }

            #[test]
            fn no_bytes_make_parsing_panic(bytes: Vec<u8>) {
                let _ = ClusterState::parse(&bytes);
            }
        }
    }
}
