//! The real client against a real ZooKeeper (Debian's package `zookeeper`; no daemon needed).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]

mod support;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use manatee_shared::cluster::{ClusterState, Peer};
use manatee_shared::config::{AuthScheme, ZkSettings, ZkTls};
use manatee_shared::lsn::Lsn;
use manatee_shared::topology::{Freshness, TopologyWatcher};
use manatee_shared::zk::client::ZkCoordination;
use manatee_shared::zk::{Coordination, HistoryEntry, Over, Session, StateNode, View, ZkError};
use support::relay::{Loss, Relay};
use support::{DEADLINE, Server};

fn peer(number: u8) -> Peer {
    Peer::new(format!("10.0.0.{number}:5432:12345").parse().unwrap(), format!("peer{number}"))
}

fn state(generation: u64) -> ClusterState {
    ClusterState {
        generation,
        primary: peer(1),
        sync_peer: Some(peer(2)),
        async_peers: vec![],
        deposed: vec![],
        init_wal: Lsn(generation * 100),
        init_wal_timeline: None,
        freeze: None,
        one_node_write_mode: false,
        promote: None,
        system_identifier: None,
        reason: Some("test".to_owned()),
        extra: Default::default(),
    }
}

/// Waits for a view; how long it took.
async fn until(client: &ZkCoordination, what: &str, wanted: impl Fn(&View) -> bool) -> Duration {
    let started = Instant::now();
    let mut views = client.view();
    let arrived = tokio::time::timeout(DEADLINE, views.wait_for(|view| wanted(view))).await.is_ok();
    assert!(arrived, "never came: {what}; last: {:?}", client.view().borrow().clone());
    started.elapsed()
}

/// Writes it, however often the client says truly that nothing was written: a lost connection is shown a moment later.
async fn written(client: &ZkCoordination, over: Over, state: &ClusterState) -> i32 {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        match client.write_state(over, state).await {
            Err(ZkError::NotWritten(_)) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            outcome => return outcome.unwrap(),
        }
    }
}

fn version(view: &View) -> Option<i32> {
    view.state.valid().map(|(version, _)| version)
}

fn is_connected(view: &View) -> bool {
    view.session == Session::Connected
}

