//! The oracle: clients that write and read through the proxy while something goes wrong, and
//! the questions asked afterwards: is every acknowledged row still there, was any session shown
//! less than it knew, and for how long did nothing work?

mod acknowledgers;
pub mod ledger;
mod session;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use manatee_shared::cluster::Role;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::host::Host;
use crate::lab::Lab;
use acknowledgers::Writer;
use ledger::{Figures, Ledger, Row};
use session::{Shared, reader, writer};

/// Each row tells which node wrote it, and on which timeline (the first 8 digits of a WAL file's
/// name): every promotion begins one.
const TABLE: &str = "create table if not exists lab_oracle (writer int, seq bigint, node inet default \
     inet_server_addr(), timeline text default left(pg_walfile_name(pg_current_wal_lsn()), 8), \
     primary key (writer, seq))";
/// Sessions that write and read back.
const WRITERS: i32 = 4;
/// Sessions that only read.
const READERS: i32 = 4;

/// A running oracle. Its sessions end when it is dropped.
#[derive(Debug)]
pub struct Oracle {
    ledger: Arc<Ledger>,
    stop: CancellationToken,
    // Aborts its tasks when dropped.
    sessions: JoinSet<()>,
}

/// Rows that are not as the clients were told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Acknowledged rows missing on a peer.
    pub lost: u64,
    /// Rows present of which the client was told that they had not been written.
    pub ghosts: u64,
    /// Rows acknowledged by a node after a newer primary had acknowledged already.
    pub double: u64,
    /// Examples in words.
    pub examples: Vec<String>,
}

impl Oracle {
    /// Creates the table, starts the sessions and waits until all of them work.
    pub async fn start(lab: &mut Lab) -> Result<Self> {
        let deadline = Instant::now() + Duration::from_secs(20);
        lab.until(deadline, "the oracle's table could not be created", async |lab| {
            Ok(lab.connect(0).await?.batch_execute(TABLE).await?)
        })
        .await?;
        let ledger = Arc::new(Ledger::new(Instant::now()));
        let stop = CancellationToken::new();
        let mut sessions = JoinSet::new();
        let shared = |index| Shared { config: lab.fleet_config(index), ledger: ledger.clone(), stop: stop.clone() };
        for (number, index) in (0..WRITERS).zip((0..lab.proxies.len()).cycle()) {
            sessions.spawn(writer(shared(index), number));
        }
        for (_, index) in (0..READERS).zip((0..lab.proxies.len()).cycle()) {
            sessions.spawn(reader(shared(index), WRITERS));
        }
        let oracle = Self { ledger, stop, sessions };
        lab.until(deadline, "the oracle's sessions do not work", async |_| oracle.at_work()).await?;
        oracle.begin_round();
        Ok(oracle)
    }

    fn at_work(&self) -> Result<()> {
        let figures = self.figures();
        if figures.writes > 20 && figures.reads > 20 {
            return Ok(());
        }
        bail!("{} writes, {} reads, errors: {:?}", figures.writes, figures.reads, figures.errors);
    }

    /// Forgets figures, not rows.
    pub fn begin_round(&self) {
        self.ledger.begin_round(Instant::now());
    }

    /// Figures of this round so far.
    pub fn figures(&self) -> Figures {
        self.ledger.figures(Instant::now())
    }

    /// Waits until `count` more writes were acknowledged and reads answered.
    pub async fn progress(&self, count: u64, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let before = self.figures();
        loop {
            let now = self.figures();
            if now.writes >= before.writes + count && now.reads >= before.reads + count {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("writes or reads stand still: {now:?}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Compares what the clients were told with what each peer holds. The shard must be whole.
    pub async fn verify(&self, lab: &Lab) -> Result<Verdict> {
        let (acknowledged, refused) = self.ledger.rows();
        let state = lab.current().await?;
        let primary = lab.host_in(&state, Role::Primary)?.superuser(crate::lab::APP).await?;
        let end: String = primary.query_one("select pg_current_wal_insert_lsn()::text", &[]).await?.get(0);
        let mut verdict = Verdict::default();
        for host in &lab.hosts {
            let is_primary = state.role_of(host.id) == Role::Primary;
            let rows = rows(host, (!is_primary).then_some(end.as_str())).await?;
            let missing: Vec<&Row> = acknowledged.keys().filter(|row| !rows.contains_key(row)).collect();
            verdict.lost += missing.len() as u64;
            verdict.examples.extend(missing.iter().take(3).map(|row| format!("{} lacks row {row:?}", host.name())));
            if is_primary {
                let ghosts: Vec<&Row> = refused.iter().filter(|row| rows.contains_key(row)).collect();
                verdict.ghosts += ghosts.len() as u64;
                verdict
                    .examples
                    .extend(ghosts.iter().take(3).map(|row| format!("row {row:?} was refused, but is there")));
                let acknowledgements =
                    acknowledged.iter().filter_map(|(row, span)| Some((*row, *span, rows.get(row)?.clone())));
                let double = acknowledgers::double(&acknowledgements.collect::<Vec<_>>());
                verdict.double += double.len() as u64;
                verdict.examples.extend(double.into_iter().take(3));
            }
        }
        Ok(verdict)
    }

    /// Ends the sessions.
    pub async fn stop(mut self) {
        self.stop.cancel();
        // A session may be waiting for an answer that never comes: dropping `self` aborts it.
        let ended = async { while self.sessions.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(Duration::from_secs(2), ended).await;
    }
}

/// All rows a peer holds and who wrote them, once it has replayed up to `position`.
async fn rows(host: &Host, position: Option<&str>) -> Result<HashMap<Row, Writer>> {
    let client = host.superuser(crate::lab::APP).await?;
    if let Some(position) = position {
        let deadline = Instant::now() + Duration::from_secs(20);
        let sql = format!("select pg_last_wal_replay_lsn() >= '{position}'::pg_lsn");
        while !client.query_one(&sql, &[]).await?.get::<_, Option<bool>>(0).unwrap_or(false) {
            if Instant::now() > deadline {
                bail!("{} has not replayed up to {position}", host.name());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let sql = "select writer, seq, host(node), timeline from lab_oracle";
    let rows = client.query(sql, &[]).await.context("cannot read the oracle's table")?;
    let writer = |row: &tokio_postgres::Row| Writer { node: row.get(2), timeline: row.get(3) };
    Ok(rows.iter().map(|row| ((row.get(0), row.get(1)), writer(row))).collect())
}
