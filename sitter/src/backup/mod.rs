//! Copies of data between peers, and what is told of them.
//!
//! A peer that needs data pulls it, over one authenticated HTTP connection, from the API of a peer
//! that is fit to give it; nothing is ever dialled back.
//!
//! `POST /backup` (needs the token) with a [`Wish`] as JSON is answered by
//! - 200 and the stream of `zfs send`, with [`headers`] that say what it is. A body that ends without the
//!   end that HTTP's framing gives it is a broken stream: the sender's failure is the receiver's.
//! - 409: this peer is not fit to be copied, and why. 503: it serves as many as it may. Ask another.
//! - 410: what was to be resumed is gone: begin anew.
//! - 501: this peer's storage has no streams: use `pg_basebackup`.
//!
//! What operators see of a copy to this peer is in [`progress`].

pub mod client;
pub mod progress;

use manatee_shared::ids::PeerId;
use serde::{Deserialize, Serialize};

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

/// What a peer asks another one for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wish {
    /// Who asks.
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
