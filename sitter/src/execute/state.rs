//! Steps on ZooKeeper. Each operation bounds itself; a write goes on to be settled by the client even
//! if we stop waiting for it.

use std::time::Duration;

use manatee_shared::cluster::{ClusterState, Peer};
use manatee_shared::ids::PeerId;
use manatee_shared::zk::{Coordination, Over, StateNode, View};

use super::{Outcome, Problem};

/// How long our own view may lag behind what we did. Deciding from an older one is harmless (the
/// compare-and-set fails) but noisy.
const SEEN_WITHIN: Duration = Duration::from_secs(1);

/// Writes a state and waits until our own view shows it or a newer one.
pub(super) async fn write(zk: &dyn Coordination, over: Over, state: &ClusterState) -> Result<Outcome, Problem> {
    let written = zk.write_state(over, state).await?;
    seen(zk, |view| match &view.state {
        StateNode::Valid { version, .. } | StateNode::Corrupt { version, .. } => *version >= written,
        StateNode::Unread | StateNode::Absent => false,
    })
    .await;
    Ok(Outcome::Done)
}

/// Announces us.
pub(super) async fn join(zk: &dyn Coordination, me: &Peer) -> Result<Outcome, Problem> {
    zk.join(me.clone()).await?;
    seen(zk, |view| view.active.contains_key(&me.id)).await;
    Ok(Outcome::Done)
}

/// Withdraws us.
pub(super) async fn leave(zk: &dyn Coordination, me: PeerId) -> Result<Outcome, Problem> {
    zk.leave().await?;
    seen(zk, |view| !view.active.contains_key(&me)).await;
    Ok(Outcome::Done)
}

async fn seen(zk: &dyn Coordination, condition: impl FnMut(&View) -> bool) {
    let mut view = zk.view();
    // Cancel-safe; what a time-out means is said at the constant.
    let _ = tokio::time::timeout(SEEN_WITHIN, view.wait_for(condition)).await;
}
