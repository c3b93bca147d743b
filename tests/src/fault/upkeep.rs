//! Ordinary operation that must not disarm the failover: readers that hold replay up, and VACUUM.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use manatee_shared::cluster::Role;

use super::{Needs, Row};
use crate::lab::APP;
use crate::scenario::{Change, Clients, Play, Stage};

/// From the conflict to the fault: less than any limit on replay ends it in.
const CONFLICT: Duration = Duration::from_secs(1);

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row {
        number: 59,
        fault: "primary dies while a reader holds up the sync's replay",
        needs: Needs::HOSTS,
        write_gap_s: Some(1.5),
        plays: &[
            Play {
                name: "a reader of a table that was altered, all settings as they are",
                clients: Clients::MayFail,
                script: |stage| Box::pin(reader_in_the_way(stage, None)),
            },
            Play {
                name: "the same, and PostgreSQL would wait for ever (max_standby_streaming_delay = -1)",
                clients: Clients::MayFail,
                script: |stage| Box::pin(reader_in_the_way(stage, Some("max_standby_streaming_delay"))),
            },
        ],
    },
    Row {
        number: 62,
        fault: "slots that nobody streams from, and VACUUM",
        needs: Needs::HOSTS,
        write_gap_s: None,
        plays: &[
            Play {
                name: "a fresh shard: the async came in at the primary and follows the sync",
                clients: Clients::NoticeNothing,
                script: |stage| Box::pin(vacuum(stage)),
            },
            Play {
                name: "the primary is killed, and returns",
                clients: Clients::MayFail,
                script: |stage| Box::pin(vacuum_after(stage, Role::Primary, Change::Takeover)),
            },
            Play {
                name: "the sync is killed, and returns",
                clients: Clients::MayFail,
                script: |stage| Box::pin(vacuum_after(stage, Role::Sync, Change::NewSync)),
            },
        ],
    },
];

/// `forever`: a setting that is -1 on the sync for this time.
async fn reader_in_the_way(stage: &mut Stage<'_>, forever: Option<&str>) -> Result<()> {
    let (primary, sync) = (stage.host(Role::Primary)?, stage.host(Role::Sync)?);
    let table = format!("lab_altered_{}", stage.number);
    let writer = stage.lab.hosts[primary].superuser(APP).await?;
    writer.batch_execute(&format!("create table {table} as select generate_series(1, 1000) as n")).await?;
    let mut reader = stage.lab.hosts[sync].superuser(APP).await?;
    if let Some(name) = forever {
        reader.batch_execute(&format!("alter system set {name} = -1")).await?;
        reader.batch_execute("select pg_reload_conf()").await?;
    }
    let reader = &mut reader;
    stage
        .until("the table did not come to the sync", async |_| {
            Ok(reader.batch_execute(&format!("select from {table}")).await?)
        })
        .await?;
    reader.batch_execute(&format!("begin; select count(*) from {table}")).await?;
    writer.batch_execute(&format!("alter table {table} add column x int")).await?;
    tokio::time::sleep(CONFLICT).await;
    stage.begin("SIGKILL to everything; a reader is in the way of its sync's replay", primary);
    stage.lab.hosts[primary].kill();
    stage.expect(Change::Takeover).await?;
    stage.served().await?;
    if let Some(name) = forever {
        let session = stage.lab.hosts[sync].superuser(APP).await?;
        session.batch_execute(&format!("alter system reset {name}")).await?;
        session.batch_execute("select pg_reload_conf()").await?;
    }
    Ok(())
}

/// Rows that are dead can be removed, a moment after the last reader of them has gone.
async fn vacuum(stage: &mut Stage<'_>) -> Result<()> {
    let primary = stage.host_now(Role::Primary)?;
    let session = stage.lab.hosts[primary].superuser(APP).await?;
    let make =
        "create table if not exists lab_vacuumed (n int); insert into lab_vacuumed select generate_series(1, 1000)";
    session.batch_execute(make).await?;
    session.batch_execute("update lab_vacuumed set n = n + 1").await?;
    let session = &session;
    let left = "select n_dead_tup from pg_stat_user_tables where relname = 'lab_vacuumed'";
    stage
        .until("VACUUM does not remove what is dead", async |_| {
            session.batch_execute("vacuum lab_vacuumed").await?;
            let dead: i64 = session.query_one(left, &[]).await?.try_get(0)?;
            let slots = "select string_agg(slot_name || ' ' || active || ' ' || xmin, ', ') from pg_replication_slots";
            let slots: Option<String> = session.query_one(slots, &[]).await?.try_get(0)?;
            ensure!(dead == 0, "{dead} dead rows are kept; slots: {}", slots.unwrap_or_default());
            Ok(())
        })
        .await
}

async fn vacuum_after(stage: &mut Stage<'_>, role: Role, change: Change) -> Result<()> {
    let host = stage.host(role)?;
    stage.begin("SIGKILL to everything", host);
    stage.lab.hosts[host].kill();
    stage.expect(change).await?;
    stage.served().await?;
    vacuum(stage).await.context("while it is away")?;
    stage.heal().await?;
    stage.lab.whole(super::super::scenario::CHANGE * 3).await?;
    vacuum(stage).await.context("after it has returned")
}
