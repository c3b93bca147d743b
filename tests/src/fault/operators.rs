//! Actions of people and their tools on a shard: promotions, double starts, foreign data, clocks,
//! floods of connections, broken state.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use manatee_shared::cluster::Role;
use tokio_postgres::NoTls;

use super::{Needs, Row};
use crate::console;
use crate::scenario::{CHANGE, Change, Clients, NOTHING, Play, Stage};

/// Longest time for the program of a planned stop to end, whatever is stuck: `stop_timeout`, a
/// second for a harder stop, and some for a busy machine.
const STOPPED: Duration = Duration::from_secs(20);

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row {
        number: 21,
        fault: "session expires while the process lives",
        needs: Needs::NETWORK,
        write_gap_s: None,
        plays: &[
            Play {
                name: "the async's session expires",
                clients: Clients::NoticeNothing,
                script: |stage| Box::pin(expire(stage, Role::Async(0))),
            },
            Play {
                name: "the sync's session expires",
                clients: Clients::MayFail,
                script: |stage| Box::pin(expire(stage, Role::Sync)),
            },
            Play {
                name: "the primary's session expires",
                clients: Clients::MayFail,
                script: |stage| Box::pin(expire(stage, Role::Primary)),
            },
        ],
    },
    Row {
        number: 37,
        fault: "stuck archive_command or walsender during a planned promotion",
        needs: Needs {
            parameters: &[("archive_mode", "on"), ("archive_command", "test ! -e archiving-hangs || sleep 600")],
            ..Needs::HOSTS
        },
        write_gap_s: None,
        plays: &[
            Play {
                name: "the primary is told to stop while archive_command hangs",
                clients: Clients::WritesMayFail,
                script: |stage| Box::pin(stop_while_archiving(stage)),
            },
            Play {
                name: "the primary is told to stop while a walsender is stuck",
                clients: Clients::WritesMayFail,
                script: |stage| Box::pin(stop_with_stuck_walsender(stage)),
            },
        ],
    },
    Row {
        number: 38,
        fault: "clock jumps by an hour, both ways",
        needs: Needs { clocks: true, ..Needs::HOSTS },
        write_gap_s: None,
        plays: &[
            CLOCK,
            Play {
                name: "the primary's clock jumps an hour back",
                script: |stage| Box::pin(jump(stage, Role::Primary, -3600)),
                ..CLOCK
            },
            Play {
                name: "the sync's clock jumps an hour ahead",
                script: |stage| Box::pin(jump(stage, Role::Sync, 3600)),
                ..CLOCK
            },
            Play {
                name: "the sync's clock jumps an hour back",
                script: |stage| Box::pin(jump(stage, Role::Sync, -3600)),
                ..CLOCK
            },
        ],
    },
    Row {
        number: 39,
        fault: "two sitters with one id",
        needs: Needs::HOSTS,
        write_gap_s: None,
        plays: &[Play {
            name: "a second sitter is started on the primary's host",
            clients: Clients::NoticeNothing,
            script: |stage| Box::pin(second_sitter(stage)),
        }],
    },
    Row {
        number: 40,
        fault: "peer with another system identifier",
        needs: Needs::HOSTS,
        write_gap_s: None,
        plays: &[Play {
            name: "the async comes back with another cluster's data",
            clients: Clients::NoticeNothing,
            script: |stage| Box::pin(foreign_data(stage)),
        }],
    },
    Row {
        number: 41,
        fault: "standby promoted by hand",
        needs: Needs::HOSTS,
        write_gap_s: None,
        plays: &[
            Play {
                name: "the async is promoted by hand",
                clients: Clients::MayFail,
                script: |stage| Box::pin(promote(stage, Role::Async(0))),
            },
            Play {
                name: "the sync is promoted by hand",
                clients: Clients::MayFail,
                script: |stage| Box::pin(promote(stage, Role::Sync)),
            },
        ],
    },
    Row {
        number: 43,
        fault: "max_connections exhausted by clients",
        needs: Needs { parameters: &[("max_connections", "60")], ..Needs::HOSTS },
        write_gap_s: None,
        plays: &[Play {
            name: "clients take all connections of the primary, its sitter and its sync restart",
            clients: Clients::MayFail,
            script: |stage| Box::pin(exhaust(stage)),
        }],
    },
    Row {
        number: 45,
        fault: "corrupt state JSON",
        needs: Needs::HOSTS,
        write_gap_s: None,
        plays: &[Play {
            name: "the state is overwritten with garbage",
            clients: Clients::NoticeNothing,
            script: |stage| Box::pin(corrupt_state(stage)),
        }],
    },
];

