#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
//! The driver with the real machine, a fake ZooKeeper and a fake executor.

use std::sync::Mutex;

use async_trait::async_trait;
use manatee_fake_zookeeper::{FakeSession, FakeZooKeeper};

use super::*;
use crate::heartbeat::Timing;
use crate::machine::action::ShardAction;
use crate::machine::local::{Data, Server};

const PATIENCE: Duration = Duration::from_secs(10);

/// Does what concerns ZooKeeper, records everything, and fails or hangs as told.
struct Fake {
    zk: FakeSession,
    me: Peer,
    done: Mutex<Vec<ActionKind>>,
    failures: Mutex<u32>,
}

#[async_trait]
impl Execute for Fake {
    async fn execute(&self, action: &Action) -> Result<StepOutcome, StepProblem> {
        {
            let mut failures = self.failures.lock().unwrap();
            if *failures > 0 {
                *failures -= 1;
                return Err(StepProblem::Zk(ZkError::Refused("as told".to_owned())));
            }
        }
        self.done.lock().unwrap().push(action.kind());
        match action {
            Action::Shard(ShardAction::JoinElection) => self.zk.join(self.me.clone()).await?,
            Action::Shard(ShardAction::LeaveElection) => self.zk.leave().await?,
            _ => {}
        }
        Ok(StepOutcome::Done)
    }
}

struct Fixture {
    fake: Arc<Fake>,
    status: watch::Receiver<Arc<Status>>,
    stop: CancellationToken,
    driver: tokio::task::JoinHandle<Result<(), Fatal>>,
    local: watch::Sender<Local>,
}

fn start(failures: u32) -> Fixture {
    let me = Peer::new("127.0.0.1:5432:1".parse().unwrap(), "me");
    let zk = FakeZooKeeper::new().session();
    zk.connect();
    let fake =
        Arc::new(Fake { zk: zk.clone(), me: me.clone(), done: Mutex::default(), failures: Mutex::new(failures) });
    let server = Server::Down { crashed: false, standby: false };
    let local = watch::Sender::new(Local::new(Data::Absent, server));
    let stop = CancellationToken::new();
    let timing = Timing { interval: Duration::from_millis(50), suspicion: Duration::from_millis(500) };
    let driver = Driver::new(Parts {
        me,
        shard: "demo".parse().unwrap(),
        settings: Settings::default(),
        zk: Arc::new(zk),
        local: local.subscribe(),
        condition: watch::channel(crate::postgres::Condition::default()).1,
        outside: watch::channel(None).1,
        heartbeats: Heartbeats::new(timing),
        execute: fake.clone(),
        newest_generation: None,
        standbys: watch::Sender::new(None),
        stop: stop.clone(),
        watchdog: Default::default(),
    });
    let status = driver.status();
    Fixture { fake, status, stop, driver: tokio::spawn(driver.run()), local }
}

impl Fixture {
    async fn until(&mut self, condition: impl Fn(&Status) -> bool) {
        let reached = tokio::time::timeout(PATIENCE, self.status.wait_for(|status| condition(status))).await;
        let problem = format!("{:?}", self.fake.done.lock().unwrap());
        reached.expect(&problem).expect(&problem);
    }

    fn done(&self) -> Vec<ActionKind> {
        self.fake.done.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn a_peer_joins_waits_for_others_and_leaves_when_stopped() {
    let mut f = start(0);
    f.until(|status| status.report.zk.active.len() == 1 && status.report.decision.action == ActionKind::Wait).await;
    assert_eq!(f.done(), [ActionKind::JoinElection], "alone it sets up nothing");
    f.stop.cancel();
    tokio::time::timeout(PATIENCE, f.driver).await.unwrap().unwrap().unwrap();
    assert_eq!(f.fake.done.lock().unwrap()[..], [ActionKind::JoinElection, ActionKind::LeaveElection]);
}

#[tokio::test]
async fn a_failed_step_is_shown_and_tried_again() {
    let mut f = start(2);
    f.until(|status| status.report.last_failure.as_ref().is_some_and(|failure| failure.problem.contains("as told")))
        .await;
    f.until(|status| status.report.zk.active.len() == 1 && status.report.last_failure.is_none()).await;
    assert_eq!(f.done(), [ActionKind::JoinElection]);
}

#[tokio::test]
async fn the_death_of_what_it_listens_to_ends_it() {
    let Fixture { driver, local, .. } = start(0);
    drop(local);
    let ended = tokio::time::timeout(PATIENCE, driver).await.unwrap().unwrap();
    assert!(matches!(ended, Err(Fatal::TaskDied("PostgreSQL"))), "{ended:?}");
}
