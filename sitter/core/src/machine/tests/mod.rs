//! One row per rule: a healthy shard of three, something changed in it, and what must come of it.
//! The simulation finds what nobody thought of; this says what was thought of.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]

mod capacity;
mod disk;
mod endings;
mod first_setup;
mod following;
mod gate;
mod membership;
mod one_node_write;
mod promote;
mod replacement;
mod returning;
mod standbys;
mod takeover;
mod unknown_is_not_down;

use std::collections::BTreeMap;
use std::sync::Arc;

use manatee_shared::cluster::{ClusterState, Freeze, Peer, Promote, PromoteRole};
use manatee_shared::ids::PeerId;
use manatee_shared::invariants::check_transition;
use manatee_shared::lsn::{Lsn, Timeline, TimelineHistory, WalPosition};
use manatee_shared::zk::{self, ActivePeer, Over, Session, StateNode};

use super::action::{Action, ActionKind, DataAction, Rung, ServerAction, ShardAction, StopMode};
use super::decide::decide;
use super::local::*;
use super::situation::Promotion;
use super::view::*;

fn id(number: u8) -> PeerId {
    format!("10.0.0.{number}:5432:12345").parse().unwrap()
}

fn peer(number: u8) -> Peer {
    Peer::new(id(number), format!("p{number}"))
}

fn at(timeline: u32, lsn: u64) -> WalPosition {
    WalPosition { timeline: Timeline(timeline), lsn: Lsn(lsn) }
}

fn present() -> Data {
    Data::Present(SystemIdentifier("7".to_owned()))
}

/// Peers 1, 2, 3: primary, sync, async, since position 100 of timeline 1.
fn state() -> ClusterState {
    ClusterState {
        generation: 4,
        primary: peer(1),
        sync_peer: Some(peer(2)),
        async_peers: vec![peer(3)],
        deposed: vec![],
        init_wal: Lsn(100),
        init_wal_timeline: Some(Timeline(1)),
        freeze: None,
        one_node_write_mode: false,
        promote: None,
        system_identifier: Some("7".to_owned()),
        reason: None,
        extra: serde_json::Map::new(),
    }
}

fn config(recovery: Recovery, synchronous: Synchronous, gate: Gate, slots: &[u8]) -> ServerConfig {
    ServerConfig { recovery, synchronous, gate, slots: slots.iter().map(|number| id(*number)).collect() }
}

fn downstream(number: u8, flush: u64, sync_priority: u32) -> Downstream {
    let lsn = Lsn(flush);
    Downstream { peer: id(number), streaming: true, sent: lsn, write: lsn, flush: lsn, replay: lsn, sync_priority }
}

fn primary_status() -> PrimaryStatus {
    PrimaryStatus { flushed: at(1, 500), downstreams: vec![downstream(2, 500, 1)] }
}

fn standby_status() -> StandbyStatus {
    StandbyStatus {
        received: Some(at(1, 500)),
        replayed: Lsn(450),
        history: TimelineHistory::default(),
        streaming: true,
        upstream_silent_ms: Some(10),
        receiver_stopped: false,
        not_streaming_ms: 0,
        cannot_follow: None,
        receiver_error: None,
        receiver_failure: None,
        replay: Replay::default(),
        downstreams: vec![],
    }
}

fn standby(view: &mut View) -> &mut StandbyStatus {
    match &mut view.local.server {
        Server::Standby(standby) => standby,
        _ => panic!("not a standby"),
    }
}

fn primary(view: &mut View) -> &mut PrimaryStatus {
    match &mut view.local.server {
        Server::Primary(primary) => primary,
        _ => panic!("not a primary"),
    }
}

fn healthy(data: Data) -> PeerHealth {
    PeerHealth {
        silent_ms: Some(50),
        data: Some(data),
        streaming: Some(true),
        generation: Some(4),
        ..Default::default()
    }
}

