//! The shard's first state (rule 8): only for a shard that never had one, by peers without data.
//!
//! The peer first in election order initialises, then writes generation 1. A crash in between
//! leaves [`Data::Fresh`]: whoever has that goes on, or, if it is gone, another peer begins anew.
//! Two that write at once are told apart by compare-and-set; the loser's fresh data is copied over.
//! The write fails over a history ([`Over::Nothing`]): also one that was decided from a view of before
//! the first setup comes to nothing.

use std::sync::Arc;

use manatee_shared::cluster::{ClusterState, Freeze, Peer};
use manatee_shared::lsn::{Lsn, Timeline};
use manatee_shared::zk::{ActivePeer, Over, Session};

use super::action::{DataAction, Decision, ShardAction};
use super::local::{Data, SystemIdentifier};
use super::membership::join;
use super::situation::{act, wait};
use super::view::View;
use crate::reason::Reason;

pub(super) fn decide(view: &View) -> Decision {
    if view.zk.session != Session::Connected {
        return wait(Reason::SetupWithoutZooKeeper);
    }
    if let Some(decision) = join(view) {
        return decision;
    }
    if let Some(why) = refusal(view) {
        return wait(why);
    }
    let order = view.zk.in_election_order();
    if order.len() < 2 && !view.settings.one_node_write_mode {
        return wait(Reason::SetupNeedsPeers);
    }
    // Whoever already initialised goes on, so that a crash in between does not leave two.
    let fresh = |active: &&&ActivePeer| matches!(data_of(view, &active.peer), Some(Data::Fresh(_)));
    let Some(first) = order.iter().find(fresh).or_else(|| order.first()) else {
        return wait(Reason::SetupNobodyActive);
    };
    if first.peer.id != view.me.id {
        return wait(Reason::SetupByOther(first.peer.id));
    }
    match &view.local.data {
        Data::Fresh(identifier) => {
            let rest = order.iter().map(|active| &active.peer).filter(|peer| peer.id != view.me.id);
            let state = first_state(view, identifier, rest.cloned().collect());
            act(ShardAction::WriteState { over: Over::Nothing, state: Arc::new(state) }, Reason::SetupWritesState)
        }
        _ => act(DataAction::Initialise, Reason::SetupInitialises),
    }
}

fn data_of<'a>(view: &'a View, peer: &Peer) -> Option<&'a Data> {
    if peer.id == view.me.id {
        return Some(&view.local.data);
    }
    view.health.get(&peer.id).and_then(|health| health.data.as_ref())
}

/// Reason why there must not be a first setup now.
fn refusal(view: &View) -> Option<Reason> {
    match view.zk.has_history {
        Some(false) => {}
        Some(true) => return Some(Reason::SetupHasHistory),
        None => return Some(Reason::SetupHistoryUnknown),
    }
    if view.observed.had_state {
        return Some(Reason::SetupStateLost);
    }
    for active in view.zk.active.values() {
        let peer = active.peer.id;
        match data_of(view, &active.peer) {
            Some(Data::Absent | Data::Incomplete | Data::Fresh(_)) => {}
            Some(Data::Present(identifier)) => {
                return Some(Reason::SetupPeerHasData { peer, identifier: identifier.0.clone() });
            }
            Some(Data::Unusable(problem)) => {
                return Some(Reason::SetupPeerUnusable { peer, problem: problem.clone() });
            }
            None => return Some(Reason::SetupPeerSilent(peer)),
        }
    }
    None
}

fn first_state(view: &View, identifier: &SystemIdentifier, others: Vec<Peer>) -> ClusterState {
    let mut others = others.into_iter();
    let sync_peer = others.next();
    let alone = sync_peer.is_none();
    let reason = "one-node-write mode".to_owned();
    ClusterState {
        generation: 1,
        primary: view.me.clone(),
        sync_peer,
        async_peers: others.collect(),
        deposed: Vec::new(),
        init_wal: Lsn::ZERO,
        init_wal_timeline: Some(Timeline(1)),
        freeze: alone.then(|| {
            let date = jiff::Timestamp::from_millisecond(view.wall_ms).map(|date| date.to_string());
            Freeze::Reason { date: date.unwrap_or_default(), reason }
        }),
        one_node_write_mode: alone,
        promote: None,
        system_identifier: Some(identifier.0.clone()),
        reason: Some("first setup".to_owned()),
        extra: serde_json::Map::new(),
    }
}