/// Cut off from ZooKeeper until the session is gone, then let back. Whose role stands goes on with
/// the same PostgreSQL.
async fn expire(stage: &mut Stage<'_>, role: Role) -> Result<()> {
    let host = stage.host(role)?;
    let postmaster = stage.lab.hosts[host].postmaster_pid();
    let zookeepers = stage.lab.network.zookeepers();
    stage.begin("its session expires", host);
    stage.lab.separate(host, &zookeepers)?;
    match role {
        Role::Primary => stage.expect(Change::Takeover).await?,
        Role::Sync => stage.expect(Change::NewSync).await?,
        _ => {
            let id = stage.lab.hosts[host].id;
            stage
                .until("the session does not expire", async |lab| {
                    ensure!(lab.current().await?.role_of(id) == Role::Unassigned, "still listed");
                    Ok(())
                })
                .await?;
        }
    }
    stage.served().await?;
    stage.heal().await?;
    stage.nothing_happens(NOTHING).await?;
    if role != Role::Primary {
        stage.same_postmaster(host, postmaster);
    }
    Ok(())
}

async fn stop_while_archiving(stage: &mut Stage<'_>) -> Result<()> {
    let host = stage.host(Role::Primary)?;
    let marker = stage.lab.hosts[host].data_dir().join("archiving-hangs");
    std::fs::write(&marker, "")?;
    let client = stage.lab.hosts[host].superuser("postgres").await?;
    client.batch_execute("select pg_switch_wal()").await?;
    stage
        .until("nothing is being archived", async |lab| {
            let row = client.query_one("select count(*) from pg_ls_archive_statusdir() where name like '%.ready'", &[]);
            ensure!(row.await?.get::<_, i64>(0) > 0, "no segment waits");
            lab.check()
        })
        .await?;
    planned_stop(stage, host).await?;
    match std::fs::remove_file(&marker) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

async fn stop_with_stuck_walsender(stage: &mut Stage<'_>) -> Result<()> {
    let host = stage.host(Role::Primary)?;
    // A walsender that cannot get rid of its last WAL keeps a server that shuts down waiting. This
    // one is a backup's that nobody reads.
    let mut backup = stage.lab.stuck_backup(host)?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let stopped = planned_stop(stage, host).await;
    backup.kill();
    stopped
}

async fn planned_stop(stage: &mut Stage<'_>, host: usize) -> Result<()> {
    stage.begin("SIGTERM to the sitter", host);
    stage.lab.hosts[host].stop_sitter()?;
    stage.expect(Change::Takeover).await?;
    stage.served().await?;
    let gap_s = stage.oracle.figures().write_gap_s;
    if gap_s > 2.0 {
        stage.fail(format!("the promotion was held up: no writes for {gap_s} s"));
    }
    stage.lab.hosts[host].sitter_ended(STOPPED).await?;
    if stage.lab.hosts[host].postmaster_pid().is_some() {
        stage.fail("PostgreSQL outlived a planned stop");
    }
    Ok(())
}

/// Row 38, first variant.
const CLOCK: Play = Play {
    name: "the primary's clock jumps an hour ahead",
    clients: Clients::NoticeNothing,
    script: |stage| Box::pin(jump(stage, Role::Primary, 3600)),
};

async fn jump(stage: &mut Stage<'_>, role: Role, seconds: i64) -> Result<()> {
    let host = stage.host(role)?;
    let postmaster = stage.lab.hosts[host].postmaster_pid();
    stage.begin(&format!("its clock jumps by {seconds} s"), host);
    stage.lab.hosts[host].shift_clock(seconds)?;
    stage.nothing_happens(NOTHING).await?;
    stage.lab.hosts[host].shift_clock(0)?;
    stage.nothing_happens(NOTHING).await?;
    stage.same_postmaster(host, postmaster);
    Ok(())
}

async fn second_sitter(stage: &mut Stage<'_>) -> Result<()> {
    let host = stage.host(Role::Primary)?;
    let postmaster = stage.lab.hosts[host].postmaster_pid();
    stage.begin("a second sitter", host);
    let status = stage.lab.hosts[host].second_sitter()?.wait(CHANGE).await.context("it was not refused")?;
    if status.success() {
        stage.fail("the second sitter ended as if all were well");
    }
    stage.nothing_happens(NOTHING).await?;
    stage.same_postmaster(host, postmaster);
    Ok(())
}

async fn foreign_data(stage: &mut Stage<'_>) -> Result<()> {
    let host = stage.host(Role::Async(0))?;
    stage.begin("another cluster's data", host);
    stage.lab.hosts[host].kill();
    let data = stage.lab.hosts[host].data_dir();
    let aside = data.with_extension("aside");
    std::fs::rename(&data, &aside)?;
    crate::foreign::initdb(&data).await?;
    let identifier = crate::foreign::system_identifier(&data).await?;
    let log = stage.lab.hosts[host].log().to_owned();
    stage.lab.hosts[host].start_sitter()?;
    // It may end, or stay and report itself unfit; what counts is that it says so.
    stage.lab.hosts[host].may_end();
    stage
        .until("the sitter does not say that the data is another shard's", async |_| {
            ensure!(std::fs::read_to_string(&log)?.contains(&identifier), "not in its log");
            Ok(())
        })
        .await?;
    stage.nothing_happens(NOTHING).await?;
    ensure!(crate::foreign::system_identifier(&data).await? == identifier, "the data was replaced");
    stage.lab.hosts[host].kill();
    std::fs::remove_dir_all(&data)?;
    std::fs::rename(&aside, &data)?;
    Ok(())
}

/// A server that was promoted by hand is stopped before anybody writes there, and rejoins.
async fn promote(stage: &mut Stage<'_>, role: Role) -> Result<()> {
    let host = stage.host(role)?;
    // A standby may not have replayed yet that the database was made.
    let client = stage
        .until("the standby does not let an operator in", async |lab| lab.hosts[host].superuser(crate::lab::APP).await)
        .await?;
    stage.begin("pg_promote() by hand", host);
    // The sitter may have ended this session before it is answered.
    let _ = client.batch_execute("select pg_promote(false)").await;
    let sql = format!("create table written_by_a_usurper_{} ()", stage.number);
    let write = client.batch_execute(&sql);
    if let Ok(Ok(())) = tokio::time::timeout(Duration::from_secs(2), write).await {
        stage.fail("a standby promoted by hand acknowledged a write");
    }
    stage.served().await?;
    let id = stage.lab.hosts[host].id;
    stage
        .until("the usurper did not come back as a standby", async |lab| {
            ensure!(matches!(lab.current().await?.role_of(id), Role::Async(_) | Role::Sync), "not in the chain");
            let client = lab.hosts[host].superuser("postgres").await?;
            ensure!(
                client.query_one("select pg_is_in_recovery()", &[]).await?.get::<_, bool>(0),
                "still out of recovery"
            );
            Ok(())
        })
        .await?;
    // A sync is replaced, or back before that.
    let changes: &[Change] = if role == Role::Sync { &[Change::None, Change::NewSync] } else { &[Change::None] };
    stage.accept(changes).await
}

/// Ordinary clients take what they get. The sitter, replication and operators must still get in.
async fn exhaust(stage: &mut Stage<'_>) -> Result<()> {
    let (primary, sync) = (stage.host(Role::Primary)?, stage.host(Role::Sync)?);
    stage.begin("all connections are taken", primary);
    let direct = stage.lab.direct_config(primary);
    let mut clients = Vec::new();
    while let Ok((client, connection)) = direct.connect(NoTls).await {
        tokio::spawn(connection);
        clients.push(client);
        ensure!(clients.len() < 1_000, "there seems to be no limit");
    }
    tracing::info!("{} connections taken", clients.len());
    // A sitter that is new has to log in; so has a sync that comes back.
    stage.lab.hosts[primary].kill_sitter()?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    stage.lab.hosts[primary].start_sitter()?;
    stage.nothing_happens(NOTHING).await?;
    stage.lab.hosts[primary].superuser("postgres").await.context("an operator")?;
    stage.lab.hosts[sync].kill();
    stage.expect(Change::NewSync).await?;
    stage.lab.heal(sync)?;
    let id = stage.lab.hosts[sync].id;
    let deadline = Instant::now() + CHANGE;
    let name = id.to_string();
    loop {
        let client = stage.lab.hosts[primary].superuser("postgres").await?;
        let sql = "select exists (select from pg_stat_replication where application_name = $1 and state = 'streaming')";
        if client.query_one(sql, &[&name]).await?.get(0) || stage.lab.whole(Duration::from_millis(500)).await.is_ok() {
            break;
        }
        if Instant::now() > deadline {
            stage.fail("a standby that came back does not get in");
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(clients);
    stage.served().await
}

/// Everybody keeps serving, the tools say what is wrong, and a right state is taken up at once.
async fn corrupt_state(stage: &mut Stage<'_>) -> Result<()> {
    stage.begin_all("garbage in the state");
    let right = stage.lab.state.replace_raw(b"{\"generation\": 7, \"primary\": ").await?;
    tokio::time::sleep(NOTHING).await;
    stage.lab.check()?;
    match console::adm(stage.lab, &["verify"]).await {
        Ok(text) => stage.fail(format!("`manatee-adm verify` finds nothing wrong: {text}")),
        Err(problem) if !format!("{problem:#}").contains("error") => {
            stage.fail(format!("`manatee-adm verify` does not say what is wrong: {problem:#}"));
        }
        Err(_) => {}
    }
    let gap_s = stage.oracle.figures().write_gap_s;
    if gap_s > 1.0 {
        stage.fail(format!("writes stood still for {gap_s} s"));
    }
    stage.lab.state.replace_raw(&right).await?;
    stage.nothing_happens(NOTHING).await
}
