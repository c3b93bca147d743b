//! Findings for each condition a shard can be stuck in.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]

use std::sync::Arc;

use manatee_shared::cluster::{ClusterState, Freeze, Promote, PromoteRole};
use manatee_shared::zk::client::Unreachable;
use manatee_shared::zk::{HistoryEntry, Session, StateNode};

use super::*;
use crate::cluster::samples::*;
use crate::machine::action::ActionKind;
use crate::machine::capacity::{Capacity, Lack, Override};
use crate::machine::failure::FailureKind;
use crate::machine::local::*;
use crate::machine::readiness::{Need, Unready};
use crate::reason::{BlockerCode, ReasonCode};
use crate::report::{BreachStatus, DecisionStatus, FailureStatus, SitterStatus};

fn evidence() -> Evidence {
    let cluster = healthy();
    let last = HistoryEntry { zk_sequence: 1, time: jiff::Timestamp::UNIX_EPOCH, state: (*cluster.state).clone() };
    Evidence {
        zookeeper: cluster.zookeeper,
        shard: cluster.shard,
        view: cluster.view,
        last: Some(last),
        answers: cluster.answers,
    }
}

fn change(evidence: &mut Evidence, change: impl FnOnce(&mut ClusterState)) {
    let StateNode::Valid { state, .. } = &mut evidence.view.state else { panic!("made so") };
    change(Arc::make_mut(state));
}

fn status(evidence: &mut Evidence, number: u8) -> &mut SitterStatus {
    evidence.answers.get_mut(&peer(number).id).unwrap().as_mut().unwrap()
}

fn says(evidence: &mut Evidence, number: u8, reason: &str) {
    status(evidence, number).decision = crate::cluster::samples::says(reason);
}

/// The sync cannot take over.
fn is_blocked(evidence: &mut Evidence, number: u8, reason: &str, blocker: BlockerCode) {
    let (code, blocker) = (Some(ReasonCode::TakeoverBlocked), Some(blocker));
    status(evidence, number).decision = DecisionStatus { code, blocker, ..crate::cluster::samples::says(reason) };
}

fn failed(evidence: &mut Evidence, number: u8, problem: &str, kind: Option<FailureKind>) {
    let failure =
        FailureStatus { action: ActionKind::Start.into(), times: 3, ago_ms: 0, problem: problem.to_owned(), kind };
    status(evidence, number).last_failure = Some(failure);
}

/// Neither registered nor answering.
fn gone(evidence: &mut Evidence, number: u8) {
    evidence.view.active.remove(&peer(number).id);
    evidence.answers.insert(peer(number).id, Err("no answer within 2 s".to_owned()));
}

fn detach_sync(evidence: &mut Evidence) {
    let Server::Primary(primary) = &mut status(evidence, 1).local.server else { panic!("made so") };
    primary.downstreams.clear();
}

fn standby_of(evidence: &mut Evidence, number: u8) -> &mut StandbyStatus {
    match &mut status(evidence, number).local.server {
        Server::Standby(standby) => standby,
        _ => panic!("made so"),
    }
}

fn gate(evidence: &mut Evidence, number: u8, gate: Gate) {
    status(evidence, number).local.config = Some(ServerConfig {
        recovery: Recovery::Detached,
        synchronous: Synchronous::Impossible,
        gate,
        slots: Default::default(),
    });
}

/// The finding about `what`, with its parts as one text.
#[track_caller]
fn finding(evidence: &Evidence, what: &str) -> (Impact, String) {
    let report = explain(evidence);
    let found = report.findings.iter().find(|finding| finding.what.contains(what));
    let Some(found) = found else { panic!("nothing about `{what}`:\n{}", report.text()) };
    (found.impact, format!("{} | {} | {}", found.why.clone().unwrap_or_default(), found.risk, found.next))
}

