//! What pg_authid says of a role, asked through one function by our own role, and remembered.
//!
//! One task owns the connections for this; logins ask it through a bounded queue. The cache serves
//! while an entry is young, and while no node can be asked. An entry that a login failed with is
//! asked for again at the next login, from the primary, so that a new password works at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use manatee_shared::ids::PeerId;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::secret::Md5Hash;
use crate::error::{ProxyError, Result};
use crate::topology::monitor::Settings;
use crate::topology::{Node, Topology};
use crate::wire::scram::Verifier;

/// Roles remembered at most.
const MAX_ENTRIES: usize = 10_000;
/// That a role does not exist is believed for so long only: it may be created any time.
const ABSENT_MAX_AGE: Duration = Duration::from_secs(1);
/// Questions that may wait.
const MAX_QUESTIONS: usize = 1024;
/// Longest wait for one node's answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// The sitter creates this function; `verifier` is pg_authid's rolpassword.
const QUESTION: &str = "SELECT verifier, can_login, \
     CASE WHEN pg_catalog.isfinite(valid_until) THEN \
       pg_catalog.floor(extract(epoch FROM valid_until))::pg_catalog.int8 END, connection_limit \
     FROM manatee.role_verifier($1)";

/// How a role proves itself.
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
    /// How it proves itself.
    pub stored: Stored,
    /// LOGIN or NOLOGIN.
    pub can_login: bool,
    /// VALID UNTIL in seconds since 1970; None: for ever.
    pub valid_until_unix_s: Option<i64>,
    /// CONNECTION LIMIT; None: any number.
    pub connection_limit: Option<u32>,
    /// Its password, if it is known: from a file.
    pub password: Option<Zeroizing<String>>,
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
    doubted: bool,
}

struct Question {
    user: String,
    /// Ask the primary first: a standby may not know yet.
    doubted: bool,
    reply: oneshot::Sender<std::result::Result<Answer, Unreachable>>,
}

/// No node could be asked.
#[derive(Debug)]
struct Unreachable;

/// The cache and the way to ask. Shared by all threads; not on the hot path.
pub struct Verifiers {
    remembered: Mutex<HashMap<String, Remembered>>,
    questions: mpsc::Sender<Question>,
    topology: Topology,
    max_age: Duration,
}

/// The task's end of the queue.
pub struct Questions(mpsc::Receiver<Question>);

impl Verifiers {
    /// An empty cache. [`serve`] must run for it.
    pub fn new(topology: Topology, max_age: Duration) -> (Self, Questions) {
        let (questions, receiver) = mpsc::channel(MAX_QUESTIONS);
        (Self { remembered: Mutex::default(), questions, topology, max_age }, Questions(receiver))
    }

    /// The role, if it exists. Waits for a node that can be asked until `deadline`.
    ///
    /// # Errors
    /// [`ProxyError::HoldTimeout`] if none appeared and nothing is remembered.
    pub async fn lookup(&self, user: &str, deadline: Instant) -> Result<Answer> {
        let begun = Instant::now();
        let mut changes = self.topology.changes();
        loop {
            let (remembered, doubted) = match self.recall(user, Instant::now()) {
                Recalled::Young(answer) => return Ok(answer),
                Recalled::Old { answer, doubted } => (Some(answer), doubted),
                Recalled::Nothing => (None, false),
            };
            // Cancel-safe throughout: a reply nobody waits for any more is dropped by the task.
            let asked = tokio::time::timeout_at(deadline.into(), self.ask(user, doubted)).await;
            match (asked, remembered) {
                (Ok(Ok(answer)), _) => return Ok(answer),
                (_, Some(answer)) => return Ok(answer),
                (Err(_), None) => return Err(ProxyError::HoldTimeout(begun.elapsed())),
                (Ok(Err(Unreachable)), None) => {}
            }
            let changed = tokio::time::timeout_at(deadline.into(), changes.changed()).await;
            if !matches!(changed, Ok(Ok(()))) {
                return Err(ProxyError::HoldTimeout(begun.elapsed()));
            }
        }
    }

    /// Says that a login failed with what is remembered.
    pub fn doubt(&self, user: &str) {
        if let Some(remembered) = self.lock().get_mut(user) {
            remembered.doubted = true;
        }
    }

    async fn ask(&self, user: &str, doubted: bool) -> std::result::Result<Answer, Unreachable> {
        let (reply, answer) = oneshot::channel();
        let question = Question { user: user.to_owned(), doubted, reply };
        self.questions.send(question).await.map_err(|_| Unreachable)?;
        let answer = answer.await.map_err(|_| Unreachable)??;
        self.remember(user, answer.clone());
        Ok(answer)
    }

