//! The main job, end to end: a real shard, a real proxy, a real failover.
//!
//! One shard for all steps, because bringing one up takes longer than most of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use manatee_shared::cluster::{Freeze, Role};
use manatee_tests::console;
use manatee_tests::fault::{ISOLATE_PRIMARY, KILL_PRIMARY, KILL_SITTER, STOP_PRIMARY};
use manatee_tests::foreign;
use manatee_tests::lab::{Lab, Options};
use manatee_tests::oracle::Oracle;
use manatee_tests::scenario::round;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::NoTls;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_comes_up_fails_over_and_heals() {
    let (mut lab, writable) = match Lab::up(&Options::default()).await {
        Ok(up) => up,
        Err(error) => panic!("{error:#}"),
    };
    eprintln!("writable after {writable:?}");
    if let Err(error) = steps(&mut lab).await {
        lab.set_keep(true);
        panic!("{:#}", lab.explain(error));
    }
}

async fn steps(lab: &mut Lab) -> Result<()> {
    lab.whole(Duration::from_secs(60)).await?;
    logins(lab).await.context("logins")?;
    garbage(lab).await.context("garbage on the proxy's port")?;
    operators_tool(lab).await.context("manatee-adm")?;
    a_later_shard(lab).await.context("a shard that appears later")?;
    new_to_the_standbys(lab).await.context("a database that the standbys have not replayed yet")?;
    if lab.network.has_namespaces() {
        never_back_in_time(lab).await.context("a session that moves from a standby to the primary")?;
    }
    shutdown(lab).await.context("SHUTDOWN WAIT_FOR_CLIENTS")?;

    let oracle = Oracle::start(lab).await?;
    // The sitter of the primary, then everything on its host, then its sitter by plan.
    let mut plays = vec![KILL_SITTER, KILL_PRIMARY, STOP_PRIMARY];
    if lab.network.has_namespaces() {
        plays.push(ISOLATE_PRIMARY);
    }
    for play in plays {
        let shown = round(lab, &oracle, &play, 0).await.context(play.name)?;
        eprintln!("{}: {}", play.name, serde_json::to_string(&shown)?);
        ensure!(shown.failures.is_empty(), "{}: {}", play.name, shown.failures.join("; "));
    }
    another_shards_data(lab, &oracle).await.context("a data directory of another shard")?;
    oracle.stop().await;
    Ok(())
}

/// Nobody new gets in, whoever is there goes on for as long as they like, and with the last of them the
/// proxy ends.
async fn shutdown(lab: &mut Lab) -> Result<()> {
    let patience = Duration::from_secs(20);
    let staying = lab.connect(0).await?;
    staying.batch_execute("begin").await?;
    {
        let mut config = lab.client_config(0);
        let (console, connection) = config.dbname("manatee").connect(NoTls).await?;
        tokio::spawn(connection);
        console.batch_execute("SHUTDOWN WAIT_FOR_CLIENTS").await?;
    }
    lab.until(Instant::now() + patience, "clients still get in", async |lab| {
        ensure!(lab.connect(0).await.is_err(), "one got in");
        Ok(())
    })
    .await?;
    // Longer than transactions are waited for at any other end.
    for _ in 0..24 {
        staying.batch_execute("select 1").await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    staying.batch_execute("commit").await?;
    staying.batch_execute("create temporary table still_here ()").await?;
    ensure!(lab.proxies[0].pid().is_some(), "the proxy did not wait");
    drop(staying);
    lab.proxies[0].ended(patience).await?;
    lab.proxies[0].start()?;
    lab.until(Instant::now() + patience, "nobody gets in", async |lab| lab.connect(0).await.map(drop)).await
}

/// SQLSTATE of a login that must fail.
async fn refused(config: &tokio_postgres::Config) -> Result<String> {
    match config.connect(NoTls).await {
        Ok(_) => bail!("the login succeeded"),
        Err(error) => Ok(error.code().map_or_else(|| format!("{error:?}"), |code| code.code().to_owned())),
    }
}

async fn logins(lab: &Lab) -> Result<()> {
    let mut wrong_password = lab.client_config(0);
    wrong_password.password("wrong");
    ensure!(refused(&wrong_password).await? == "28P01", "a wrong password");
    let mut nobody = lab.client_config(0);
    nobody.user("nobody_here");
    ensure!(refused(&nobody).await? == "28P01", "an unknown role must look like a wrong password");
    let mut nowhere = lab.client_config(0);
    nowhere.dbname("nowhere");
    let code = match nowhere.connect(NoTls).await {
        // The proxy may find out only when it first needs a server.
        Ok((client, connection)) => {
            tokio::spawn(connection);
            client.simple_query("select 1").await.err().and_then(|error| error.code().cloned())
        }
        Err(error) => error.code().cloned(),
    };
    ensure!(code.as_ref().map(|code| code.code()) == Some("3D000"), "an unknown database: {code:?}");
    Ok(())
}

/// Each of these ends alone, and soon; a session that was open before goes on.
async fn garbage(lab: &Lab) -> Result<()> {
    let bystander = lab.connect(0).await?;
    let samples: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        &[0xff; 64],
        &[0, 0, 0, 8, 0, 0, 0, 0],
        &[0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0],
        &[0, 0, 0, 9, 0, 3, 0, 0, b'x'],
    ];
    for sample in samples {
        let mut stream = TcpStream::connect(("127.0.0.1", lab.proxies[0].port)).await?;
        stream.write_all(sample).await?;
        let mut answer = Vec::new();
        // Reset or end of file: both are an end.
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
        ensure!(ended.is_ok(), "the proxy keeps the connection open after {sample:?}");
        ensure!(answer.first().is_none_or(|&tag| tag == b'E'), "the proxy answered {answer:?}");
    }
    bystander.simple_query("select 1").await.map(drop).context("a bystander was hurt")
}

