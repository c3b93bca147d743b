//! `manatee-adm zk-state`.

use anyhow::bail;
use clap::Args;

use super::connect::Connection;
use super::{Outcome, print};

/// Options.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// It is JSON anyway
    #[arg(long)]
    json: bool,
}

/// Prints the state as it is in ZooKeeper, laid out if it is JSON.
pub async fn run(arguments: Arguments, outer: &Connection) -> anyhow::Result<Outcome> {
    let _ = arguments.json;
    let shard = arguments.connection.open(outer).await?;
    let Some(bytes) = shard.coordination.raw_state().await? else {
        bail!("shard `{}` has no state; see `manatee-adm history -j` for earlier ones", shard.target.shard);
    };
    print(&layout(&bytes))?;
    shard.close().await;
    Ok(Outcome::Fine)
}

/// Even what is not JSON is shown: that is what one comes here for.
fn layout(bytes: &[u8]) -> String {
    let pretty =
        serde_json::from_slice::<serde_json::Value>(bytes).and_then(|value| serde_json::to_string_pretty(&value));
    match pretty {
        Ok(text) => format!("{text}\n"),
        Err(_) => format!("{}\n", String::from_utf8_lossy(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anything_is_shown() {
        assert_eq!(layout(b"{\"a\":1}"), "{\n  \"a\": 1\n}\n");
        assert_eq!(layout(b"{\"a\":"), "{\"a\":\n");
    }
}
