//! `manatee-adm freeze` and `unfreeze`.

use anyhow::bail;
use clap::Args;
use jiff::Timestamp;
use manatee_shared::cluster::{ClusterState, Freeze};

use super::connect::Connection;
use super::{Outcome, print};

/// Options of `freeze`.
#[derive(Debug, Args)]
pub struct FreezeArguments {
    #[command(flatten)]
    connection: Connection,
    /// Reason, for whoever finds the shard frozen
    #[arg(short, long, value_name = "TEXT")]
    reason: String,
}

/// Options of `unfreeze`.
#[derive(Debug, Args)]
pub struct UnfreezeArguments {
    #[command(flatten)]
    connection: Connection,
}

/// Stops all changes of topology.
pub async fn freeze(arguments: FreezeArguments, outer: &Connection) -> anyhow::Result<Outcome> {
    let shard = arguments.connection.open(outer).await?;
    shard.change(|state| frozen(state, &arguments.reason, Timestamp::now())).await?;
    print("frozen: no role changes until `manatee-adm unfreeze`, not even if a peer is lost\n")?;
    shard.close().await;
    Ok(Outcome::Fine)
}

/// Lets changes of topology happen again.
pub async fn unfreeze(arguments: UnfreezeArguments, outer: &Connection) -> anyhow::Result<Outcome> {
    let shard = arguments.connection.open(outer).await?;
    shard.change(unfrozen).await?;
    print("not frozen any more: what was due meanwhile happens now\n")?;
    shard.close().await;
    Ok(Outcome::Fine)
}

/// Time and reason of the freeze of `state`, for messages.
pub(super) fn told(state: &ClusterState) -> Option<String> {
    match &state.freeze {
        Some(Freeze::Reason { date, reason }) => Some(format!("since {date}: {reason}")),
        Some(Freeze::Flag(true)) => Some("without a reason given".to_owned()),
        Some(Freeze::Flag(false)) | None => None,
    }
}

fn frozen(state: &ClusterState, reason: &str, now: Timestamp) -> anyhow::Result<ClusterState> {
    if let Some(told) = told(state) {
        bail!("the shard is frozen already, {told}");
    }
    let reason = reason.trim();
    if reason.is_empty() {
        bail!("--reason is empty; say why, for whoever finds the shard frozen");
    }
    let freeze = Some(Freeze::because(now, reason));
    Ok(ClusterState { freeze, reason: Some(format!("frozen by an operator: {reason}")), ..state.clone() })
}

fn unfrozen(state: &ClusterState) -> anyhow::Result<ClusterState> {
    if state.one_node_write_mode {
        bail!("the freeze belongs to one-node-write mode; leave that with `manatee-adm set-onwm -m off`");
    }
    if !state.is_frozen() {
        bail!("the shard is not frozen");
    }
    Ok(ClusterState { freeze: None, reason: Some("unfrozen by an operator".to_owned()), ..state.clone() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::super::cluster::samples::healthy;
    use super::*;
    use manatee_shared::invariants::check_transition;

    #[test]
    fn there_and_back() {
        let state = (*healthy().state).clone();
        let now = Timestamp::from_millisecond(1_767_225_600_000).unwrap();
        let cold = frozen(&state, "new disks ", now).unwrap();
        let expected = Freeze::Reason { date: "2026-01-01T00:00:00.000Z".to_owned(), reason: "new disks".to_owned() };
        assert_eq!(cold.freeze, Some(expected));
        assert_eq!(check_transition(Some(&state), &cold), []);
        assert_eq!(
            frozen(&cold, "x", now).unwrap_err().to_string(),
            "the shard is frozen already, since 2026-01-01T00:00:00.000Z: new disks"
        );
        let warm = unfrozen(&cold).unwrap();
        assert_eq!((warm.freeze.clone(), check_transition(Some(&cold), &warm)), (None, vec![]));
        assert!(unfrozen(&warm).unwrap_err().to_string().contains("not frozen"));
        assert!(frozen(&state, " ", now).unwrap_err().to_string().contains("--reason is empty"));
        let alone = ClusterState { one_node_write_mode: true, ..cold };
        assert!(unfrozen(&alone).unwrap_err().to_string().contains("set-onwm -m off"));
    }
}
