//! `manatee-lab equivalence`: random conversations of several clients, each had with PostgreSQL itself and through the
//! proxy, on few servers; what the clients hear and what is in the database must be the same. `transcript` says what
//! counts as the same. A difference is shrunk to the steps that it needs, and printed with its seed.

mod client;
mod generate;
mod message;
mod play;
mod shrink;
mod transcript;
mod vocabulary;
mod wire;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use manatee_shared::cluster::Role;
use serde::Serialize;

use crate::lab::{self, Lab};
use client::Control;
use play::{Outcome, Script, Way, World, play};

/// Proxies, by the number of servers that each has.
const POOLS: [usize; 3] = [1, 2, 3];

/// Options of a run.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "equivalence")]
pub struct Options {
    /// Conversations; default: as many as there is time for
    #[arg(long)]
    pub seeds: Option<u64>,
    /// For so long, without bringing the shard up
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// The first seed; default: by the clock
    #[arg(long)]
    pub seed: Option<u64>,
    /// Conversations at a time, each in a database of its own
    #[arg(long, default_value_t = 2)]
    pub lanes: u64,
    /// End after so many differences
    #[arg(long, default_value_t = 5)]
    pub differences: u64,
    /// The shard.
    #[command(flatten)]
    pub lab: lab::Options,
}

/// Results of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The first seed.
    pub seed: u64,
    /// Conversations, each had twice.
    pub conversations: u64,
    /// Steps in them.
    pub steps: u64,
    /// Their duration.
    pub seconds: f64,
    /// The differing ones: seed, steps, and what differs.
    #[serde(skip)]
    pub differing: Vec<String>,
    /// Their seeds.
    pub seeds: Vec<u64>,
}

/// State that the lanes share.
struct Shared {
    next: AtomicU64,
    end: u64,
    deadline: Instant,
    stop: AtomicBool,
}

/// Brings a shard up and has conversations with it.
pub async fn run(options: &Options) -> Result<Report> {
    let mut lab_options = options.lab.clone();
    lab_options.peers = 2;
    lab_options.pools = POOLS.to_vec();
    lab_options.proxies = u8::try_from(POOLS.len())?;
    // Nothing goes on beside the conversations that could change their plans or end a standby's query.
    lab_options.parameters.push(("autovacuum".to_owned(), "off".to_owned()));
    let (mut lab, _) = Lab::up(&lab_options).await?;
    let result = in_lab(options, &mut lab).await;
    result.map_err(|error| lab.explain(error))
}

async fn in_lab(options: &Options, lab: &mut Lab) -> Result<Report> {
    let state = lab.whole(Duration::from_secs(60)).await?;
    let (primary, standby) = (lab.host_in(&state, Role::Primary)?, lab.host_in(&state, Role::Sync)?);
    let client = primary.superuser("postgres").await?;
    client.batch_execute("create role eq_other; create role eq login in role eq_other").await?;
    // What a statement of one conversation waits for another's is a fault of the generator: it is to be seen.
    client.batch_execute("alter role eq set search_path = eq, public; alter role eq set lock_timeout = '2s'").await?;
    // What a session never set is NULL, or empty on a server where another one did (docs/compatibility.md).
    client.batch_execute("alter role eq set app.tenant = ''").await?;
    let address = |host: &crate::host::Host| SocketAddr::new(host.id.ip, host.id.pg_port);
    let (primary, standby) = (address(primary), address(standby));
    let proxies: Vec<SocketAddr> =
        lab.proxies.iter().map(|proxy| SocketAddr::from((Ipv4Addr::LOCALHOST, proxy.port))).collect();
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1 << 48));
    let shared = Arc::new(Shared {
        next: AtomicU64::new(seed),
        end: options.seeds.map_or(u64::MAX, |seeds| seed.saturating_add(seeds)),
        deadline: Instant::now() + Duration::from_secs(options.seconds),
        stop: AtomicBool::new(false),
    });
    let begun = Instant::now();
    let mut lanes = Vec::new();
    for lane in 0..options.lanes {
        let database = format!("eq{lane}");
        client.batch_execute(&format!("create database {database} owner eq")).await?;
        let (proxies, shared) = (proxies.clone(), shared.clone());
        let limit = options.differences;
        lanes.push(tokio::task::spawn_blocking(move || {
            let connect = |address| Control::connect(address, &database);
            let deadline = Instant::now() + Duration::from_secs(20);
            let standby = loop {
                // The database may still be new to the standby.
                match connect(standby) {
                    Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
                    result => break result?,
                }
            };
            let mut world = World { direct: primary, proxies, primary: connect(primary)?, standby, database };
            lane_of(&mut world, &shared, limit)
        }));
    }
    let mut report =
        Report { seed, conversations: 0, steps: 0, seconds: 0.0, differing: Vec::new(), seeds: Vec::new() };
    for lane in lanes {
        let lane: Lane = lane.await??;
        report.conversations += lane.conversations;
        report.steps += lane.steps;
        for (seed, text) in lane.differing {
            report.seeds.push(seed);
            report.differing.push(text);
        }
    }
    report.seconds = begun.elapsed().as_secs_f64();
    lab.check()?;
    Ok(report)
}