/// A shard that is created while the proxy runs can be reached at once. (It has the same peers.)
async fn a_later_shard(lab: &mut Lab) -> Result<()> {
    let mut config = lab.client_config(0);
    config.options("-c manatee.shard=later");
    ensure!(refused(&config).await? == "3D000", "a shard that is not there");
    lab.state.copy_to("later").await?;
    let deadline = Instant::now() + Duration::from_secs(20);
    lab.until(deadline, "the new shard is not served", async |lab| {
        let topology = lab.proxies[0].http("/topology?shard=later").await?;
        ensure!(topology.contains("\"timeline\""), "{topology}");
        Ok(())
    })
    .await?;
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    client.simple_query("create temporary table t (x int)").await?;
    let (console, connection) = lab.client_config(0).dbname("manatee").connect(NoTls).await?;
    tokio::spawn(connection);
    let shards: Vec<String> = console.query("SHOW CLIENTS", &[]).await?.iter().map(|row| row.get("database")).collect();
    ensure!(shards.contains(&"later/app".to_owned()), "SHOW CLIENTS: {shards:?}");
    Ok(())
}

async fn operators_tool(lab: &mut Lab) -> Result<()> {
    let ids: Vec<String> = lab.hosts.iter().map(|host| host.id.ip.to_string()).collect();
    // A standby that has just come may re-attach once more before all is quiet.
    let deadline = Instant::now() + Duration::from_secs(30);
    lab.until(deadline, "the shard is not verified", async |lab| console::adm(lab, &["verify"]).await).await?;
    for (command, words) in [
        (vec!["show"], vec!["generation"]),
        (vec!["peers"], ids.iter().map(String::as_str).collect()),
        (vec!["pg-status"], vec!["primary", "sync", "async", "ok"]),
        (vec!["history"], vec!["1"]),
        (vec!["zk-state"], vec!["\"generation\"", "\"primary\""]),
        (vec!["zk-active"], vec![ids[0].as_str()]),
        (vec!["version"], vec!["."]),
    ] {
        let text = console::adm(lab, &command).await.with_context(|| command.join(" "))?;
        for word in words {
            ensure!(text.contains(word), "{command:?} does not show `{word}`:\n{text}");
        }
    }
    Ok(())
}

