//! The oracle's clients: ordinary sessions that write and read, and note what happens.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, Statement};
use tokio_util::sync::CancellationToken;

use super::ledger::{Failure, Kind, Ledger, Outcome, Row};

/// Longest a client waits for an answer before it goes away. Longer than the proxy's hold.
const PATIENCE: Duration = Duration::from_secs(45);
/// Pause after a failed login.
const LOGIN_PAUSE: Duration = Duration::from_millis(50);
/// Pause between two writes, and two reads, of one session: load enough to see a gap of a few
/// milliseconds, and little enough to leave the machine to the programs under test.
const WRITE_PAUSE: Duration = Duration::from_millis(10);
const READ_PAUSE: Duration = Duration::from_millis(5);

/// `transaction_resolution_unknown`
const IN_DOUBT: &str = "08007";

/// A client with its prepared statements.
struct Session {
    client: Client,
    insert: Statement,
    own: Statement,
    newest: Statement,
}

/// State that a client shares with the others.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) ledger: Arc<Ledger>,
    pub(super) stop: CancellationToken,
}

impl Shared {
    async fn login(&self) -> Result<Session, Failure> {
        let login = async {
            let (client, connection) = self.config.connect(NoTls).await?;
            // Ends when the client is dropped.
            tokio::spawn(async move { drop(connection.await) });
            let insert = client.prepare("insert into lab_oracle values ($1, $2)").await?;
            let own = client.prepare("select count(*) from lab_oracle where writer = $1 and seq = $2").await?;
            let newest = client.prepare("select max(seq) from lab_oracle where writer = $1").await?;
            Ok(Session { client, insert, own, newest })
        };
        match tokio::time::timeout(PATIENCE, login).await {
            Ok(Ok(session)) => Ok(session),
            Ok(Err(error)) => Err(Failure { code: format!("login {}", failure(&error).code), dropped: false }),
            Err(_) => Err(Failure { code: "login timeout".to_owned(), dropped: false }),
        }
    }

    /// Logs in, noting failures, until it works; None when the oracle ends.
    async fn session(&self, kind: Kind) -> Option<Session> {
        while !self.stop.is_cancelled() {
            match self.login().await {
                Ok(session) => return Some(session),
                Err(failure) => self.ledger.failed(kind, &failure),
            }
            tokio::time::sleep(LOGIN_PAUSE).await;
        }
        None
    }
}

/// Writes rows in each of the ways clients write, and reads each back in the same session.
pub(super) async fn writer(shared: Shared, number: i32) {
    let mut sequence = 0;
    while let Some(session) = shared.session(Kind::Write).await {
        loop {
            if shared.stop.is_cancelled() {
                return;
            }
            sequence += 1;
            let row = (number, sequence);
            let lost = match write(&shared, &session, row).await {
                Ok(()) => read_back(&shared, &session, row).await,
                Err(failure) => failure.dropped || session.client.is_closed(),
            };
            if lost {
                break;
            }
            tokio::time::sleep(WRITE_PAUSE).await;
        }
    }
}

async fn write(shared: &Shared, session: &Session, row: Row) -> Result<(), Failure> {
    let begin = Instant::now();
    let (result, committing) = match tokio::time::timeout(PATIENCE, attempt(session, row)).await {
        Ok(attempt) => attempt,
        Err(_) => (Err(Failure { code: "timeout".to_owned(), dropped: true }), Committing::Perhaps),
    };
    match &result {
        Ok(()) => shared.ledger.acknowledged(row, begin, Instant::now()),
        Err(failure) => {
            let unknown = failure.dropped || failure.code == IN_DOUBT;
            let outcome =
                if unknown && committing == Committing::Perhaps { Outcome::InDoubt } else { Outcome::Refused };
            shared.ledger.write_failed(row, failure, outcome);
        }
    }
    result
}

/// Whether the server had been asked to commit when the attempt ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Committing {
    No,
    Perhaps,
}

