//! Several peers that go, one after the other or together, and peers that are behind.

use std::time::Duration;

use anyhow::{Context, Result};
use manatee_shared::cluster::Role;
use nix::sys::signal::Signal;
use tokio_postgres::NoTls;

use super::{Needs, Row};
use crate::scenario::{Change, Clients, NOTHING, Play, Stage};

/// Time for which WAL is gathered that a peer is behind by.
const BEHIND: Duration = Duration::from_secs(2);
/// Longest time for a cancelled commit to come back.
const ANSWER: Duration = Duration::from_secs(10);

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row {
        number: 22,
        fault: "primary dies while the sync lags in replay",
        needs: Needs::NETWORK,
        write_gap_s: None,
        plays: &[Play {
            name: "the primary's host loses power, the sync has not replayed what it received",
            clients: Clients::MayFail,
            script: |stage| Box::pin(sync_lags(stage)),
        }],
    },
    Row {
        number: 23,
        fault: "primary dies, then the new primary before its sync caught up",
        needs: Needs::HOSTS,
        write_gap_s: None,
        plays: &[Play {
            name: "primary and new primary die, the async is behind",
            clients: Clients::MayFail,
            script: |stage| Box::pin(two_primaries_die(stage)),
        }],
    },
    Row {
        number: 25,
        fault: "client forces READ WRITE while the gate is closed",
        needs: Needs::HOSTS,
        write_gap_s: None,
        plays: &[Play {
            name: "the primary restarts alone, clients ask for READ WRITE",
            clients: Clients::MayFail,
            script: |stage| Box::pin(restart_alone(stage)),
        }],
    },
    Row {
        number: 26,
        fault: "query cancelled while its commit waits for the sync",
        needs: Needs::HOSTS,
        write_gap_s: None,
        plays: &[Play {
            name: "a commit is cancelled while the sync's WAL receiver is stopped",
            clients: Clients::MayFail,
            script: |stage| Box::pin(cancel_commit(stage)),
        }],
    },
    Row {
        number: 27,
        fault: "primary restarts with its sync down",
        needs: Needs::HOSTS,
        write_gap_s: None,
        plays: &[Play {
            name: "the primary restarts alone with a commit that nobody acknowledged",
            clients: Clients::MayFail,
            script: |stage| Box::pin(restart_alone(stage)),
        }],
    },
    Row {
        number: 28,
        fault: "primary and sync crash, only an async lives",
        needs: Needs::HOSTS,
        write_gap_s: None,
        plays: &[
            Play {
                name: "primary and sync are killed, the sync returns",
                clients: Clients::MayFail,
                script: |stage| Box::pin(only_an_async(stage, Role::Sync)),
            },
            Play {
                name: "primary and sync are killed, the primary returns",
                clients: Clients::MayFail,
                script: |stage| Box::pin(only_an_async(stage, Role::Primary)),
            },
        ],
    },
    Row {
        number: 29,
        fault: "all lose power, come back in every order",
        needs: Needs::NETWORK,
        write_gap_s: None,
        plays: &[Play {
            name: "all hosts lose power, and come back one by one",
            clients: Clients::MayFail,
            script: |stage| Box::pin(all_lose_power(stage)),
        }],
    },
];

async fn sync_lags(stage: &mut Stage<'_>) -> Result<()> {
    let (primary, sync) = (stage.host(Role::Primary)?, stage.host(Role::Sync)?);
    let client = stage.lab.hosts[sync].superuser("postgres").await?;
    client.batch_execute("select pg_wal_replay_pause()").await?;
    tokio::time::sleep(BEHIND).await;
    stage.begin("power off; its sync has replayed nothing lately", primary);
    stage.lab.power_off(primary)?;
    stage.expect(Change::Takeover).await?;
    stage.served().await
}

/// The async is named sync by the first takeover, but lacks what was acknowledged last: it must
/// not take over from the second primary, whatever becomes of that.
async fn two_primaries_die(stage: &mut Stage<'_>) -> Result<()> {
    let hosts = [Role::Primary, Role::Sync, Role::Async(0)].map(|role| stage.host(role));
    let [first, second, third] = hosts;
    let (first, second, third) = (first?, second?, third?);
    stage.lab.hosts[third].signal_child("walreceiver", Signal::SIGSTOP)?;
    tokio::time::sleep(BEHIND).await;
    stage.begin("SIGKILL to everything", first);
    stage.lab.hosts[first].kill();
    stage.expect(Change::Takeover).await?;
    stage.lab.hosts[second].kill();
    let before = stage.oracle.figures().writes;
    stage.lab.hosts[third].resume_all();
    stage.nothing_happens(NOTHING).await?;
    if stage.oracle.figures().writes != before {
        stage.fail("a write was acknowledged without the peers that have the data");
    }
    stage.lab.heal(second)?;
    stage.served().await.context("after the new primary returned")
}

