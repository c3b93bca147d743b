//! Waiting for the clients of a primary that is about to be succeeded.

use std::time::{Duration, Instant};

use super::clients::CLIENTS;
use super::error::Error;
use super::inner::Inner;
use super::session;

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(10);
/// Time that proxies may need to hear that they are to admit nothing new.
const HEARING: Duration = Duration::from_millis(40);
/// Longest wait: who is at work for longer is cut off, like in any takeover.
const LIMIT: Duration = Duration::from_secs(1);

/// Returns once two looks in a row have found nobody at work, or at the limit.
pub(super) async fn drain(inner: &Inner) -> Result<(), Error> {
    let began = Instant::now();
    let session = session::local(inner).await?;
    let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE {CLIENTS} AND state <> 'idle'");
    let question = session.prepare(&sql).await.map_err(Error::query("look for clients at work"))?;
    let mut at_rest = false;
    while began.elapsed() < LIMIT {
        let row = session.query_one(&question, &[]).await.map_err(Error::query("look for clients at work"))?;
        let at_work = row.get::<_, i64>(0);
        if at_work == 0 && at_rest && began.elapsed() >= HEARING {
            tracing::info!(took_ms = began.elapsed().as_millis(), "clients are at rest");
            return Ok(());
        }
        at_rest = at_work == 0;
        tokio::time::sleep(PERIOD).await;
    }
    tracing::info!(limit = ?LIMIT, "clients are still at work; not waiting any longer");
    Ok(())
}