async fn attempt(session: &Session, row: Row) -> (Result<(), Failure>, Committing) {
    let client = &session.client;
    let (writer, sequence) = row;
    let plain = format!("insert into lab_oracle values ({writer}, {sequence})");
    match sequence % 3 {
        0 => (client.execute(&session.insert, &[&writer, &sequence]).await.map(drop), Committing::Perhaps),
        1 => (client.batch_execute(&plain).await, Committing::Perhaps),
        _ => {
            let body = async {
                client.batch_execute("begin").await?;
                client.execute(&session.insert, &[&writer, &sequence]).await
            };
            match body.await {
                Ok(_) => (client.batch_execute("commit").await, Committing::Perhaps),
                Err(error) => {
                    // If this fails as well, the next statement will tell.
                    let _ = client.batch_execute("rollback").await;
                    (Err(error), Committing::No)
                }
            }
        }
    }
    .map_failure()
}

trait MapFailure {
    fn map_failure(self) -> (Result<(), Failure>, Committing);
}

impl MapFailure for (Result<(), tokio_postgres::Error>, Committing) {
    fn map_failure(self) -> (Result<(), Failure>, Committing) {
        (self.0.map_err(|error| failure(&error)), self.1)
    }
}

/// Returns whether the session is lost.
async fn read_back(shared: &Shared, session: &Session, row: Row) -> bool {
    let (writer, sequence) = row;
    let begin = Instant::now();
    let answer = async {
        if sequence % 2 == 0 {
            return Ok(session.client.query_one(&session.own, &[&writer, &sequence]).await?.get::<_, i64>(0));
        }
        let sql = format!("select count(*) from lab_oracle where writer = {writer} and seq = {sequence}");
        simple_value(&session.client, &sql).await.map(|value| value.unwrap_or_default())
    };
    match reading(shared, session, begin, answer).await {
        Ok(count) => {
            if count != 1 {
                shared.ledger.stale(format!("writer {writer} did not find its own row {sequence}"));
            }
            false
        }
        Err(lost) => lost,
    }
}

/// Reads the newest row of each writer in turn: it must never get older within a session.
pub(super) async fn reader(shared: Shared, writers: i32) {
    while let Some(session) = shared.session(Kind::Read).await {
        let mut seen: HashMap<i32, i64> = HashMap::new();
        for turn in 0_i32.. {
            if shared.stop.is_cancelled() {
                return;
            }
            let writer = turn % writers;
            let begin = Instant::now();
            let answer = async {
                if turn % 2 == 0 {
                    let row = session.client.query_one(&session.newest, &[&writer]).await?;
                    return Ok(row.get::<_, Option<i64>>(0));
                }
                let sql = format!("select max(seq) from lab_oracle where writer = {writer}");
                simple_value(&session.client, &sql).await
            };
            match reading(&shared, &session, begin, answer).await {
                Ok(newest) => {
                    let newest = newest.unwrap_or_default();
                    let before = seen.insert(writer, newest).unwrap_or_default();
                    if newest < before {
                        shared.ledger.stale(format!("writer {writer}'s newest row went from {before} to {newest}"));
                    }
                }
                Err(true) => break,
                Err(false) => {}
            }
            tokio::time::sleep(READ_PAUSE).await;
        }
    }
}

/// Notes how a read went. An error says whether the session is lost.
async fn reading<T>(
    shared: &Shared,
    session: &Session,
    begin: Instant,
    answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, bool> {
    let failure = match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(value)) => {
            shared.ledger.read(begin, Instant::now());
            return Ok(value);
        }
        Ok(Err(error)) => failure(&error),
        Err(_) => Failure { code: "timeout".to_owned(), dropped: true },
    };
    shared.ledger.failed(Kind::Read, &failure);
    Err(failure.dropped || session.client.is_closed())
}

/// The single value of a query sent by the simple protocol.
async fn simple_value(client: &Client, sql: &str) -> Result<Option<i64>, tokio_postgres::Error> {
    let messages = client.simple_query(sql).await?;
    Ok(messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
        _ => None,
    }))
}

fn failure(error: &tokio_postgres::Error) -> Failure {
    match error.as_db_error() {
        Some(db) => {
            let fatal = matches!(db.parsed_severity(), Some(tokio_postgres::error::Severity::Fatal));
            Failure { code: db.code().code().to_owned(), dropped: fatal || error.is_closed() }
        }
        None => Failure { code: "connection".to_owned(), dropped: true },
    }
}
