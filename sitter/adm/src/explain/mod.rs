//! `manatee-adm explain`: for a shard that is not healthy, what keeps it from being so, what may be
//! lost, and the safe next step. Everything but [`run`] is pure.
//!
//! One [`Finding`] for each thing that an operator can do something about, or has to wait for; the
//! sitters' own reasons are quoted rather than guessed anew.

mod lost;
mod peer;
mod shard;
#[cfg(test)]
mod tests;

use anyhow::Context;
use clap::Args;
use manatee_shared::config;
use manatee_shared::ids::PeerId;
use manatee_shared::zk::client::Unreachable;
use serde::{Deserialize, Serialize};

use super::cluster::{Answer, Cluster, ask_all};
use super::connect::Connection;
use super::evidence::Evidence;
use super::{Outcome, print, print_json};
use crate::machine::local::{Gate, Server, Synchronous};

/// Options.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Impact of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Impact {
    /// Writes are acknowledged that are lost with one host.
    LosesWrites,
    /// Writes are not acknowledged because of it.
    StopsWrites,
    /// With it, the loss of one more peer stops writes, or loses them.
    StopsFailover,
    /// The shard has less than it should.
    Degrades,
    /// Good to know.
    Note,
}

impl Impact {
    fn label(self) -> &'static str {
        match self {
            Self::LosesWrites => "may lose writes",
            Self::StopsWrites => "stops writes",
            Self::StopsFailover => "stops failover",
            Self::Degrades => "degrades",
            Self::Note => "note",
        }
    }
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Impact; its key in JSON is that of 0.1.0.
    #[serde(rename = "matter")]
    pub impact: Impact,
    /// Condition that was found.
    pub what: String,
    /// Cause, as far as anybody says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Loss that is possible.
    pub risk: String,
    /// Next step.
    pub next: String,
}

impl Finding {
    fn new(impact: Impact, what: impl Into<String>) -> Self {
        Self { impact, what: what.into(), why: None, risk: NOTHING_LOST.to_owned(), next: String::new() }
    }

    fn why(mut self, why: impl Into<String>) -> Self {
        self.why = Some(why.into()).filter(|why| !why.is_empty());
        self
    }

    fn risk(mut self, risk: impl Into<String>) -> Self {
        self.risk = risk.into();
        self
    }

    fn next(mut self, next: impl Into<String>) -> Self {
        self.next = next.into();
        self
    }
}

const NOTHING_LOST: &str = "nothing that was acknowledged";

/// Report on a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Its name.
    pub shard: String,
    /// Whether writes are acknowledged; null where that cannot be told.
    pub writable: Option<bool>,
    /// In one line.
    pub summary: String,
    /// Findings, the worst first.
    pub findings: Vec<Finding>,
}

impl Report {
    fn new(shard: &str, writable: Option<bool>, summary: String, mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|finding| finding.impact);
        Self { shard: shard.to_owned(), writable, summary, findings }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!("shard {}: {}\n", self.shard, self.summary);
        for (number, finding) in (1..).zip(&self.findings) {
            text.push_str(&format!("\n{number}. {} ({})\n", finding.what, finding.impact.label()));
            let why = finding.why.iter().map(|why| ("why", why));
            for (name, value) in why.chain([("at risk", &finding.risk), ("next", &finding.next)]) {
                text.push_str(&format!("   {:9}{value}\n", format!("{name}:")));
            }
        }
        text
    }
}

/// Explains the shard.
pub async fn run(arguments: Arguments, outer: &Connection) -> anyhow::Result<Outcome> {
    let config = arguments.connection.sitter_config(outer);
    let name = arguments.connection.clone().resolve(outer)?.shard.to_string();
    let report = match arguments.connection.open(outer).await {
        Ok(shard) => {
            let report = explain(&Evidence::gather(&shard).await?);
            shard.close().await;
            report
        }
        Err(error) => match error.downcast::<Unreachable>() {
            Ok(unreachable) => lost::without_zookeeper(&name, &unreachable, local(config).await?),
            Err(error) => return Err(error),
        },
    };
    if arguments.json {
        print_json(&report)?;
    } else {
        print(&report.text())?;
    }
    let healthy = report.findings.iter().all(|finding| finding.impact == Impact::Note) && report.writable == Some(true);
    Ok(if healthy { Outcome::Fine } else { Outcome::Found })
}

/// Answer of the sitter whose configuration this is: with ZooKeeper gone it is the only one known.
async fn local(config: Option<std::path::PathBuf>) -> anyhow::Result<Option<(PeerId, Answer)>> {
    #[derive(Deserialize)]
    struct SitterConfig {
        peer: PeerAddress,
    }
    #[derive(Deserialize)]
    struct PeerAddress {
        ip: std::net::IpAddr,
        pg_port: u16,
        backup_port: u16,
    }
    let Some(path) = config else { return Ok(None) };
    let SitterConfig { peer: PeerAddress { ip, pg_port, backup_port } } =
        config::load(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let answers = ask_all([PeerId { ip, pg_port, backup_port }].into_iter()).await?;
    Ok(answers.into_iter().next())
}

/// Report on the shard.
pub fn explain(evidence: &Evidence) -> Report {
    let Some(cluster) = evidence.cluster() else { return lost::without_state(evidence) };
    let mut findings = shard::findings(evidence, &cluster);
    for (role, listed) in cluster.listed() {
        findings.extend(peer::findings(&cluster, role, listed));
    }
    findings.extend(peer::unlisted(&cluster));
    let writable = is_writable(&cluster);
    let worst = findings.iter().map(|finding| finding.impact).min();
    let summary = match (writable, worst) {
        (Some(true), Some(Impact::LosesWrites)) => {
            "writes are acknowledged, but NOT all of them safely: some are lost with the primary's host"
        }
        (Some(true), None | Some(Impact::Note)) => {
            "healthy: writes are acknowledged, and the loss of any one peer is survived"
        }
        (Some(true), Some(Impact::Degrades)) => "writes are acknowledged, with less redundancy than there should be",
        (Some(true), Some(_)) => "writes are acknowledged, but the loss of one more peer may stop them",
        (Some(false), _) => "writes are NOT acknowledged",
        (None, _) => "write availability unknown: the primary's sitter does not answer",
    };
    Report::new(&evidence.shard, writable, summary.to_owned(), findings)
}

/// Whether writes are acknowledged to clients, as far as the primary's sitter says.
fn is_writable(cluster: &Cluster) -> Option<bool> {
    let status = cluster.answers.get(&cluster.state.primary.id)?.as_ref().ok()?;
    let Server::Primary(primary) = &status.local.server else { return Some(false) };
    // A configuration that is not known is being changed just now.
    let config = status.local.config.as_ref();
    if config.is_some_and(|config| config.gate == Gate::Closed) {
        return Some(false);
    }
    let Some(sync) = &cluster.state.sync_peer else {
        return Some(config.is_some_and(|config| config.synchronous == Synchronous::Nobody));
    };
    if status.local.loosens("synchronous_standby_names") {
        // It waits for nobody, or for somebody who need not be there.
        return Some(true);
    }
    let attached = primary.downstreams.iter().find(|downstream| downstream.peer == sync.id);
    Some(attached.is_some_and(|downstream| downstream.streaming && downstream.sync_priority > 0))
}
