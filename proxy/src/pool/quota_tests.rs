#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use manatee_shared::ids::PeerId;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::cancel::CancelTarget;
use crate::pool::{Grant, Place, Server, Waiting};
use crate::session::{Mark, ServedBy, ServerState, Shared};
use crate::tls::servers::ServerStream;
use crate::upstream::Upstream;

const LIFETIME: Duration = Duration::from_secs(60);

/// Connections that nobody answers, and the sessions' side of them.
struct World {
    listener: TcpListener,
    /// The other ends, so that they stay open.
    ends: Vec<TcpStream>,
    shared: Shared,
    quota: Rc<Quota>,
}

impl World {
    async fn new(most: usize) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let shared = Shared::new(crate::route::Classifier::new(1, 1, Arc::default()));
        Self { listener, ends: Vec::new(), shared, quota: Quota::new(most) }
    }

    fn pool(&self) -> Rc<NodePool> {
        NodePool::new(10, vec![self.quota.clone()])
    }

    async fn open(&mut self, place: Place) -> Box<Server> {
        let address = self.listener.local_addr().unwrap();
        let (stream, end) = tokio::join!(TcpStream::connect(address), self.listener.accept());
        self.ends.push(end.unwrap().0);
        let node = Node::of(PeerId { ip: Ipv4Addr::LOCALHOST.into(), pg_port: 1, backup_port: 1 });
        let upstream = Upstream {
            stream: ServerStream::Plain(stream.unwrap()),
            node,
            cancel: CancelTarget::new(node.address, 1, Bytes::new()),
            parameters: Vec::new(),
            unread: BytesMut::new(),
        };
        let mut server = Box::new(Server::new(upstream, place, &self.shared, Instant::now()));
        server.state = Some(ServerState::new(Vec::new(), &self.shared));
        server.served_by.set(ServedBy::Primary);
        server
    }

    /// An open connection that a session has.
    async fn take(&mut self, pool: &Rc<NodePool>) -> Box<Server> {
        match try_take(pool) {
            Some(Grant::Server(server)) => server,
            Some(Grant::Place(place)) => self.open(place).await,
            other => panic!("{other:?}"),
        }
    }
}

fn try_take(pool: &Rc<NodePool>) -> Option<Grant> {
    pool.try_take(&Mark::default(), LIFETIME, Instant::now())
}

fn open(pool: &Rc<NodePool>) -> usize {
    pool.counts().1
}

async fn granted(waiting: &mut Waiting) -> Grant {
    tokio::time::timeout(Duration::from_secs(10), waiting.granted()).await.expect("in time").expect("granted")
}

#[tokio::test]
async fn idle_connections_of_others_make_room() {
    let mut world = World::new(2).await;
    let (one, other) = (world.pool(), world.pool());
    let (first, second) = (world.take(&one).await, world.take(&one).await);
    assert!(try_take(&other).is_none(), "all are in use");
    one.put(first, Instant::now());
    one.put(second, Instant::now());
    let server = world.take(&other).await;
    assert_eq!((open(&one), open(&other)), (1, 1));
    drop(server);
    assert!(world.quota.has_room());
}

#[tokio::test]
async fn who_has_waited_longest_comes_first_in_whichever_pool() {
    let mut world = World::new(1).await;
    let (one, other) = (world.pool(), world.pool());
    let server = world.take(&one).await;
    let mut elsewhere = other.wait();
    let mut here = one.wait();
    // It would do for the one who waits here, who came later.
    one.put(server, Instant::now());
    let Grant::Place(place) = granted(&mut elsewhere).await else { panic!("a place") };
    assert_eq!((open(&one), open(&other)), (0, 1));
    let server = world.open(place).await;
    // Nobody else came: now it is closed for the one who waits.
    other.put(server, Instant::now());
    let Grant::Place(place) = granted(&mut here).await else { panic!("a place") };
    let server = world.open(place).await;
    // Who is the first of all gets the connection itself.
    let mut next = one.wait();
    one.put(server, Instant::now());
    assert!(matches!(granted(&mut next).await, Grant::Server(_)));
}

#[tokio::test]
async fn who_waits_for_something_else_keeps_nobody_back() {
    let mut world = World::new(2).await;
    let small = NodePool::new(1, vec![world.quota.clone()]);
    let (one, other) = (world.pool(), world.pool());
    let (_in_use, idle) = (world.take(&small).await, world.take(&one).await);
    let _for_its_own_pool = small.wait();
    one.put(idle, Instant::now());
    assert!(matches!(try_take(&other), Some(Grant::Place(_))));
    assert_eq!((open(&small), open(&one)), (1, 0));
}

#[tokio::test]
async fn nobody_overtakes_those_who_wait() {
    let mut world = World::new(2).await;
    let (one, other) = (world.pool(), world.pool());
    let (first, second) = (world.take(&one).await, world.take(&one).await);
    let mut waiting = other.wait();
    let gone = other.wait();
    assert!(try_take(&world.pool()).is_none());
    drop(gone);
    drop(first);
    let Grant::Place(place) = granted(&mut waiting).await else { panic!("a place") };
    drop((place, second));
    assert_eq!((open(&one), open(&other)), (0, 0));
    assert!(world.quota.has_room());
}
