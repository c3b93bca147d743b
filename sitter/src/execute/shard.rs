//! Steps on ZooKeeper. Each operation bounds itself; a write goes on to be settled by the client even
//! if we stop waiting for it.

use std::time::Duration;

use manatee_shared::cluster::{ClusterState, Peer};
use manatee_shared::zk::{Coordination, Over, StateNode, View, ZkError};

use super::{StepOutcome, StepProblem};
use crate::machine::action::ShardAction;

/// Longest time for our own view to lag behind what we did. Deciding from an older one is harmless (the
/// compare-and-set fails) but noisy.
const SEEN_WITHIN: Duration = Duration::from_secs(1);

/// Does one.
pub(super) async fn execute(
    zk: &dyn Coordination,
    me: &Peer,
    action: &ShardAction,
) -> Result<StepOutcome, StepProblem> {
    match action {
        ShardAction::WriteState { over, state } => write(zk, *over, state).await?,
        ShardAction::JoinElection => {
            zk.join(me.clone()).await?;
            seen(zk, |view| view.active.contains_key(&me.id)).await;
        }
        ShardAction::LeaveElection => {
            zk.leave().await?;
            seen(zk, |view| !view.active.contains_key(&me.id)).await;
        }
    }
    Ok(StepOutcome::Done)
}

/// Writes a state and waits until our own view shows it or a newer one.
async fn write(zk: &dyn Coordination, over: Over, state: &ClusterState) -> Result<(), ZkError> {
    let written = zk.write_state(over, state).await?;
    seen(zk, |view| match &view.state {
        StateNode::Valid { version, .. } | StateNode::Corrupt { version, .. } => *version >= written,
        StateNode::Unread | StateNode::Absent => false,
    })
    .await;
    Ok(())
}

async fn seen(zk: &dyn Coordination, condition: impl FnMut(&View) -> bool) {
    let mut view = zk.view();
    // Cancel-safe; what a time-out means is said at the constant.
    let _ = tokio::time::timeout(SEEN_WITHIN, view.wait_for(condition)).await;
}