#[derive(Debug, Default)]
struct Lane {
    conversations: u64,
    steps: u64,
    differing: Vec<(u64, String)>,
}

fn lane_of(world: &mut World, shared: &Shared, limit: u64) -> Result<Lane> {
    let mut lane = Lane::default();
    while !shared.stop.load(Ordering::Relaxed) && Instant::now() < shared.deadline {
        let seed = shared.next.fetch_add(1, Ordering::Relaxed);
        if seed >= shared.end {
            break;
        }
        let script = Script::Chance(generate::conversation(seed));
        let round = Round::of(world, script, servers(seed)).with_context(|| format!("seed {seed}"));
        let round = match round {
            Ok(round) => round,
            Err(error) => {
                shared.stop.store(true, Ordering::Relaxed);
                return Err(error);
            }
        };
        lane.conversations += 1;
        lane.steps += round.direct.steps.len() as u64;
        ensure!(
            !round.direct_is_silent(),
            "seed {seed}: the generator waits for itself:\n{}",
            shrink::steps(&round.direct.steps)
        );
        if round.differs() {
            let text = shrink::shrink(world, servers(seed), round)?;
            let text = format!("seed {seed}, {} servers:\n{text}", servers(seed));
            tracing::warn!("{text}");
            lane.differing.push((seed, text));
            if lane.differing.len() as u64 >= limit {
                shared.stop.store(true, Ordering::Relaxed);
            }
        }
    }
    Ok(lane)
}

/// Servers of the proxy in the conversation of a seed.
fn servers(seed: u64) -> usize {
    POOLS[usize::try_from(seed % POOLS.len() as u64).unwrap_or(0)]
}

/// One conversation both ways.
#[derive(Debug)]
struct Round {
    direct: Outcome,
    through: Outcome,
}

impl Round {
    fn of(world: &mut World, script: Script, servers: usize) -> Result<Self> {
        let direct = play(world, script, Way::Direct { servers }).context("direct")?;
        let proxy = world.proxies[servers - 1];
        let steps = Script::Steps(direct.steps.clone());
        let through =
            play(world, steps, Way::Through { proxy, states: &direct.states }).context("through the proxy")?;
        Ok(Self { direct, through })
    }

    fn direct_is_silent(&self) -> bool {
        self.direct.heard.iter().any(|heard| heard.words.iter().any(|word| word == "silence"))
    }

    fn differs(&self) -> bool {
        self.direct.states != self.through.states
            || self
                .direct
                .heard
                .iter()
                .zip(&self.through.heard)
                .any(|(direct, through)| direct.words != through.words || direct.notifications != through.notifications)
    }
}
