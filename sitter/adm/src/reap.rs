//! `manatee-adm reap`.

use anyhow::bail;
use clap::Args;
use manatee_shared::cluster::{ClusterState, Peer, Role};
use manatee_shared::zk::Coordination;

use super::cluster::Cluster;
use super::connect::Connection;
use super::{Outcome, print};

/// Options.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// Address of the peer
    #[arg(short, long, value_name = "ADDRESS", required_unless_present = "name", conflicts_with = "name")]
    ip: Option<String>,
    /// Name of the peer, or its beginning
    #[arg(short, long)]
    name: Option<String>,
}

/// Removes a peer that is gone for good from the deposed.
pub async fn run(arguments: Arguments, outer: &Connection) -> anyhow::Result<Outcome> {
    let shard = arguments.connection.open(outer).await?;
    let cluster = Cluster::from_zookeeper(&shard)?;
    let named = arguments.ip.or(arguments.name).unwrap_or_default();
    let (role, peer) = cluster.find(&named)?;
    if role != Role::Deposed {
        bail!("{} is {role}, not deposed: only deposed peers are removed by hand", peer.zone_id);
    }
    let registered = |peer: &Peer| shard.coordination.view().borrow().active.contains_key(&peer.id);
    shard.change(|state| reaped(state, peer, registered(peer))).await?;
    print(&format!("{} is not listed any more; if it ever returns, it joins as a new async\n", peer.zone_id))?;
    shard.close().await;
    Ok(Outcome::Fine)
}

fn reaped(state: &ClusterState, peer: &Peer, registered: bool) -> anyhow::Result<ClusterState> {
    if state.role_of(peer.id) != Role::Deposed {
        bail!("{} is {} now, not deposed any more", peer.zone_id, state.role_of(peer.id));
    }
    if registered {
        bail!(
            "{} is not gone: its sitter is registered and brings it back by itself; see `manatee-adm explain`, \
             or stop that sitter first",
            peer.zone_id
        );
    }
    let mut new = state.clone();
    new.deposed.retain(|deposed| deposed.id != peer.id);
    new.reason = Some(format!("{} was removed from the deposed by an operator", peer.id));
    Ok(new)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::super::cluster::samples::*;
    use super::*;
    use manatee_shared::invariants::check_transition;

    #[test]
    fn only_the_gone_are_removed() {
        let cluster = with_state(|state| state.deposed = vec![peer(4), peer(5)]);
        let new = reaped(&cluster.state, &peer(4), false).unwrap();
        assert_eq!(new.deposed, [peer(5)]);
        assert_eq!(check_transition(Some(&cluster.state), &new), []);
        assert!(reaped(&cluster.state, &peer(4), true).unwrap_err().to_string().contains("is not gone"));
        assert!(reaped(&cluster.state, &peer(3), false).unwrap_err().to_string().contains("is async now"));
    }
}
