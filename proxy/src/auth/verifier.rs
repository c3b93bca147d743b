//! Verifiers of roles in pg_authid, asked through one function by our own role.
//!
//! Every login asks, the primary first: a new password, NOLOGIN, a new role or a right to connect that was taken
//! away counts at once, and known and unknown roles take the same time. Questions that wait are asked together, each
//! role and database once, over one connection. What was answered last is remembered for when no node can be asked, for a bounded time.
//! One task owns the connections.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use manatee_shared::ids::PeerId;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::secret::Md5Hash;
use crate::error::{ProxyError, Result};
use crate::topology::monitor::{OwnConnection, Settings, describe};
use crate::topology::{Node, Topology};
use crate::wire::scram::Verifier;

/// Roles remembered at most.
const MAX_ENTRIES: usize = 10_000;
/// Questions that may wait.
const MAX_QUESTIONS: usize = 1024;
/// Series of questions under way at once.
const MAX_SERIES: usize = 16;
/// Longest wait for one node's answer.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Longest wait for an answer before what is remembered will do.
const PATIENCE: Duration = Duration::from_millis(500);
/// Between two attempts while no node can be asked.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// A node that could not be asked is asked last for so long.
const AVOID_FOR: Duration = Duration::from_secs(1);

/// The sitter creates this function; `verifier` is pg_authid's rolpassword.
const QUESTION: &str = "SELECT verifier, can_login, \
     CASE WHEN pg_catalog.isfinite(valid_until) THEN \
       pg_catalog.floor(extract(epoch FROM valid_until))::pg_catalog.int8 END, connection_limit, \
     role.oid, role.rolsuper, database.datallowconn, \
     pg_catalog.has_database_privilege(role.oid, database.oid, 'CONNECT'), database.datconnlimit \
     FROM manatee.role_verifier($1) \
     LEFT JOIN pg_catalog.pg_roles AS role ON role.rolname OPERATOR(pg_catalog.=) $1::pg_catalog.name \
     LEFT JOIN pg_catalog.pg_database AS database ON database.datname OPERATOR(pg_catalog.=) $2::pg_catalog.name";

/// Proof that a role has to give.
#[derive(Clone)]
pub enum Stored {
    /// SCRAM-SHA-256.
    Scram(Verifier),
    /// md5 of old.
    Md5(Md5Hash),
    /// No password, or one of a kind not known here.
    Nothing,
}

/// A role that exists.
#[derive(Clone)]
pub struct Role {
    /// Its number (`pg_authid.oid`), unless it is from a file.
    pub number: Option<u32>,
    /// Proof it has to give.
    pub stored: Stored,
    /// LOGIN or NOLOGIN.
    pub can_login: bool,
    /// VALID UNTIL in seconds since 1970; None: for ever.
    pub valid_until_unix_s: Option<i64>,
    /// CONNECTION LIMIT; None: any number.
    pub connection_limit: Option<u32>,
    /// Rights in the database; `None`: nothing is known of such a database.
    pub database: Option<DatabaseAccess>,
    /// Its password, if it is known: from a file.
    pub password: Option<Zeroizing<String>>,
}

/// Rights of a role in a database (`CheckMyDatabase` in postinit.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatabaseAccess {
    /// ALLOW_CONNECTIONS.
    pub allows_connections: bool,
    /// The CONNECT privilege; superusers have it.
    pub may_connect: bool,
    /// CONNECTION LIMIT; `None`: any number. It does not hold for superusers.
    pub connection_limit: Option<u32>,
}

impl Role {
    /// Whether its password has expired.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.valid_until_unix_s.is_some_and(|until| until < i64::try_from(now).unwrap_or(i64::MAX))
    }
}

/// A remembered role; None: it does not exist.
type Answer = Option<Arc<Role>>;

struct Remembered {
    answer: Answer,
    asked: Instant,
}

type Reply = oneshot::Sender<std::result::Result<Answer, Unreachable>>;

/// A role, and the database it wants.
type Wanted = (String, String);

struct Question {
    wanted: Wanted,
    reply: Reply,
}

/// No node could be asked.
#[derive(Clone, Copy, Debug)]
struct Unreachable;

/// The way to ask, and what was answered. Shared by all threads; not on the hot path.
pub struct Verifiers {
    remembered: Mutex<HashMap<Wanted, Remembered>>,
    questions: mpsc::Sender<Question>,
    max_age: Duration,
}

