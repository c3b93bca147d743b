//! `manatee-adm state-backfill`: puts a state in place of one that is lost or cannot be used. No
//! peer ever does this by itself (rule 8). The result is frozen, so that an operator can look at it
//! before anything happens.

mod plan;

use anyhow::bail;
use clap::Args;
use jiff::Timestamp;
use manatee_shared::cluster::ClusterState;
use manatee_shared::ids::PeerId;

pub use plan::{Candidate, Plan, candidates, plan};

use super::confirm::confirm;
use super::connect::Connection;
use super::evidence::Evidence;
use super::{Outcome, print};

/// Options.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// The peer to make primary, by name, id or address, where the tool cannot tell which has everything
    #[arg(short, long)]
    name: Option<String>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Only say what would be written
    #[arg(long)]
    dry_run: bool,
}

/// Works out the state, shows it, and writes it.
pub async fn run(arguments: Arguments, outer: &Connection) -> anyhow::Result<Outcome> {
    let shard = arguments.connection.open(outer).await?;
    let evidence = Evidence::gather(&shard).await?;
    let chosen = arguments.name.as_deref().map(|name| find(&evidence, name)).transpose()?;
    let Plan { over, state, notes } = plan(&evidence, chosen, Timestamp::now()).map_err(anyhow::Error::msg)?;
    print(&format!("{}\n", text(&state, &notes)))?;
    if arguments.dry_run {
        return Ok(Outcome::Fine);
    }
    confirm(arguments.yes, "This becomes the state of the shard, frozen.")?;
    let old = evidence.last.as_ref().map(|entry| &entry.state);
    if !shard.write(over, old, &state).await? {
        bail!("somebody else wrote a state meanwhile; look with `manatee-adm show`");
    }
    print("written, and frozen: look with `manatee-adm show`, then `manatee-adm unfreeze`\n")?;
    shard.close().await;
    Ok(Outcome::Fine)
}

/// The registered peer that `name` means.
fn find(evidence: &Evidence, name: &str) -> anyhow::Result<PeerId> {
    let active = evidence.view.active.values().map(|active| &active.peer);
    let meant = |peer: &&manatee_shared::cluster::Peer| {
        peer.id.to_string() == name || peer.ip == name || peer.zone_id.starts_with(name)
    };
    match active.filter(meant).map(|peer| peer.id).collect::<Vec<_>>().as_slice() {
        [id] => Ok(*id),
        [] => bail!("no registered peer is called `{name}`; see `manatee-adm zk-active`"),
        _ => bail!("`{name}` could be several of the registered peers; see `manatee-adm zk-active`"),
    }
}

/// The state for people, and what is to be known about it.
fn text(state: &ClusterState, notes: &[String]) -> String {
    let mut lines = vec![format!("generation: {} ({})", state.generation, state.init_wal)];
    for peer in state.everyone() {
        lines.push(format!("{:11} {} ({})", format!("{}:", state.role_of(peer.id)), peer.zone_id, peer.id));
    }
    lines.extend(notes.iter().map(|note| format!("note: {note}")));
    lines.join("\n")
}
