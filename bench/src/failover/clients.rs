//! Clients that write and read without a pause and come again when they are sent away: those of
//! Manatee's oracle, for somebody else's proxy.

use std::sync::Arc;
use std::time::{Duration, Instant};

use manatee_tests::oracle::ledger::{Failure, Kind, Ledger, Outcome};
use tokio::task::JoinSet;
use tokio_postgres::{Client, Config, NoTls};

/// As many of each as the oracle has.
const EACH: i32 = 4;
/// Between two statements.
const PAUSE: Duration = Duration::from_millis(2);
/// Between two logins.
const LOGIN_PAUSE: Duration = Duration::from_millis(20);
/// An answer not there by then will not come.
const PATIENCE: Duration = Duration::from_secs(45);

/// Running clients; they end with this value.
#[derive(Debug)]
pub(super) struct Clients {
    /// Record of their answers.
    pub(super) ledger: Arc<Ledger>,
    _tasks: JoinSet<()>,
}

impl Clients {
    /// Starts them: writers where `writes` leads, readers where `reads` does. The table is there.
    pub(super) fn start(writes: &Config, reads: &Config) -> Self {
        let ledger = Arc::new(Ledger::new(Instant::now()));
        let mut tasks = JoinSet::new();
        for number in 0..EACH {
            tasks.spawn(work(writes.clone(), ledger.clone(), Kind::Write, number));
            tasks.spawn(work(reads.clone(), ledger.clone(), Kind::Read, number));
        }
        Self { ledger, _tasks: tasks }
    }
}

async fn work(config: Config, ledger: Arc<Ledger>, kind: Kind, number: i32) {
    let mut sequence = 0;
    loop {
        let Ok(Ok((client, connection))) = tokio::time::timeout(PATIENCE, config.connect(NoTls)).await else {
            ledger.failed(kind, &Failure { code: "login".to_owned(), dropped: false });
            tokio::time::sleep(LOGIN_PAUSE).await;
            continue;
        };
        tokio::spawn(async move { drop(connection.await) });
        loop {
            sequence += 1;
            let begin = Instant::now();
            match statement(&client, kind, number, sequence).await {
                Ok(()) if kind == Kind::Write => ledger.acknowledged((number, sequence), begin, Instant::now()),
                Ok(()) => ledger.read(begin, Instant::now()),
                Err(failure) => {
                    match kind {
                        Kind::Write => ledger.write_failed((number, sequence), &failure, Outcome::InDoubt),
                        Kind::Read => ledger.failed(kind, &failure),
                    }
                    if failure.dropped || client.is_closed() {
                        break;
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn statement(client: &Client, kind: Kind, number: i32, sequence: i64) -> Result<(), Failure> {
    let sql = match kind {
        Kind::Write => format!("insert into bench_failover values ({number}, {sequence})"),
        Kind::Read => "select max(sequence) from bench_failover".to_owned(),
    };
    match tokio::time::timeout(PATIENCE, client.batch_execute(&sql)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            let code = error.code().map_or("connection", |code| code.code()).to_owned();
            Err(Failure { code, dropped: error.as_db_error().is_none() || client.is_closed() })
        }
        Err(_) => Err(Failure { code: "timeout".to_owned(), dropped: true }),
    }
}
