//! Changes by operators, in SQL or in a file, of settings, roles and databases that the shard depends on: these must
//! stay in force, or be told at once.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use manatee_shared::cluster::Role;
use tokio_postgres::Client;

use super::{Needs, Row};
use crate::console;
use crate::lab::APP;
use crate::scenario::{CHANGE, Change, Clients, Play, Stage};

/// Longest time for what was loosened to take effect. The sitter looks each 50 ms; the rest is for a busy machine.
const LOOSE: Duration = Duration::from_secs(1);
/// Time for which a commit is watched that must not be acknowledged.
const WAITS: Duration = Duration::from_secs(2);

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row {
        number: 57,
        fault: "ALTER SYSTEM against what the shard owns",
        needs: Needs::NETWORK,
        write_gap_s: None,
        plays: &[
            Play {
                name: "synchronous_standby_names is emptied while both others are cut off",
                clients: Clients::MayFail,
                script: |stage| Box::pin(loosened_alone(stage)),
            },
            Play {
                name: "synchronous_standby_names is emptied under load, then the primary's host is lost",
                clients: Clients::MayFail,
                script: |stage| Box::pin(loosened_then_lost(stage)),
            },
        ],
    },
    Row {
        number: 60,
        fault: "Manatee's roles, their passwords or rights changed in SQL",
        needs: Needs::HOSTS,
        write_gap_s: None,
        plays: &[Play {
            name: "passwords and rights are taken from Manatee's roles, then sync and primary are lost in turn",
            clients: Clients::MayFail,
            script: |stage| Box::pin(locked_out(stage)),
        }],
    },
    Row {
        number: 61,
        fault: "misspelt parameters in a sitter's configuration",
        needs: Needs::HOSTS,
        write_gap_s: None,
        plays: &[Play {
            name: "the sync's configuration gets a parameter that PostgreSQL does not know, then the primary is lost",
            clients: Clients::MayFail,
            script: |stage| Box::pin(misspelt(stage)),
        }],
    },
];