#[track_caller]
fn finds(evidence: &Evidence, what: &str, impact: Impact, words: &[&str]) {
    let (found, text) = finding(evidence, what);
    assert_eq!(found, impact, "{what}");
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

#[test]
fn a_healthy_shard_is_one_line() {
    assert_eq!(
        explain(&evidence()).text(),
        "shard 1.moray: healthy: writes are acknowledged, and the loss of any one peer is survived\n"
    );
}

#[test]
fn it_looks_like_this() {
    let mut evidence = evidence();
    gone(&mut evidence, 2);
    detach_sync(&mut evidence);
    says(&mut evidence, 1, "primary: writes may wait: the sync has no election node; no async is fit to replace it");
    assert_eq!(
        explain(&evidence).text(),
        "\
shard 1.moray: writes are NOT acknowledged

1. the primary bb348824-97cd-4c37-9f47-e07bc3e7af53 waits for its sync a376df2b-97cd-4c37-9f47-e07bc3e7af53, which does not follow (stops writes)
   why:     its sitter says: primary: writes may wait: the sync has no election node; no async is fit to replace it
   at risk: nothing that was acknowledged; writes wait
   next:    wait: an async replaces it; if none does, see what is wrong with them below

2. the sync a376df2b-97cd-4c37-9f47-e07bc3e7af53 is gone: neither registered nor answering (stops writes)
   why:     no answer within 2 s
   at risk: nothing that was acknowledged; writes wait
   next:    bring back the host 10.0.0.2, or start its sitter (systemctl start manatee-sitter); the primary replaces it if an async is fit
"
    );
}

#[test]
fn frozen() {
    let mut evidence = evidence();
    let freeze = Freeze::Reason { date: "2026-01-01T00:00:00Z".to_owned(), reason: "move".to_owned() };
    change(&mut evidence, |state| state.freeze = Some(freeze));
    finds(
        &evidence,
        "is frozen",
        Impact::StopsFailover,
        &["2026-01-01T00:00:00Z: move", "`manatee-adm unfreeze`, when"],
    );
    gone(&mut evidence, 1);
    is_blocked(
        &mut evidence,
        2,
        "the primary's election node is gone; no takeover: the shard is frozen",
        BlockerCode::Frozen,
    );
    finds(&evidence, "is frozen", Impact::StopsWrites, &["waiting for its end: the primary's", "at once, and once"]);
    finds(&evidence, "does not take over", Impact::StopsWrites, &["`manatee-adm unfreeze`; or"]);
    assert_eq!(explain(&evidence).writable, None);
}

#[test]
fn no_async() {
    let mut evidence = evidence();
    change(&mut evidence, |state| state.async_peers.clear());
    evidence.view.active.remove(&peer(3).id);
    finds(&evidence, "there is no async", Impact::StopsFailover, &["start another peer"]);
    change(&mut evidence, |state| state.deposed = vec![peer(3)]);
    finds(&evidence, "there is no async", Impact::StopsFailover, &["bring back 09957297"]);
    gone(&mut evidence, 1);
    is_blocked(
        &mut evidence,
        2,
        "the primary is suspected by several peers: it is silent; no takeover: no async is alive to become the sync",
        BlockerCode::NoAsync,
    );
    finds(&evidence, "does not take over", Impact::StopsWrites, &["bring back the primary or any other peer"]);
}

#[test]
fn the_sync_lacks_what_the_generation_began_with() {
    let mut evidence = evidence();
    change(&mut evidence, |state| state.init_wal = "0/71FEDF8".parse().unwrap());
    standby_of(&mut evidence, 2).received = Some(
        "0/71FEDF7"
            .parse()
            .map(|lsn| manatee_shared::lsn::WalPosition { timeline: manatee_shared::lsn::Timeline(1), lsn })
            .unwrap(),
    );
    finds(&evidence, "may not take over", Impact::StopsFailover, &["nothing, while the primary lives", "caught up"]);
    standby_of(&mut evidence, 2).streaming = false;
    gone(&mut evidence, 1);
    finds(
        &evidence,
        "may not take over",
        Impact::StopsFailover,
        &[
            "acknowledged writes, if the data of bb348824",
            "began at 0/071FEDF8",
            "bring back bb348824",
            "do not remove its data",
        ],
    );
}

#[test]
fn a_lost_state() {
    let mut lost = evidence();
    lost.view.state = StateNode::Absent;
    finds(&lost, "not its history", Impact::StopsFailover, &["it makes bb348824-97cd-4c37-9f47-e07bc3e7af53 primary"]);
    let mut wiped = lost.clone();
    (wiped.last, wiped.view.has_history) = (None, Some(false));
    finds(
        &wiped,
        "state and history are gone",
        Impact::StopsFailover,
        &[
            "bb348824-97cd-4c37-9f47-e07bc3e7af53 is at 0/671FEDF8 on timeline 1",
            "not registered are not looked at",
            "state-backfill",
        ],
    );
    let mut corrupt = evidence();
    corrupt.view.state = StateNode::Corrupt { version: 4, problem: "expected value".to_owned() };
    finds(&corrupt, "cannot be used", Impact::StopsFailover, &["expected value", "zk-state", "state-backfill"]);
    status(&mut corrupt, 1).newest_generation = Some(9);
    let mut old = evidence();
    status(&mut old, 3).newest_generation = Some(9);
    finds(
        &old,
        "is an old one: generation 3, after 9",
        Impact::StopsFailover,
        &["do not obey the old state", "state-backfill"],
    );
}

#[test]
fn not_set_up_yet() {
    let mut evidence = evidence();
    (evidence.view.state, evidence.view.has_history, evidence.last) = (StateNode::Absent, Some(false), None);
    evidence.view.active.retain(|id, _| *id == peer(1).id);
    evidence.answers.retain(|id, _| *id == peer(1).id);
    status(&mut evidence, 1).local.data = Data::Absent;
    says(&mut evidence, 1, "waiting for another");
    finds(&evidence, "no state yet; 1 peers", Impact::StopsWrites, &["waiting for another", "at least two peers"]);
    assert_eq!(explain(&evidence).writable, Some(false));
}

#[test]
fn zookeeper_is_gone() {
    let local = (peer(1).id, answer(standby(vec![])));
    let away = Unreachable::Away { ensemble: "10.0.0.9:2181".to_owned(), problem: "no server answers".to_owned() };
    let report = lost::without_zookeeper("x", &away, Some(local));
    assert_eq!(report.writable, None);
    let text = report.text();
    assert!(
        text.contains("every peer keeps its role") && text.contains("its PostgreSQL is a running standby"),
        "{text}"
    );
    let silent = lost::without_zookeeper("x", &away, Some((peer(1).id, Err("refused".to_owned()))));
    assert!(silent.text().contains("does not answer either"), "{}", silent.text());
}

#[test]
fn zookeeper_refuses_us() {
    let denied = Unreachable::Denied { ensemble: "10.0.0.9:2181".to_owned() };
    let mut local = answer(standby(vec![]));
    if let Ok(status) = &mut local {
        status.unready = vec![unauthorized()];
    }
    let report = lost::without_zookeeper("x", &denied, Some((peer(1).id, local)));
    assert!(report.summary.contains("does not let manatee-adm read") && report.writable.is_none(), "{report:?}");
    let text = report.text();
    for words in ["access denied", "--config", "cdrwa", "write /manatee/x/state: not authorized"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!text.contains("does not answer"), "{text}");
}

fn unauthorized() -> Unready {
    let detail = "ZooKeeper does not let us write /manatee/x/state: not authorized".to_owned();
    Unready { need: Need::ZooKeeper, detail, kind: None }
}

#[test]
fn a_peer_that_zookeeper_refuses_is_told_once() {
    let mut evidence = evidence();
    status(&mut evidence, 2).unready = vec![unauthorized()];
    let words = ["not authorized", "zookeeper.auth_file", "cdrwa"];
    finds(&evidence, "is not ready for a takeover: its rights in ZooKeeper", Impact::StopsFailover, &words);
    assert!(!explain(&evidence).summary.contains("healthy"));
    evidence.view.active.remove(&peer(2).id);
    finds(&evidence, "not registered", Impact::StopsWrites, &words);
    let told = explain(&evidence).text();
    assert_eq!(told.matches("not authorized").count(), 1, "{told}");
}

#[test]
fn sessions_and_registrations() {
    let mut evidence = evidence();
    evidence.view.active.remove(&peer(3).id);
    status(&mut evidence, 3).zk.session = Session::Disconnected.into();
    finds(
        &evidence,
        "not registered",
        Impact::StopsFailover,
        &["session with ZooKeeper is disconnected", "from 10.0.0.3 to ZooKeeper"],
    );
    evidence.answers.insert(peer(2).id, Err("timed out".to_owned()));
    // A sitter that is replaced stops nothing: its PostgreSQL goes on.
    finds(
        &evidence,
        "does not answer; its PostgreSQL goes on",
        Impact::StopsFailover,
        &["timed out", "WAL still streams", "http://10.0.0.2:12345"],
    );
    detach_sync(&mut evidence);
    finds(
        &evidence,
        "is registered, but its sitter does not answer",
        Impact::StopsWrites,
        &["timed out", "http://10.0.0.2:12345"],
    );
    status(&mut evidence, 3).stopping = true;
    finds(&evidence, "being stopped", Impact::StopsFailover, &["start it again"]);
}

#[test]
fn data_that_is_not_the_shards() {
    let mut evidence = evidence();
    status(&mut evidence, 3).local.data = Data::Present(SystemIdentifier("8".to_owned()));
    finds(
        &evidence,
        "data of another cluster",
        Impact::StopsFailover,
        &["identifier is 8, the shard's is 7", "move its data directory away"],
    );
    status(&mut evidence, 3).local.data = Data::Unusable("PostgreSQL 14".to_owned());
    finds(&evidence, "cannot be used", Impact::StopsFailover, &["PostgreSQL 14"]);
    status(&mut evidence, 3).local.data = Data::Incomplete;
    status(&mut evidence, 3).in_flight = Some(ActionKind::Bootstrap.into());
    finds(&evidence, "is copying its data", Impact::StopsFailover, &["wait until the copy is done"]);
    status(&mut evidence, 1).local.data = Data::Absent;
    finds(&evidence, "has lost its data", Impact::StopsWrites, &["the sync takes over"]);
}

#[test]
fn gates() {
    let mut evidence = evidence();
    gate(&mut evidence, 1, Gate::Closed);
    says(&mut evidence, 1, "the gate is closed until the sync has everything");
    finds(&evidence, "lets no clients in", Impact::StopsWrites, &["opens by itself"]);
    assert_eq!(explain(&evidence).writable, Some(false));
    gate(&mut evidence, 1, Gate::Open);
    gate(&mut evidence, 3, Gate::Closed);
    finds(&evidence, "lets no readers in yet", Impact::Degrades, &["does not yet show"]);
    assert_eq!(explain(&evidence).writable, Some(true));
}

#[test]
fn deposed_peers() {
    let mut evidence = evidence();
    change(&mut evidence, |state| state.deposed = vec![peer(4)]);
    evidence.view.active.insert(peer(4).id, evidence.view.active[&peer(3).id].clone());
    let down = Server::Down { crashed: false, standby: false };
    evidence.answers.insert(peer(4).id, answer(down));
    says(&mut evidence, 4, "rejoining");
    finds(&evidence, "is deposed", Impact::Degrades, &["its sitter says: rejoining", "returns as async by itself"]);
    failed(&mut evidence, 4, "pg_rewind: could not open file: No space left on device", Some(FailureKind::DiskFull));
    finds(&evidence, "is deposed", Impact::Degrades, &["failed 3 times: pg_rewind", "free disk space on 10.0.0.4"]);
    failed(&mut evidence, 4, "something else", None);
    finds(&evidence, "is deposed", Impact::Degrades, &["on 10.0.0.4: `manatee-adm rebuild`"]);
    status(&mut evidence, 4).settings.manual_rejoin = true;
    status(&mut evidence, 4).last_failure = None;
    finds(&evidence, "is deposed", Impact::Degrades, &["`manatee-adm rebuild`"]);
    gone(&mut evidence, 4);
    finds(&evidence, "peer4 is gone", Impact::Degrades, &["`manatee-adm reap`"]);
}

#[test]
fn a_postgresql_that_does_not_run() {
    let mut evidence = evidence();
    status(&mut evidence, 1).local.server = Server::Down { crashed: true, standby: false };
    failed(&mut evidence, 1, "could not write lock file: No space left on device", Some(FailureKind::DiskFull));
    finds(
        &evidence,
        "down after a crash",
        Impact::StopsWrites,
        &["start failed 3 times", "free disk space on 10.0.0.1"],
    );
    failed(&mut evidence, 1, "exited with 1", None);
    finds(&evidence, "down after a crash", Impact::StopsWrites, &["PostgreSQL's log"]);
    status(&mut evidence, 3).local.server = Server::Hung { for_ms: 20_000 };
    finds(&evidence, "that is not answering", Impact::StopsFailover, &["its sitter starts it"]);
}

#[test]
fn standbys_that_do_not_follow() {
    let mut evidence = evidence();
    standby_of(&mut evidence, 3).streaming = false;
    for (detail, kind, words) in [
        ("", None, "its sitter tries to find out why"),
        (
            "could not reach 10.0.0.2:5432:12345: No route to host",
            Some(FailureKind::Network),
            "check the network from 10.0.0.3 to tcp://postgres@10.0.0.2",
        ),
        ("password authentication failed", Some(FailureKind::Password), "replication_password_file"),
        ("exceeds max_wal_senders", Some(FailureKind::WalSenders), "pg_receivewal"),
        ("FATAL:  something else", None, "`peer.dir`/run/postgresql.log"),
    ] {
        let upstream = Unready { need: Need::Upstream, detail: detail.to_owned(), kind };
        status(&mut evidence, 3).unready = Some(upstream).filter(|_| !detail.is_empty()).into_iter().collect();
        finds(&evidence, "does not stream from a376df2b", Impact::StopsFailover, &[detail, words]);
        let (_, text) = finding(&evidence, "does not stream from a376df2b");
        assert_eq!(text.contains("network"), detail.contains("No route"), "{text}");
    }
    standby_of(&mut evidence, 3).cannot_follow = Some("forked off".to_owned());
    finds(&evidence, "cannot follow a376df2b", Impact::StopsFailover, &["forked off", "brings the data back in line"]);
    status(&mut evidence, 3).settings.manual_rejoin = true;
    finds(&evidence, "cannot follow a376df2b", Impact::StopsFailover, &["on 10.0.0.3: `manatee-adm rebuild`"]);
}

#[test]
fn one_node_write_mode() {
    let mut evidence = evidence();
    change(&mut evidence, |state| {
        (state.sync_peer, state.one_node_write_mode) = (None, true);
        state.freeze = Some(Freeze::Flag(true));
        state.async_peers.clear();
    });
    gate(&mut evidence, 1, Gate::Open);
    finds(&evidence, "not configured for it", Impact::StopsWrites, &["`one_node_write_mode = true`"]);
    let status = status(&mut evidence, 1);
    status.settings.one_node_write_mode = true;
    status.local.config.as_mut().unwrap().synchronous = Synchronous::Nobody;
    finds(&evidence, "accepts writes alone", Impact::StopsFailover, &["exists once", "set-onwm -m off"]);
    assert_eq!(explain(&evidence).writable, Some(true));
    assert!(explain(&evidence).findings.iter().all(|finding| !finding.what.contains("is frozen")));
    finds(&evidence, "not in the chain", Impact::Note, &["after `manatee-adm set-onwm -m off`"]);
    change(&mut evidence, |state| state.set_leaves_one_node_write_mode(true));
    finds(&evidence, "ends as soon as", Impact::StopsFailover, &["wait until a376df2b"]);
}

#[test]
fn requests_to_promote() {
    let mut evidence = evidence();
    let request = |seconds| Promote {
        id: peer(2).id,
        role: PromoteRole::Sync,
        async_index: None,
        generation: 3,
        expire_time: jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds),
    };
    change(&mut evidence, |state| state.promote = Some(request(30)));
    says(&mut evidence, 2, "an operator asked for it; no takeover: received less");
    finds(&evidence, "is pending until", Impact::Note, &["received less", "clear-promote"]);
    change(&mut evidence, |state| state.promote = Some(request(-1)));
    finds(&evidence, "has expired", Impact::Note, &["clear-promote"]);
}