fn has(number: u8) -> impl Fn(&View) -> bool {
    move |view| view.active.contains_key(&peer(number).id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_see_each_other_come_write_and_go() {
    let server = Server::start();
    let (one, two, reader) = (server.client(), server.client(), server.client());
    reader.ready(DEADLINE).await.unwrap();
    assert!(!reader.shard_exists().await.unwrap(), "readers create nothing");
    assert_eq!(reader.view().borrow().state, StateNode::Absent);
    assert_eq!(reader.view().borrow().has_history, Some(false));

    one.ready(DEADLINE).await.unwrap();
    one.join(peer(1)).await.unwrap();
    let seen = until(&reader, "one joined", has(1)).await;
    two.ready(DEADLINE).await.unwrap();
    two.join(peer(2)).await.unwrap();
    until(&reader, "two joined", has(2)).await;
    let order: Vec<_> = reader.view().borrow().in_election_order().iter().map(|active| active.peer.clone()).collect();
    assert_eq!(order, [peer(1), peer(2)]);

    assert_eq!(one.write_state(Over::Nothing, &state(1)).await.unwrap(), 0);
    assert_eq!(version(&one.view().borrow()), Some(0), "the writer sees its own write at once");
    let wrote = until(&reader, "first state", |view| version(view) == Some(0)).await;
    assert!(matches!(two.write_state(Over::Nothing, &state(1)).await, Err(ZkError::Conflict)));
    assert_eq!(two.write_state(Over::Version(0), &state(2)).await.unwrap(), 1);
    assert!(matches!(one.write_state(Over::Version(0), &state(2)).await, Err(ZkError::Conflict)));
    until(&reader, "second state", |view| version(view) == Some(1) && view.has_history == Some(true)).await;

    let history = reader.history().await.unwrap();
    let entries: Vec<_> = history.iter().map(|entry| (entry.zk_sequence, entry.state.clone())).collect();
    assert_eq!(entries, [(0, state(1)), (1, state(2))], "one entry for each write that succeeded");
    assert_eq!(reader.raw_state().await.unwrap(), Some(state(2).to_json()));

    two.leave().await.unwrap();
    let left = until(&reader, "two left", |view| !has(2)(view)).await;
    one.close().await;
    let closed = until(&reader, "one closed", |view| view.active.is_empty()).await;
    println!("seen after: join {seen:?}, write {wrote:?}, leave {left:?}, close {closed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_state_is_never_written_over_a_history() {
    let server = Server::start();
    let (one, two) = (server.client(), server.client());
    for (client, number) in [(&one, 1), (&two, 2)] {
        client.ready(DEADLINE).await.unwrap();
        client.join(peer(number)).await.unwrap();
    }
    one.write_state(Over::Nothing, &state(1)).await.unwrap();
    // Somebody removes the state, and later its history.
    let hand = zookeeper_client::Client::connect(&server.settings().servers[0]).await.unwrap();
    hand.delete("/manatee/1.test/state", None).await.unwrap();
    for joined in [true, false] {
        if !joined {
            two.leave().await.unwrap();
        }
        assert!(matches!(two.write_state(Over::Nothing, &state(1)).await, Err(ZkError::Conflict)));
        assert_eq!((two.raw_state().await.unwrap(), two.history().await.unwrap().len()), (None, 1), "nothing is left");
    }
    assert_eq!(two.write_state(Over::Lost, &state(2)).await.unwrap(), 0);
    assert_eq!(two.write_state(Over::Version(0), &state(3)).await.unwrap(), 1);
    let generations =
        |history: Vec<HistoryEntry>| -> Vec<_> { history.iter().map(|entry| entry.state.generation).collect() };
    assert_eq!(generations(two.history().await.unwrap()), [1, 2, 3]);

    for name in hand.list_children("/manatee/1.test/history").await.unwrap() {
        hand.delete(&format!("/manatee/1.test/history/{name}"), None).await.unwrap();
    }
    assert!(matches!(two.write_state(Over::Nothing, &state(1)).await, Err(ZkError::Conflict)), "there is a state");
    hand.delete("/manatee/1.test/state", None).await.unwrap();
    one.write_state(Over::Nothing, &state(1)).await.unwrap();
    assert_eq!(generations(two.history().await.unwrap()), [1]);
    until(&two, "the folder made anew is watched", |view| view.has_history == Some(true)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_earlier_process_of_the_same_peer_makes_way() {
    let server = Server::start();
    let (old, new, reader) = (server.client(), server.client(), server.client());
    for client in [&old, &new, &reader] {
        client.ready(DEADLINE).await.unwrap();
    }
    old.join(peer(1)).await.unwrap();
    until(&reader, "old joined", has(1)).await;
    let first = reader.view().borrow().active[&peer(1).id].sequence;
    new.join(peer(1)).await.unwrap();
    until(&reader, "new joined", |view| view.active.get(&peer(1).id).is_some_and(|a| a.sequence > first)).await;
    until(&old, "old notices", |view| view.active.get(&peer(1).id).is_some_and(|a| a.sequence > first)).await;
    assert!(matches!(old.write_state(Over::Nothing, &state(1)).await, Err(ZkError::NotRegistered)));
    assert_eq!(new.write_state(Over::Nothing, &state(1)).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_view_survives_a_restart_of_zookeeper() {
    let mut server = Server::start();
    let (one, reader) = (server.client(), server.client());
    one.ready(DEADLINE).await.unwrap();
    one.join(peer(1)).await.unwrap();
    one.write_state(Over::Nothing, &state(1)).await.unwrap();
    until(&reader, "state", |view| version(view) == Some(0)).await;

    server.stop();
    until(&reader, "disconnection", |view| !is_connected(view)).await;
    until(&one, "disconnection", |view| !is_connected(view)).await;
    assert_eq!(version(&reader.view().borrow()), Some(0), "the last state stays");
    assert!(matches!(one.write_state(Over::Version(0), &state(2)).await, Err(ZkError::NotWritten(_))));
    server.resume();
    until(&one, "reconnection", |view| is_connected(view) && has(1)(view)).await;
    until(&reader, "reconnection", |view| is_connected(view) && has(1)(view) && version(view) == Some(0)).await;
    assert_eq!(one.write_state(Over::Version(0), &state(2)).await.unwrap(), 1);
    until(&reader, "watches still work", |view| version(view) == Some(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_registers_again_after_an_expiry() {
    let mut server = Server::start();
    let (one, reader) = (server.client(), server.client());
    one.ready(DEADLINE).await.unwrap();
    one.join(peer(1)).await.unwrap();
    one.write_state(Over::Nothing, &state(1)).await.unwrap();
    let mut sessions = one.view();
    let first = sessions.borrow_and_update().active[&peer(1).id].sequence;

    server.stop();
    until(&one, "expiry", |view| view.session == Session::Expired).await;
    server.resume();
    let again = |view: &View| view.active.get(&peer(1).id).is_some_and(|active| active.sequence > first);
    until(&reader, "registered again", again).await;
    until(&one, "connected again", |view| is_connected(view) && again(view)).await;
    assert_eq!(one.write_state(Over::Version(0), &state(2)).await.unwrap(), 1);
    assert_eq!(one.history().await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_cut_off_is_settled_before_anything_else() {
    let mut server = Server::start();
    let one = Arc::new(server.client());
    one.ready(DEADLINE).await.unwrap();
    one.join(peer(1)).await.unwrap();
    let mut written = one.write_state(Over::Nothing, &state(1)).await.unwrap();
    // Writes as fast as they go while ZooKeeper is killed and comes back, several times.
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = tokio::spawn({
        let (one, stop) = (one.clone(), stop.clone());
        async move {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let next = u64::try_from(written).unwrap() + 2;
                match one.write_state(Over::Version(written), &state(next)).await {
                    Ok(version) => written = version,
                    // What the view says once it is connected again is the truth.
                    Err(_) => {
                        until(&one, "connected", is_connected).await;
                        let seen = version(&one.view().borrow()).unwrap();
                        assert!(seen == written || seen == written + 1, "{seen} after {written}");
                        written = seen;
                    }
                }
            }
            written
        }
    });
    for _ in 0..3 {
        let seen = version(&one.view().borrow()).unwrap();
        until(&one, "progress", |view| version(view).is_some_and(|version| version > seen + 20)).await;
        server.stop();
        until(&one, "disconnection", |view| !is_connected(view)).await;
        server.resume();
    }
    let seen = version(&one.view().borrow()).unwrap();
    until(&one, "progress", |view| version(view).is_some_and(|version| version > seen + 20)).await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let written = writer.await.unwrap();
    let history = one.history().await.unwrap();
    let generations: Vec<_> = history.iter().map(|entry| entry.state.generation).collect();
    let expected: Vec<_> = (1..=u64::try_from(written).unwrap() + 1).collect();
    assert_eq!(generations, expected, "each version written once, with its history entry");
}

/// Each time: the writer is told the truth, whatever became of the answer, and another one sees the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_is_lost_is_found_out() {
    for (loss, joined) in
        [Loss::Silence, Loss::Reset, Loss::Request].into_iter().flat_map(|loss| [(loss, true), (loss, false)])
    {
        let server = Server::start();
        let relay = Relay::start(&server, loss, 2);
        let (one, reader) =
            (ZkCoordination::connect(&relay.settings(), &"1.test".parse().unwrap()).unwrap(), server.client());
        one.ready(DEADLINE).await.unwrap();
        if joined {
            one.join(peer(1)).await.unwrap();
        }
        for (number, over) in [Over::Nothing, Over::Version(0)].into_iter().enumerate() {
            let over = if loss == Loss::Request { Over::Nothing } else { over };
            let next = state(number as u64 + 1);
            let mut outcome = one.write_state(over, &next).await;
            // Refused by a connection that is lost but still shown: the relay has not lost anything of this write.
            while matches!(outcome, Err(ZkError::NotWritten(_))) && relay.lost() == number {
                tokio::time::sleep(Duration::from_millis(10)).await;
                outcome = one.write_state(over, &next).await;
            }
            if let Err(ZkError::Unknown(_)) = outcome {
                outcome = one.find_out(over, &next, DEADLINE).await;
            }
            assert_eq!(relay.lost(), number + 1, "{loss:?}");
            match loss {
                Loss::Request => assert!(matches!(outcome, Err(ZkError::NotWritten(_))), "{loss:?}: {outcome:?}"),
                _ => {
                    assert_eq!(outcome.unwrap(), number as i32, "{loss:?}");
                    until(&reader, "what was written", |view| version(view) == Some(number as i32)).await;
                }
            }
            until(&one, "the doubt's end", is_connected).await;
        }
        // Nothing comes late.
        let over = if loss == Loss::Request { Over::Nothing } else { Over::Version(1) };
        written(&one, over, &state(9)).await;
        let generations: Vec<_> = one.history().await.unwrap().iter().map(|entry| entry.state.generation).collect();
        assert_eq!(generations, if loss == Loss::Request { vec![9] } else { vec![1, 2, 9] }, "{loss:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_was_replaced_before_it_was_found_out_counts_as_written() {
    let server = Server::start();
    let relay = Relay::start(&server, Loss::Silence, 1);
    let one = Arc::new(ZkCoordination::connect(&relay.settings(), &"1.test".parse().unwrap()).unwrap());
    let other = server.client();
    one.ready(DEADLINE).await.unwrap();
    other.ready(DEADLINE).await.unwrap();
    let writing = tokio::spawn({
        let one = one.clone();
        async move { one.write_state(Over::Nothing, &state(1)).await }
    });
    until(&other, "the write", |view| version(view) == Some(0)).await;
    other.write_state(Over::Version(0), &state(2)).await.unwrap();
    let mut outcome = writing.await.unwrap();
    if let Err(ZkError::Unknown(_)) = outcome {
        outcome = one.find_out(Over::Nothing, &state(1), DEADLINE).await;
    }
    assert_eq!(outcome.unwrap(), 0);
    assert!(matches!(one.write_state(Over::Version(0), &state(3)).await, Err(ZkError::Conflict)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_needs_no_shard_and_keeps_the_last_topology() {
    let mut server = Server::start();
    let watcher = TopologyWatcher::spawn(&server.settings(), &"1.test".parse().unwrap()).unwrap();
    let mut topology = watcher.topology();
    assert!(topology.borrow().is_none());
    let one = server.client();
    one.ready(DEADLINE).await.unwrap();
    one.join(peer(1)).await.unwrap();
    one.write_state(Over::Nothing, &state(1)).await.unwrap();
    let fresh = tokio::time::timeout(
        DEADLINE,
        topology.wait_for(|topology| topology.as_ref().is_some_and(|topology| topology.active.len() == 1)),
    );
    let seen = fresh.await.unwrap().unwrap().clone().unwrap();
    assert_eq!(seen.chain_urls(), [peer(1).pg_url, peer(2).pg_url]);
    assert_eq!(seen.zookeeper, Freshness::Fresh);

    server.stop();
    let stale = tokio::time::timeout(
        DEADLINE,
        topology.wait_for(|topology| topology.as_ref().is_some_and(|topology| !topology.is_fresh())),
    );
    assert_eq!(stale.await.unwrap().unwrap().as_ref().unwrap().primary, peer(1));
}

#[tokio::test]
async fn nobody_there_is_said_in_one_line() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let settings = ZkSettings::new(vec![format!("127.0.0.1:{port}")]);
    let client = ZkCoordination::connect(&settings, &"1.test".parse().unwrap()).unwrap();
    let error = client.ready(Duration::from_millis(500)).await.unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "ZooKeeper at 127.0.0.1:{port} cannot be reached: no server answers; check that it runs, \
             and the addresses under `zookeeper.servers` (manatee-adm: --zk)"
        )
    );
    assert!(matches!(client.write_state(Over::Nothing, &state(1)).await, Err(ZkError::NotWritten(_))));
}

const OWNER: &str = "manatee:secret";

/// Over TLS, and as the user whose `user:password` is given; the right one shows a certificate as well.
fn secured(server: &Server, user: Option<&str>) -> ZkSettings {
    let auth_file = user.map(|user| {
        let file = server.file(&user.replace(':', "."));
        std::fs::write(&file, user).unwrap();
        file
    });
    let pair = Some(server.file("both.pem")).filter(|_| user == Some(OWNER));
    let tls = ZkTls { ca_file: server.file("ca.pem"), cert_file: pair.clone(), key_file: pair };
    ZkSettings { auth_file, tls: Some(tls), ..server.settings() }
}

#[tokio::test]
async fn a_shard_is_its_users_alone_and_read_over_tls() {
    let server = Server::start_secure();
    let connect =
        |settings: &ZkSettings, shard: &str| ZkCoordination::connect(settings, &shard.parse().unwrap()).unwrap();
    let owner = connect(&secured(&server, Some(OWNER)), "1.test");
    owner.ready(DEADLINE).await.unwrap();
    owner.join(peer(1)).await.unwrap();
    owner.write_state(Over::Nothing, &state(1)).await.unwrap();

    // Another process of the user is let in. Somebody else, or nobody: denied, and told so.
    connect(&secured(&server, Some(OWNER)), "1.test").ready(DEADLINE).await.unwrap();
    for user in [Some("manatee:wrong"), None] {
        let stranger = connect(&secured(&server, user), "1.test");
        let error = stranger.ready(Duration::from_secs(5)).await.unwrap_err().to_string();
        assert!(error.contains("the shard's nodes are another user's; check `zookeeper.auth_file`"), "{error}");
        assert!(!error.contains("wrong"), "{error}");
    }

    // A shard that everybody may read, but only its user may write.
    let mut settings = secured(&server, Some(OWNER));
    settings.world_readable = true;
    let open = connect(&settings, "2.test");
    open.ready(DEADLINE).await.unwrap();
    open.join(peer(1)).await.unwrap();
    open.write_state(Over::Nothing, &state(1)).await.unwrap();
    let reader = connect(&secured(&server, None), "2.test");
    assert_eq!(reader.ready(DEADLINE).await.unwrap().state.valid().map(|(_, state)| state.generation), Some(1));
    assert!(matches!(reader.write_state(Over::Version(0), &state(2)).await, Err(ZkError::Denied(_))));

    // Not by those who do not speak TLS, or trust another.
    let plain = server.client();
    assert!(plain.ready(Duration::from_secs(2)).await.is_err());
    let other = Server::start_secure();
    let mut settings = secured(&server, None);
    settings.tls.as_mut().unwrap().ca_file = other.file("ca.pem");
    assert!(connect(&settings, "1.test").ready(Duration::from_secs(2)).await.is_err());

    for client in [owner, open, reader] {
        client.close().await;
    }
}

/// Without a takeover, and without leaving anything behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_may_not_write_knows_it_before_it_must() {
    use zookeeper_client::{Acl, AuthId, Client, Permission};
    let server = Server::start();
    let (one, two) = (server.client(), server.client());
    for (client, number) in [(&one, 1), (&two, 2)] {
        client.ready(DEADLINE).await.unwrap();
        client.join(peer(number)).await.unwrap();
    }
    one.write_state(Over::Nothing, &state(1)).await.unwrap();
    until(&two, "state", |view| version(view) == Some(0)).await;
    let hand = Client::connect(&server.settings().servers[0]).await.unwrap();
    let nodes = |folder: &str| format!("/manatee/1.test/{folder}");
    let facts = async || {
        let (data, stat) = hand.get_data(&nodes("state")).await.unwrap();
        let names = async |folder: &str| hand.list_children(&nodes(folder)).await.unwrap();
        (data, stat.version, names("history").await, names("election").await)
    };
    let before = facts().await;
    let acl = |permission| [Acl::new(permission, AuthId::new("world", "anyone"))];
    let set = async |folder: &str, permission| {
        hand.set_acl(&nodes(folder), &acl(permission), None).await.unwrap();
    };
    for (folder, refused) in [("state", "write"), ("history", "add to"), ("election", "register under")] {
        set(folder, Permission::READ | Permission::ADMIN).await;
        let words = format!("does not let us {refused} {}: not authorized", nodes(folder));
        for client in [&one, &two] {
            until(client, &words, |view| view.refused.as_ref().is_some_and(|told| told.contains(&words))).await;
            assert!(is_connected(&client.view().borrow()), "what it may read it reads on");
        }
        set(folder, Permission::ALL).await;
        for client in [&one, &two] {
            until(client, "all is well again", |view| view.refused.is_none()).await;
        }
    }
    // What may not even be read is not called current.
    set("state", Permission::ADMIN).await;
    let blind = |view: &View| view.refused.as_ref().is_some_and(|told| told.contains("read the shard"));
    until(&two, "it reads nothing", |view| blind(view) && !is_connected(view) && version(view) == Some(0)).await;
    set("state", Permission::ALL).await;
    until(&two, "it reads again", |view| view.refused.is_none() && is_connected(view)).await;
    let after = facts().await;
    assert_eq!((&after.0, after.1, &after.2), (&before.0, 0, &before.2), "nothing was written");
    assert_eq!(after.3, before.3, "nobody registered once more");
}

#[tokio::test]
async fn a_shard_is_its_users_alone_by_sasl() {
    let server = Server::start_sasl("manatee", "secret");
    let settings = |user: &str| {
        let file = server.file(&user.replace(':', "."));
        std::fs::write(&file, user).unwrap();
        ZkSettings { auth_file: Some(file), auth_scheme: AuthScheme::SaslDigestMd5, ..server.settings() }
    };
    let connect = |settings: &ZkSettings| ZkCoordination::connect(settings, &"1.test".parse().unwrap()).unwrap();
    let owner = connect(&settings(OWNER));
    owner.ready(DEADLINE).await.unwrap();
    owner.join(peer(1)).await.unwrap();
    owner.write_state(Over::Nothing, &state(1)).await.unwrap();
    connect(&settings(OWNER)).ready(DEADLINE).await.unwrap();
    for (stranger, what) in [(settings("manatee:wrong"), "another password"), (server.settings(), "nobody")] {
        let error = connect(&stranger).ready(Duration::from_secs(3)).await.unwrap_err().to_string();
        println!("{what}: {error}");
        assert!(error.contains("auth_file") && !error.contains("wrong"), "{what}: {error}");
    }
    owner.close().await;
}

#[tokio::test]
async fn secrets_that_cannot_be_used_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("auth");
    let refused = |change: &dyn Fn(&mut ZkSettings)| {
        let mut settings = ZkSettings::new(vec!["127.0.0.1:1".to_owned()]);
        change(&mut settings);
        ZkCoordination::connect(&settings, &"1.test".parse().unwrap()).err().unwrap().to_string()
    };
    std::fs::write(&file, "no-colon").unwrap();
    let error = refused(&|settings| settings.auth_file = Some(file.clone()));
    assert_eq!(error, format!("`zookeeper.auth_file`: {} does not hold `user:password`", file.display()));
    let tls = |ca_file| ZkTls { ca_file, cert_file: None, key_file: None };
    let error = refused(&|settings| settings.tls = Some(tls("/nowhere/ca.pem".into())));
    assert!(error.starts_with("`zookeeper.tls.ca_file`: ") && error.contains("/nowhere/ca.pem"), "{error}");
}
