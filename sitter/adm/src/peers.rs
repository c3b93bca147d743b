//! `manatee-adm peers`.

use clap::Args;

use super::cluster::Cluster;
use super::connect::Connection;
use super::table::{self, Column, RoleFilter};
use super::{Outcome, print, print_json};

/// Options.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    listing: Listing,
}

/// Options that the listings of peers have in common.
#[derive(Debug, Args)]
pub struct Listing {
    /// Leave out the header
    #[arg(short = 'H', long)]
    pub omit_header: bool,
    /// Columns to show, separated by commas
    #[arg(short = 'o', long, value_name = "COLUMN,…", value_delimiter = ',')]
    pub columns: Vec<Column>,
    /// Only peers in this role
    #[arg(short, long)]
    pub role: Option<RoleFilter>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Lists the peers. The sitters are asked only if a column needs them.
pub async fn run(arguments: Arguments, outer: &Connection) -> anyhow::Result<Outcome> {
    let Listing { omit_header, columns, role, json } = arguments.listing;
    let columns = if columns.is_empty() { table::PEERS.to_vec() } else { columns };
    let shard = arguments.connection.open(outer).await?;
    let cluster = match columns.iter().any(|column| column.is_postgres()) {
        true => Cluster::gather(&shard).await?,
        false => Cluster::from_zookeeper(&shard)?,
    };
    let rows = table::rows(&cluster, role);
    if json {
        print_json(&rows.iter().map(|row| row.json(&columns)).collect::<Vec<_>>())?;
    } else {
        print(&table::render(&rows, &columns, !omit_header))?;
    }
    shard.close().await;
    Ok(Outcome::Fine)
}
