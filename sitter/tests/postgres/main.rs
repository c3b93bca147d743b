//! The PostgreSQL manager against real servers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]

mod capacities;
mod in_force;
mod peer;
mod readiness;
mod replay;
mod replication_tls;
mod senders;
mod tablespaces;
mod vacuum;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use manatee_shared::ids::PeerId;
use manatee_shared::lsn::{Lsn, Timeline};
use manatee_sitter::data::Rejoined;
use manatee_sitter::machine::action::{Rung, StopMode};
use manatee_sitter::machine::local::{Data, Gate, Local, Recovery, Server, ServerConfig, Synchronous};
use manatee_sitter::postgres::{Error, Postgres};
use tokio_postgres::NoTls;

use self::peer::{SUPERUSER_PASSWORD, TestPeer};

fn config(recovery: Recovery, synchronous: Synchronous, slots: &[PeerId]) -> ServerConfig {
    ServerConfig { recovery, synchronous, gate: Gate::Open, slots: BTreeSet::from_iter(slots.iter().copied()) }
}

fn follow(upstream: &TestPeer, slots: &[PeerId]) -> ServerConfig {
    config(Recovery::Follow(upstream.id), Synchronous::Impossible, slots)
}

/// Waits until `look` finds something, with a deadline.
async fn until_some<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap_or_else(|_| panic!("{what} did not come"))
}

/// A primary and `N` standbys that stream from it; nobody is synchronous yet.
async fn shard<const N: usize>() -> (TestPeer, [TestPeer; N]) {
    shard_of(TestPeer::new).await
}