/// Empties `synchronous_standby_names` and waits until it is in force again.
async fn loosen(stage: &mut Stage<'_>, client: &Client) -> Result<()> {
    let names = "select current_setting('synchronous_standby_names')";
    let wanted: String = client.query_one(names, &[]).await?.get(0);
    ensure!(wanted.contains("FIRST"), "nobody is required: '{wanted}'");
    client.batch_execute("alter system set synchronous_standby_names = ''").await?;
    client.batch_execute("select pg_reload_conf()").await?;
    let begin = Instant::now();
    loop {
        let found: String = client.query_one(names, &[]).await?.get(0);
        // The reload may not have reached this session yet, or be undone before it was seen.
        if found == wanted && told(stage).await?.contains("ran for") {
            break;
        }
        ensure!(
            begin.elapsed() < LOOSE * 10,
            "synchronous_standby_names is '{found}', or `explain` is silent about it"
        );
        if begin.elapsed() > LOOSE && found != wanted {
            stage.fail(format!("after {:?} synchronous_standby_names is '{found}'", begin.elapsed()));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Output of `explain`, whether or not it calls the shard healthy.
async fn told(stage: &Stage<'_>) -> Result<String> {
    Ok(console::adm(stage.lab, &["explain"]).await.unwrap_or_else(|told| format!("{told:#}")))
}

async fn loosened_alone(stage: &mut Stage<'_>) -> Result<()> {
    let primary = stage.host(Role::Primary)?;
    let (sync, other) = (stage.host(Role::Sync)?, stage.host(Role::Async(0))?);
    let client = stage.lab.hosts[primary].superuser(APP).await?;
    stage.begin("nobody is to be waited for", primary);
    stage.lab.cut(sync)?;
    stage.lab.cut(other)?;
    loosen(stage, &client).await?;
    // In force again: what is written now is not acknowledged, and nobody reads it.
    let table = format!("create table written_alone_{} ()", stage.number);
    let mut write = Box::pin(client.batch_execute(&table));
    if let Ok(Ok(())) = tokio::time::timeout(WAITS, &mut write).await {
        stage.fail("a write was acknowledged by the primary alone");
    }
    let told = told(stage).await?;
    for words in ["NOT acknowledged", "synchronous_standby_names is ''"] {
        if !told.contains(words) {
            stage.fail(format!("`explain` does not say `{words}`:\n{told}"));
        }
    }
    match console::adm(stage.lab, &["verify"]).await {
        Ok(text) => stage.fail(format!("`verify` finds nothing wrong: {text}")),
        Err(problem) if !format!("{problem:#}").contains("were not in force") => {
            stage.fail(format!("`verify` does not tell of the breach: {problem:#}"));
        }
        Err(_) => {}
    }
    // Which of the two is back first decides whether the sync is replaced.
    stage.allow_more_changes(1);
    stage.heal().await?;
    write.await.context("the write that waited")?;
    stage.served().await
}

async fn loosened_then_lost(stage: &mut Stage<'_>) -> Result<()> {
    let primary = stage.host(Role::Primary)?;
    let client = stage.lab.hosts[primary].superuser(APP).await?;
    loosen(stage, &client).await?;
    // What was acknowledged meanwhile is on the sync once it has acknowledged something later.
    stage.served().await?;
    stage.begin("SIGKILL to everything", primary);
    stage.lab.hosts[primary].kill();
    stage.expect(Change::Takeover).await?;
    stage.served().await
}

/// A restored `pg_dumpall` and a hardening guide in one. Nobody who streams notices; whoever comes back would.
async fn locked_out(stage: &mut Stage<'_>) -> Result<()> {
    let (primary, sync) = (stage.host(Role::Primary)?, stage.host(Role::Sync)?);
    let client = stage.lab.hosts[primary].superuser(APP).await?;
    stage.begin("passwords and rights are changed", primary);
    client
        .batch_execute(
            "alter role manatee_replication password 'another'; alter role manatee_proxy valid until '2000-01-01'; \
             revoke connect on database postgres from public, manatee_replication, manatee_proxy; \
             revoke pg_read_all_stats from manatee_replication; \
             alter database postgres set default_transaction_read_only = on; \
             alter role all set default_transaction_isolation = 'serializable'",
        )
        .await?;
    stage
        .until("the primary does not put its roles right", async |_| {
            let right = "select has_database_privilege('manatee_replication', 'postgres', 'connect') \
                and (select rolvaliduntil > now() from pg_roles where rolname = 'manatee_proxy') \
                and pg_has_role('manatee_replication', 'pg_read_all_stats', 'usage')";
            ensure!(client.query_one(right, &[]).await?.get::<_, bool>(0), "not yet");
            Ok(())
        })
        .await?;
    client.batch_execute("alter role all reset default_transaction_isolation").await?;
    stage.lab.hosts[sync].kill();
    stage.expect(Change::NewSync).await?;
    stage.served().await?;
    stage.lab.heal(sync)?;
    stage.lab.whole(CHANGE).await.context("the former sync did not come back")?;
    stage.lab.hosts[primary].kill();
    stage.expect(Change::Takeover).await?;
    stage.served().await
}

async fn misspelt(stage: &mut Stage<'_>) -> Result<()> {
    let (primary, sync) = (stage.host(Role::Primary)?, stage.host(Role::Sync)?);
    let (right, wrong) =
        ("[postgres.parameters]\n", "[postgres.parameters]\nwork_memm = \"8MB\"\nwork_mem = \"5MB\"\n");
    let pid = stage.lab.hosts[sync].sitter_pid();
    stage.begin("a parameter that is none", sync);
    stage.lab.hosts[sync].reconfigure(right, wrong)?;
    let session = stage.lab.hosts[sync].superuser("postgres").await?;
    stage
        .until("the rest of the configuration is not taken over", async |_| {
            let found: String = session.query_one("select current_setting('work_mem')", &[]).await?.get(0);
            ensure!(found == "5MB", "work_mem is {found}");
            Ok(())
        })
        .await?;
    if stage.lab.hosts[sync].sitter_pid() != pid {
        stage.fail("SIGHUP ended the sitter");
    }
    stage
        .until("`explain` does not name the parameter", async |lab| {
            let told = console::adm(lab, &["explain"]).await.unwrap_or_else(|told| format!("{told:#}"));
            ensure!(told.contains("work_memm"), "{told}");
            Ok(())
        })
        .await?;
    stage.lab.hosts[primary].kill();
    stage.expect(Change::Takeover).await?;
    stage.served().await?;
    stage.lab.hosts[sync].reconfigure(wrong, right)
}
