//! Hosts that are cut off, from everybody or from some.

use anyhow::Result;
use manatee_shared::cluster::Role;

use super::{Needs, Row};
use crate::scenario::{Change, Clients, Play, Stage};

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row {
        number: 10,
        fault: "primary isolated from all",
        needs: Needs::NETWORK,
        write_gap_s: None,
        plays: &[ISOLATE_PRIMARY],
    },
    Row {
        number: 11,
        fault: "sync isolated",
        needs: Needs::NETWORK,
        write_gap_s: None,
        plays: &[Play {
            name: "the sync's host is cut off from everybody",
            clients: Clients::MayFail,
            script: |stage| Box::pin(isolate(stage, Role::Sync, Change::NewSync)),
        }],
    },
];

/// Row 10.
pub const ISOLATE_PRIMARY: Play = Play {
    name: "the primary's host is cut off from everybody",
    clients: Clients::MayFail,
    script: |stage| Box::pin(isolate(stage, Role::Primary, Change::Takeover)),
};

async fn isolate(stage: &mut Stage<'_>, role: Role, change: Change) -> Result<()> {
    let host = stage.host(role)?;
    stage.begin("cut off", host);
    stage.lab.cut(host)?;
    stage.expect(change).await?;
    stage.served().await
}