/// The same of such peers.
async fn shard_of<const N: usize>(peer: impl Fn() -> TestPeer) -> (TestPeer, [TestPeer; N]) {
    let primary = peer();
    let standbys = std::array::from_fn(|_| peer());
    let ids: Vec<PeerId> = standbys.iter().map(|peer| peer.id).collect();
    primary.data.adopt().await.unwrap();
    primary.data.initialise().await.unwrap();
    let alone = config(Recovery::Primary, Synchronous::Nobody, &ids);
    primary.postgres.start(&alone).await.unwrap();
    for standby in &standbys {
        standby.data.adopt().await.unwrap();
        standby.data.bootstrap(primary.id, true).await.unwrap();
        let others: Vec<PeerId> = ids.iter().copied().filter(|id| *id != standby.id).chain([primary.id]).collect();
        standby.postgres.start(&follow(&primary, &others)).await.unwrap();
        standby.streaming().await;
        primary.followed_by(standby.id).await;
    }
    (primary, standbys)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_setup_is_fresh_until_it_is_started() {
    let peer = TestPeer::new();
    assert!(!peer.data.adopt().await.unwrap());
    assert_eq!(peer.local().data, Data::Absent);
    assert!(matches!(peer.postgres.start(&follow(&peer, &[])).await, Err(Error::DataNotFit(_))));
    let system = peer.data.initialise().await.unwrap();
    assert_eq!(peer.local().data, Data::Fresh(system.clone()));
    assert_eq!(peer.data.initialise().await.unwrap(), system, "may be repeated");

    let config = config(Recovery::Primary, Synchronous::Nobody, &[]);
    peer.postgres.start(&config).await.unwrap();
    let local = peer.local();
    assert_eq!((local.data, local.config), (Data::Present(system.clone()), Some(config)));
    assert_eq!(peer.primary().flushed.timeline.0, 1);
    assert!(matches!(peer.data.initialise().await, Err(Error::DataPresent)));

    // What the proxy may, and may not, do.
    let proxy =
        format!("host={} port={} user=manatee_proxy dbname=postgres password=proxypass", peer.id.ip, peer.id.pg_port);
    let (proxy, connection) = tokio_postgres::connect(&proxy, NoTls).await.unwrap();
    tokio::spawn(connection);
    let row = proxy.query_one("SELECT * FROM manatee.role_verifier('postgres')", &[]).await.unwrap();
    assert!(row.get::<_, &str>("verifier").starts_with("SCRAM-SHA-256$"));
    assert!(row.get::<_, bool>("can_login"));
    assert!(proxy.query("SELECT * FROM pg_authid", &[]).await.is_err());
    let nobody = format!("host={} port={} user=nobody dbname=postgres", peer.id.ip, peer.id.pg_port);
    assert!(tokio_postgres::connect(&nobody, NoTls).await.is_err());
    let log = std::fs::read_to_string(peer.settings.layout().log()).unwrap();
    assert!(!log.contains("SCRAM-SHA-256$") && !log.contains(SUPERUSER_PASSWORD), "{log}");

    // A clean stop is no crash, data absent is neither.
    peer.postgres.stop(StopMode::Fast).await.unwrap();
    assert_eq!(peer.local().server, Server::Down { crashed: false, standby: false });
    assert_eq!(peer.local().data, Data::Present(system));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crash_is_noticed_at_once_and_adoption_touches_nothing() {
    let peer = TestPeer::new();
    peer.data.adopt().await.unwrap();
    peer.data.initialise().await.unwrap();
    let config = config(Recovery::Primary, Synchronous::Nobody, &[]);
    peer.postgres.start(&config).await.unwrap();
    let pid = peer.postgres.pid().expect("a process");

    // Another manager, as after a restart of the sitter.
    let second = Postgres::new(peer.settings.clone(), peer.id).unwrap();
    assert!(second.adopt().await.unwrap());
    assert_eq!(second.pid(), Some(pid));
    drop(second);
    let adopted = Postgres::new(peer.settings.clone(), peer.id).unwrap();
    assert!(adopted.adopt().await.unwrap());
    let local = adopted.local().borrow().clone();
    assert_eq!(local.config.as_ref(), Some(&config), "{local:?}");
    assert!(matches!(local.server, Server::Primary(_)), "{local:?}");
    adopted.start(&config).await.unwrap();
    assert_eq!(adopted.pid(), Some(pid), "no second postmaster");
    // Nor by one that did not look before (H9).
    let pid_file = peer.data_dir().join("postmaster.pid");
    let written = std::fs::read_to_string(&pid_file).unwrap();
    let blind = Postgres::new(peer.settings.clone(), peer.id).unwrap();
    blind.start(&config).await.unwrap();
    assert_eq!(blind.pid(), Some(pid), "no second postmaster");
    assert_eq!(std::fs::read_to_string(&pid_file).unwrap(), written);
    drop(blind);

    let mut local = adopted.local();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let down = Server::Down { crashed: true, standby: false };
    tokio::time::timeout(Duration::from_secs(10), local.wait_for(|local| local.server == down)).await.unwrap().unwrap();

    // And known to a sitter that was not there.
    let late = Postgres::new(peer.settings.clone(), peer.id).unwrap();
    assert!(!late.adopt().await.unwrap());
    assert_eq!(late.local().borrow().server, down);
    late.start(&config).await.unwrap();
    assert!(matches!(late.local().borrow().server, Server::Primary(_)));
    late.stop(StopMode::Immediate).await.unwrap();
    assert_eq!(late.local().borrow().server, Server::Down { crashed: false, standby: false });
}

/// A host that lost power, whose process numbers begin anew: another program of the same user has the old one's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pid_file_that_names_a_stranger_does_not_keep_it_from_starting() {
    let peer = TestPeer::new();
    peer.data.adopt().await.unwrap();
    peer.data.initialise().await.unwrap();
    let config = config(Recovery::Primary, Synchronous::Nobody, &[]);
    peer.postgres.start(&config).await.unwrap();
    let pid_file = peer.data_dir().join("postmaster.pid");
    let written = std::fs::read_to_string(&pid_file).unwrap();
    peer.postgres.stop(StopMode::Immediate).await.unwrap();
    let mut stranger = std::process::Command::new("sleep");
    stranger.arg("600").current_dir("/");
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("postgres").unwrap().unwrap();
        std::os::unix::process::CommandExt::uid(&mut stranger, user.uid.as_raw());
    }
    let mut stranger = stranger.spawn().unwrap();
    let (_, rest) = written.split_once('\n').unwrap();
    std::fs::write(&pid_file, format!("{}\n{rest}", stranger.id())).unwrap();
    let started = peer.postgres.start(&config).await;
    let alive = stranger.try_wait().unwrap().is_none();
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    started.unwrap();
    assert!(alive, "nobody touched it");
    assert!(matches!(peer.local().server, Server::Primary(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_acknowledges_is_confirmed_everywhere() {
    let (primary, [first, second]) = shard().await;
    let slots = [first.id, second.id];
    let with = |synchronous| config(Recovery::Primary, synchronous, &slots);
    let priorities = || {
        let mut found = primary.primary().downstreams;
        found.sort_by_key(|downstream| downstream.peer != first.id);
        found.iter().map(|downstream| downstream.sync_priority).collect::<Vec<_>>()
    };

    primary.postgres.configure(&with(Synchronous::Peer(first.id))).await.unwrap();
    assert_eq!(priorities(), [1, 0]);
    let before = primary.primary().flushed.lsn;
    primary.sql("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").await;
    primary
        .until("the sync's flush", |local| match &local.server {
            Server::Primary(status) => status.downstreams.iter().any(|d| d.peer == first.id && d.flush > before),
            _ => false,
        })
        .await;

    let begin = Instant::now();
    primary.postgres.configure(&with(Synchronous::Both { new: second.id, old: first.id })).await.unwrap();
    println!("confirmed both in {:?}", begin.elapsed());
    assert_eq!(priorities(), [2, 1]);
    primary.postgres.configure(&with(Synchronous::Peer(second.id))).await.unwrap();
    assert_eq!(priorities(), [0, 1]);

    // Nobody may acknowledge now: a commit waits until somebody may.
    primary.postgres.configure(&with(Synchronous::Impossible)).await.unwrap();
    let client = primary.client().await.unwrap();
    let mut commit = Box::pin(client.batch_execute("INSERT INTO t VALUES (2)"));
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut commit).await.is_err());
    primary.postgres.configure(&with(Synchronous::Peer(first.id))).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), commit).await.expect("acknowledged").unwrap();

    // Below a standby the upstream is asked as well before the own name is used.
    let (upstream, begin) = (follow(&first, &[primary.id]), Instant::now());
    second.postgres.configure(&upstream).await.unwrap();
    first.followed_by(second.id).await;
    println!("followed a standby in {:?}", begin.elapsed());

    // A clean stop lets the standbys have everything.
    primary.postgres.stop(StopMode::Fast).await.unwrap();
    first
        .until("not streaming", |local| {
            matches!(&local.server, Server::Standby(s) if !s.streaming && s.not_streaming_ms > 0 && s.received.is_some())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn takeover_and_rejoin_by_rewind() {
    let (old, [new, other]) = shard().await;
    take_over_and_rejoin(old, new, other).await;
}

/// The sync `new` takes over while the others have more than it; both come back by `pg_rewind`.
async fn take_over_and_rejoin(old: TestPeer, new: TestPeer, other: TestPeer) {
    let slots = [new.id, other.id];
    old.postgres.configure(&config(Recovery::Primary, Synchronous::Peer(new.id), &slots)).await.unwrap();
    old.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n").await;
    let acknowledged = old.primary().flushed;

    // Detach the sync, while the old primary goes on and the other receives what the sync has not.
    let begin = Instant::now();
    let detached = config(Recovery::Detached, Synchronous::Peer(other.id), &[old.id, other.id]);
    new.postgres.configure(&detached).await.unwrap();
    println!("detached in {:?}", begin.elapsed());
    let standby = new.standby();
    assert!(standby.receiver_stopped && !standby.streaming);
    let received = standby.received.expect("a position");
    assert!(received.lsn >= acknowledged.lsn && received.timeline == acknowledged.timeline, "{received}");
    assert!(matches!(old.postgres.promote(&detached, None).await, Err(Error::NotApplied(_))));
    old.sql("SET synchronous_commit = local; INSERT INTO t SELECT generate_series(1, 5000)").await;
    let ahead = Lsn(received.lsn.0 + 100_000);
    other
        .until("more than the sync has", |local| {
            matches!(&local.server, Server::Standby(s) if s.received.is_some_and(|received| received.lsn > ahead))
        })
        .await;
    // It ends between leaving timelines out and the promotion: the files alone would not let it start.
    for left_out in ["00000002.history", "00000003.history"] {
        std::fs::write(new.settings.layout().data().join("pg_wal").join(left_out), "# never used\n").unwrap();
    }
    new.postgres.stop(StopMode::Immediate).await.unwrap();
    new.postgres.start(&detached).await.unwrap();
    let begin = Instant::now();
    let promoted = ServerConfig { recovery: Recovery::Primary, ..detached.clone() };
    new.postgres.promote(&promoted, Some(Timeline(4))).await.unwrap();
    println!("promoted in {:?}", begin.elapsed());
    assert_eq!(new.local().config, Some(promoted));
    assert_eq!(new.primary().flushed.timeline, Timeline(4), "2 and 3 are left out");

    // The other is named sync, attaches, and has a greater flush position; it must not acknowledge.
    other.postgres.configure(&follow(&new, &[old.id, new.id])).await.unwrap();
    let client = new.client().await.unwrap();
    let mut commit = Box::pin(client.batch_execute("INSERT INTO t VALUES (-1)"));
    let cannot = |local: &Local| matches!(&local.server, Server::Standby(s) if s.cannot_follow.is_some());
    other.until("the divergence", cannot).await;
    assert!(tokio::time::timeout(Duration::from_secs(2), &mut commit).await.is_err(), "acknowledged by nobody");
    assert_eq!(
        other.data.rejoin(new.id, Rung::AsIs, Some(received), true).await.unwrap(),
        Rejoined::Held(Rung::Rewind)
    );
    other.postgres.start(&follow(&new, &[old.id, new.id])).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), commit).await.expect("acknowledged").unwrap();

    // The old primary, crashed, started as it is, says that it cannot follow either.
    old.postgres.stop(StopMode::Immediate).await.unwrap();
    let following = follow(&new, &[new.id, other.id]);
    old.postgres.start(&following).await.unwrap();
    old.until("the divergence", cannot).await;
    assert_eq!(old.data.rejoin(new.id, Rung::AsIs, Some(received), true).await.unwrap(), Rejoined::Held(Rung::Rewind));
    assert_eq!(old.local().server, Server::Down { crashed: false, standby: true });
    let as_primary = config(Recovery::Primary, Synchronous::Nobody, &[]);
    assert!(matches!(old.postgres.start(&as_primary).await, Err(Error::StandbyData)));
    old.postgres.start(&following).await.unwrap();
    let at = new.primary().flushed;
    old.until("catching up", |local| {
        matches!(&local.server, Server::Standby(s)
            if s.streaming && s.received.is_some_and(|r| r.timeline == at.timeline && r.lsn >= at.lsn))
    })
    .await;
    assert_eq!(old.standby().cannot_follow, None);

    // A standby that was merely stopped needs nothing; the forced copy works and keeps the old data.
    other.postgres.stop(StopMode::Fast).await.unwrap();
    assert_eq!(other.data.rejoin(new.id, Rung::AsIs, None, true).await.unwrap(), Rejoined::Held(Rung::AsIs));
    assert_eq!(other.data.rejoin(new.id, Rung::Copy, None, true).await.unwrap(), Rejoined::NeedsCopy);
    assert_eq!(other.local().data, Data::Incomplete);
    assert_eq!(other.data.bootstrap(new.id, true).await.unwrap(), Rung::Copy);
    let restore = other.data.progress().restore().expect("a copy");
    assert!(restore.completed > 1 << 20 && restore.size == Some(restore.completed), "{restore:?}");
    assert_eq!(std::fs::read_dir(other.settings.layout().isolated()).unwrap().count(), 1);
    other.postgres.start(&follow(&new, &[old.id, new.id])).await.unwrap();
    other.streaming().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closed_gate_ends_clients_and_keeps_them_out() {
    let (primary, [standby]) = shard().await;
    let open = config(Recovery::Primary, Synchronous::Peer(standby.id), &[standby.id]);
    primary.postgres.configure(&open).await.unwrap();
    let client = primary.client().await.unwrap();
    client.batch_execute("SELECT 1").await.unwrap();
    let closed = ServerConfig { gate: Gate::Closed, ..open.clone() };
    let begin = Instant::now();
    primary.postgres.configure(&closed).await.unwrap();
    println!("closed in {:?}", begin.elapsed());
    assert!(client.batch_execute("SELECT 1").await.is_err());
    assert!(primary.client().await.is_err());
    assert_eq!(primary.primary().downstreams.len(), 1, "replication stays");
    primary.postgres.configure(&open).await.unwrap();
    primary.sql("SELECT 1").await;

    // A line that PostgreSQL does not understand is reported, not ignored.
    let mut settings = primary.settings.clone();
    settings.hba = vec!["host all all nonsense/99 scram-sha-256".to_owned()];
    let other = Postgres::new(settings, primary.id).unwrap();
    other.adopt().await.unwrap();
    let refused = other.configure(&open).await;
    assert!(matches!(&refused, Err(Error::Setting { key, .. }) if key == "postgres.hba"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_postmaster_is_hung_and_can_be_ended() {
    let peer = TestPeer::new();
    peer.data.adopt().await.unwrap();
    peer.data.initialise().await.unwrap();
    peer.postgres.start(&config(Recovery::Primary, Synchronous::Nobody, &[])).await.unwrap();
    let pid = nix::unistd::Pid::from_raw(peer.postgres.pid().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    peer.until("hung", |local| matches!(local.server, Server::Hung { .. })).await;
    peer.postgres.stop(StopMode::Immediate).await.unwrap();
    peer.postgres.start(&config(Recovery::Primary, Synchronous::Nobody, &[])).await.unwrap();
}

/// Queries go on to be answered; the server is of no use all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_checkpointer_is_hung_and_can_be_ended() {
    let peer = TestPeer::new();
    peer.data.adopt().await.unwrap();
    peer.data.initialise().await.unwrap();
    peer.postgres.start(&config(Recovery::Primary, Synchronous::Nobody, &[])).await.unwrap();
    let client = peer.client().await.unwrap();
    let row = client.query_one("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'", &[]);
    let pid = nix::unistd::Pid::from_raw(row.await.unwrap().get(0));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    peer.until("hung", |local| matches!(local.server, Server::Hung { .. })).await;
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    peer.until("well again", |local| matches!(local.server, Server::Primary(_))).await;
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    peer.until("hung", |local| matches!(local.server, Server::Hung { .. })).await;
    peer.postgres.stop(StopMode::Immediate).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owned_settings_can_not_be_taken_over() {
    let peer = TestPeer::new();
    let mut settings = peer.settings.clone();
    settings.parameters.insert("synchronous_standby_names".into(), "*".into());
    assert!(matches!(Postgres::new(settings, peer.id), Err(Error::Setting { .. })));
    let mut settings = peer.settings.clone();
    settings.dir = settings.dir.join("x".repeat(100));
    let error = Postgres::new(settings, peer.id).unwrap_err();
    assert!(error.to_string().contains("bytes"), "{error}");

    peer.data.adopt().await.unwrap();
    peer.data.initialise().await.unwrap();
    let config = config(Recovery::Primary, Synchronous::Nobody, &[]);
    peer.postgres.start(&config).await.unwrap();
    peer.sql("ALTER SYSTEM SET synchronous_standby_names = 'somebody'").await;
    let closed = ServerConfig { gate: Gate::Closed, ..config };
    peer.postgres.configure(&closed).await.unwrap();
    assert_eq!(peer.local().config, Some(closed));
}
