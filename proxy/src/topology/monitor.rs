//! Asks every node for its role and WAL position, and publishes what follows.
//!
//! One task per node asks; one task owns the [`Knowledge`] and is the only one to publish. A
//! named but unconfirmed primary is asked in quick succession, because the time until it is
//! confirmed is time without writes. Everything runs on the background runtime.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use manatee_shared::ids::{PeerId, ShardName};
use manatee_shared::lsn::{Lsn, Timeline};
use manatee_shared::tls::HandshakeError;
use manatee_shared::topology::Topology as State;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_postgres::NoTls;
use tokio_postgres::config::SslMode;
use tokio_util::sync::CancellationToken;

use super::knowledge::{Answer, Knowledge, Outcome};
use super::snapshot::Node;
use super::{Publisher, Snapshot};
use crate::metrics;
use crate::own_role::{Attempt, OwnRole, is_closed, is_login_refusal, is_wrong_password};
use crate::tls::servers::Servers;

/// Between two questions to a named primary that is not confirmed yet.
const QUICK_INTERVAL: Duration = Duration::from_millis(5);
/// The same where a connection must be opened first.
const QUICK_RECONNECT: Duration = Duration::from_millis(20);
/// Without a primary, what is no news is published no more often than this.
const NO_NEWS_INTERVAL: Duration = Duration::from_millis(25);
/// Interval at which metrics show an answer that is no news: they are read every few seconds.
const SHOW_INTERVAL: Duration = Duration::from_secs(1);
/// Duration of a quick succession before the normal pace returns: a primary that is down for
/// longer is not worth two hundred connection attempts a second.
const QUICK_LIMIT: Duration = Duration::from_secs(20);
/// Longest wait for one answer, after which the connection is opened anew. Silence is judged
/// elsewhere and earlier: a slow answer is better than a lost one.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_millis(2000);
/// Longest wait for one connection.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_millis(1000);
/// Databases that are connected to for asking a node: the second where the first lets nobody in. Every cluster has both, and
/// the sitters see to it that roles can be looked up in the one that is used.
const OWN_DATABASES: [&str; 2] = ["postgres", "template1"];
/// Another database that may be connected to for long: a session in a template keeps databases from being made of it.
const NO_TEMPLATE: &str = "SELECT datname::pg_catalog.text FROM pg_catalog.pg_database \
     WHERE datallowconn AND NOT datistemplate AND pg_catalog.has_database_privilege(oid, 'CONNECT') \
       AND datname <> 'postgres' ORDER BY oid LIMIT 1";
/// Between two attempts at a node that refuses the proxy's own role: each is a line in its log.
const REFUSED_INTERVAL: Duration = Duration::from_secs(1);
/// Results that may wait for the owner of the knowledge.
const MAX_RESULTS: usize = 256;

/// Settings for asking nodes.
#[derive(Clone)]
pub struct Settings {
    /// Shard.
    pub shard: ShardName,
    /// The proxy's own role, with the right to log in to [`OWN_DATABASES`].
    pub own: Arc<OwnRole>,
    /// Normal pace.
    pub poll_interval: Duration,
    /// Standbys further behind are not fit.
    pub max_lag: Duration,
    /// TLS.
    pub servers: Arc<Servers>,
}

