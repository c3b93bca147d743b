//! The last look at the newest state before a step that lets this peer acknowledge writes, or that
//! overwrites data. The decision was right when it was made; this is for what changed since.
//!
//! It narrows the window, it does not carry safety: that rests on the compare-and-set of the state
//! and on who must acknowledge (design §2, rule 6).

use manatee_shared::cluster::Role;
use manatee_shared::ids::PeerId;
use manatee_shared::zk::{Session, StateNode, View};

use crate::machine::action::{Action, DataAction, ServerAction};
use crate::machine::local::{Recovery, ServerConfig};

/// Reason why a step must not be taken any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fenced {
    /// Only the state's primary may.
    #[error("not done: the newest state makes this peer {role}, not primary")]
    NotPrimary {
        /// Role that it gives us.
        role: Role,
    },
    /// A primary's data is the shard's.
    #[error("not done: the newest state makes this peer primary; its data must stay")]
    IsPrimary,
    /// Only a shard that certainly has no state is set up.
    #[error("not done: it is not certain that this shard never had a state")]
    NotNew,
}

/// Whether `action` may be taken, given the newest view.
pub fn check(action: &Action, zk: &View, me: PeerId) -> Result<(), Fenced> {
    let role = zk.state.valid().map(|(_, state)| state.role_of(me));
    match action {
        Action::Server(ServerAction::Promote { .. }) => match role {
            Some(Role::Primary) => Ok(()),
            role => Err(Fenced::NotPrimary { role: role.unwrap_or(Role::Unassigned) }),
        },
        // Without a readable state the last role stands (rule 9): what PostgreSQL was is kept.
        Action::Server(ServerAction::Start(config) | ServerAction::Configure(config)) if produces(config) => match role
        {
            None | Some(Role::Primary) => Ok(()),
            Some(role) => Err(Fenced::NotPrimary { role }),
        },
        Action::Data(DataAction::Bootstrap { .. } | DataAction::Rejoin { .. }) if role == Some(Role::Primary) => {
            Err(Fenced::IsPrimary)
        }
        Action::Data(DataAction::Initialise)
            if zk.state != StateNode::Absent || zk.has_history != Some(false) || zk.session != Session::Connected =>
        {
            Err(Fenced::NotNew)
        }
        _ => Ok(()),
    }
}

fn produces(config: &ServerConfig) -> bool {
    config.recovery == Recovery::Primary
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use manatee_shared::cluster::{ClusterState, Peer};
    use manatee_shared::lsn::Lsn;

    use super::*;
    use crate::machine::action::Rung;
    use crate::machine::local::{Gate, Synchronous};

    fn id(number: u8) -> PeerId {
        format!("10.0.0.{number}:5432:12345").parse().unwrap()
    }

    fn view(state: StateNode) -> View {
        View { session: Session::Connected, state, has_history: Some(false), ..View::unknown() }
    }

    /// Peer 1 is primary, peer 2 sync.
    fn valid() -> View {
        let peer = |number| Peer::new(id(number), "");
        let state = ClusterState {
            generation: 1,
            primary: peer(1),
            sync_peer: Some(peer(2)),
            async_peers: vec![],
            deposed: vec![],
            init_wal: Lsn::ZERO,
            init_wal_timeline: None,
            freeze: None,
            one_node_write_mode: false,
            promote: None,
            system_identifier: None,
            reason: None,
            extra: Default::default(),
        };
        view(StateNode::Valid { version: 1, state: Arc::new(state) })
    }

    fn config(recovery: Recovery) -> ServerConfig {
        ServerConfig { recovery, synchronous: Synchronous::Impossible, gate: Gate::Closed, slots: BTreeSet::new() }
    }

    #[test]
    fn only_the_primary_promotes_or_starts_as_one() {
        let not = Err(Fenced::NotPrimary { role: Role::Sync });
        for action in [
            Action::Server(ServerAction::Promote { config: config(Recovery::Primary), timeline: None }),
            Action::Server(ServerAction::Start(config(Recovery::Primary))),
            Action::Server(ServerAction::Configure(config(Recovery::Primary))),
        ] {
            assert_eq!(check(&action, &valid(), id(1)), Ok(()), "{}", action.kind());
            assert_eq!(check(&action, &valid(), id(2)), not, "{}", action.kind());
        }
        assert_eq!(check(&Action::Server(ServerAction::Start(config(Recovery::Detached))), &valid(), id(2)), Ok(()));
    }

    #[test]
    fn without_a_state_the_last_role_stands_but_nobody_is_promoted() {
        let unread = view(StateNode::Unread);
        assert_eq!(check(&Action::Server(ServerAction::Start(config(Recovery::Primary))), &unread, id(1)), Ok(()));
        let promote = Action::Server(ServerAction::Promote { config: config(Recovery::Primary), timeline: None });
        assert_eq!(check(&promote, &unread, id(1)), Err(Fenced::NotPrimary { role: Role::Unassigned }));
    }

    #[test]
    fn the_primarys_data_is_never_overwritten() {
        let rejoin = Action::Data(DataAction::Rejoin { source: id(2), from: Rung::Rewind, init: None });
        assert_eq!(check(&rejoin, &valid(), id(1)), Err(Fenced::IsPrimary));
        assert_eq!(check(&rejoin, &valid(), id(3)), Ok(()));
    }

    #[test]
    fn only_a_shard_that_never_had_a_state_is_set_up() {
        assert_eq!(check(&Action::Data(DataAction::Initialise), &view(StateNode::Absent), id(1)), Ok(()));
        let had = View { has_history: Some(true), ..view(StateNode::Absent) };
        let lost = View { session: Session::Disconnected, ..view(StateNode::Absent) };
        for view in [valid(), had, lost, view(StateNode::Unread)] {
            assert_eq!(check(&Action::Data(DataAction::Initialise), &view, id(1)), Err(Fenced::NotNew));
        }
    }
}