/// Peer `me` in the healthy shard, with nothing to do.
fn view(me: u8) -> View {
    let peers = [1, 2, 3];
    let active = |number: u8| (id(number), ActivePeer { sequence: u64::from(number), peer: peer(number) });
    let (server, config) = match me {
        1 => (
            Server::Primary(primary_status()),
            config(Recovery::Primary, Synchronous::Peer(id(2)), Gate::Open, &[2, 3]),
        ),
        2 => (
            Server::Standby(standby_status()),
            config(Recovery::Follow(id(1)), Synchronous::Impossible, Gate::Open, &[3]),
        ),
        _ => (
            Server::Standby(standby_status()),
            config(Recovery::Follow(id(2)), Synchronous::Impossible, Gate::Open, &[]),
        ),
    };
    // As it would be read if it were down.
    let end = Some(EndOfWal { position: at(1, 500), history: TimelineHistory::default() });
    View {
        me: peer(me),
        now_ms: 100_000,
        wall_ms: 1_000_000,
        zk: zk::View {
            session: Session::Connected,
            state: StateNode::Valid { version: 9, state: Arc::new(state()) },
            active: peers.into_iter().map(active).collect(),
            has_history: Some(true),
            refused: None,
        },
        uncertain_write: false,
        local: Local { config: Some(config), end, ..Local::new(present(), server) },
        disk_full: false,
        health: peers.into_iter().filter(|number| *number != me).map(|n| (id(n), healthy(present()))).collect(),
        in_flight: None,
        stopping_ms: None,
        settings: Settings::default(),
        observed: Observed {
            first_flush: Some(Lsn(300)),
            joined: true,
            known_end: Some(at(1, 500)),
            is_whole: true,
            ..Observed::default()
        },
    }
}

fn change(view: &mut View, change: impl FnOnce(&mut ClusterState)) {
    let mut state = ClusterState::clone(view.zk.state.valid().unwrap().1);
    change(&mut state);
    view.zk.state = StateNode::Valid { version: 9, state: Arc::new(state) };
}

fn health(view: &mut View, number: u8) -> &mut PeerHealth {
    view.health.get_mut(&id(number)).unwrap()
}

fn missing(view: &mut View, number: u8, ms: u64) {
    view.zk.active.remove(&id(number));
    view.observed.missing_ms.insert(id(number), ms);
}

/// Peer `number` is silent, has no election node, and peer `other` finds so, too.
fn gone(view: &mut View, number: u8, other: u8) {
    missing(view, number, 500);
    *health(view, number) = PeerHealth { silent_ms: Some(5_000), ..healthy(present()) };
    health(view, other).suspects.insert(id(number));
    if let Server::Standby(standby) = &mut view.local.server {
        standby.upstream_silent_ms = Some(5_000);
    }
}

#[track_caller]
fn waits(view: &View, about: &str) {
    let decision = decide(view);
    assert!(matches!(decision.action, Action::Wait { .. }), "{decision:?}");
    assert!(decision.why.to_string().contains(about), "{}", decision.why);
}

#[track_caller]
fn acts(view: &View, action: impl Into<Action>) {
    let decision = decide(view);
    assert_eq!(decision.action, action.into(), "{}", decision.why);
}

/// The state written, checked against the one it replaces.
#[track_caller]
fn writes(view: &View) -> ClusterState {
    let decision = decide(view);
    let Action::Shard(ShardAction::WriteState { over, state }) = decision.action else {
        panic!("{decision:?}");
    };
    let old = view.zk.state.valid();
    assert_eq!(over, old.map_or(Over::Nothing, |(version, _)| Over::Version(version)), "compare-and-set (rule 1)");
    assert_eq!(check_transition(old.map(|(_, state)| &**state), &state), []);
    ClusterState::clone(&state)
}

fn ids(peers: &[Peer]) -> Vec<PeerId> {
    peers.iter().map(|peer| peer.id).collect()
}

#[test]
fn a_healthy_shard_has_nothing_to_do() {
    waits(&view(1), "is fit");
    waits(&view(2), "sync, streaming");
    waits(&view(3), "async, streaming from 10.0.0.2");
}