/// Reason why our own role has no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not even an open one.
    #[error("cannot connect: {0}")]
    Open(#[from] HandshakeError),
    /// There is nothing to log in with.
    #[error("the proxy's own role has no password")]
    NoPassword,
    /// It took too long.
    #[error("no connection within {CONNECT_LIMIT:?}")]
    Late,
    /// The server refused, or what it was asked failed.
    #[error(transparent)]
    Server(#[from] tokio_postgres::Error),
}

/// A connection to one of [`OWN_DATABASES`].
pub struct OwnConnection {
    /// The connection.
    pub client: tokio_postgres::Client,
    /// The task that drives it, which ends when the connection does.
    pub driver: JoinHandle<()>,
    /// It is to a template: not to be kept.
    pub in_template: bool,
}

impl Settings {
    /// A connection to a database of `node` in which roles can be looked up.
    ///
    /// # Errors
    /// [`ConnectError`]; bounded by [`CONNECT_LIMIT`] for the connection itself.
    pub async fn connect(&self, node: Node) -> Result<OwnConnection, ConnectError> {
        let mut refused = ConnectError::NoPassword;
        for (place, database) in OWN_DATABASES.into_iter().enumerate() {
            match self.connect_to(node, database).await {
                Err(ConnectError::Server(error)) if is_closed(&error) => refused = error.into(),
                outcome => {
                    return outcome.map(|(client, driver)| OwnConnection { client, driver, in_template: place > 0 });
                }
            }
        }
        Err(refused)
    }

    /// As [`Settings::connect`], to be kept: to any database.
    async fn connect_for_long(&self, node: Node) -> Result<(tokio_postgres::Client, JoinHandle<()>), ConnectError> {
        let OwnConnection { client, driver, in_template } = self.connect(node).await?;
        if !in_template {
            return Ok((client, driver));
        }
        let Some(row) = client.query_opt(NO_TEMPLATE, &[]).await? else { return Ok((client, driver)) };
        let another: String = row.try_get(0)?;
        // Better in the template than nowhere.
        Ok(self.connect_to(node, &another).await.unwrap_or((client, driver)))
    }

    /// A connection to this database, and the task that drives it, which ends when the connection does.
    ///
    /// # Errors
    /// As [`Settings::connect`].
    pub async fn connect_to(
        &self,
        node: Node,
        database: &str,
    ) -> Result<(tokio_postgres::Client, JoinHandle<()>), ConnectError> {
        let mut attempts = self.own.attempts().peekable();
        while let Some(attempt) = attempts.next() {
            match self.attempt(node, database, &attempt).await {
                Ok(connected) => {
                    self.own.note_accepted(&self.shard, node.id, &attempt);
                    return Ok(connected);
                }
                Err(ConnectError::Server(error)) if is_wrong_password(&error) && attempts.peek().is_some() => {}
                Err(ConnectError::Server(error)) => {
                    // Another database may keep it out without anything being wrong with its login.
                    let own = OWN_DATABASES.contains(&database) && !(database == OWN_DATABASES[0] && is_closed(&error));
                    if is_login_refusal(&error) && own {
                        self.own.note_refused(&self.shard, node.id, &error);
                    }
                    return Err(error.into());
                }
                Err(error) => return Err(error),
            }
        }
        Err(ConnectError::NoPassword)
    }

    /// One attempt with one password.
    async fn attempt(
        &self,
        node: Node,
        database: &str,
        attempt: &Attempt,
    ) -> Result<(tokio_postgres::Client, JoinHandle<()>), ConnectError> {
        // Dropping the attempt closes the socket.
        let stream = tokio::time::timeout(CONNECT_LIMIT, self.servers.connect(node.address))
            .await
            .map_err(|_| ConnectError::Late)??;
        // Encryption is settled by now.
        let (client, connection) = tokio_postgres::Config::new()
            .user(self.own.name())
            .password(attempt.password())
            .dbname(database)
            .application_name("manatee-proxy")
            .ssl_mode(SslMode::Disable)
            .connect_raw(stream, NoTls)
            .await?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, node = %node.id, "own connection ended");
            }
        });
        Ok((client, driver))
    }

    /// Logs in once, to see whether the servers take the passwords there are now: what is open stays open after a
    /// change. What is found is logged and shown.
    pub async fn prove_login(&self, nodes: &[Node]) {
        for node in nodes {
            // Dropping the attempt closes the socket.
            let _ = tokio::time::timeout(CONNECT_LIMIT, self.connect(*node)).await;
        }
    }
}

