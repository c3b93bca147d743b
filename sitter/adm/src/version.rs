//! `manatee-adm version`.

use clap::Args;

use super::{Outcome, print, print_json};

/// Options.
#[derive(Debug, Args)]
pub struct Arguments {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Prints the version of this program.
pub fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    let version = env!("CARGO_PKG_VERSION");
    if arguments.json {
        print_json(&serde_json::json!({"version": version}))?;
    } else {
        print(&format!("{version}\n"))?;
    }
    Ok(Outcome::Fine)
}
