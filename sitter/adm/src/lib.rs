//! `manatee-adm`: the operator's command line. One file per command; what they print is made by
//! pure functions over a [`cluster::Cluster`], gathered once from ZooKeeper and the sitters' APIs.
//!
//! Names, options and outputs are Manatee 2's; what it called stable is stable here.

#![forbid(unsafe_code)]

pub mod backfill;
pub mod check_lock;
pub mod cluster;
mod confirm;
pub mod connect;
pub mod evidence;
pub mod explain;
pub mod freeze;
pub mod generate;
pub mod history;
pub mod issues;
pub mod onwm;
pub mod peers;
pub mod pg_status;
pub mod promote;
pub mod reap;
pub mod rebuild;
pub mod show;
pub mod status;
pub mod table;
pub mod verify;
pub mod version;
pub mod zk_active;
pub mod zk_state;

use std::io::{self, Write};

use clap::{Parser, Subcommand};

use connect::Connection;
use manatee_sitter_core::{machine, reason, status as report};

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "manatee-adm", version, about = "Looks after Manatee shards", disable_help_subcommand = false)]
pub struct Arguments {
    /// Options before the command; those after it win.
    #[command(flatten)]
    pub connection: Connection,
    /// Command to carry out.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Shows the shard: its state, its peers with their PostgreSQL, and what is wrong
    Show(show::Arguments),
    /// Lists the peers of the shard
    Peers(peers::Arguments),
    /// Lists the peers with the status of their PostgreSQL and its replication
    PgStatus(pg_status::Arguments),
    /// Lists the changes of the shard's state
    History(history::Arguments),
    /// Checks the shard; prints errors and warnings, and fails if there are any
    Verify(verify::Arguments),
    /// Prints the shard's state as JSON
    #[command(visible_alias = "state")]
    ZkState(zk_state::Arguments),
    /// Prints the peers that have announced themselves as JSON
    #[command(visible_alias = "active")]
    ZkActive(zk_active::Arguments),
    /// Explains what keeps the shard from being healthy, what is at risk, and what to do next
    Explain(explain::Arguments),
    /// Stops all role changes
    Freeze(freeze::FreezeArguments),
    /// Lets role changes happen again
    Unfreeze(freeze::UnfreezeArguments),
    /// Promotes a peer: the sync to primary, an async one place up
    Promote(promote::PromoteArguments),
    /// Takes a request to promote back
    ClearPromote(promote::ClearArguments),
    /// Copies all data of this host's peer anew from another
    Rebuild(rebuild::Arguments),
    /// Removes a deposed peer that is gone for good
    Reap(reap::Arguments),
    /// Lets the primary accept writes with no sync, or brings the shard back from that
    SetOnwm(onwm::Arguments),
    /// Restores a state that was lost, or cannot be used
    StateBackfill(backfill::Arguments),
    /// Prints roles and replication as Manatee 1 and 2 did (deprecated; use pg-status --json)
    Status(status::Arguments),
    /// Fails if a node exists in ZooKeeper
    CheckLock(check_lock::Arguments),
    /// Prints a completion script for a shell
    Completion(generate::CompletionArguments),
    /// Prints the manual page
    Man(generate::ManArguments),
    /// Prints the version of this program
    Version(version::Arguments),
}

/// End of a command that could do its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing to complain about.
    Fine,
    /// It found what it looks for: something wrong. Already printed.
    Found,
}

/// Runs the command. An error is one line for the operator: what, where, what to do.
pub async fn run(arguments: Arguments) -> anyhow::Result<Outcome> {
    let outer = arguments.connection;
    match arguments.command {
        Command::Show(arguments) => show::run(arguments, &outer).await,
        Command::Peers(arguments) => peers::run(arguments, &outer).await,
        Command::PgStatus(arguments) => pg_status::run(arguments, &outer).await,
        Command::History(arguments) => history::run(arguments, &outer).await,
        Command::Verify(arguments) => verify::run(arguments, &outer).await,
        Command::ZkState(arguments) => zk_state::run(arguments, &outer).await,
        Command::ZkActive(arguments) => zk_active::run(arguments, &outer).await,
        Command::Explain(arguments) => explain::run(arguments, &outer).await,
        Command::Freeze(arguments) => freeze::freeze(arguments, &outer).await,
        Command::Unfreeze(arguments) => freeze::unfreeze(arguments, &outer).await,
        Command::Promote(arguments) => promote::promote(arguments, &outer).await,
        Command::ClearPromote(arguments) => promote::clear(arguments, &outer).await,
        Command::Rebuild(arguments) => rebuild::run(arguments, &outer).await,
        Command::Reap(arguments) => reap::run(arguments, &outer).await,
        Command::SetOnwm(arguments) => onwm::run(arguments, &outer).await,
        Command::StateBackfill(arguments) => backfill::run(arguments, &outer).await,
        Command::Status(arguments) => status::run(arguments, &outer).await,
        Command::CheckLock(arguments) => check_lock::run(arguments, &outer).await,
        Command::Completion(arguments) => generate::completion(&arguments),
        Command::Man(arguments) => generate::man(&arguments),
        Command::Version(arguments) => version::run(&arguments),
    }
}

/// Prints to standard output. A reader that has gone away (`| head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => Ok(result?),
    }
}

/// Prints `value` as JSON over several lines.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn options_may_stand_before_and_after_the_command() {
        for line in ["-z a:1 -s x pg-status -H -o role,pg-lag 5 2", "-z a:1 pg-status --shard x"] {
            Arguments::try_parse_from(format!("manatee-adm {line}").split(' ')).expect(line);
        }
        let line = Arguments::try_parse_from(["manatee-adm", "-s", "x", "history", "-s", "time", "-j"]).expect("valid");
        assert_eq!(line.connection.shard.as_deref(), Some("x"));
    }

    #[test]
    fn the_lines_of_manatee_2s_manual_are_understood() {
        for line in [
            "peers -H -o peername,ip -r sync",
            "pg-status -w 1 10",
            "history -j -s time -v",
            "verify -v",
            "freeze -r maintenance",
            "unfreeze",
            "rebuild -c /etc/manatee/sitter.toml -y",
            "reap -i 10.0.0.1",
            "reap -n bb348824",
            "promote -n a376df2b -r async -i 0 -l 10",
            "clear-promote",
            "set-onwm -m on -y",
            "state-backfill",
            "zk-state",
            "state",
            "zk-active",
            "active",
            "status -l -s 1.moray",
            "check-lock -p /locks/x",
            "version",
            "show -v",
        ] {
            Arguments::try_parse_from(std::iter::once("manatee-adm").chain(line.split(' '))).expect(line);
        }
        for line in ["freeze", "reap", "promote", "set-onwm", "check-lock", "rebuild -x"] {
            let parsed = Arguments::try_parse_from(std::iter::once("manatee-adm").chain(line.split(' ')));
            assert!(parsed.is_err(), "{line}");
        }
    }
}
