//! Work of operators on a real shard: every change that `manatee-adm` makes, with clients at work.
//!
//! One shard of four hosts for all steps, because bringing one up takes longer than most of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use manatee_shared::cluster::{ClusterState, Role};
use manatee_tests::console::adm;
use manatee_tests::lab::{Lab, Options, SHARD};
use manatee_tests::oracle::Oracle;

const WHOLE: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_change_a_shard_at_work() {
    let options = Options { peers: 4, ..Options::default() };
    let (mut lab, _) = match Lab::up(&options).await {
        Ok(up) => up,
        Err(error) => panic!("{error:#}"),
    };
    if let Err(error) = steps(&mut lab).await {
        lab.set_keep(true);
        panic!("{:#}", lab.explain(error));
    }
}

async fn steps(lab: &mut Lab) -> Result<()> {
    lab.whole(WHOLE).await?;
    let watcher = Watcher::start(lab).await?;
    let oracle = Oracle::start(lab).await?;
    let told = adm(lab, &["explain"]).await?;
    ensure!(told.contains("healthy"), "{told}");
    freeze(lab).await.context("freeze")?;
    promote(lab, &oracle, &watcher).await.context("promote")?;
    reap(lab, &watcher).await.context("reap")?;
    rebuild(lab).await.context("rebuild")?;
    one_node_write_mode(lab, &oracle, &watcher).await.context("one-node-write mode")?;
    lab.state.check_history().await?;
    judge(lab, &oracle).await?;
    watcher.check(lab).await?;
    oracle.stop().await;
    // Other wiring of the tool: what it lists of a shard that went through all this.
    adm(lab, &["verify"]).await.map(drop)
}

async fn judge(lab: &Lab, oracle: &Oracle) -> Result<()> {
    let verdict = oracle.verify(lab).await?;
    ensure!(verdict.lost == 0 && verdict.ghosts == 0, "{verdict:?}");
    let figures = oracle.figures();
    ensure!(figures.stale == 0, "{figures:?}");
    Ok(())
}

/// The message of a command that must fail.
async fn refused(lab: &Lab, args: &[&str], about: &str) -> Result<()> {
    match adm(lab, args).await {
        Ok(text) => bail!("{args:?} succeeded: {text}"),
        Err(error) if format!("{error:#}").contains(about) => Ok(()),
        Err(error) => bail!("{args:?} does not say `{about}`: {error:#}"),
    }
}

fn name(lab: &Lab, state: &ClusterState, role: Role) -> Result<String> {
    Ok(lab.host_in(state, role)?.name())
}

async fn freeze(lab: &mut Lab) -> Result<()> {
    adm(lab, &["freeze", "-r", "a test"]).await?;
    let state = lab.current().await?;
    let show = adm(lab, &["show"]).await?;
    ensure!(show.contains("freeze info:  a test"), "{show}");
    refused(lab, &["promote", "-y", "-n", &name(lab, &state, Role::Sync)?], "the shard is frozen").await?;
    refused(lab, &["explain"], "the shard is frozen").await?;
    adm(lab, &["unfreeze"]).await.map(drop)
}

/// Promotes, once nothing is in the way any more: a peer that was just moved streams again in a moment.
async fn promoted(lab: &mut Lab, args: &[&str]) -> Result<String> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match adm(lab, args).await {
            Err(error)
                if format!("{error:#}").contains("not promoted: the shard has problems")
                    && Instant::now() < deadline =>
            {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            result => return result,
        }
    }
}

