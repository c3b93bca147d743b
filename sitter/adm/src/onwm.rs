//! `manatee-adm set-onwm`: into one-node-write mode, and out of it.

use anyhow::bail;
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use manatee_shared::cluster::{ClusterState, Freeze, Peer};
use manatee_shared::lsn::WalPosition;

use super::cluster::Cluster;
use super::confirm::confirm;
use super::connect::Connection;
use super::{Outcome, print};
use crate::machine::local::Server;
use crate::machine::situation::Promotion;
use crate::report::SitterStatus;

/// Options.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// Whether the primary is to accept writes alone
    #[arg(short, long)]
    mode: Mode,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// The primary accepts writes with no sync; other peers stay out
    On,
    /// Other peers come in again, and the first that follows becomes sync
    Off,
}

/// Switches the mode.
pub async fn run(arguments: Arguments, outer: &Connection) -> anyhow::Result<Outcome> {
    let shard = arguments.connection.open(outer).await?;
    let cluster = Cluster::gather(&shard).await?;
    let primary = cluster.state.primary.clone();
    let name = &primary.zone_id;
    match arguments.mode {
        Mode::On => {
            let status = cluster.answers.get(&primary.id).map(|answer| answer.as_ref().map_err(String::as_str));
            let position = ready(&primary, status)?;
            let question = format!(
                "{name} will accept writes alone: what is written from then on exists once, and is lost with that host. \
                 The other peers stay out."
            );
            confirm(arguments.yes, &question)?;
            shard.change(|state| entered(state, &primary, position, Timestamp::now())).await?;
            print(&format!(
                "one-node-write mode: {name} accepts writes alone; leave it with `manatee-adm set-onwm -m off`\n"
            ))?;
        }
        Mode::Off => {
            let question = format!("Other peers will copy from {name}, and the first that follows becomes its sync.");
            confirm(arguments.yes, &question)?;
            shard.change(leaving).await?;
            let others = cluster.view.active.keys().filter(|id| **id != primary.id).count();
            print(&format!(
                "one-node-write mode ends as soon as another peer follows {name}; {others} others are registered. \
                 See how it goes with `manatee-adm explain`\n"
            ))?;
        }
    }
    shard.close().await;
    Ok(Outcome::Fine)
}

/// Address of the primary, if it will accept writes alone.
fn ready(primary: &Peer, status: Option<Result<&SitterStatus, &str>>) -> anyhow::Result<WalPosition> {
    let name = &primary.zone_id;
    let status = match status {
        Some(Ok(status)) => status,
        Some(Err(problem)) => bail!("the sitter of the primary {name} does not answer ({problem}); start it first"),
        None => bail!("the sitter of the primary {name} was not asked"),
    };
    if !status.settings.one_node_write_mode {
        bail!(
            "the sitter of the primary {name} is not configured for it; \
             set `one_node_write_mode = true` in its configuration and restart that sitter (PostgreSQL keeps running)"
        );
    }
    match &status.local.server {
        Server::Primary(running) => Ok(running.flushed),
        _ => bail!("the PostgreSQL of the primary {name} is not out of recovery; see `manatee-adm explain`"),
    }
}

fn entered(
    state: &ClusterState,
    primary: &Peer,
    position: WalPosition,
    now: Timestamp,
) -> anyhow::Result<ClusterState> {
    if state.primary.id != primary.id {
        bail!("roles have changed meanwhile: the primary is {} now", state.primary.zone_id);
    }
    let mut new = state.clone();
    new.reason = Some("one-node-write mode, by an operator".to_owned());
    if state.leaves_one_node_write_mode() {
        new.set_leaves_one_node_write_mode(false);
        return Ok(new);
    }
    if state.one_node_write_mode {
        bail!("the shard is in one-node-write mode already");
    }
    new.generation += 1;
    new.sync_peer = None;
    new.end_request();
    // They may lack whatever is written from now on, and stay out.
    new.async_peers.clear();
    (new.init_wal, new.init_wal_timeline) = (position.lsn, Some(position.timeline));
    Promotion::set(&mut new, None);
    new.one_node_write_mode = true;
    if !state.is_frozen() {
        new.freeze = Some(Freeze::because(now, "one-node-write mode"));
    }
    Ok(new)
}

fn leaving(state: &ClusterState) -> anyhow::Result<ClusterState> {
    if !state.one_node_write_mode {
        bail!("the shard is not in one-node-write mode");
    }
    if state.leaves_one_node_write_mode() {
        bail!("that was asked for already; see how it goes with `manatee-adm explain`");
    }
    let mut new = state.clone();
    new.set_leaves_one_node_write_mode(true);
    new.reason = Some("an operator asked for the end of one-node-write mode".to_owned());
    Ok(new)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::super::cluster::samples::*;
    use super::*;
    use manatee_shared::invariants::check_transition;
    use manatee_shared::lsn::{Lsn, Timeline};

    const AT: WalPosition = WalPosition { timeline: Timeline(2), lsn: Lsn(900) };

    #[test]
    fn in_and_out_again() {
        let state = healthy().state;
        let alone = entered(&state, &peer(1), AT, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(check_transition(Some(&state), &alone), []);
        assert_eq!((alone.generation, &alone.sync_peer, alone.init_position()), (4, &None, Some(AT)));
        assert!(alone.is_frozen() && alone.async_peers.is_empty());
        let error = entered(&alone, &peer(1), AT, Timestamp::UNIX_EPOCH).unwrap_err().to_string();
        assert!(error.contains("already"), "{error}");
        let ends = leaving(&alone).unwrap();
        assert!(ends.leaves_one_node_write_mode());
        assert_eq!(check_transition(Some(&alone), &ends), []);
        assert!(leaving(&ends).unwrap_err().to_string().contains("asked for already"));
        let stays = entered(&ends, &peer(1), AT, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!((stays.leaves_one_node_write_mode(), stays.generation), (false, 4), "taken back");
        assert!(leaving(&state).unwrap_err().to_string().contains("is not in one-node-write mode"));
        assert!(entered(&state, &peer(2), AT, Timestamp::UNIX_EPOCH).is_err());
    }

    #[test]
    fn only_a_primary_that_is_configured_for_it_and_serves() {
        let cluster = healthy();
        let mut status = cluster.answers[&peer(1).id].clone().unwrap();
        fn of(status: Result<&SitterStatus, &str>) -> Result<WalPosition, String> {
            ready(&peer(1), Some(status)).map_err(|error| error.to_string())
        }
        assert!(of(Ok(&status)).unwrap_err().contains("`one_node_write_mode = true`"));
        status.settings.one_node_write_mode = true;
        assert_eq!(of(Ok(&status)), Ok(WalPosition { timeline: Timeline(1), lsn: "0/671FEDF8".parse().unwrap() }));
        status.local.server = Server::Starting { for_ms: 1 };
        assert!(of(Ok(&status)).unwrap_err().contains("not out of recovery"));
        assert!(of(Err("connection refused")).unwrap_err().contains("does not answer (connection refused)"));
    }
}
