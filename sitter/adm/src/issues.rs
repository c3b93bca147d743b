//! Issues of a shard. Pure.
//!
//! An error: writes are not acknowledged, would not be after the next failure of a listed peer's
//! part, or a rule is broken. A warning: the shard works, but with less than it should have.

use std::fmt;

use manatee_shared::cluster::{Freeze, Peer, Role};
use manatee_shared::invariants;
use serde::Serialize;

use super::cluster::Cluster;
use super::table::{abbreviate, abbreviation_length};
use crate::machine::local::{Data, Server, StandbyStatus};
use crate::machine::readiness::Need;
use crate::report::SitterStatus;

/// Severity of an issue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Needs somebody now.
    Error,
    /// Should be looked at.
    Warning,
}

/// Something wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Issue {
    /// Severity.
    pub severity: Severity,
    /// Text for people.
    pub text: String,
}

impl Issue {
    /// An error.
    pub fn error(text: impl Into<String>) -> Self {
        Self { severity: Severity::Error, text: text.into() }
    }

    /// A warning.
    pub fn warning(text: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, text: text.into() }
    }
}

impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{severity}: {}", self.text)
    }
}

/// One line each.
pub fn lines(issues: &[Issue]) -> String {
    issues.iter().map(|issue| format!("{issue}\n")).collect()
}

/// Everything wrong with `cluster`, errors first.
pub fn find(cluster: &Cluster) -> Vec<Issue> {
    let mut issues: Vec<_> = invariants::check_state(&cluster.state)
        .iter()
        .map(|violation| Issue::error(format!("the state breaks a rule: {violation}")))
        .collect();
    issues.extend(of_the_shard(cluster));
    for (role, peer) in cluster.listed() {
        issues.extend(Subject::new(cluster, role, peer).issues());
    }
    issues.extend(of_unlisted(cluster));
    issues.sort_by_key(|issue| issue.severity);
    issues
}

fn of_the_shard(cluster: &Cluster) -> Vec<Issue> {
    let state = &cluster.state;
    let mut issues = Vec::new();
    if state.one_node_write_mode {
        issues.push(Issue::warning("one-node-write mode: writes are on one peer only"));
    } else if state.async_peers.is_empty() {
        issues.push(Issue::warning("there is no async: if the primary is lost, the sync cannot take over"));
    }
    match &state.freeze {
        Some(Freeze::Reason { date, reason }) => {
            issues.push(Issue::warning(format!("frozen since {date}: {reason}")));
        }
        Some(Freeze::Flag(true)) => issues.push(Issue::warning("frozen")),
        Some(Freeze::Flag(false)) | None => {}
    }
    if let Some(promote) = &state.promote {
        let until = promote.expire_time;
        issues.push(Issue::warning(format!("a promotion of {} is pending until {until}", promote.id)));
    }
    issues
}

/// Peers that wait to be taken in.
fn of_unlisted(cluster: &Cluster) -> Vec<Issue> {
    let unlisted =
        cluster.view.active.values().filter(|active| cluster.state.role_of(active.peer.id) == Role::Unassigned);
    unlisted.map(|active| Issue::warning(format!("peer {} waits to be taken in", active.peer.id))).collect()
}

/// One listed peer.
struct Subject<'a> {
    cluster: &'a Cluster,
    role: Role,
    peer: &'a Peer,
    /// Name in messages.
    name: String,
}

impl<'a> Subject<'a> {
    fn new(cluster: &'a Cluster, role: Role, peer: &'a Peer) -> Self {
        let names: Vec<_> = cluster.state.everyone().map(|peer| peer.zone_id.as_str()).collect();
        let name = format!("{role} {}", abbreviate(&peer.zone_id, abbreviation_length(&names)));
        Self { cluster, role, peer, name }
    }

    /// Without primary and sync nothing is acknowledged.
    fn issue(&self, text: impl fmt::Display) -> Issue {
        let text = format!("{}: {text}", self.name);
        match self.role {
            Role::Primary | Role::Sync => Issue::error(text),
            Role::Async(_) | Role::Deposed | Role::Unassigned => Issue::warning(text),
        }
    }