/// A standby that has not replayed the creation of a database refuses logins to it: the client of a
/// proxy must not notice.
async fn new_to_the_standbys(lab: &mut Lab) -> Result<()> {
    let state = lab.whole(Duration::from_secs(60)).await?;
    let standbys = [Role::Sync, Role::Async(0)];
    for role in standbys {
        let standby = lab.host_in(&state, role)?.superuser("postgres").await?;
        standby.batch_execute("select pg_wal_replay_pause()").await?;
    }
    let made = async {
        let primary = lab.host_in(&state, Role::Primary)?.superuser("postgres").await?;
        primary.batch_execute("create database lab_new").await?;
        let mut config = lab.client_config(0);
        config.dbname("lab_new");
        // Each session begins at another standby.
        for _ in 0..4 {
            let (client, connection) = config.connect(NoTls).await?;
            tokio::spawn(connection);
            client.batch_execute("select 1").await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let made = made.await;
    for role in standbys {
        let standby = lab.host_in(&state, role)?.superuser("postgres").await?;
        standby.batch_execute("select pg_wal_replay_resume()").await?;
    }
    made
}

/// With the sync cut off, the async follows the primary itself and shows commits that are not
/// acknowledged yet, which the primary does not show. Who has seen one must not lose sight of it.
async fn never_back_in_time(lab: &mut Lab) -> Result<()> {
    let limit = Duration::from_secs(30);
    let mut state = lab.whole(Duration::from_secs(60)).await?;
    let sync = lab.index_in(&state, Role::Sync)?;
    let async_id = lab.host_in(&state, Role::Async(0))?.id;
    let writer = lab.connect(0).await?;
    writer.batch_execute("create table lab_time (number int)").await?;
    // Otherwise the async would become sync and the commit be acknowledged.
    state.freeze = Some(Freeze::Flag(true));
    lab.state.replace(&state).await?;
    lab.cut(sync)?;
    let primary = lab.host_in(&state, Role::Primary)?.superuser("postgres").await?;
    lab.until(Instant::now() + limit, "the async does not follow the primary", async |_| {
        let sql = "select from pg_stat_replication where application_name = $1 and state = 'streaming'";
        ensure!(primary.query_opt(sql, &[&async_id.to_string()]).await?.is_some(), "not streaming");
        Ok(())
    })
    .await?;
    let write = tokio::spawn(async move { writer.batch_execute("insert into lab_time values (1)").await });

    let count = "select count(*) from lab_time";
    let session = lab.connect(0).await?;
    lab.until(Instant::now() + limit, "the async does not show the commit", async |_| {
        ensure!(session.query_one(count, &[]).await?.get::<_, i64>(0) == 1, "not there");
        Ok(())
    })
    .await?;
    ensure!(!write.is_finished(), "the commit was acknowledged without the sync");
    let on_the_primary = async {
        session.batch_execute("begin").await?;
        let seen = session.query_one(count, &[]).await?.get::<_, i64>(0);
        session.batch_execute("commit").await?;
        Ok::<_, tokio_postgres::Error>(seen)
    };
    tokio::pin!(on_the_primary);
    // It has to wait for the acknowledgement, which takes the sync.
    let early = tokio::time::timeout(Duration::from_secs(2), &mut on_the_primary).await;
    ensure!(early.is_err(), "the primary answered before the commit was acknowledged: {early:?}");
    lab.heal(sync)?;
    let seen = tokio::time::timeout(limit, on_the_primary).await.context("the session hangs")??;
    ensure!(seen == 1, "the session lost sight of the row");
    tokio::time::timeout(limit, write).await.context("the write hangs")???;
    state = lab.current().await?;
    state.freeze = None;
    lab.state.replace(&state).await?;
    lab.whole(Duration::from_secs(60)).await.map(drop)
}

/// A host comes back with the data of another cluster: it is left alone, and the others go on.
async fn another_shards_data(lab: &mut Lab, oracle: &Oracle) -> Result<()> {
    let state = lab.whole(Duration::from_secs(60)).await?;
    let index = lab.index_in(&state, Role::Async(0))?;
    lab.hosts[index].kill();
    let data = lab.hosts[index].data_dir();
    let aside = data.with_extension("aside");
    std::fs::rename(&data, &aside)?;
    foreign::initdb(&data).await?;
    let foreign = foreign::system_identifier(&data).await?;
    lab.heal(index)?;
    let log = lab.hosts[index].log().to_owned();
    // It may end, or stay and report itself unfit; what counts is that it says so.
    let deadline = Instant::now() + Duration::from_secs(20);
    while !std::fs::read_to_string(&log)?.contains(&foreign) {
        ensure!(Instant::now() < deadline, "the sitter does not say that the data is another shard's");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    oracle.progress(50, Duration::from_secs(10)).await?;
    ensure!(foreign::system_identifier(&data).await? == foreign, "the data was replaced");
    let after = lab.current().await?;
    ensure!(after.generation == state.generation, "the roles changed");
    Ok(())
}