/// Question to a node. `pg_walfile_name` begins with the timeline and works on a primary only. A
/// promotion between two of the functions makes the statement fail: it is then asked again.
///
/// The last two columns are a primary's: up to where everything is acknowledged, and whether commits
/// wait for a sync that has not even flushed `$1`, the primary's position at the question before. If
/// no commit waits, all that is flushed is acknowledged: whatever a standby can show has been
/// flushed here before, and waits from then on. Else it is what the synchronous standbys have
/// flushed; null if there are fewer than needed (`synchronous_standby_names` is `FIRST n (…)` or empty).
const QUESTION: &str = "SELECT r, \
     CASE WHEN r THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_insert_lsn() END, \
     CASE WHEN NOT r THEN pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8) END, \
     CASE WHEN r AND pg_catalog.pg_last_wal_receive_lsn() IS DISTINCT FROM pg_catalog.pg_last_wal_replay_lsn() \
          THEN extract(epoch FROM pg_catalog.clock_timestamp() - pg_catalog.pg_last_xact_replay_timestamp())::pg_catalog.float8 END, \
     CASE WHEN waits THEN synced ELSE flushed END, \
     waits AND (synced IS NULL OR synced < $1::pg_catalog.pg_lsn) \
     FROM (SELECT r, \
           CASE WHEN NOT r THEN pg_catalog.pg_current_wal_flush_lsn() END AS flushed, \
           (SELECT CASE WHEN pg_catalog.count(flush_lsn) >= needed THEN pg_catalog.min(flush_lsn) END \
            FROM pg_catalog.pg_stat_get_wal_senders() WHERE NOT r AND sync_state = 'sync') AS synced, \
           NOT r AND needed IS NOT NULL \
           AND EXISTS (SELECT FROM pg_catalog.pg_stat_get_activity(NULL) WHERE wait_event = 'SyncRep') AS waits \
           FROM (SELECT pg_catalog.pg_is_in_recovery() AS r, \
                 pg_catalog.substring(pg_catalog.current_setting('synchronous_standby_names'), '^FIRST (\\d+)')::pg_catalog.int4 AS needed \
                 OFFSET 0) AS role OFFSET 0) AS seen";

type PollResult = (PeerId, Instant, Outcome);

/// Follows the state and all nodes until `stop`.
pub async fn run(
    settings: Settings,
    mut state: watch::Receiver<Option<State>>,
    publisher: Publisher,
    mut suspicions: mpsc::Receiver<PeerId>,
    stop: CancellationToken,
) {
    let settings = Arc::new(settings);
    let (results, mut polled) = mpsc::channel::<PollResult>(MAX_RESULTS);
    let mut knowledge = Knowledge::new(settings.max_lag, Instant::now());
    let mut pollers: HashMap<PeerId, Poller> = HashMap::new();
    let mut last = Snapshot::unknown();
    let mut lost_at: Option<Instant> = None;
    let mut published = Instant::now();
    let (mut shown, mut shown_at) = (Snapshot::unknown(), None::<Instant>);
    let mut ticks = tokio::time::interval(settings.poll_interval.max(Duration::from_millis(10)));
    if let Some(first) = state.borrow_and_update().clone() {
        knowledge.handle_state(first, Instant::now());
    }
    loop {
        pollers.retain(|id, _| {
            let is_known = knowledge.nodes().any(|node| node == *id);
            if !is_known {
                settings.own.forget(&settings.shard, *id);
            }
            is_known
        });
        for id in knowledge.nodes() {
            pollers.entry(id).or_insert_with(|| Poller::spawn(Node::of(id), settings.clone(), results.clone()));
        }
        let now = Instant::now();
        let awaited = knowledge.awaited_primary(now);
        for (id, poller) in &pollers {
            poller.hurry(awaited == Some(*id), now);
        }
        let snapshot = knowledge.snapshot(now);
        if snapshot.primary.is_some() || is_news(&last, &snapshot) || now >= published + NO_NEWS_INTERVAL {
            published = now;
            report(&last, &snapshot);
            // The names of gauges are made for each: not several times per interval.
            if is_news(&shown, &snapshot) || shown_at.is_none_or(|shown_at| now >= shown_at + SHOW_INTERVAL) {
                metrics::show_topology(settings.shard.as_str(), &snapshot);
                (shown, shown_at) = (snapshot.clone(), Some(now));
            }
            match (last.primary.is_some(), snapshot.primary.is_some()) {
                (true, false) => lost_at = Some(now),
                (false, true) => {
                    if let Some(lost_at) = lost_at.take() {
                        metrics::record_absence(settings.shard.as_str(), now - lost_at);
                    }
                }
                _ => {}
            }
            last = snapshot.clone();
            publisher.publish(snapshot);
        }
        // All branches are cancel-safe: watch, mpsc and interval lose nothing when dropped.
        tokio::select! {
            () = stop.cancelled() => return,
            changed = state.changed() => match changed {
                Ok(()) => {
                    if let Some(newest) = state.borrow_and_update().clone() {
                        knowledge.handle_state(newest, Instant::now());
                    }
                }
                // The watcher is gone, which only happens at the end: the last state stays in use.
                Err(_) => return stop.cancelled().await,
            },
            Some((id, started, outcome)) = polled.recv() => {
                knowledge.handle_poll(id, started, &outcome, Instant::now());
            }
            Some(id) = suspicions.recv() => {
                if let Some(poller) = pollers.get(&id) {
                    poller.ask_now();
                }
            }
            // Silence makes no event of its own.
            _ = ticks.tick() => {}
        }
    }
}

