//! `manatee-adm show`.

use clap::Args;
use manatee_shared::cluster::{ClusterState, Freeze};

use super::cluster::Cluster;
use super::connect::Connection;
use super::issues;
use super::pg_status;
use super::table;
use super::{Outcome, print, print_json};
use crate::report::SitterStatus;

/// Options.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// Whole names, and what each sitter is doing
    #[arg(short, long)]
    verbose: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Shows the shard.
pub async fn run(arguments: Arguments, outer: &Connection) -> anyhow::Result<Outcome> {
    let shard = arguments.connection.open(outer).await?;
    let cluster = Cluster::gather(&shard).await?;
    if arguments.json {
        print_json(&json(&cluster))?;
    } else {
        print(&text(&cluster, arguments.verbose))?;
    }
    shard.close().await;
    Ok(Outcome::Fine)
}

fn mode(state: &ClusterState) -> &'static str {
    if state.one_node_write_mode { "one-node-write" } else { "normal" }
}

/// Text to print.
fn text(cluster: &Cluster, verbose: bool) -> String {
    let state = &cluster.state;
    let mut lines = vec![
        ("zookeeper", cluster.zookeeper.clone()),
        ("cluster", cluster.shard.clone()),
        ("generation", format!("{} ({})", state.generation, state.init_wal)),
        ("mode", mode(state).to_owned()),
    ];
    match &state.freeze {
        Some(Freeze::Reason { date, reason }) => {
            lines.push(("freeze", format!("frozen since {date}")));
            lines.push(("freeze info", reason.clone()));
        }
        Some(Freeze::Flag(true)) => lines.push(("freeze", "frozen".to_owned())),
        Some(Freeze::Flag(false)) | None => lines.push(("freeze", "not frozen".to_owned())),
    }
    if verbose {
        lines.extend(state.reason.clone().map(|reason| ("last change", reason)));
        lines.extend(state.system_identifier.clone().map(|identifier| ("system id", identifier)));
        lines.push(("state version", cluster.version.to_string()));
    }
    let heading: String = lines.iter().map(|(name, value)| format!("{:14}{value}\n", format!("{name}:"))).collect();
    let columns = if verbose { table::PG_STATUS_WIDE.as_slice() } else { table::PG_STATUS.as_slice() };
    let table = table::render(&table::rows(cluster, None), columns, true);
    let doing = if verbose { decisions(cluster) } else { String::new() };
    pg_status::text(&format!("{heading}\n{table}{doing}"), &issues::find(cluster))
}

/// Decision of each sitter and its reason, for `-v`.
fn decisions(cluster: &Cluster) -> String {
    let mut text = String::new();
    for (role, peer) in cluster.listed() {
        let status = cluster.answers.get(&peer.id).and_then(|answer| answer.as_ref().ok());
        if let Some(SitterStatus { decision, .. }) = status {
            text.push_str(&format!("{role:8} {}: {} ({})\n", peer.id, decision.action, decision.reason));
        }
    }
    if text.is_empty() { text } else { format!("\n{text}") }
}

fn json(cluster: &Cluster) -> serde_json::Value {
    let rows = table::rows(cluster, None);
    serde_json::json!({
        "zookeeper": cluster.zookeeper,
        "cluster": cluster.shard,
        "generation": cluster.state.generation,
        "initWal": cluster.state.init_wal,
        "mode": mode(&cluster.state),
        "freeze": cluster.state.freeze,
        "peers": rows.iter().map(|row| row.json(&table::PG_STATUS_WIDE)).collect::<Vec<_>>(),
        "issues": issues::find(cluster),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::super::cluster::samples::*;
    use super::*;

    #[test]
    fn a_healthy_shard_looks_like_this() {
        assert_eq!(
            text(&healthy(), false),
            "\
zookeeper:    10.0.0.9:2181
cluster:      1.moray
generation:   3 (0/671FEDF8)
mode:         normal
freeze:       not frozen

ROLE     PEER     PG   REPL  SENT       WRITE      FLUSH      REPLAY     LAG
primary  bb348824 ok   sync  0/671FEDF8 0/671FEDF8 0/671FEDF8 0/671FE9F0 -
sync     a376df2b ok   async 0/671FEDF8 0/671FEDF8 0/671FEDF8 0/671FE9F0 -
async    09957297 ok   -     -          -          -          -          0m00s
"
        );
    }

    #[test]
    fn a_frozen_one_says_why_and_issues_come_last() {
        let cluster = with_state(|state| {
            state.freeze = Some(Freeze::Reason { date: "2026-01-01T00:00:00Z".to_owned(), reason: "move".to_owned() });
            state.reason = Some("the sync took over".to_owned());
        });
        let text = text(&cluster, true);
        assert!(text.contains("freeze:       frozen since 2026-01-01T00:00:00Z\nfreeze info:  move\n"), "{text}");
        assert!(text.contains("last change:  the sync took over\n"), "{text}");
        assert!(text.contains("\nprimary  10.0.0.1:5432:12345: wait (all is well)\n"), "{text}");
        assert!(text.ends_with("\n\nwarning: frozen since 2026-01-01T00:00:00Z: move\n"), "{text}");
    }

    #[test]
    fn json_has_the_same() {
        let json = json(&healthy());
        assert_eq!(json["peers"][0]["id"], "10.0.0.1:5432:12345");
        assert_eq!(json["peers"][1]["pg-repl"], "async");
        assert_eq!(json["peers"][2]["pg-sent"], serde_json::Value::Null);
        assert_eq!((json["mode"].as_str(), json["generation"].as_u64()), (Some("normal"), Some(3)));
    }
}
