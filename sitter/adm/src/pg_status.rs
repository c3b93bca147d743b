//! `manatee-adm pg-status`.

use std::time::Duration;

use anyhow::Context;
use clap::Args;
use manatee_shared::zk::Coordination;

use super::cluster::Cluster;
use super::connect::{Connection, Shard};
use super::issues::{self, Issue};
use super::peers::Listing;
use super::table::{self, Column};
use super::{Outcome, print, print_json};

/// Options.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    listing: Listing,
    /// Whole names, and addresses
    #[arg(short, long, conflicts_with = "columns")]
    wide: bool,
    /// Print again every so many seconds
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    period: Option<u64>,
    /// … this many times
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

/// Prints the table and what is wrong, once or again and again.
pub async fn run(arguments: Arguments, outer: &Connection) -> anyhow::Result<Outcome> {
    let Arguments { connection, listing, wide, period, count } = arguments;
    let columns = match (listing.columns.as_slice(), wide) {
        ([], false) => table::PG_STATUS.to_vec(),
        ([], true) => table::PG_STATUS_WIDE.to_vec(),
        (columns, _) => columns.to_vec(),
    };
    let mut shard = connection.open(outer).await?;
    let times = match (period, count) {
        (None, _) => 1,
        (Some(_), count) => count.unwrap_or(u64::MAX),
    };
    for round in 0..times {
        if round > 0 {
            tokio::time::sleep(Duration::from_secs(period.unwrap_or(1))).await;
            refresh(&mut shard);
        }
        once(&shard, &listing, &columns).await?;
    }
    shard.close().await;
    Ok(Outcome::Fine)
}

/// The view as it is now. With ZooKeeper gone meanwhile, the last one stands, as it does for the
/// sitters: they themselves can still be asked.
fn refresh(shard: &mut Shard) {
    shard.view = shard.coordination.view().borrow().clone();
}

async fn once(shard: &Shard, listing: &Listing, columns: &[Column]) -> anyhow::Result<()> {
    let cluster = Cluster::gather(shard).await.context("cannot tell the status")?;
    let rows = table::rows(&cluster, listing.role);
    let issues = issues::find(&cluster);
    if listing.json {
        return print_json(&serde_json::json!({
            "peers": rows.iter().map(|row| row.json(columns)).collect::<Vec<_>>(),
            "issues": issues,
        }));
    }
    print(&text(&table::render(&rows, columns, !listing.omit_header), &issues))
}

/// The table, then a blank line and the issues, if any.
pub(super) fn text(table: &str, issues: &[Issue]) -> String {
    match issues {
        [] => table.to_owned(),
        issues => format!("{table}\n{}", issues::lines(issues)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::super::cluster::samples::*;
    use super::*;
    use crate::machine::local::Server;

    #[test]
    fn issues_follow_after_a_blank_line() {
        let mut cluster = healthy();
        cluster.answers.insert(peer(3).id, answer(Server::Starting { for_ms: 1_200 }));
        let table = table::render(&table::rows(&cluster, None), &[Column::Role, Column::PgOnline], true);
        assert_eq!(
            text(&table, &issues::find(&cluster)),
            "\
ROLE     PG
primary  ok
sync     ok
async    fail

warning: async 09957297: PostgreSQL has been starting for 1.2 s
"
        );
        assert_eq!(text(&table, &issues::find(&healthy())), table);
    }
}