/// The task's end of the queue.
pub struct Questions(mpsc::Receiver<Question>);

impl Verifiers {
    /// Nothing remembered yet. [`serve`] must run for it. What is remembered is used for `max_age`,
    /// while no node can be asked.
    pub fn new(max_age: Duration) -> (Self, Questions) {
        let (questions, receiver) = mpsc::channel(MAX_QUESTIONS);
        (Self { remembered: Mutex::default(), questions, max_age }, Questions(receiver))
    }

    /// The role, if it exists, and what `database` lets it do. Waits for a node that can be asked until `deadline`.
    ///
    /// # Errors
    /// [`ProxyError::HoldTimeout`] if none appeared and nothing is remembered.
    pub async fn lookup(&self, user: &str, database: &str, deadline: Instant) -> Result<Answer> {
        let wanted = (user.to_owned(), database.to_owned());
        let begun = Instant::now();
        loop {
            let patience = match self.recall(&wanted, Instant::now()) {
                Some(_) => deadline.min(begun + PATIENCE),
                None => deadline,
            };
            // Cancel-safe: a reply nobody waits for any more is dropped by the task.
            if let Ok(Ok(answer)) = tokio::time::timeout_at(patience.into(), self.ask(&wanted)).await {
                return Ok(answer);
            }
            if let Some(answer) = self.recall(&wanted, Instant::now()) {
                return Ok(answer);
            }
            if Instant::now() + RETRY_INTERVAL >= deadline {
                return Err(ProxyError::HoldTimeout(begun.elapsed()));
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    async fn ask(&self, wanted: &Wanted) -> std::result::Result<Answer, Unreachable> {
        let (reply, answer) = oneshot::channel();
        let question = Question { wanted: wanted.clone(), reply };
        self.questions.send(question).await.map_err(|_| Unreachable)?;
        let answer = answer.await.map_err(|_| Unreachable)??;
        self.remember(wanted, answer.clone());
        Ok(answer)
    }

    fn recall(&self, wanted: &Wanted, now: Instant) -> Option<Answer> {
        let remembered = self.lock();
        let remembered = remembered.get(wanted)?;
        (now.saturating_duration_since(remembered.asked) <= self.max_age).then(|| remembered.answer.clone())
    }

    fn remember(&self, wanted: &Wanted, answer: Answer) {
        let mut remembered = self.lock();
        if answer.is_none() {
            // Names are for the guessing: those that are none take no room.
            remembered.remove(wanted);
            return;
        }
        if remembered.len() >= MAX_ENTRIES && !remembered.contains_key(wanted) {
            let oldest = remembered.iter().min_by_key(|(_, entry)| entry.asked).map(|(wanted, _)| wanted.clone());
            oldest.and_then(|oldest| remembered.remove(&oldest));
        }
        remembered.insert(wanted.clone(), Remembered { answer, asked: Instant::now() });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Wanted, Remembered>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers questions until `stop`, on the background runtime.
pub async fn serve(settings: Settings, topology: Topology, mut questions: Questions, stop: CancellationToken) {
    let mut connections = Connections { settings, open: HashMap::new(), failed: HashMap::new() };
    let mut series = JoinSet::new();
    loop {
        // All are cancel-safe. An answer under way when stopping is not needed any more.
        let first = tokio::select! {
            () = stop.cancelled() => return,
            Some(result) = series.join_next(), if !series.is_empty() => {
                if let Ok(Some(node)) = result {
                    connections.give_up(node);
                }
                continue;
            }
            first = questions.0.recv(), if series.len() < MAX_SERIES => match first {
                Some(first) => first,
                None => return,
            },
        };
        let mut asked: HashMap<Wanted, Vec<Reply>> = HashMap::new();
        asked.entry(first.wanted).or_default().push(first.reply);
        while let Ok(more) = questions.0.try_recv() {
            asked.entry(more.wanted).or_default().push(more.reply);
        }
        match connections.get(&topology).await {
            Some((node, client)) => drop(series.spawn(answer(node, client, asked))),
            // Whoever asked tries again.
            None => drop(asked),
        }
    }
}

/// Asks for all of them at once. The node, if it could not be asked.
async fn answer(
    node: PeerId,
    client: Arc<tokio_postgres::Client>,
    asked: HashMap<Wanted, Vec<Reply>>,
) -> Option<PeerId> {
    let one = |(wanted, replies): (Wanted, Vec<Reply>)| {
        let client = client.clone();
        async move {
            let answer = match tokio::time::timeout(ANSWER_LIMIT, ask(&client, &wanted)).await {
                Ok(Ok(role)) => Ok(role.map(Arc::new)),
                Ok(Err(error)) => {
                    tracing::warn!(%node, error = describe(&error), "cannot look up roles");
                    Err(Unreachable)
                }
                Err(_) => {
                    tracing::warn!(%node, "no answer to the look-up of a role");
                    Err(Unreachable)
                }
            };
            for reply in replies {
                let _ = reply.send(answer.clone());
            }
            answer.is_err()
        }
    };
    // tokio-postgres sends them all before it waits for the first answer.
    let failed = futures_util::future::join_all(asked.into_iter().map(one)).await;
    failed.contains(&true).then_some(node)
}

struct Connections {
    settings: Settings,
    open: HashMap<PeerId, Arc<tokio_postgres::Client>>,
    failed: HashMap<PeerId, Instant>,
}

impl Connections {
    /// A connection to the node that knows best: the primary, or else a standby.
    async fn get(&mut self, topology: &Topology) -> Option<(PeerId, Arc<tokio_postgres::Client>)> {
        let snapshot = topology.snapshot();
        let standbys = snapshot.standbys.iter().map(|standby| standby.node);
        let mut nodes: Vec<Node> = snapshot.primary().into_iter().chain(standbys).collect();
        self.open.retain(|id, client| !client.is_closed() && nodes.iter().any(|node| node.id == *id));
        self.failed.retain(|_, since| since.elapsed() < AVOID_FOR);
        nodes.sort_by_key(|node| self.failed.contains_key(&node.id));
        for node in nodes {
            if let Some(client) = self.open.get(&node.id) {
                return Some((node.id, client.clone()));
            }
            match tokio::time::timeout(ANSWER_LIMIT, self.settings.connect(node)).await {
                Ok(Ok(OwnConnection { client, in_template, .. })) => {
                    let client = Arc::new(client);
                    // A session in a template would keep databases from being made of it: this one ends with its answer.
                    if !in_template {
                        self.open.insert(node.id, client.clone());
                    }
                    return Some((node.id, client));
                }
                Ok(Err(error)) => {
                    tracing::warn!(node = %node.id, error = describe(&error), "cannot look up roles");
                }
                Err(_) => tracing::warn!(node = %node.id, "no connection for looking up roles"),
            }
            self.give_up(node.id);
        }
        None
    }

    fn give_up(&mut self, node: PeerId) {
        self.open.remove(&node);
        self.failed.insert(node, Instant::now());
    }
}

async fn ask(
    client: &tokio_postgres::Client,
    (user, database): &Wanted,
) -> std::result::Result<Option<Role>, tokio_postgres::Error> {
    use tokio_postgres::types::Type;
    let rows = client.query_typed(QUESTION, &[(user, Type::TEXT), (database, Type::TEXT)]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let verifier: Option<&str> = row.try_get(0)?;
    let stored = match verifier {
        Some(text) => Verifier::parse(text)
            .map(Stored::Scram)
            .or_else(|| Md5Hash::parse(text).map(Stored::Md5))
            .unwrap_or(Stored::Nothing),
        None => Stored::Nothing,
    };
    let is_superuser = row.try_get::<_, Option<bool>>(5)?.unwrap_or(false);
    let limit: Option<i32> = row.try_get(8)?;
    let database = match (row.try_get(6)?, row.try_get(7)?) {
        (Some(allows_connections), Some(may_connect)) => Some(DatabaseAccess {
            allows_connections,
            may_connect,
            connection_limit: limit.filter(|_| !is_superuser).and_then(|limit| u32::try_from(limit).ok()),
        }),
        _ => None,
    };
    Ok(Some(Role {
        number: row.try_get(4)?,
        database,
        stored,
        can_login: row.try_get::<_, Option<bool>>(1)?.unwrap_or(false),
        valid_until_unix_s: row.try_get(2)?,
        connection_limit: row.try_get::<_, Option<i32>>(3)?.and_then(|limit| u32::try_from(limit).ok()),
        password: None,
    }))
}
