//! Copies of data between peers, and what is told of them.
//!
//! A peer that needs data pulls it, over one authenticated HTTP connection, from the API of a peer
//! that is fit to give it; nothing is ever dialled back.
//!
//! `POST /backup` (needs the token) with a [`StreamRequest`] as JSON is answered by
//! - 200 and the stream of `zfs send`, with [`headers`] that say what it is. A body that ends without the
//!   end that HTTP's framing gives it is a broken stream: the sender's failure is the receiver's.
//! - 409: this peer is not fit to be copied, and why. 503: it serves as many as it may. Ask another.
//! - 410: what was to be resumed is gone: begin anew.
//! - 501: this peer's storage has no streams: use `pg_basebackup`.
//!
//! Progress of a copy to this peer, for operators, is in [`super::progress`].

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use manatee_shared::ids::PeerId;
use serde::{Deserialize, Serialize};

use crate::machine::local::SystemIdentifier;

/// Names of the answer's headers.
pub mod headers {
    /// The dataset that is sent.
    pub const DATASET: &str = "manatee-dataset";
    /// Identity (guid) of the snapshot that is sent.
    pub const SNAPSHOT: &str = "manatee-snapshot";
    /// Identity of the snapshot that it builds upon; absent: it is complete in itself.
    pub const BASE: &str = "manatee-base";
    /// Estimate of the stream's bytes, if there is one.
    pub const SIZE: &str = "manatee-size";
}

/// A moment of the data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Milliseconds since 1970, 13 digits.
    pub name: String,
    /// Identity of its contents, the same in every copy.
    pub guid: u64,
}

/// A stream that a peer asks another one for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamRequest {
    /// Peer that asks.
    pub peer: PeerId,
    /// The cluster that it belongs to.
    pub system_identifier: String,
    /// Snapshots that it has: the stream may build upon one of them.
    #[serde(default)]
    pub snapshots: Vec<Snapshot>,
    /// The interrupted stream that it has the beginning of (`receive_resume_token`).
    #[serde(default)]
    pub resume: Option<String>,
    /// Its ZFS understands what OpenZFS 2.x adds to streams.
    #[serde(default)]
    pub open_zfs: bool,
}

/// Storage of the data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StorageSettings {
    /// Plain folders.
    #[default]
    Directory,
    /// ZFS.
    Zfs {
        /// The dataset below which everything is.
        dataset: String,
        /// Its properties.
        properties: BTreeMap<String, String>,
    },
}

/// Source of a copy: the peer and its data.
#[derive(Clone, Debug)]
pub struct Source {
    /// The peer.
    pub peer: PeerId,
    /// Replication slot there that keeps the WAL which the copy will need.
    pub slot: String,
    /// The cluster that it must be a copy of.
    pub system: SystemIdentifier,
    /// Whether what is here may be built upon; else everything is copied.
    pub incremental: bool,
    /// Further parameters of libpq for its PostgreSQL.
    pub conninfo: String,
    /// Places of its tablespaces.
    pub tablespaces: Vec<PathBuf>,
}

/// Fate of a snapshot: why it is not there any more, or still is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destroyed {
    /// It is gone.
    Gone,
    /// A transfer, or data made from it, needs it.
    InUse,
}

/// A stream being sent. Dropping it ends that, and gives up what is held for it.
pub struct Outgoing {
    /// Dataset that is sent.
    pub dataset: String,
    /// The snapshot that the other side will have.
    pub snapshot: Snapshot,
    /// The one of theirs that it builds upon.
    pub base: Option<Snapshot>,
    /// Estimate of its bytes.
    pub size: Option<u64>,
    /// Its pieces; an error as the last one if it is not complete.
    pub stream: BoxStream<'static, io::Result<Bytes>>,
}