#[test]
fn json_has_the_same() {
    let mut evidence = evidence();
    gone(&mut evidence, 3);
    let json = serde_json::to_value(explain(&evidence)).unwrap();
    assert_eq!((&json["shard"], &json["writable"]), (&"1.moray".into(), &true.into()));
    assert_eq!(json["findings"][0]["matter"], "stops-failover");
    for key in ["what", "why", "risk", "next"] {
        assert!(json["findings"][0][key].is_string(), "{key}");
    }
}

#[test]
fn settings_that_were_loosened_put_writes_at_risk() {
    let mut evidence = evidence();
    status(&mut evidence, 1).local.loosened = vec!["synchronous_standby_names is ''".to_owned()];
    // Also with everybody else cut off: it acknowledges alone.
    detach_sync(&mut evidence);
    finds(
        &evidence,
        "only Manatee may change",
        Impact::LosesWrites,
        &["synchronous_standby_names is ''", "on this host alone", "pg_settings"],
    );
    let report = explain(&evidence);
    assert_eq!(report.writable, Some(true));
    assert!(report.summary.contains("NOT all of them safely"), "{}", report.summary);
    assert!(!report.text().contains("at risk: nothing"), "{}", report.text());
    status(&mut evidence, 1).local.loosened = vec!["restart_after_crash is 'on'".to_owned()];
    finds(&evidence, "only Manatee may change", Impact::StopsFailover, &["nothing that was acknowledged"]);
}

