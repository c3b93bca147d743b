//! There is no valid state, or no ZooKeeper to ask for it.

use manatee_shared::ids::PeerId;
use manatee_shared::zk::StateNode;
use manatee_shared::zk::client::Unreachable;

use super::{Finding, Impact, Report};
use crate::backfill::{Candidate, candidates, plan};
use crate::cluster::Answer;
use crate::evidence::Evidence;
use crate::machine::local::{Data, Server};
use crate::machine::readiness::Need;
use crate::report::SitterStatus;

/// ZooKeeper does not answer, or not to us; perhaps one sitter does.
pub(super) fn without_zookeeper(shard: &str, problem: &Unreachable, local: Option<(PeerId, Answer)>) -> Report {
    let (summary, zookeeper) = match problem {
        Unreachable::Away { .. } => ("nothing is known, for ZooKeeper does not answer", away(problem)),
        Unreachable::Denied { .. } => {
            ("nothing is known, for ZooKeeper does not let manatee-adm read the shard", denied(problem))
        }
    };
    let mut findings = vec![zookeeper];
    match local {
        Some((id, Ok(status))) => findings.push(
            Finding::new(
                Impact::Note,
                format!("the sitter {id} answers: its PostgreSQL is {}", server_label(&status.local.server)),
            )
            .why(match status.unready.iter().find(|unready| unready.need == Need::ZooKeeper) {
                Some(refused) => format!("{}; {}", refused.detail, said(&status)),
                None => said(&status),
            })
            .next("ask other sitters for theirs: curl http://HOST:BACKUP_PORT/status"),
        ),
        Some((id, Err(problem))) => findings.push(
            Finding::new(Impact::Degrades, format!("the sitter {id} does not answer either")).why(problem).next(
                format!(
                    "on {}: systemctl status manatee-sitter; a sitter that is started now adopts its PostgreSQL",
                    id.ip
                ),
            ),
        ),
        None => {}
    }
    Report::new(shard, None, summary.to_owned(), findings)
}

fn away(problem: &Unreachable) -> Finding {
    Finding::new(Impact::StopsFailover, "ZooKeeper does not answer")
        .why(problem.to_string())
        .risk(
            "nothing: every peer keeps its role, reads and writes go on while primary and sync reach each other; \
               but no peer that is lost meanwhile is replaced",
        )
        .next("bring back a majority of the ZooKeeper servers; nothing has to be done to the shard")
}

fn denied(problem: &Unreachable) -> Finding {
    Finding::new(Impact::StopsFailover, "ZooKeeper does not let manatee-adm read the shard")
        .why(problem.to_string())
        .risk(
            "nothing that was acknowledged; but if the sitters are refused as well, every peer keeps its role, and no peer \
               that is lost meanwhile is replaced",
        )
        .next(
            "try again with --config and the configuration of one of the shard's sitters; if that is refused too, the nodes' \
               ACLs were changed: give the sitters' user the rights cdrwa again (`setAcl -R`)",
        )
}

/// State of a PostgreSQL, in a word or two.
pub(super) fn server_label(server: &Server) -> &'static str {
    match server {
        Server::Down { crashed: true, .. } => "down after a crash",
        Server::Down { crashed: false, .. } => "down",
        Server::Starting { .. } => "starting",
        Server::Primary(_) => "a running primary",
        Server::Standby(_) => "a running standby",
        Server::Hung { .. } => "not answering",
    }
}

/// Activity of a sitter, in its own words.
pub(super) fn said(status: &SitterStatus) -> String {
    format!("its sitter says: {}", status.decision.reason)
}