    fn recall(&self, user: &str, now: Instant) -> Recalled {
        match self.lock().get(user) {
            None => Recalled::Nothing,
            Some(Remembered { answer, asked, doubted }) => {
                let max_age = if answer.is_some() { self.max_age } else { self.max_age.min(ABSENT_MAX_AGE) };
                match !doubted && now.saturating_duration_since(*asked) <= max_age {
                    true => Recalled::Young(answer.clone()),
                    false => Recalled::Old { answer: answer.clone(), doubted: *doubted },
                }
            }
        }
    }

    fn remember(&self, user: &str, answer: Answer) {
        let mut remembered = self.lock();
        if remembered.len() >= MAX_ENTRIES && !remembered.contains_key(user) {
            let oldest = remembered.iter().min_by_key(|(_, entry)| entry.asked).map(|(user, _)| user.clone());
            oldest.and_then(|oldest| remembered.remove(&oldest));
        }
        remembered.insert(user.to_owned(), Remembered { answer, asked: Instant::now(), doubted: false });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Remembered>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Recalled {
    Young(Answer),
    Old { answer: Answer, doubted: bool },
    Nothing,
}

/// Answers questions until `stop`, on the background runtime.
pub async fn serve(settings: Settings, topology: Topology, mut questions: Questions, stop: CancellationToken) {
    let mut connections = Connections { settings, open: HashMap::new() };
    // `recv` is cancel-safe. An answer under way when stopping is not needed any more.
    while let Some(Some(question)) = stop.run_until_cancelled(questions.0.recv()).await {
        if question.reply.is_closed() {
            continue;
        }
        let answer = connections.answer(&topology, &question).await;
        let _ = question.reply.send(answer);
    }
}

struct Connections {
    settings: Settings,
    open: HashMap<PeerId, (tokio_postgres::Client, JoinHandle<()>)>,
}

impl Connections {
    async fn answer(&mut self, topology: &Topology, question: &Question) -> std::result::Result<Answer, Unreachable> {
        let snapshot = topology.snapshot();
        let standbys = snapshot.standbys.iter().map(|standby| standby.node);
        let mut nodes: Vec<Node> = standbys.chain(snapshot.primary()).collect();
        if question.doubted {
            nodes.reverse();
        }
        self.open.retain(|id, (client, _)| !client.is_closed() && nodes.iter().any(|node| node.id == *id));
        let mut absent = false;
        for node in nodes {
            match tokio::time::timeout(ANSWER_LIMIT, self.ask(node, &question.user)).await {
                Ok(Ok(Some(role))) => return Ok(Some(Arc::new(role))),
                // A standby may not have heard of a new role: the others are asked too.
                Ok(Ok(None)) => absent = true,
                Ok(Err(error)) => {
                    tracing::warn!(node = %node.id, %error, cause = ?std::error::Error::source(&error), "cannot look up roles");
                    self.open.remove(&node.id);
                }
                Err(_) => {
                    tracing::warn!(node = %node.id, "no answer to the look-up of a role");
                    self.open.remove(&node.id);
                }
            }
        }
        if absent { Ok(None) } else { Err(Unreachable) }
    }

    async fn ask(&mut self, node: Node, user: &str) -> std::result::Result<Option<Role>, tokio_postgres::Error> {
        if !self.open.contains_key(&node.id) {
            let connection = self.settings.connect(node).await?;
            self.open.insert(node.id, connection);
        }
        let Some((client, _)) = self.open.get(&node.id) else { return Ok(None) };
        let Some(row) = client.query_opt(QUESTION, &[&user]).await? else { return Ok(None) };
        let verifier: Option<&str> = row.try_get(0)?;
        let stored = match verifier {
            Some(text) => Verifier::parse(text)
                .map(Stored::Scram)
                .or_else(|| Md5Hash::parse(text).map(Stored::Md5))
                .unwrap_or(Stored::Nothing),
            None => Stored::Nothing,
        };
        Ok(Some(Role {
            stored,
            can_login: row.try_get::<_, Option<bool>>(1)?.unwrap_or(false),
            valid_until_unix_s: row.try_get(2)?,
            connection_limit: row.try_get::<_, Option<i32>>(3)?.and_then(|limit| u32::try_from(limit).ok()),
            password: None,
        }))
    }
}