#[test]
fn settings_that_were_put_right_are_told_for_a_while() {
    let mut evidence = evidence();
    let settings = vec!["fsync is 'off'".to_owned()];
    let breach = BreachStatus { breach: Breach { settings, lasted_ms: 80 }, ago_ms: 5_000 };
    status(&mut evidence, 1).breach = Some(breach);
    finds(&evidence, "ran for 80 ms, until 5 s ago", Impact::Note, &["fsync is 'off'", "put them right"]);
}

#[test]
fn roles_whose_commits_do_not_wait_are_named_with_the_remedy() {
    let mut evidence = evidence();
    status(&mut evidence, 1).weak_commits = vec!["ALTER ROLE app SET synchronous_commit=off".to_owned()];
    finds(
        &evidence,
        "do not wait for the sync",
        Impact::LosesWrites,
        &["ALTER ROLE app SET", "`ALTER ROLE app RESET synchronous_commit`"],
    );
}

#[test]
fn a_peer_that_could_not_take_over_is_never_healthy() {
    for (need, detail, words) in [
        (
            Need::Configuration,
            "manatee.conf line 14: work_memm: unrecognized configuration parameter",
            "[postgres.parameters]",
        ),
        (Need::AccessRules, "line 7: invalid connection type \"hots\"", "`postgres.hba`"),
        (
            Need::LocalSession,
            "database \"postgres\" is not currently accepting connections (55000)",
            "ALLOW_CONNECTIONS true",
        ),
        (Need::ReplicationLogin, "password authentication failed (28P01)", "postgres.replication_password_file"),
        (Need::ProxyLogin, "password authentication failed (28P01)", "postgres.proxy_password_file"),
        (Need::Grants, "a role is gone", "the primary gives the roles their rights again"),
    ] {
        let mut evidence = evidence();
        status(&mut evidence, 2).unready = vec![Unready { need, detail: detail.to_owned(), kind: None }];
        finds(&evidence, "is not ready for a takeover", Impact::StopsFailover, &[detail, words, "next failover"]);
        assert!(!explain(&evidence).summary.contains("healthy"), "{need:?}");
    }
}

