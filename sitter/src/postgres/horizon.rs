//! Holder of what VACUUM cannot remove: of the oldest transaction that somebody may still
//! look at (manual, section 25.1.5; `ComputeXidHorizons`, procarray.c).

use std::time::Instant;

use tokio_postgres::Client;

use super::APPLICATION_NAME;
use crate::machine::local::{Horizon, HorizonHolder};

/// The oldest of all, with its transaction. A slot's name tells the peer.
fn query() -> String {
    format!(
        "SELECT holder, name, horizon::text, age(horizon)::bigint FROM (
             SELECT 'slot' AS holder, slot_name || CASE WHEN active THEN '' ELSE ', unused' END AS name,
                    CASE WHEN coalesce(age(xmin), -1) >= coalesce(age(catalog_xmin), -1) THEN xmin
                         ELSE catalog_xmin END AS horizon
             FROM pg_replication_slots WHERE wal_status IS DISTINCT FROM 'lost'
             UNION ALL
             SELECT 'prepared', quote_literal(gid) || ' of ' || owner || ' in ' || database, transaction
             FROM pg_prepared_xacts
             UNION ALL
             SELECT 'standby', application_name, backend_xmin FROM pg_stat_replication
             UNION ALL
             SELECT 'transaction', 'process ' || pid || coalesce(' of ' || usename || ' in ' || datname, ''),
                    CASE WHEN coalesce(age(backend_xid), -1) >= coalesce(age(backend_xmin), -1) THEN backend_xid
                         ELSE backend_xmin END
             FROM pg_stat_activity
             WHERE backend_type <> 'walsender' AND application_name <> '{APPLICATION_NAME}') held
         WHERE horizon IS NOT NULL ORDER BY age(horizon) DESC LIMIT 1"
    )
}

/// Remembers since when the oldest one has been the same.
#[derive(Debug)]
pub(super) struct Watcher {
    query: String,
    last: Option<(HorizonHolder, String, String, Instant)>,
}

impl Watcher {
    pub(super) fn new() -> Self {
        Self { query: query(), last: None }
    }

    /// Looks; None if nobody holds anything, or nobody can say.
    pub(super) async fn look(&mut self, session: &Client) -> Option<Horizon> {
        let row = session.query_opt(self.query.as_str(), &[]).await.ok().flatten();
        let Some(row) = row else {
            self.last = None;
            return None;
        };
        let holder = HorizonHolder::parse(row.try_get(0).ok()?)?;
        let (name, transaction): (String, String) = (row.try_get(1).ok()?, row.try_get(2).ok()?);
        let age_transactions = u64::try_from(row.try_get::<_, i64>(3).ok()?).unwrap_or_default();
        let same = |(was, its_name, its_transaction, _): &(HorizonHolder, String, String, Instant)| {
            (*was, its_name, its_transaction) == (holder, &name, &transaction)
        };
        let since = self.last.take().filter(same).map_or_else(Instant::now, |(.., since)| since);
        self.last = Some((holder, name.clone(), transaction, since));
        let held_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        Some(Horizon { holder, name, age_transactions, held_ms })
    }
}