    fn issues(&self) -> Vec<Issue> {
        let mut issues = Vec::new();
        if !self.cluster.view.active.contains_key(&self.peer.id) {
            issues.push(self.issue("has no session with ZooKeeper"));
        }
        match self.cluster.answers.get(&self.peer.id) {
            None => {}
            Some(Err(problem)) => issues.push(self.issue(format_args!("its sitter does not answer: {problem}"))),
            Some(Ok(status)) => issues.extend(self.of_status(status)),
        }
        issues
    }

    fn of_status(&self, status: &SitterStatus) -> Vec<Issue> {
        let mut issues = Vec::new();
        if let Data::Present(found) | Data::Fresh(found) = &status.local.data {
            let wanted = self.cluster.state.system_identifier.as_ref();
            if let Some(wanted) = wanted.filter(|wanted| **wanted != found.0) {
                let text = format!(
                    "{}: its data is of another shard (system identifier {}, not {wanted})",
                    self.name, found.0
                );
                issues.push(Issue::error(text));
            }
        }
        if self.role == Role::Deposed {
            issues.push(self.issue(format_args!("to be brought back in line: {}", status.decision.reason)));
        } else {
            issues.extend(self.of_server(&status.local.server));
        }
        if !status.local.loosened.is_empty() {
            let settings = status.local.loosened.join("; ");
            let text = format!("{}: settings that only Manatee may change are not in force: {settings}", self.name);
            issues.push(Issue::error(text));
        }
        if let Some(breach) = &status.breach {
            let (settings, lasted_ms, ago_s) =
                (breach.breach.settings.join("; "), breach.breach.lasted_ms, breach.ago_ms / 1_000);
            let text = format!(
                "{}: settings that only Manatee may change were not in force for {lasted_ms} ms, until {ago_s} s ago: {settings}",
                self.name
            );
            issues.push(Issue::warning(text));
        }
        if self.role == Role::Primary {
            for statement in &status.weak_commits {
                let text = format!("{}: commits do not wait for the sync: {statement}", self.name);
                issues.push(Issue::warning(text));
            }
        }
        let elsewhere = [Need::Upstream, Need::Capacities];
        for unready in status.unready.iter().filter(|unready| !elsewhere.contains(&unready.need)) {
            let text = format!("{}: not ready for a takeover: {}: {}", self.name, unready.need, unready.detail);
            issues.push(Issue::error(text));
        }
        for given in &status.overridden {
            issues.push(Issue::warning(format!("{}: PostgreSQL runs with {given}", self.name)));
        }
        if !status.pending_restart.is_empty() {
            let settings = status.pending_restart.join(", ");
            let text = format!("{}: changed settings wait for a restart of PostgreSQL: {settings}", self.name);
            issues.push(Issue::warning(text));
        }
        if let Some(failure) = &status.last_failure {
            let text =
                format!("{}: {} failed {}: {}", self.name, failure.action, times(failure.times), failure.problem);
            issues.push(Issue::warning(text));
        }
        issues
    }

    fn of_server(&self, server: &Server) -> Vec<Issue> {
        let problem = match server {
            Server::Down { crashed: true, .. } => "PostgreSQL has crashed".to_owned(),
            Server::Down { crashed: false, .. } => "PostgreSQL is not running".to_owned(),
            Server::Starting { for_ms } => format!("PostgreSQL has been starting for {}", seconds(*for_ms)),
            Server::Hung { for_ms } => format!("PostgreSQL has not answered for {}", seconds(*for_ms)),
            Server::Primary(primary) if self.role == Role::Primary => return self.of_primary(&primary.downstreams),
            Server::Standby(standby) if self.role != Role::Primary => return self.of_standby(standby),
            Server::Primary(_) => "PostgreSQL is not a standby, though the state says so".to_owned(),
            Server::Standby(_) => "PostgreSQL is still a standby".to_owned(),
        };
        vec![self.issue(problem)]
    }

    fn of_primary(&self, downstreams: &[crate::machine::local::Downstream]) -> Vec<Issue> {
        let Some(sync) = &self.cluster.state.sync_peer else { return Vec::new() };
        match downstreams.iter().find(|downstream| downstream.peer == sync.id) {
            None => vec![self.issue("the sync is not attached: no write is acknowledged")],
            Some(downstream) if downstream.sync_priority == 0 => {
                vec![self.issue("does not wait for the sync")]
            }
            Some(downstream) if !downstream.streaming => {
                vec![self.issue("the sync is still catching up: no write is acknowledged")]
            }
            Some(_) => Vec::new(),
        }
    }

