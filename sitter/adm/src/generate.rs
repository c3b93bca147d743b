//! `manatee-adm completion` and `man`, both made from the definitions of the commands themselves.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;

use super::{Outcome, print};

/// Options of `completion`.
#[derive(Debug, Args)]
pub struct CompletionArguments {
    /// The shell
    shell: Shell,
}

/// Options of `man`.
#[derive(Debug, Args)]
pub struct ManArguments {
    /// The page of one command; default: of the program
    command: Option<String>,
    /// Write all pages into this folder instead
    #[arg(long, value_name = "FOLDER", conflicts_with = "command")]
    dir: Option<PathBuf>,
}

/// Prints a shell's completion script.
pub fn completion(arguments: &CompletionArguments) -> anyhow::Result<Outcome> {
    let mut script = Vec::new();
    let mut command = super::Arguments::command();
    clap_complete::generate(arguments.shell, &mut command, "manatee-adm", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(Outcome::Fine)
}

/// Prints a manual page, or writes them all.
pub fn man(arguments: &ManArguments) -> anyhow::Result<Outcome> {
    let command = whole();
    if let Some(dir) = &arguments.dir {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        clap_mangen::generate_to(command, dir).with_context(|| format!("cannot write to {}", dir.display()))?;
        return Ok(Outcome::Fine);
    }
    print(&page(command, arguments.command.as_deref())?)?;
    Ok(Outcome::Fine)
}

/// The program with its commands, each with its own name and version.
fn whole() -> Command {
    let mut command = super::Arguments::command().propagate_version(true);
    command.build();
    command
}

fn page(command: Command, verb: Option<&str>) -> anyhow::Result<String> {
    let command = match verb {
        None => command,
        Some(verb) => match command.find_subcommand(verb) {
            Some(found) => found.clone(),
            None => bail!("there is no command `{verb}`; see `manatee-adm help`"),
        },
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(command).render(&mut text).context("cannot make the page")?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        man(&ManArguments { command: None, dir: Some(dir.path().to_owned()) }).unwrap();
        for verb in whole().get_subcommands().map(|command| command.get_name().to_owned()) {
            assert!(page(whole(), Some(&verb)).unwrap().contains("SYNOPSIS"), "{verb}");
            assert!(verb == "help" || dir.path().join(format!("manatee-adm-{verb}.1")).exists(), "{verb}");
        }
        let main = page(whole(), None).unwrap();
        assert!(main.contains("state\\-backfill") && main.contains(".TH manatee-adm 1"), "{main}");
        assert!(page(whole(), Some("nonsense")).is_err());
    }

    #[test]
    fn completions_know_the_commands() {
        let mut script = Vec::new();
        clap_complete::generate(Shell::Bash, &mut super::super::Arguments::command(), "manatee-adm", &mut script);
        let script = String::from_utf8(script).unwrap();
        assert!(script.contains("clear-promote") && script.contains("--legacy-order"), "{script}");
    }
}