/// Whether held clients must hear of it at once. The rest of what is learned while a primary is
/// awaited in quick succession would only wake all of them for nothing.
fn is_news(before: &Snapshot, after: &Snapshot) -> bool {
    let fit = |snapshot: &Snapshot| snapshot.fit_standbys().map(|standby| standby.node).collect::<Vec<_>>();
    before.reign != after.reign
        || before.generation != after.generation
        || before.primary.is_some() != after.primary.is_some()
        || before.state_is_current != after.state_is_current
        || fit(before) != fit(after)
}

/// Logs what changed, once.
fn report(before: &Snapshot, after: &Snapshot) {
    if before.generation != after.generation || before.primary() != after.primary() {
        let primary = after.primary().map_or_else(|| "none".to_owned(), |node| node.id.to_string());
        tracing::info!(generation = after.generation, %primary, "primary changed");
    }
    for standby in &after.standbys {
        let fit = before.standby(standby.node.id).map(|standby| standby.fit);
        if fit != Some(standby.fit) {
            tracing::info!(node = %standby.node.id, fit = standby.fit, lag_ms = standby.lag.as_millis(), "standby fitness changed");
        }
    }
    for gone in before.standbys.iter().filter(|standby| after.standby(standby.node.id).is_none()) {
        tracing::info!(node = %gone.node.id, "standby left the topology");
    }
    if before.state_is_current != after.state_is_current {
        tracing::info!(current = after.state_is_current, "ZooKeeper state became current or stale");
    }
}

/// The task that asks one node; ends when dropped.
struct Poller {
    task: JoinHandle<()>,
    pace: watch::Sender<Pace>,
}

/// Pace of asking a node.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Pace {
    /// In quick succession until then.
    quick_until: Option<Instant>,
    /// Rises when it is to be asked at once.
    prompts: u64,
}

impl Poller {
    fn spawn(node: Node, settings: Arc<Settings>, results: mpsc::Sender<PollResult>) -> Self {
        let (pace, changed) = watch::channel(Pace::default());
        Self { task: tokio::spawn(poll_forever(node, settings, results, changed)), pace }
    }

    fn hurry(&self, quick: bool, now: Instant) {
        self.pace.send_if_modified(|pace| {
            if quick == pace.quick_until.is_some() {
                return false;
            }
            pace.quick_until = quick.then(|| now + QUICK_LIMIT);
            quick
        });
    }