#[test]
fn whoever_holds_vacuum_up_is_named() {
    let mut evidence = evidence();
    let held = |held_ms, age_transactions| {
        let name = "'x' of app in app".to_owned();
        Some(Horizon { holder: HorizonHolder::PreparedTransaction, name, age_transactions, held_ms })
    };
    // A dump is no fault, nor is a transaction that nothing was written behind.
    for (minutes, transactions) in [(9, 1_000_000), (600, 99_999)] {
        status(&mut evidence, 1).horizon = held(minutes * 60_000, transactions);
        assert_eq!(explain(&evidence).findings, [], "{minutes} {transactions}");
    }
    status(&mut evidence, 1).horizon = held(3_600_000, 1_000_000);
    let report = explain(&evidence);
    let [finding] = report.findings.as_slice() else { panic!("{report:?}") };
    let why = finding.why.as_deref().unwrap();
    assert!(why.contains("prepared transaction 'x' of app in app") && why.contains("60 minutes"), "{why}");
    assert!(finding.what.contains("VACUUM") && finding.next.contains("ROLLBACK PREPARED"), "{finding:?}");
}

#[test]
fn replay_that_does_not_go_on_is_told() {
    let mut evidence = evidence();
    standby_of(&mut evidence, 2).replay =
        Replay { waits_for: Some(Obstacle::Lock), waits_ms: 4_999, ..Replay::default() };
    assert_eq!(explain(&evidence).findings, []);
    for (replay, what, why) in [
        (
            Replay { waits_for: Some(Obstacle::Lock), waits_ms: 7_000, ..Replay::default() },
            "waits for a reader",
            "for 7 s",
        ),
        (Replay { paused: true, ..Replay::default() }, "replay paused", "pg_wal_replay_pause"),
    ] {
        standby_of(&mut evidence, 2).replay = replay;
        let report = explain(&evidence);
        let [finding] = report.findings.as_slice() else { panic!("{report:?}") };
        assert!(finding.what.contains(what) && finding.why.as_deref().unwrap().contains(why), "{finding:?}");
    }
}

