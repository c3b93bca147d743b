//! Findings of the state itself: freeze, modes, requests, number of peers.

use manatee_shared::cluster::{ClusterState, Promote, Role};

use super::{Finding, Impact};
use crate::cluster::Cluster;
use crate::evidence::Evidence;
use crate::freeze;
use crate::machine::local::Synchronous;
use crate::reason::BlockerCode;

pub(super) fn findings(evidence: &Evidence, cluster: &Cluster) -> Vec<Finding> {
    let mut findings: Vec<_> = outdated(evidence, &cluster.state).into_iter().collect();
    if cluster.state.one_node_write_mode {
        findings.push(one_node_write(cluster));
    } else {
        findings.extend(frozen(cluster));
        if cluster.state.async_peers.is_empty() {
            findings.push(no_async(cluster));
        }
    }
    findings.extend(cluster.state.promote.as_ref().map(|promote| promotion(cluster, promote)));
    findings
}

fn outdated(evidence: &Evidence, state: &ClusterState) -> Option<Finding> {
    let (id, seen) = evidence
        .answers
        .iter()
        .filter_map(|(id, answer)| Some((*id, answer.as_ref().ok()?.newest_generation?)))
        .max_by_key(|(_, seen)| *seen)
        .filter(|(_, seen)| *seen > state.generation)?;
    Some(
        Finding::new(
            Impact::StopsFailover,
            format!("the state in ZooKeeper is an old one: generation {}, after {seen}", state.generation),
        )
        .why(format!(
            "{} has seen generation {seen}; somebody put back ZooKeeper's data from a backup",
            evidence.name(id)
        ))
        .risk(
            "nothing: the peers do not obey the old state, and stay as they are; but no peer that is lost is replaced",
        )
        .next("`manatee-adm state-backfill` (it makes a newer state from what the peers have, and leaves it frozen)"),
    )
}

/// The takeover or replacement that waits for the end of the freeze, in its sitter's words.
fn due(cluster: &Cluster) -> Option<String> {
    let decisions = cluster.answers.values().flatten().map(|status| &status.decision);
    let mut due = decisions.filter(|decision| decision.blocker == Some(BlockerCode::Frozen));
    due.next().map(|decision| decision.reason.clone())
}

fn frozen(cluster: &Cluster) -> Option<Finding> {
    let told = freeze::told(&cluster.state)?;
    let restored = cluster.state.is_restored();
    let due = due(cluster);
    let impact = if due.is_some() { Impact::StopsWrites } else { Impact::StopsFailover };
    let next = match (&due, restored) {
        (Some(_), _) => "`manatee-adm unfreeze`: what is due then happens at once, and once",
        (None, true) => "check the roles with `manatee-adm show`, then `manatee-adm unfreeze`",
        (None, false) => "`manatee-adm unfreeze`, when the reason for it is gone",
    };
    let why = due.map_or(told.clone(), |due| format!("{told}; waiting for its end: {due}"));
    Some(
        Finding::new(impact, "the shard is frozen: no role changes, whatever happens")
            .why(why)
            .risk("nothing that was acknowledged; but if primary or sync are lost, writes stop until the freeze ends")
            .next(next),
    )
}

fn no_async(cluster: &Cluster) -> Finding {
    let role = |id| cluster.state.role_of(id);
    let registered = cluster.view.active.values().find(|active| role(active.peer.id) == Role::Unassigned);
    if let Some(active) = registered {
        return Finding::new(Impact::Degrades, format!("there is no async yet: {} is registered", active.peer.zone_id))
            .why("the primary takes it in; if the primary is lost before, the sync takes over with it as its sync")
            .risk("nothing that was acknowledged")
            .next("wait; if it stays so, look at the primary below");
    }
    let deposed: Vec<_> = cluster.state.deposed.iter().map(|peer| peer.zone_id.as_str()).collect();
    let next = if deposed.is_empty() {
        "bring back the peer that left (`manatee-adm history` names it), or start another peer: install a sitter for this \
         shard on one more host, it copies the data by itself"
            .to_owned()
    } else {
        format!("bring back {}: see below", deposed.join(", "))
    };
    Finding::new(Impact::StopsFailover, "there is no async, so nobody can replace a lost primary or sync")
        .why("the sync takes over only if an async can become its sync (a lone primary would acknowledge what exists once)")
        .risk("nothing that was acknowledged; but if primary or sync are lost, writes stop")
        .next(next)
}

fn one_node_write(cluster: &Cluster) -> Finding {
    let name = &cluster.state.primary.zone_id;
    let status = cluster.answers.get(&cluster.state.primary.id).and_then(|answer| answer.as_ref().ok());
    let alone = "what was written in this mode exists once: it is lost with that host";
    if let Some(status) = status
        && !status.settings.one_node_write_mode
        && status.local.config.as_ref().is_none_or(|config| config.synchronous == Synchronous::Impossible)
    {
        return Finding::new(Impact::StopsWrites, "one-node-write mode, but the primary is not configured for it")
            .why(format!("the configuration of the sitter of {name} does not have `one_node_write_mode = true`"))
            .risk(alone)
            .next("set that and restart the sitter; or leave the mode with `manatee-adm set-onwm -m off`");
    }
    if cluster.state.leaves_one_node_write_mode() {
        let others: Vec<_> =
            cluster.view.active.values().filter(|active| active.peer.id != cluster.state.primary.id).collect();
        let next = if others.is_empty() {
            "start the sitter of another peer".to_owned()
        } else {
            let names: Vec<_> = others.iter().map(|active| active.peer.zone_id.as_str()).collect();
            format!("wait until {} has copied the data and follows; see below", names.join(" or "))
        };
        return Finding::new(Impact::StopsFailover, "one-node-write mode ends as soon as another peer follows")
            .why("an operator asked for it with `manatee-adm set-onwm -m off`")
            .risk(alone)
            .next(next);
    }
    Finding::new(
        Impact::StopsFailover,
        format!("one-node-write mode: {name} accepts writes alone, the others stay out"),
    )
    .why(freeze::told(&cluster.state).unwrap_or_default())
    .risk(alone)
    .next("start the other peers' sitters, then `manatee-adm set-onwm -m off`")
}

fn promotion(cluster: &Cluster, promote: &Promote) -> Finding {
    let expired = promote.expire_time <= jiff::Timestamp::now();
    let peer = cluster.listed().find(|(_, peer)| peer.id == promote.id);
    let name = peer.map_or_else(|| promote.id.to_string(), |(_, peer)| peer.zone_id.clone());
    let reason = |id| {
        let status = cluster.answers.get(&id)?.as_ref().ok()?;
        Some(super::lost::said(status))
    };
    if expired {
        return Finding::new(Impact::Note, format!("a request to promote {name} has expired"))
            .why("nobody could act on it in time; the primary removes it, but has not")
            .next("`manatee-adm clear-promote`");
    }
    let actor = match promote.role {
        manatee_shared::cluster::PromoteRole::Sync => promote.id,
        manatee_shared::cluster::PromoteRole::Async => cluster.state.primary.id,
    };
    Finding::new(Impact::Note, format!("a promotion of {name} is pending until {:.0}", promote.expire_time))
        .why(reason(actor).unwrap_or_default())
        .next("wait, or take it back with `manatee-adm clear-promote`")
}