    fn ask_now(&self) {
        self.pace.send_modify(|pace| pace.prompts += 1);
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An open connection to a node.
struct Connection {
    client: tokio_postgres::Client,
    question: tokio_postgres::Statement,
    /// Its last position as primary.
    position: Lsn,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn poll_forever(
    node: Node,
    settings: Arc<Settings>,
    results: mpsc::Sender<PollResult>,
    mut pace: watch::Receiver<Pace>,
) {
    let mut connection: Option<Connection> = None;
    loop {
        let begun = Instant::now();
        let (started, outcome) = poll(node, &settings, &mut connection).await;
        if !matches!(outcome, Outcome::Answer(_)) {
            tracing::debug!(node = %node.id, ?outcome, "poll failed");
        }
        if results.send((node.id, started, outcome)).await.is_err() {
            return;
        }
        let quick = pace.borrow_and_update().quick_until.is_some_and(|until| begun < until);
        let interval = match (quick, &connection) {
            (_, None) if settings.own.is_refused(&settings.shard, node.id) => REFUSED_INTERVAL,
            (true, Some(_)) => QUICK_INTERVAL,
            (true, None) => QUICK_RECONNECT,
            (false, _) => settings.poll_interval,
        };
        let ended = async {
            match &mut connection {
                Some(connection) => drop((&mut connection.driver).await),
                None => std::future::pending().await,
            }
        };
        // Cancel-safe: a change of pace, a prompt or a broken connection only ends the wait early.
        tokio::select! {
            () = tokio::time::sleep_until((begun + interval).into()) => {}
            changed = pace.changed() => if changed.is_err() { return },
            () = ended => {
                // The server, or its host, dropped us: known at once, not at the next question.
                connection = None;
                let news = (node.id, Instant::now(), Outcome::Down("connection closed".to_owned()));
                if results.send(news).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// One question, connecting first where needed. Returns when the question was sent.
async fn poll(node: Node, settings: &Settings, slot: &mut Option<Connection>) -> (Instant, Outcome) {
    let begun = Instant::now();
    let mut connection = match slot.take() {
        Some(open) => open,
        None => {
            let connect = async {
                let (client, driver) = settings.connect_for_long(node).await?;
                let question = client.prepare(QUESTION).await?;
                Ok::<_, ConnectError>(Connection { client, question, position: Lsn::ZERO, driver })
            };
            // Dropping the attempt closes the socket.
            match tokio::time::timeout(CONNECT_LIMIT, connect).await {
                Ok(Ok(open)) => open,
                Ok(Err(error)) => return (begun, Outcome::Down(describe(&error))),
                Err(_) => return (begun, Outcome::Silent),
            }
        }
    };
    let started = Instant::now();
    let before = tokio_postgres::types::PgLsn::from(connection.position.0);
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&before];
    let question = connection.client.query_one(&connection.question, &parameters);
    // A question dropped after the limit would leave its answer behind: the connection goes with it.
    let outcome = match tokio::time::timeout(ANSWER_LIMIT, question).await {
        Ok(answer) => match answer.and_then(|row| read(&row)) {
            Ok(answer) => {
                if !answer.in_recovery {
                    connection.position = answer.lsn;
                }
                Outcome::Answer(answer)
            }
            // Promoted between two functions of the question: ask again.
            Err(error) if !connection.client.is_closed() && error.as_db_error().is_some() => Outcome::Silent,
            Err(error) => return (started, Outcome::Down(describe(&error))),
        },
        Err(_) => return (started, Outcome::Silent),
    };
    *slot = Some(connection);
    (started, outcome)
}

fn read(row: &tokio_postgres::Row) -> Result<Answer, tokio_postgres::Error> {
    let lsn: Option<tokio_postgres::types::PgLsn> = row.try_get(1)?;
    let timeline: Option<&str> = row.try_get(2)?;
    let lag: Option<f64> = row.try_get(3)?;
    let acknowledged: Option<tokio_postgres::types::PgLsn> = row.try_get(4)?;
    Ok(Answer {
        in_recovery: row.try_get(0)?,
        lsn: Lsn(lsn.map_or(0, u64::from)),
        timeline: timeline.and_then(|text| u32::from_str_radix(text, 16).ok()).map(Timeline),
        reported_lag: Duration::try_from_secs_f64(lag.unwrap_or(0.0).max(0.0)).unwrap_or(Duration::ZERO),
        acknowledged: acknowledged.map(|lsn| Lsn(lsn.into())),
        commits_wait: row.try_get(5)?,
    })
}

/// With the cause, which tokio-postgres keeps apart.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