    fn of_standby(&self, standby: &StandbyStatus) -> Vec<Issue> {
        if standby.streaming {
            return Vec::new();
        }
        let upstream =
            self.cluster.upstream_of(self.peer.id).map_or("its upstream".to_owned(), |peer| peer.id.to_string());
        let since = seconds(standby.not_streaming_ms);
        let why = standby.cannot_follow.as_ref().map_or(String::new(), |problem| format!(": {problem}"));
        vec![self.issue(format_args!("has not replicated from {upstream} for {since}{why}"))]
    }
}

fn times(times: u32) -> String {
    if times == 1 { "once".to_owned() } else { format!("{times} times") }
}

fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::super::cluster::samples::*;
    use super::*;
    use crate::machine::action::ActionKind;
    use crate::machine::local::SystemIdentifier;
    use crate::report::FailureStatus;

    fn found(cluster: &Cluster) -> Vec<String> {
        find(cluster).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_healthy_shard_has_none() {
        assert_eq!(found(&healthy()), Vec::<String>::new());
    }

    #[test]
    fn the_state_is_looked_at() {
        let cluster = with_state(|state| {
            state.async_peers.clear();
            state.freeze = Some(Freeze::Reason { date: "2026-01-01T00:00:00Z".to_owned(), reason: "move".to_owned() });
        });
        assert_eq!(
            found(&cluster),
            [
                "warning: there is no async: if the primary is lost, the sync cannot take over",
                "warning: frozen since 2026-01-01T00:00:00Z: move",
                "warning: peer 10.0.0.3:5432:12345 waits to be taken in",
            ]
        );
        let cluster = with_state(|state| state.deposed = vec![peer(1)]);
        assert!(
            found(&cluster)[0].starts_with("error: the state breaks a rule: peer 10.0.0.1:5432:12345 is listed more")
        );
    }

    #[test]
    fn peers_are_looked_at_by_role() {
        let mut cluster = healthy();
        cluster.view.active.remove(&peer(2).id);
        cluster.answers.insert(peer(2).id, Err("connection refused".to_owned()));
        cluster.answers.insert(peer(3).id, answer(Server::Down { crashed: true, standby: true }));
        let Some(Ok(primary)) = cluster.answers.get_mut(&peer(1).id) else { panic!("made so") };
        let Server::Primary(server) = &mut primary.local.server else { panic!("made so") };
        server.downstreams.clear();
        primary.last_failure = Some(FailureStatus {
            action: ActionKind::WriteState.into(),
            times: 2,
            ago_ms: 0,
            problem: "no answer".to_owned(),
            kind: None,
        });
        assert_eq!(
            found(&cluster),
            [
                "error: primary bb348824: the sync is not attached: no write is acknowledged",
                "error: sync a376df2b: has no session with ZooKeeper",
                "error: sync a376df2b: its sitter does not answer: connection refused",
                "warning: primary bb348824: write-state failed 2 times: no answer",
                "warning: async 09957297: PostgreSQL has crashed",
            ]
        );
    }

    #[test]
    fn the_deposed_and_strangers_are_named() {
        let mut cluster = with_state(|state| state.deposed = vec![peer(4)]);
        let Ok(mut status) = answer(Server::Down { crashed: false, standby: false }) else { panic!("made so") };
        status.local.data = Data::Present(SystemIdentifier("8".to_owned()));
        cluster.answers.insert(peer(4).id, Ok(status));
        cluster.view.active.insert(peer(4).id, cluster.view.active[&peer(3).id].clone());
        assert_eq!(
            found(&cluster),
            [
                "error: deposed peer4: its data is of another shard (system identifier 8, not 7)",
                "warning: deposed peer4: to be brought back in line: all is well",
            ]
        );
    }

    #[test]
    fn a_standby_that_does_not_follow_says_since_when() {
        let mut cluster = healthy();
        let Server::Standby(mut standby) = standby(vec![]) else { panic!("made so") };
        (standby.streaming, standby.not_streaming_ms) = (false, 61_250);
        standby.cannot_follow = Some("requested WAL segment has already been removed".to_owned());
        cluster.answers.insert(peer(3).id, answer(Server::Standby(standby)));
        assert_eq!(
            found(&cluster),
            ["warning: async 09957297: has not replicated from 10.0.0.2:5432:12345 for 61.2 s: \
              requested WAL segment has already been removed"]
        );
    }
}
