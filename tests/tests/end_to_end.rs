//! The main job, end to end: a real shard, a real proxy, a real failover.
//!
//! One shard for all steps, because bringing one up takes longer than most of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use manatee_shared::cluster::Role;
use manatee_tests::console;
use manatee_tests::lab::{Lab, Options};
use manatee_tests::oracle::Oracle;
use manatee_tests::scenario::{Fault, round};
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

    let oracle = Oracle::start(lab).await?;
    // The sitter of the primary, then everything on its host, then its sitter by plan.
    let mut faults = vec![Fault::KillSitter(Role::Primary), Fault::KillPrimary, Fault::StopPrimary];
    if lab.network.has_namespaces() {
        faults.push(Fault::IsolatePrimary);
    }
    for fault in faults {
        let shown = round(lab, &oracle, fault).await.with_context(|| format!("{fault:?}"))?;
        eprintln!("{fault:?}: {}", serde_json::to_string(&shown)?);
        ensure!(shown.failures.is_empty(), "{fault:?}: {}", shown.failures.join("; "));
    }
    another_shards_data(lab, &oracle).await.context("a data directory of another shard")?;
    oracle.stop().await;
    Ok(())
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
    ensure!(bystander.simple_query("select 1").await.is_ok(), "a bystander was hurt");
    Ok(())
}

async fn operators_tool(lab: &Lab) -> Result<()> {
    let ids: Vec<String> = lab.hosts.iter().map(|host| host.id.ip.to_string()).collect();
    for (command, words) in [
        (vec!["show"], vec!["generation"]),
        (vec!["peers"], ids.iter().map(String::as_str).collect()),
        (vec!["pg-status"], vec!["primary", "sync", "async", "ok"]),
        (vec!["history"], vec!["1"]),
        (vec!["zk-state"], vec!["\"generation\"", "\"primary\""]),
        (vec!["zk-active"], vec![ids[0].as_str()]),
        (vec!["version"], vec!["."]),
        (vec!["verify"], vec![]),
    ] {
        let text = console::adm(lab, &command).await.with_context(|| command.join(" "))?;
        for word in words {
            ensure!(text.contains(word), "{command:?} does not show `{word}`:\n{text}");
        }
    }
    Ok(())
}

/// A host comes back with the data of another cluster: it is left alone, and the others go on.
async fn another_shards_data(lab: &mut Lab, oracle: &Oracle) -> Result<()> {
    let state = lab.whole(Duration::from_secs(60)).await?;
    let index = lab.index_in(&state, Role::Async(0))?;
    lab.hosts[index].kill();
    let data = lab.hosts[index].data_dir();
    let aside = data.with_extension("aside");
    std::fs::rename(&data, &aside)?;
    initdb(&data).await?;
    let foreign = system_identifier(&data).await?;
    lab.heal(index)?;
    let log = lab.hosts[index].log().to_owned();
    // It may end, or stay and report itself unfit; what counts is that it says so.
    let deadline = Instant::now() + Duration::from_secs(20);
    while !std::fs::read_to_string(&log)?.contains(&foreign) {
        ensure!(Instant::now() < deadline, "the sitter does not say that the data is another shard's");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    oracle.progress(50, Duration::from_secs(10)).await?;
    ensure!(system_identifier(&data).await? == foreign, "the data was replaced");
    let after = lab.current().await?;
    ensure!(after.generation == state.generation, "the roles changed");
    Ok(())
}

async fn initdb(data: &std::path::Path) -> Result<()> {
    let program = manatee_tests::binaries::postgres_folder()?.join("initdb");
    let mut command = if nix::unistd::geteuid().is_root() {
        std::fs::create_dir(data)?;
        let user = nix::unistd::User::from_name("postgres")?.context("no OS user postgres")?;
        std::os::unix::fs::chown(data, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        let mut command = tokio::process::Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(program);
        command
    } else {
        tokio::process::Command::new(program)
    };
    let output = command.args(["-U", "postgres", "-A", "peer", "-D"]).arg(data).current_dir("/").output().await?;
    ensure!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

async fn system_identifier(data: &std::path::Path) -> Result<String> {
    let program = manatee_tests::binaries::postgres_folder()?.join("pg_controldata");
    let output = tokio::process::Command::new(program).arg(data).output().await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.contains("system identifier")).context("pg_controldata")?;
    Ok(line.rsplit_once(' ').context("pg_controldata")?.1.to_owned())
}
