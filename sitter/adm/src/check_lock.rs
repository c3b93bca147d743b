//! `manatee-adm check-lock`.

use anyhow::bail;
use clap::Args;
use manatee_shared::zk::Coordination;

use super::Outcome;
use super::connect::Connection;

/// Options.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// Path of the node in ZooKeeper
    #[arg(short, long)]
    path: String,
}

/// Fails if a node exists. Prints nothing about it: scripts ask.
pub async fn run(arguments: Arguments, outer: &Connection) -> anyhow::Result<Outcome> {
    let path = arguments.path;
    if !path.starts_with('/') || (path.len() > 1 && path.ends_with('/')) || path.contains("//") {
        bail!("`{path}` is not a path in ZooKeeper; write it from /, as in /locks/backup");
    }
    let (_, coordination, _) = arguments.connection.reach(outer).await?;
    let exists = coordination.node_exists(&path).await?;
    coordination.close().await;
    Ok(if exists { Outcome::Found } else { Outcome::Fine })
}
