//! Whether this peer's data may be given to others.

use manatee_shared::cluster::Role;
use manatee_shared::zk::Session;

use crate::driver::status::Status;
use crate::machine::local::{Data, Server};

/// Reason why this peer's data must not be copied now, by a peer of the cluster `system`; None if it may.
///
/// It must be known to be the shard's: of a peer in the chain that produces or streams. A primary that can
/// not see ZooKeeper may have been deposed.
pub(super) fn problem(status: &Status, system: &str) -> Option<String> {
    let Data::Present(ours) = &status.report.local.data else {
        return Some("this peer has no complete data".to_owned());
    };
    if ours.0 != system {
        return Some(format!("its system identifier is {}, {system} was asked for", ours.0));
    }
    if status.report.stopping {
        return Some("this peer is stopping".to_owned());
    }
    match (&status.role, &status.report.local.server) {
        (Role::Deposed | Role::Unassigned, _) => Some(format!("this peer is {}", status.role)),
        (Role::Primary, Server::Primary(_)) if status.report.zk.session == Session::Connected => None,
        (Role::Primary, Server::Primary(_)) => Some("this peer is primary, but ZooKeeper does not answer".to_owned()),
        (Role::Sync | Role::Async(_), Server::Standby(standby)) if standby.streaming => None,
        (Role::Sync | Role::Async(_), Server::Standby(_)) => Some(format!("this {} does not stream", status.role)),
        _ => Some(format!("this peer's PostgreSQL does not serve as {}", status.role)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use manatee_shared::cluster::Peer;

    use super::*;
    use crate::driver::status::samples::{primary, standby};
    use crate::machine::local::SystemIdentifier;

    #[test]
    fn only_the_shards_own_data_is_given() {
        let down = || Server::Down { crashed: false, standby: true };
        let me = Peer::new("10.0.0.1:5432:12345".parse().unwrap(), "a");
        let mut status = Status::nothing(me, "demo".parse().unwrap(), Instant::now());
        assert!(problem(&status, "7").is_some(), "no data");
        status.report.local.data = Data::Present(SystemIdentifier("7".to_owned()));
        status.report.zk.session = Session::Connected.into();
        for (role, server, fit) in [
            (Role::Primary, primary(), true),
            (Role::Sync, standby(true), true),
            (Role::Async(1), standby(true), true),
            (Role::Async(1), standby(false), false),
            (Role::Async(0), down(), false),
            (Role::Sync, primary(), false),
            (Role::Primary, standby(true), false),
            (Role::Deposed, standby(true), false),
            (Role::Unassigned, standby(true), false),
        ] {
            (status.role, status.report.local.server) = (role, server);
            assert_eq!(problem(&status, "7").is_none(), fit, "{role:?} {:?}", status.report.local.server);
            assert!(problem(&status, "8").is_some(), "another cluster's");
        }
        (status.role, status.report.local.server) = (Role::Primary, primary());
        status.report.zk.session = Session::Disconnected.into();
        assert!(problem(&status, "7").is_some(), "it may be deposed");
        (status.role, status.report.local.server, status.report.stopping) = (Role::Async(0), standby(true), true);
        assert!(problem(&status, "7").is_some(), "stopping");
    }
}