/// Each role once, without waiting for anything between the request and its end.
async fn promote(lab: &mut Lab, oracle: &Oracle, watcher: &Watcher) -> Result<()> {
    let before = lab.whole(WHOLE).await?;
    let last = name(lab, &before, Role::Async(1))?;
    oracle.begin_round();
    let told = promoted(lab, &["promote", "-n", &last, "-r", "async", "-i", "1"]).await?;
    let state = lab.current().await?;
    ensure!(name(lab, &state, Role::Async(0))? == last && state.generation == before.generation, "{told}");
    watcher.sees(&state).await?;
    lab.whole(WHOLE).await?;

    let told = promoted(lab, &["promote", "-n", &last, "-r", "async"]).await?;
    eprintln!("{told}");
    let state = lab.current().await?;
    ensure!(name(lab, &state, Role::Sync)? == last && state.generation == before.generation + 1, "{told}");
    ensure!(name(lab, &state, Role::Async(0))? == name(lab, &before, Role::Sync)?, "the sync has not become async");
    watcher.sees(&state).await?;
    lab.whole(WHOLE).await?;
    nobody_noticed(oracle)?;

    let old = name(lab, &before, Role::Primary)?;
    oracle.begin_round();
    let told = promoted(lab, &["promote", "-n", &last, "-r", "sync"]).await?;
    let state = lab.current().await?;
    ensure!(name(lab, &state, Role::Primary)? == last && state.generation == before.generation + 2, "{told}");
    oracle.progress(50, Duration::from_secs(10)).await?;
    let figures = oracle.figures();
    eprintln!("{told}; {}", serde_json::to_string(&figures)?);
    ensure!(figures.read_errors == 0, "reads failed: {figures:?}");
    watcher.sees(&state).await?;
    let state = lab.whole(WHOLE).await?;
    ensure!(name(lab, &state, Role::Async(1))? == old, "the former primary did not return as async");
    judge(lab, oracle).await
}

fn nobody_noticed(oracle: &Oracle) -> Result<()> {
    let figures = oracle.figures();
    ensure!(figures.write_errors + figures.read_errors + figures.dropped == 0, "clients noticed: {figures:?}");
    Ok(())
}

async fn reap(lab: &mut Lab, watcher: &Watcher) -> Result<()> {
    let before = lab.whole(WHOLE).await?;
    let victim = lab.index_in(&before, Role::Primary)?;
    let name = lab.hosts[victim].name();
    refused(lab, &["reap", "-n", &name], "not deposed").await?;
    lab.hosts[victim].kill();
    let deposed = lab
        .until(Instant::now() + Duration::from_secs(30), "no takeover", async |lab| {
            let state = lab.current().await?;
            ensure!(state.generation > before.generation, "still in generation {}", before.generation);
            Ok(state)
        })
        .await?;
    watcher.sees(&deposed).await?;
    lab.until(Instant::now() + Duration::from_secs(30), "it was not reaped", async |lab| {
        // Refused until ZooKeeper has noticed that it is gone.
        adm(lab, &["reap", "-n", &name]).await.map(drop)
    })
    .await?;
    ensure!(lab.current().await?.deposed.is_empty(), "it is still listed");
    lab.heal(victim)?;
    lab.whole(WHOLE).await.map(drop)
}

/// A full copy by an operator's order.
async fn rebuild(lab: &mut Lab) -> Result<()> {
    let state = lab.whole(WHOLE).await?;
    let host = lab.host_in(&state, Role::Async(1))?;
    let config = host.config_path();
    let config = config.to_str().context("a path in UTF-8")?;
    let told = adm(lab, &["rebuild", "-y", "-c", config]).await?;
    ensure!(told.contains("and it streams again"), "{told}");
    lab.whole(WHOLE).await?;
    let primary = lab.host_in(&state, Role::Primary)?.config_path();
    refused(lab, &["rebuild", "-y", "-c", primary.to_str().context("UTF-8")?], "this peer is primary").await
}

