//! Small questions to the server, and waiting for an answer.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::error::Error;

/// Between two looks at something that takes milliseconds: part of every failover.
const POLL: Duration = Duration::from_millis(2);
/// A checkpoint of a busy server takes this long at most, or the change fails and is repeated.
const CHECKPOINT: Duration = Duration::from_secs(300);

/// Repeats `done` every few milliseconds until it says so, for at most `bound`.
pub(crate) async fn until<F, R, T>(bound: Duration, what: &str, mut done: F) -> Result<T, Error>
where
    // Not AsyncFnMut: the compiler cannot show yet that the futures it makes are Send.
    F: FnMut() -> R,
    R: Future<Output = Result<Option<T>, Error>>,
{
    let begin = Instant::now();
    let waiting = async {
        loop {
            if let Some(value) = done().await? {
                return Ok(value);
            }
            // Later on, seldom: whatever takes this long is not part of a quick failover.
            tokio::time::sleep(if begin.elapsed() < Duration::from_secs(2) { POLL } else { POLL * 20 }).await;
        }
    };
    tokio::time::timeout(bound, waiting).await.map_err(|_| Error::Timeout { what: what.to_owned(), timeout: bound })?
}

/// First column of the only row, as text.
pub(super) async fn text(session: &Client, sql: &str) -> Result<Option<String>, Error> {
    let row = session.query_one(sql, &[]).await.map_err(Error::query("ask for a setting"))?;
    row.try_get(0).map_err(Error::query("ask for a setting"))
}

pub(super) async fn is_in_recovery(session: &Client) -> Result<bool, Error> {
    let row = session.query_one("SELECT pg_is_in_recovery()", &[]).await.map_err(Error::query("ask for the role"))?;
    row.try_get(0).map_err(Error::query("ask for the role"))
}

/// An immediate checkpoint.
pub(super) async fn checkpoint(session: &Client) -> Result<(), Error> {
    let run = session.batch_execute("SET statement_timeout = 0; CHECKPOINT");
    let timeout = Error::Timeout { what: "a checkpoint".to_owned(), timeout: CHECKPOINT };
    tokio::time::timeout(CHECKPOINT, run).await.map_err(|_| timeout)?.map_err(Error::query("run a checkpoint"))
}
