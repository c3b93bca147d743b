//! Bootstrap, following, rejoin.

use super::*;

#[test]
fn data_is_copied_and_the_sync_copies_from_the_primary_only() {
    let mut view = view(3);
    (view.local.data, view.local.server) = (Data::Absent, Server::Down { crashed: false, standby: false });
    acts(&view, DataAction::Bootstrap { source: id(2) });
    // One that failed is followed by another, and that by the first again.
    for (times, source) in [(1, 1), (2, 2)] {
        let problem = "its stream broke off".to_owned();
        view.observed.last_failure =
            Some(LastFailure { action: ActionKind::Bootstrap, times, ago_ms: 60_000, problem, kind: None });
        acts(&view, DataAction::Bootstrap { source: id(source) });
    }
    view.observed.last_failure = None;
    health(&mut view, 2).data = Some(Data::Incomplete);
    acts(&view, DataAction::Bootstrap { source: id(1) });
    health(&mut view, 1).postgres_down_ms = Some(10);
    waits(&view, "ready to copy from");
    let mut sync = super::view(2);
    (sync.local.data, sync.local.server) = (Data::Incomplete, Server::Down { crashed: false, standby: false });
    acts(&sync, DataAction::Bootstrap { source: id(1) });
}

/// Row 41: it followed a standby that was promoted by hand, and cannot even start any more.
#[test]
fn wal_that_ends_every_start_is_rejoined() {
    for me in [2, 3] {
        let mut view = view(me);
        view.local.server = Server::Down { crashed: true, standby: true };
        assert!(matches!(decide(&view).action, Action::Server(ServerAction::Start(_))));
        view.local.unfit = Some("PANIC:  unexpected timeline ID".to_owned());
        for (rejoins, rung) in [(0, Rung::Rewind), (1, Rung::Rollback), (2, Rung::Copy)] {
            view.observed.rejoins = rejoins;
            acts(&view, DataAction::Rejoin { source: id(1), from: rung, init: Some(at(1, 100)) });
        }
        health(&mut view, 1).silent_ms = Some(5_000);
        waits(&view, "does not answer");
        view.settings.manual_rejoin = true;
        waits(&view, "operator");
    }
}

#[test]
fn an_async_looks_further_up() {
    type Change = fn(&mut View);
    let table: [(PeerId, Change); 5] = [
        (id(1), |view| health(view, 2).refused = true),
        (id(1), |view| health(view, 2).postgres_down_ms = Some(1)),
        (id(1), |view| health(view, 2).streaming = Some(false)),
        (id(1), |view| health(view, 1).suspects.extend([id(2)])),
        (id(1), |view| view.observed.avoid.extend([id(2)])),
    ];
    for (upstream, change) in table {
        let mut view = view(3);
        change(&mut view);
        let follow = config(Recovery::Follow(upstream), Synchronous::Impossible, Gate::Open, &[]);
        acts(&view, ServerAction::Configure(follow));
    }
    // The sync stops its receiver to take over from a dead primary: stay with it.
    let mut view = view(3);
    health(&mut view, 1).silent_ms = Some(5_000);
    health(&mut view, 2).streaming = Some(false);
    waits(&view, "streaming from 10.0.0.2");
}

#[test]
fn a_deposed_primary_stops_rejoins_and_follows_closed() {
    let mut view = view(1);
    change(&mut view, |state| {
        (state.primary, state.sync_peer, state.async_peers) = (peer(2), Some(peer(3)), vec![]);
        state.deposed = vec![peer(1)];
    });
    acts(&view, ServerAction::Stop(StopMode::Immediate));
    view.local.server = Server::Down { crashed: false, standby: false };
    let init = Some(at(1, 100));
    acts(&view, DataAction::Rejoin { source: id(2), from: Rung::AsIs, init });
    view.settings.manual_rejoin = true;
    assert!(
        matches!(decide(&view).action, Action::Server(ServerAction::Start(config)) if config.recovery == Recovery::Follow(id(2)))
    );
    view.settings.manual_rejoin = false;
    view.local.server = Server::Down { crashed: false, standby: true };
    let follow = config(Recovery::Follow(id(2)), Synchronous::Impossible, Gate::Closed, &[]);
    acts(&view, ServerAction::Start(follow.clone()));
    view.local.config = Some(follow);
    let diverged = StandbyStatus {
        streaming: false,
        not_streaming_ms: 1_500,
        cannot_follow: Some("forked".into()),
        ..standby_status()
    };
    view.local.server = Server::Standby(diverged);
    acts(&view, DataAction::Rejoin { source: id(2), from: Rung::Rewind, init });
    view.observed.rejoins = 1;
    acts(&view, DataAction::Rejoin { source: id(2), from: Rung::Rollback, init });
    view.observed.rejoins = 2;
    acts(&view, DataAction::Rejoin { source: id(2), from: Rung::Copy, init });
    change(&mut view, |state| Promotion::set(state, Some(Promotion { timeline: Timeline(2), at: None })));
    waits(&view, "not promoted yet");
}

#[test]
fn a_slow_start_is_no_divergence() {
    let mut view = view(2);
    let standby = standby(&mut view);
    (standby.streaming, standby.not_streaming_ms, standby.upstream_silent_ms) = (false, 20_000, None);
    waits(&view, "not streaming");
    super::standby(&mut view).not_streaming_ms = 30_000;
    assert!(matches!(decide(&view).action, Action::Data(DataAction::Rejoin { from: Rung::Rewind, .. })));
    view.observed.rejoins = 1;
    waits(&view, "not streaming");
    // The primary went away during it.
    view.observed.rejoin_failed = true;
    assert!(matches!(decide(&view).action, Action::Data(DataAction::Rejoin { from: Rung::Rewind, .. })));
}

#[test]
fn another_clusters_data_stays_out() {
    let mut view = view(3);
    view.local.data = Data::Present(SystemIdentifier("8".to_owned()));
    acts(&view, ShardAction::LeaveElection);
    view.zk.active.remove(&id(3));
    acts(&view, ServerAction::Stop(StopMode::Fast));
    view.local.server = Server::Down { crashed: false, standby: true };
    waits(&view, "another cluster");
}