/// ZooKeeper answers, but has no valid state.
pub(super) fn without_state(evidence: &Evidence) -> Report {
    let found = match &evidence.view.state {
        StateNode::Corrupt { problem, .. } => vec![
            Finding::new(Impact::StopsFailover, "the state in ZooKeeper cannot be used")
                .why(problem.clone())
                .risk("nothing: every peer keeps its role, but no peer that is lost meanwhile is replaced")
                .next(format!(
                    "see what it is with `manatee-adm zk-state`, and find out who wrote it; then {}",
                    backfill(evidence)
                )),
        ],
        _ if has_been(evidence) => vec![lost(evidence)],
        _ => not_set_up(evidence),
    };
    let summary = match &evidence.view.state {
        StateNode::Corrupt { .. } => "its state cannot be used; every peer stays as it is",
        _ if has_been(evidence) => "its state is LOST; every peer stays as it is, and nobody sets the shard up anew",
        _ => "not set up yet",
    };
    let writable = candidates(evidence).ok().and_then(|found| {
        let primary = found.into_iter().find(|candidate| candidate.acknowledges.is_some())?;
        attached(evidence, &primary)
    });
    Report::new(&evidence.shard, writable.or(Some(false)), summary.to_owned(), found)
}

/// Whether the sync that an acknowledging primary waits for is there.
fn attached(evidence: &Evidence, primary: &Candidate) -> Option<bool> {
    let Server::Primary(running) = &evidence.status(primary.peer.id)?.local.server else { return None };
    let Some(sync) = primary.acknowledges? else { return Some(true) };
    Some(running.downstreams.iter().any(|down| down.peer == sync && down.streaming))
}

/// Whether the shard had a state: it has a history, or somebody has data.
fn has_been(evidence: &Evidence) -> bool {
    let data = evidence.answers.values().flatten().any(|status| matches!(status.local.data, Data::Present(_)));
    evidence.view.has_history == Some(true) || data
}

fn lost(evidence: &Evidence) -> Finding {
    let wiped = evidence.view.has_history != Some(true);
    let what = if wiped {
        "the shard's state and history are gone from ZooKeeper, but peers have data"
    } else {
        "the shard's state is gone from ZooKeeper, but not its history"
    };
    let why = match candidates(evidence) {
        Ok(found) => found.iter().map(Candidate::told).collect::<Vec<_>>().join("; "),
        Err(problem) => problem,
    };
    Finding::new(Impact::StopsFailover, what)
        .why(why)
        .risk(
            "nothing, as long as the peer that is made primary has everything: the one that acknowledges writes now, \
               else the one furthest on the newest timeline. Peers that are not registered are not looked at: \
               start the sitters of all that have data first",
        )
        .next(backfill(evidence))
}

/// The command that restores the state.
fn backfill(evidence: &Evidence) -> String {
    match plan(evidence, None, jiff::Timestamp::UNIX_EPOCH) {
        Ok(plan) => format!(
            "`manatee-adm state-backfill` (it makes {} primary, shows the state, asks, and leaves the shard frozen)",
            plan.state.primary.zone_id
        ),
        Err(problem) => format!("`manatee-adm state-backfill --dry-run`, once this is settled: {problem}"),
    }
}

fn not_set_up(evidence: &Evidence) -> Vec<Finding> {
    let registered = evidence.view.active.len();
    let waiting: Vec<_> = evidence
        .view
        .in_election_order()
        .into_iter()
        .map(|active| match evidence.answers.get(&active.peer.id) {
            Some(Ok(status)) => format!("{}: {}", active.peer.zone_id, said(status)),
            Some(Err(problem)) => format!("{}: does not answer: {problem}", active.peer.zone_id),
            None => active.peer.zone_id.clone(),
        })
        .collect();
    let next = if registered < 2 {
        "start the sitters of at least two peers; the shard is then set up by itself"
    } else {
        "wait a moment; if nothing happens, see the logs of the sitters"
    };
    vec![
        Finding::new(Impact::StopsWrites, format!("the shard has no state yet; {registered} peers are registered"))
            .why(waiting.join("; "))
            .risk("nothing: there is no data yet")
            .next(next),
    ]
}
