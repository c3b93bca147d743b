//! `manatee-adm verify`.

use clap::Args;
use manatee_shared::cluster::ClusterState;
use manatee_shared::invariants::{self, Violation};
use manatee_shared::zk::{HistoryEntry, StateNode};

use super::cluster::Cluster;
use super::connect::{Connection, Shard};
use super::issues::{self, Issue, Severity};
use super::{Outcome, print, print_json};

/// Options.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// Say what was checked, too
    #[arg(short, long)]
    verbose: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Checks the shard's state, its whole history, and its peers.
pub async fn run(arguments: Arguments, outer: &Connection) -> anyhow::Result<Outcome> {
    let shard = arguments.connection.open(outer).await?;
    let history = shard.history().await?;
    let mut issues = of_state(&shard).await?;
    issues.extend(of_history(shard.view.state.valid().map(|(_, state)| &**state), &history));
    issues.sort_by_key(|issue| issue.severity);
    if arguments.json {
        let texts = |severity| {
            let chosen = issues.iter().filter(move |issue: &&Issue| issue.severity == severity);
            chosen.map(|issue| issue.text.as_str()).collect::<Vec<_>>()
        };
        print_json(&serde_json::json!({
            "errors": texts(Severity::Error), "warnings": texts(Severity::Warning), "historyEntries": history.len(),
        }))?;
    } else {
        print(&issues::lines(&issues))?;
        if arguments.verbose {
            print(&format!("checked: the state, {} history entries, the peers\n", history.len()))?;
        }
    }
    shard.close().await;
    Ok(if issues.is_empty() { Outcome::Fine } else { Outcome::Found })
}

/// Of the state as it is. One that cannot be used is an error like others: the history is still looked at.
async fn of_state(shard: &Shard) -> anyhow::Result<Vec<Issue>> {
    match &shard.view.state {
        StateNode::Valid { .. } => Ok(issues::find(&Cluster::gather(shard).await?)),
        StateNode::Corrupt { .. } | StateNode::Absent | StateNode::Unread => {
            Ok(Cluster::from_zookeeper(shard).err().map(|error| Issue::error(error.to_string())).into_iter().collect())
        }
    }
}

/// Of each step of the history, and of the way from its last entry to the present state.
fn of_history(present: Option<&ClusterState>, history: &[HistoryEntry]) -> Vec<Issue> {
    let mut issues = Vec::new();
    let mut previous: Option<&HistoryEntry> = None;
    for entry in history {
        let violations = match previous {
            Some(previous) => invariants::check_transition(Some(&previous.state), &entry.state),
            // Somebody may have removed old entries: then the first is not the shard's first state.
            None if entry.zk_sequence == 0 => invariants::check_transition(None, &entry.state),
            None => invariants::check_state(&entry.state),
        };
        let wrong = violations.iter().filter(|violation| !is_excused(violation, &entry.state));
        let at = (entry.state.generation, entry.zk_sequence);
        issues.extend(wrong.map(|violation| Issue::error(format!("history {}-{:010}: {violation}", at.0, at.1))));
        previous = Some(entry);
    }
    match (present, previous) {
        (Some(present), Some(last)) if last.state != *present => {
            issues.push(Issue::error("the state is not the last entry of the history: it was written without a history entry (not by Manatee)"));
        }
        (Some(_), None) => issues.push(Issue::error("there is a state, but no history")),
        _ => {}
    }
    issues
}

/// Whether Manatee 2 may have written it: violations of rules that it did not know.
fn is_excused(violation: &Violation, new: &ClusterState) -> bool {
    matches!(violation, Violation::InitWalWithoutTimeline) && new.system_identifier.is_none()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::super::cluster::samples::*;
    use super::*;

    fn entry(zk_sequence: u64, state: ClusterState) -> HistoryEntry {
        HistoryEntry { zk_sequence, time: jiff::Timestamp::UNIX_EPOCH, state }
    }

    fn texts(present: &ClusterState, history: &[HistoryEntry]) -> Vec<String> {
        of_history(Some(present), history).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_lawful_history_passes() {
        let first = ClusterState { generation: 1, ..(*healthy().state).clone() };
        let joined = ClusterState { async_peers: vec![peer(3), peer(4)], ..first.clone() };
        assert_eq!(texts(&joined, &[entry(0, first), entry(1, joined.clone())]), Vec::<String>::new());
        let trimmed = (*healthy().state).clone();
        assert_eq!(texts(&trimmed, &[entry(7, trimmed.clone())]), Vec::<String>::new());
    }

    #[test]
    fn unlawful_steps_are_named_by_their_entry() {
        let first = ClusterState { generation: 1, ..(*healthy().state).clone() };
        let usurped = ClusterState { generation: 2, primary: peer(4), ..first.clone() };
        assert_eq!(
            texts(&first, &[entry(0, first.clone()), entry(1, usurped)]),
            [
                "error: history 2-0000000001: peer 10.0.0.4:5432:12345 became primary without having been the sync",
                "error: history 2-0000000001: the former primary 10.0.0.1:5432:12345 is not listed as deposed",
                "error: the state is not the last entry of the history: it was written without a history entry (not by Manatee)",
            ]
        );
        assert_eq!(texts(&first, &[]), ["error: there is a state, but no history"]);
    }

    #[test]
    fn manatee_2_is_excused_for_what_it_did_not_know() {
        let mut first = ClusterState { generation: 1, ..(*healthy().state).clone() };
        (first.system_identifier, first.init_wal_timeline) = (None, None);
        let replaced = ClusterState { generation: 2, sync_peer: Some(peer(4)), ..first.clone() };
        assert_eq!(texts(&replaced, &[entry(0, first), entry(1, replaced.clone())]), Vec::<String>::new());
    }
}