/// Kills both standbys, leaves a commit on the primary that nobody acknowledged, and restarts the
/// primary alone: nobody must see that commit, whatever a client asks for.
async fn restart_alone(stage: &mut Stage<'_>) -> Result<()> {
    let hosts = [Role::Primary, Role::Sync, Role::Async(0)].map(|role| stage.host(role));
    let [primary, sync, third] = hosts;
    let (primary, sync, third) = (primary?, sync?, third?);
    stage.begin("its standbys die, then it restarts", primary);
    stage.lab.hosts[third].kill();
    stage.lab.hosts[sync].kill();
    let direct = stage.lab.direct_config(primary);
    let (client, connection) = direct.connect(NoTls).await.context("a direct session before the restart")?;
    let connection = tokio::spawn(connection);
    let sql = format!("create table seen_by_nobody_{} ()", stage.number);
    let write = client.batch_execute(&sql);
    if let Ok(Ok(())) = tokio::time::timeout(Duration::from_secs(2), write).await {
        stage.fail("a write was acknowledged without a sync");
    }
    stage.lab.hosts[primary].kill();
    connection.abort();
    stage.lab.heal(primary)?;
    // It is not even started before another peer has said how far its WAL goes.
    let end = std::time::Instant::now() + NOTHING;
    while std::time::Instant::now() < end {
        let mut direct = stage.lab.direct_config(primary);
        direct.options("-c default_transaction_read_only=off");
        if direct.connect(NoTls).await.is_ok() {
            stage.fail("the primary let a client in before its sync had everything");
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stage.nothing_happens(Duration::from_secs(1)).await?;
    stage.lab.heal(sync)?;
    stage.served().await.context("after the sync returned")
}

/// PostgreSQL itself answers a cancelled wait with success and a warning. A client of the proxy is
/// told that the outcome is not known.
async fn cancel_commit(stage: &mut Stage<'_>) -> Result<()> {
    let sync = stage.host(Role::Sync)?;
    let client = stage.lab.connect(0).await?;
    client.batch_execute("create table if not exists lab_cancelled (number int)").await?;
    stage.begin("SIGSTOP to the WAL receiver", sync);
    stage.lab.hosts[sync].signal_child("walreceiver", Signal::SIGSTOP)?;
    let cancel = client.cancel_token();
    let write = client.batch_execute("insert into lab_cancelled values (1)");
    let cancelling = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        cancel.cancel_query(NoTls).await
    };
    let both = async { tokio::join!(write, cancelling) };
    let (written, cancelled) = tokio::time::timeout(ANSWER, both).await.context("the cancelled commit hangs")?;
    cancelled.context("the cancel request")?;
    match written {
        Ok(()) => stage.fail("a commit whose wait for the sync was cancelled was reported as success"),
        Err(error) => {
            let code = error.code().map(|code| code.code().to_owned());
            if code.as_deref() != Some("08007") {
                stage.fail(format!("the cancelled commit was answered {code:?} instead of 08007: {error}"));
            }
        }
    }
    stage.lab.hosts[sync].resume_all();
    // It may have been stopped for long enough to be replaced.
    stage.allow_more_changes(1);
    stage.served().await
}

async fn only_an_async(stage: &mut Stage<'_>, returning: Role) -> Result<()> {
    let (primary, sync) = (stage.host(Role::Primary)?, stage.host(Role::Sync)?);
    stage.begin("primary and sync die", primary);
    stage.lab.hosts[sync].kill();
    stage.lab.hosts[primary].kill();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = stage.oracle.figures().writes;
    stage.nothing_happens(NOTHING).await?;
    if stage.oracle.figures().writes != before {
        stage.fail("a write was acknowledged by an async alone");
    }
    // Sessions that have seen more than the async has must wait; one that has seen nothing need not.
    let read = async {
        let client = stage.lab.connect(0).await?;
        client.simple_query("select count(*) from lab_oracle").await?;
        anyhow::Ok(())
    };
    match tokio::time::timeout(ANSWER, read).await {
        Ok(Ok(())) => {}
        Ok(Err(problem)) => stage.fail(format!("a new session cannot read from the async: {problem:#}")),
        Err(_) => stage.fail(format!("a new session's read from the async takes more than {ANSWER:?}")),
    }
    let back = stage.host(returning)?;
    stage.lab.heal(back)?;
    stage.expect(if returning == Role::Sync { Change::Takeover } else { Change::NewSync }).await?;
    stage.served().await.with_context(|| format!("after the {returning} returned"))
}

/// The orders, one per round.
const ORDERS: [[Role; 3]; 6] = {
    const P: Role = Role::Primary;
    const S: Role = Role::Sync;
    const A: Role = Role::Async(0);
    [[P, S, A], [A, S, P], [S, A, P], [A, P, S], [S, P, A], [P, A, S]]
};

async fn all_lose_power(stage: &mut Stage<'_>) -> Result<()> {
    let order = ORDERS[stage.number as usize % ORDERS.len()];
    stage.begin_all(&format!("all lose power; they come back as {order:?}"));
    for host in 0..stage.lab.hosts.len() {
        stage.lab.power_off(host)?;
    }
    // Longer than their sessions.
    tokio::time::sleep(NOTHING).await;
    let hosts = order.into_iter().map(|role| stage.host(role)).collect::<Result<Vec<_>>>()?;
    for (number, host) in hosts.into_iter().enumerate() {
        let before = stage.oracle.figures().writes;
        stage.lab.heal(host)?;
        if number == 0 {
            tokio::time::sleep(NOTHING).await;
            if stage.oracle.figures().writes != before {
                stage.fail("a write was acknowledged by a single peer");
            }
        } else if number == 1 {
            stage.served().await.context("with two of three peers")?;
        }
    }
    stage.accept(&[Change::None, Change::Takeover, Change::NewSync]).await?;
    stage.served().await
}
