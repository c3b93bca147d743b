//! Heartbeats without their I/O: what a peer says of itself, and the table of what was heard from all.

pub mod table;

use std::collections::BTreeSet;
use std::time::Duration;

use manatee_shared::ids::PeerId;
use serde::{Deserialize, Serialize};

use crate::machine::local::{Data, EndOfWal};

/// The answer to `GET /heartbeat`: a peer's own word about itself. Fields of newer versions are
/// ignored, missing ones defaulted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// Who answers: an address may have been given to another peer.
    pub id: PeerId,
    /// It was asked to stop.
    #[serde(default)]
    pub stopping: bool,
    /// Its PostgreSQL cannot commit, or is down, for this many milliseconds.
    #[serde(default)]
    pub postgres_down_ms: Option<u64>,
    /// What a takeover would need of it has failed when it was tried, for this many milliseconds. Only what another
    /// peer may have in order.
    #[serde(default)]
    pub unready_ms: Option<u64>,
    /// The peers it finds gone itself.
    #[serde(default)]
    pub suspects: BTreeSet<PeerId>,
    /// Its data directory: a shard is set up anew only by peers without data (rule 8).
    #[serde(default)]
    pub data: Option<Data>,
    /// Its PostgreSQL is a primary, or a standby that streams.
    #[serde(default)]
    pub streaming: Option<bool>,
    /// The generation of the state it last read.
    #[serde(default)]
    pub generation: Option<u64>,
    /// It is the primary, and its disk came back older than it was.
    #[serde(default)]
    pub older: bool,
    /// How far its WAL goes on disk: a peer whose disk came back older learns from it that others have more.
    #[serde(default)]
    pub wal: Option<EndOfWal>,
    /// The highest generation that it, or its predecessors over the same data, ever saw.
    #[serde(default)]
    pub newest_generation: Option<u64>,
}

/// How often and how patiently peers are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between two questions to one peer.
    pub interval: Duration,
    /// Silence after which a peer is suspected. Also bounds each connect and each request, so
    /// that a host that died holds up nothing for longer.
    pub suspicion: Duration,
}
