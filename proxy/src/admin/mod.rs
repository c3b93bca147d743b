//! The console: a virtual database that psql and PgBouncer's tools connect to. It shows what the
//! proxy does and takes orders. [`command`] reads, [`show`] makes tables, [`session`] speaks the
//! protocol; this file carries orders out.
//!
//! Stats users may look; admin users may do everything. Consoles are not counted as clients, so that
//! a full proxy, or one that waits for its clients to leave, can still be talked to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use crate::config::Config;
use crate::context::ProxyContext;
use crate::error::SqlState;
use crate::pool::control::Scope;
use crate::session_threads::{SessionTarget, ThreadAction};
use manatee_shared::ids::ShardName;

pub mod command;
pub mod console;
pub mod rights;
pub mod session;
pub mod show;
pub mod table;
pub mod welcome;

use command::{Command, HELP, Subject};
use console::lock;
use rights::Rights;
use show::Facts;
use table::Table;

/// Consoles at once.
const MAX_CONSOLES: usize = 32;
/// Interval of looking whether a pause is complete.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Averages are over so long.
pub const STATS_PERIOD: Duration = Duration::from_secs(60);

/// An open console, counted while it exists.
pub struct OpenConsole(Arc<ProxyContext>);

impl Drop for OpenConsole {
    fn drop(&mut self) {
        self.0.console.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Outcome of a command.
#[derive(Debug)]
pub enum Outcome {
    /// A table.
    Table(Table),
    /// Done; the command's tag.
    Done(&'static str),
    /// Something to read.
    Notice(&'static str),
    /// Not done, and why.
    Refused(SqlState, String),
}

/// Opens a console, if there are not too many.
pub fn open(shared: &Arc<ProxyContext>) -> Option<OpenConsole> {
    if shared.console.open.fetch_add(1, Ordering::Relaxed) < MAX_CONSOLES {
        return Some(OpenConsole(shared.clone()));
    }
    shared.console.open.fetch_sub(1, Ordering::Relaxed);
    None
}

/// Looks at the totals every [`STATS_PERIOD`]. Never ends by itself; may be dropped at any time.
pub async fn sample(shared: Arc<ProxyContext>) {
    let mut ticks = tokio::time::interval(STATS_PERIOD);
    loop {
        ticks.tick().await;
        let reports = shared.console.threads().report(false).await;
        let now = Instant::now();
        let totals = show::totals(&reports, &facts(&shared, &reports));
        let mut samples = lock(&shared.console.samples);
        if let Some((then, before)) = &samples.last {
            let between = now.duration_since(*then);
            samples.averages = totals
                .iter()
                .map(|(database, after)| {
                    let before = before.get(database).copied().unwrap_or_default();
                    (database.clone(), show::averages(before, *after, between))
                })
                .collect();
        }
        samples.last = Some((now, totals));
    }
}

/// Facts that the tables need beside the reports.
fn facts(shared: &ProxyContext, reports: &show::Reports) -> Facts {
    let config = shared.config.load();
    let clients: usize = reports
        .iter()
        .flat_map(|(_, report)| &report.pools)
        .map(|pool| pool.clients_active + pool.clients_waiting)
        .sum();
    Facts {
        logging_in: shared.connections().saturating_sub(clients),
        disabled: lock(&shared.console.disabled).clone(),
        paused: lock(&shared.console.paused).clone(),
        limits: config.pool.clone(),
        peers: config.fleet.peers().into_iter().collect(),
        threads: config.worker_count(),
        default_shard: config.shard.name.clone(),
        aliases: aliases(&config),
        own_login_refused: shared.own.refused_by(),
        shards: shared.shards.all().iter().map(|shard| (shard.name.clone(), shard.topology.snapshot())).collect(),
    }
}

/// Does what was asked for. May be dropped at any time: what was begun is done all the same.
pub async fn execute(command: Command, rights: Rights, shared: &Arc<ProxyContext>) -> Outcome {
    if rights != Rights::Rule && !matches!(command, Command::Show(_) | Command::Help | Command::ClientSetting) {
        return Outcome::Refused(SqlState::INSUFFICIENT_PRIVILEGE, "admin access needed".to_owned());
    }
    if !matches!(command, Command::Show(_) | Command::Help | Command::ClientSetting | Command::Empty) {
        tracing::info!(?command, "ordered by an administrator");
    }
    match command {
        Command::Empty => Outcome::Done(""),
        Command::ClientSetting => Outcome::Done("SET"),
        Command::Help => Outcome::Notice(HELP),
        Command::Show(subject) => Outcome::Table(show_subject(subject, shared).await),
        Command::Pause(database) => pause(database, shared).await,
        Command::Resume(database) => resume(database, shared).await,
        Command::Kill(database) => kill(database, shared).await,
        Command::KillClient(id) => match shared.console.threads().order(ThreadAction::KillClient(id)).await {
            0 => refused(format!("client {id} not found")),
            _ => Outcome::Done("KILL_CLIENT"),
        },
        Command::Disable(database) => {
            if let Err(refusal) = shared.find_database(Some(&database)).await {
                return refusal;
            }
            lock(&shared.console.disabled).insert(database);
            Outcome::Done("DISABLE")
        }
        Command::Enable(database) => match lock(&shared.console.disabled).remove(&database) {
            true => Outcome::Done("ENABLE"),
            false => refused(format!("database \"{database}\" is not disabled")),
        },
        Command::Reconnect(database) => {
            if let Err(refusal) = shared.find_database(database.as_deref()).await {
                return refusal;
            }
            shared.console.threads().order(ThreadAction::Reconnect(shared.target(database.as_deref()))).await;
            Outcome::Done("RECONNECT")
        }
        Command::WaitClose(database) => wait_close(database, shared).await,
        Command::Reload => match shared.reload().await {
            Ok(()) => Outcome::Done("RELOAD"),
            Err(error) => refused(format!("nothing was changed: {error}")),
        },
        Command::Shutdown(ending) => {
            shared.console.ending.send_replace(Some(ending));
            Outcome::Done("SHUTDOWN")
        }
    }
}

fn refused(problem: String) -> Outcome {
    Outcome::Refused(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, problem)
}

async fn pause(database: Option<String>, shared: &Arc<ProxyContext>) -> Outcome {
    if let Err(refusal) = shared.find_database(database.as_deref()).await {
        return refusal;
    }
    if !lock(&shared.console.paused).insert(database.clone()) {
        return refused("already suspended/paused".to_owned());
    }
    let target = shared.target(database.as_deref());
    let threads = shared.console.threads();
    threads.order(ThreadAction::Pause(target.clone())).await;
    while threads.order(ThreadAction::Release(target.clone())).await > 0 {
        tokio::time::sleep(LOOK_EVERY).await;
        if !lock(&shared.console.paused).contains(&database) {
            return refused("resumed before everything was paused".to_owned());
        }
    }
    Outcome::Done("PAUSE")
}

async fn resume(database: Option<String>, shared: &Arc<ProxyContext>) -> Outcome {
    let was = {
        let mut paused = lock(&shared.console.paused);
        match &database {
            Some(_) => paused.remove(&database),
            None => !std::mem::take(&mut *paused).is_empty(),
        }
    };
    shared.console.threads().order(ThreadAction::Resume(shared.target(database.as_deref()))).await;
    match (was, database) {
        (true, _) => Outcome::Done("RESUME"),
        (false, None) => refused("pooler is not paused/suspended".to_owned()),
        (false, Some(database)) => refused(format!("database {database} is not paused")),
    }
}

async fn kill(database: Option<String>, shared: &Arc<ProxyContext>) -> Outcome {
    if let Err(refusal) = shared.find_database(database.as_deref()).await {
        return refusal;
    }
    let target = shared.target(database.as_deref());
    let threads = shared.console.threads();
    lock(&shared.console.paused).insert(database);
    threads.order(ThreadAction::Pause(target.clone())).await;
    threads.order(ThreadAction::Kill(target.clone())).await;
    while threads.order(ThreadAction::Release(target.clone())).await > 0 {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Outcome::Done("KILL")
}

async fn wait_close(database: Option<String>, shared: &Arc<ProxyContext>) -> Outcome {
    if let Err(refusal) = shared.find_database(database.as_deref()).await {
        return refusal;
    }
    let target = shared.target(database.as_deref());
    let begun = Instant::now();
    // Those that were open when it was asked; younger ones do not matter.
    while shared.console.threads().order(ThreadAction::CountUsed(target.clone(), begun.elapsed())).await > 0 {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Outcome::Done("WAIT_CLOSE")
}

async fn show_subject(subject: Subject, shared: &Arc<ProxyContext>) -> Table {
    let everybody = matches!(subject, Subject::Clients | Subject::Servers | Subject::Sockets | Subject::ActiveSockets);
    let reports = match subject {
        Subject::Config | Subject::Version | Subject::Mem | Subject::DnsHosts | Subject::DnsZones => Vec::new(),
        _ => shared.console.threads().report(everybody).await,
    };
    let facts = facts(shared, &reports);
    let averages = || lock(&shared.console.samples).averages.clone();
    let now = SystemTime::now();
    match subject {
        Subject::ActiveSockets => show::sockets(&reports, &facts, now, true),
        Subject::Clients => show::clients(&reports, &facts),
        Subject::Config => show::config(shared.config.load().entries()),
        Subject::Databases => show::databases(&reports, &facts),
        Subject::Lists => show::lists(&reports, &facts),
        Subject::Mem => show::memory(),
        Subject::Nodes => show::nodes(&reports, &facts),
        Subject::Pools => show::pools(&reports, &facts),
        Subject::Servers => show::servers(&reports, &facts, now),
        Subject::Sockets => show::sockets(&reports, &facts, now, false),
        Subject::State => show::state(&facts),
        Subject::Stats => show::stats(&show::totals(&reports, &facts), &averages()),
        Subject::StatsAverages => show::stats_of(&averages()),
        Subject::StatsTotals => show::stats_of(&show::totals(&reports, &facts)),
        Subject::Topology => show::topology(&facts),
        Subject::Totals => show::all_totals(&show::totals(&reports, &facts), &averages()),
        Subject::Peers => show::peers(&facts),
        Subject::DnsHosts => show::dns_hosts(),
        Subject::DnsZones => show::dns_zones(),
        Subject::Users => show::users(&reports, &facts),
        Subject::Version => show::version(),
    }
}

/// Names that clients use for databases, by shard and name there.
fn aliases(config: &Config) -> BTreeMap<(ShardName, String), String> {
    let alias = |(alias, database): (&String, &crate::config::Database)| {
        let name = database.database.clone().unwrap_or_else(|| alias.clone());
        ((database.shard.clone(), name), alias.clone())
    };
    config.databases.iter().map(alias).collect()
}

/// Sessions that the name of a database means: as the tables show it.
impl ProxyContext {
    /// Whether there is a database of this name: a typing error must not look like an order that was carried out.
    async fn find_database(&self, name: Option<&str>) -> Result<(), Outcome> {
        let Some(name) = name else { return Ok(()) };
        let SessionTarget { shard: Some(shard), scope: Scope::Database(database) } = self.target(Some(name)) else {
            return Ok(());
        };
        let reports = self.console.threads().report(false).await;
        let is_used = reports
            .iter()
            .any(|(of, report)| *of == shard && report.pools.iter().any(|pool| *pool.database == *database));
        let is_there = match self.shards.get(&shard) {
            None => false,
            Some(_) if is_used => true,
            // Where no server can be asked, the administrator knows best.
            Some(shard) => shard.has_database(&database).await.unwrap_or(true),
        };
        match is_there {
            true => Ok(()),
            false => Err(Outcome::Refused(SqlState::INVALID_CATALOG_NAME, format!("no such database: {name}"))),
        }
    }

    pub(crate) fn target(&self, database: Option<&str>) -> SessionTarget {
        let Some(name) = database else { return SessionTarget { shard: None, scope: Scope::All } };
        let config = self.config.load();
        let (shard, database) = if let Some(mapped) = config.databases.get(name) {
            (mapped.shard.clone(), mapped.database.clone().unwrap_or_else(|| name.to_owned()))
        } else {
            let split = name.split_once('/').and_then(|(shard, rest)| Some((shard.parse().ok()?, rest.to_owned())));
            split.unwrap_or_else(|| (config.shard.name.clone(), name.to_owned()))
        };
        SessionTarget { shard: Some(shard), scope: Scope::Database(database) }
    }
}
