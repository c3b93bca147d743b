//! `manatee-adm zk-active`.

use clap::Args;
use manatee_shared::zk::View;

use super::connect::Connection;
use super::{Outcome, print_json};

/// Options.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// It is JSON anyway
    #[arg(long)]
    json: bool,
}

/// Prints the announced peers in election order.
pub async fn run(arguments: Arguments, outer: &Connection) -> anyhow::Result<Outcome> {
    let _ = arguments.json;
    let shard = arguments.connection.open(outer).await?;
    print_json(&active(&shard.view))?;
    shard.close().await;
    Ok(Outcome::Fine)
}

fn active(view: &View) -> Vec<serde_json::Value> {
    let peers = view.in_election_order().into_iter();
    peers
        .map(|active| {
            let peer = &active.peer;
            serde_json::json!({
                "id": peer.id, "zoneId": peer.zone_id, "ip": peer.ip, "pgUrl": peer.pg_url,
                "backupUrl": peer.backup_url, "zkSeq": active.sequence,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::cluster::samples::{healthy, peer};
    use super::*;

    #[test]
    fn election_order_with_all_that_is_announced() {
        let json = active(&healthy().view);
        assert_eq!(json.len(), 3);
        assert_eq!(json[1]["id"], peer(2).id.to_string());
        assert_eq!(json[1]["backupUrl"], "http://10.0.0.2:12345");
        assert_eq!(json[1]["zkSeq"], 2);
    }
}