async fn one_node_write_mode(lab: &mut Lab, oracle: &Oracle, watcher: &Watcher) -> Result<()> {
    let before = lab.whole(WHOLE).await?;
    let primary = lab.index_in(&before, Role::Primary)?;
    refused(lab, &["set-onwm", "-m", "on", "-y"], "`one_node_write_mode = true`").await?;
    let path = lab.hosts[primary].config_path();
    let config = std::fs::read_to_string(&path)?;
    std::fs::write(&path, format!("one_node_write_mode = true\n{config}"))?;
    let postmaster = lab.hosts[primary].postmaster_pid();
    lab.hosts[primary].kill_sitter()?;
    lab.hosts[primary].start_sitter()?;
    lab.until(Instant::now() + Duration::from_secs(30), "one-node-write mode could not be entered", async |lab| {
        adm(lab, &["set-onwm", "-m", "on", "-y"]).await.map(drop)
    })
    .await?;
    let alone = lab.current().await?;
    ensure!(alone.one_node_write_mode && alone.sync_peer.is_none() && alone.is_frozen(), "{alone:?}");
    watcher.sees(&alone).await?;
    refused(lab, &["unfreeze"], "set-onwm -m off").await?;
    // Writes need nobody else.
    let others: Vec<usize> = (0..lab.hosts.len()).filter(|index| *index != primary).collect();
    others.iter().for_each(|index| lab.hosts[*index].kill());
    oracle.progress(50, Duration::from_secs(20)).await.context("alone")?;
    for index in &others {
        lab.heal(*index)?;
    }
    refused(lab, &["explain"], "accepts writes alone").await?;
    adm(lab, &["set-onwm", "-m", "off", "-y"]).await?;
    let after = lab.whole(WHOLE).await?;
    ensure!(!after.one_node_write_mode && !after.is_frozen(), "{after:?}");
    ensure!(after.primary.id == before.primary.id, "the primary changed");
    ensure!(lab.hosts[primary].postmaster_pid() == postmaster, "its PostgreSQL was restarted");
    watcher.sees(&after).await?;
    oracle.progress(50, Duration::from_secs(20)).await.context("with a sync again")
}

/// A client as node-manatee is one: it watches the node `state`, and knows nothing else.
struct Watcher {
    seen: Arc<Mutex<Vec<Vec<String>>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watcher {
    async fn start(lab: &Lab) -> Result<Self> {
        let client = zookeeper_client::Client::connect(&lab.zookeeper.addresses().join(",")).await?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let shown = seen.clone();
        let task = tokio::spawn(async move {
            loop {
                let Ok((data, _, changed)) = client.get_and_watch_data(&format!("/manatee/{SHARD}/state")).await else {
                    return;
                };
                let topology = topology(&data);
                {
                    let mut seen = shown.lock().unwrap();
                    if seen.last() != Some(&topology) {
                        seen.push(topology);
                    }
                }
                changed.changed().await;
            }
        });
        Ok(Self { seen, task })
    }

    fn last(&self) -> Option<Vec<String>> {
        self.seen.lock().unwrap().last().cloned()
    }

    /// Waits until the topology event of `state`, or of a later one, was seen.
    async fn sees(&self, state: &ClusterState) -> Result<()> {
        let wanted = topology(&state.to_json());
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.seen.lock().unwrap().contains(&wanted) {
            ensure!(Instant::now() < deadline, "not seen: {wanted:?}; last: {:?}", self.last());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Each topology that was seen was one of the shard, in its order; the last is the present one.
    async fn check(&self, lab: &Lab) -> Result<()> {
        self.sees(&lab.current().await?).await?;
        let mut history: Vec<Vec<String>> = Vec::new();
        for state in lab.state.history().await? {
            let topology = topology(&state.to_json());
            if history.last() != Some(&topology) {
                history.push(topology);
            }
        }
        let mut rest = history.iter();
        for seen in self.seen.lock().unwrap().iter() {
            ensure!(rest.any(|topology| topology == seen), "{seen:?} is not, or not in this place, in {history:?}");
        }
        Ok(())
    }
}

/// `[primary, sync, async…]` as URLs: node-manatee's `topology` event, from the JSON alone.
fn topology(state: &[u8]) -> Vec<String> {
    let state: serde_json::Value = serde_json::from_slice(state).unwrap();
    let asyncs = state["async"].as_array().cloned().unwrap_or_default();
    let chain = [state["primary"].clone(), state["sync"].clone()].into_iter().chain(asyncs);
    chain.filter_map(|peer| peer["pgUrl"].as_str().map(str::to_owned)).collect()
}