#[test]
fn a_change_that_goes_through_the_shard_in_the_wrong_order_is_told_with_the_right_one() {
    let setting = Capacity::MaxConnections;
    let mut evidence = evidence();
    let short_of = Some(Lack { setting, has: 100, needs: 200 });
    standby_of(&mut evidence, 2).replay = Replay { paused: true, short_of, ..Replay::default() };
    let detail = "max_connections = 100 is lower than its primary's 200";
    status(&mut evidence, 2).unready = vec![Unready { need: Need::Replay, detail: detail.to_owned(), kind: None }];
    finds(&evidence, "has less than its primary", Impact::StopsFailover, &[detail, "restarts PostgreSQL"]);
    for (runs, what, next) in [
        (200, "less than its primary has", "lower it on the primary first"),
        (50, "a higher setting yet", "on the standbys"),
    ] {
        let mut evidence = self::evidence();
        status(&mut evidence, 2).overridden = vec![Override { setting, runs, configured: 100 }];
        status(&mut evidence, 2).unready = vec![Unready { need: Need::Capacities, detail: String::new(), kind: None }];
        finds(&evidence, what, Impact::Degrades, &["instead of the configured 100", next]);
    }
}

#[test]
fn what_keeps_a_server_from_starting_has_its_remedy() {
    for (problem, kind, words) in [
        ("could not access file", Some(FailureKind::Library), "a rebuild does not help"),
        ("recovery aborted", Some(FailureKind::StandbySettings), "at least the primary's values"),
        ("lock file already exists", Some(FailureKind::PidFile), "remove `peer.dir`/data/postmaster.pid"),
        ("unrecognized configuration parameter", Some(FailureKind::Setting), "[postgres.parameters]"),
        ("exited with 1", None, "`peer.dir`/run/postgresql.log"),
    ] {
        let mut evidence = evidence();
        status(&mut evidence, 2).local.server = Server::Down { crashed: true, standby: true };
        failed(&mut evidence, 2, problem, kind);
        finds(&evidence, "down after a crash", Impact::StopsWrites, &[problem, words]);
    }
}

#[test]
fn data_outside_of_its_dataset_is_told_before_a_copy_is_needed() {
    let mut evidence = evidence();
    status(&mut evidence, 2).outside_of_dataset = Some("a tablespace".to_owned());
    let report = explain(&evidence);
    let [finding] = report.findings.as_slice() else { panic!("{report:?}") };
    assert!(finding.what.contains("no peer can be copied") && finding.next.contains("DROP TABLESPACE"), "{finding:?}");
}

#[test]
fn what_a_receiver_ended_with_is_told_instead_of_a_guess_at_the_network() {
    let mut evidence = evidence();
    let standby = standby_of(&mut evidence, 3);
    standby.streaming = false;
    standby.receiver_error = Some("number of requested standby connections exceeds max_wal_senders".to_owned());
    standby.receiver_failure = Some(FailureKind::WalSenders);
    let report = explain(&evidence);
    let [finding] = report.findings.as_slice() else { panic!("{report:?}") };
    assert!(finding.why.as_deref().unwrap().contains("max_wal_senders"), "{finding:?}");
    assert!(finding.next.contains("pg_stat_replication") && !finding.next.contains("network"), "{finding:?}");
}
