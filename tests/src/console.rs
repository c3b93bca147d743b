//! One-line commands while a lab is up.

use std::fmt::Write as _;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use manatee_shared::cluster::{ClusterState, Role};
use tokio::process::Command;

use crate::host::Power;
use crate::lab::{Lab, SHARD};

/// Longest wait for a sitter that was started to answer. One that refuses its configuration ends at once.
const ANSWERS: Duration = Duration::from_secs(10);

/// Commands that can be typed.
pub const HELP: &str = "\x20 status                  the shard as the lab sees it
  kill WHO                SIGKILL everything on the host
  power-off WHO           link down, then SIGKILL: nothing is said to anyone
  cut WHO                 link down; everything goes on running
  pause WHO, resume WHO   SIGSTOP, SIGCONT to everything on the host
  stop WHO                SIGTERM to the sitter: a planned stop
  kill-sitter WHO, kill-postgres WHO
  start WHO               whatever was done to the host is undone; its sitter started
  heal                    the same for all hosts
  adm COMMAND…            manatee-adm, e.g. `adm pg-status`
  help, quit
WHO: primary, sync, async (async0), async1 … or peer1, peer2 …";

/// Result of a command.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Print this, go on.
    Go(String),
    /// End the lab.
    Quit,
}

/// Machine that a command is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Role(Role),
    Peer(usize),
}

fn who(word: &str) -> Result<Who> {
    let number = |prefix| word.strip_prefix(prefix).and_then(|rest| rest.parse::<usize>().ok());
    Ok(match word {
        "primary" => Who::Role(Role::Primary),
        "sync" => Who::Role(Role::Sync),
        "async" => Who::Role(Role::Async(0)),
        _ => match (number("async"), number("peer")) {
            (Some(index), _) => Who::Role(Role::Async(index)),
            (_, Some(number)) => Who::Peer(number),
            _ => bail!("there is no host `{word}`: say primary, sync, async0, async1 … or peer1, peer2 …"),
        },
    })
}

async fn resolve(lab: &Lab, words: &[&str]) -> Result<usize> {
    let [word] = words else { bail!("say who: primary, sync, async0 … or peer1 …") };
    match who(word)? {
        Who::Role(role) => lab.index_in(&lab.current().await?, role),
        Who::Peer(number) => (1..=lab.hosts.len())
            .position(|host| host == number)
            .with_context(|| format!("there are peers 1 to {}", lab.hosts.len())),
    }
}

/// Runs one line.
pub async fn command(lab: &mut Lab, line: &str) -> Result<Next> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let Some((&verb, rest)) = words.split_first() else { return Ok(Next::Go(String::new())) };
    let answer = match verb {
        "help" | "?" => HELP.to_owned(),
        "quit" | "exit" => return Ok(Next::Quit),
        "status" => status(lab).await,
        "adm" => adm(lab, rest).await?,
        "heal" => {
            for index in 0..lab.hosts.len() {
                lab.heal(index)?;
            }
            for host in &mut lab.hosts {
                host.answers(ANSWERS).await?;
            }
            "all hosts run and are connected".to_owned()
        }
        _ => one_host(lab, verb, rest).await?,
    };
    Ok(Next::Go(answer))
}

async fn one_host(lab: &mut Lab, verb: &str, rest: &[&str]) -> Result<String> {
    const VERBS: [&str; 9] =
        ["kill", "power-off", "cut", "pause", "resume", "stop", "start", "kill-sitter", "kill-postgres"];
    if !VERBS.contains(&verb) {
        bail!("unknown command `{verb}`; `help` lists them");
    }
    let index = resolve(lab, rest).await?;
    match verb {
        "power-off" => lab.power_off(index)?,
        "cut" => lab.cut(index)?,
        "start" => {
            lab.heal(index)?;
            lab.hosts[index].answers(ANSWERS).await?;
        }
        _ => {
            let host = &mut lab.hosts[index];
            match verb {
                "kill" => host.kill(),
                "pause" => host.pause(),
                "resume" if host.power == Power::Paused => host.resume(),
                "resume" => bail!("{} is not paused", host.name()),
                "stop" => host.stop_sitter()?,
                "kill-sitter" => host.kill_sitter()?,
                _ => host.kill_postmaster().map(drop)?,
            }
        }
    }
    Ok(format!("{verb}: {}", lab.hosts[index].name()))
}

async fn status(lab: &mut Lab) -> String {
    let state = lab.current().await;
    let mut text = match &state {
        Ok(state) => format!("generation {}{}\n", state.generation, reason(state)),
        Err(error) => format!("no state: {error:#}\n"),
    };
    let _ = writeln!(text, "{:<11}{:<7}{:<28}{:<9}{:<10}CONDITION", "ROLE", "HOST", "PEER", "SITTER", "POSTGRES");
    let mut lines: Vec<(usize, String)> = Vec::new();
    for host in &mut lab.hosts {
        let role = state.as_ref().map_or(Role::Unassigned, |state| state.role_of(host.id));
        let order = match role {
            Role::Primary => 0,
            Role::Sync => 1,
            Role::Async(index) => 2 + index,
            Role::Deposed | Role::Unassigned => usize::MAX,
        };
        let pid = |pid: Option<i32>| pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let condition = match (host.power, host.cut) {
            (Power::PoweredOff, _) => "powered off",
            (Power::Killed, _) => "killed",
            (_, true) => "cut off",
            (Power::Paused, _) => "paused",
            (Power::Stopped, _) => "stopped",
            (Power::On, _) => "on",
        };
        let (sitter, postgres) = (pid(host.sitter_pid()), pid(host.postmaster_pid()));
        let line = format!(
            "{:<11}{:<7}{:<28}{sitter:<9}{postgres:<10}{condition}",
            role.to_string(),
            host.name(),
            host.id.to_string()
        );
        lines.push((order, line));
    }
    lines.sort();
    text.push_str(&lines.into_iter().map(|(_, line)| line).collect::<Vec<_>>().join("\n"));
    text
}

fn reason(state: &ClusterState) -> String {
    state.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default()
}

/// Runs `manatee-adm` on the lab's shard and returns all it printed.
pub async fn adm(lab: &Lab, args: &[&str]) -> Result<String> {
    let run = Command::new(&lab.binaries.adm)
        .args(args)
        .env("ZK_IPS", lab.zookeeper.addresses().join(","))
        .env("SHARD", SHARD)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(30), run).await.context("manatee-adm did not end")??;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("{}\nmanatee-adm: {}", text.trim_end(), output.status);
    }
    Ok(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_a_name() {
        let parse = |word| who(word).ok();
        assert_eq!(parse("primary"), Some(Who::Role(Role::Primary)));
        assert_eq!(parse("async"), Some(Who::Role(Role::Async(0))));
        assert_eq!(parse("async2"), Some(Who::Role(Role::Async(2))));
        assert_eq!(parse("peer3"), Some(Who::Peer(3)));
        assert_eq!(parse("peer"), None);
        assert_eq!(parse("nobody"), None);
    }
}
