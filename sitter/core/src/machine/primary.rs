//! The peer that the state names primary.
//!
//! PostgreSQL is brought out of recovery only by a promotion (never by a start, H5), restarted in
//! place when it died, and given up when it hangs and somebody can take over. While it runs: first
//! who acknowledges and who gets in (one configuration), then a replacement of the sync
//! ([`super::replace`]), then who is listed ([`super::membership`]).

use manatee_shared::cluster::Role;
use manatee_shared::ids::PeerId;
use manatee_shared::zk::Session;

use super::action::{Decision, ServerAction, ShardAction, StopMode};
use super::local::{Data, Gate, PrimaryStatus, Recovery, Server, ServerConfig, StandbyStatus, Synchronous};
use super::membership::join;
use super::replace;
use super::situation::{Promotion, Situation, act, wait};
use super::standby::restart_with_more;
use super::{followers, hand_over, membership, one_node_write, returning, suspicion};
use crate::reason::{Reason, SyncPlan};

/// A hung PostgreSQL that nobody can take over from is restarted after this long (ms).
const HUNG_ALONE_MS: u64 = 30_000;

pub(super) fn decide(situation: Situation<'_>) -> Decision {
    let view = situation.view;
    let usable = match &view.local.data {
        Data::Present(_) => true,
        // The first setup: the state we wrote names what we made.
        Data::Fresh(ours) => situation.state.system_identifier.as_ref() == Some(&ours.0),
        Data::Absent | Data::Incomplete | Data::Unusable(_) => false,
    };
    if !usable {
        let why = Reason::PrimaryDataGone;
        let leave = situation.connected() && situation.registered();
        return if leave { act(ShardAction::LeaveElection, why) } else { wait(why) };
    }
    match &view.local.server {
        Server::Down { standby, .. } => {
            let first = match (&view.local.data, *standby) {
                (Data::Present(_), false) => returning::before_start(situation),
                _ => None,
            };
            if let Some(first) = first {
                return first;
            }
            let recovery = if *standby { Recovery::Detached } else { Recovery::Primary };
            let mut config = base(situation, recovery, Gate::Closed);
            if view.uncertain_write && !*standby {
                config.synchronous = required_before(situation);
            }
            act(ServerAction::Start(config), Reason::PrimaryStarts)
        }
        Server::Starting { .. } => wait(Reason::PrimaryStarting),
        Server::Hung { for_ms } => hung(situation, *for_ms),
        Server::Standby(standby) => promote(situation, standby),
        Server::Primary(primary) => running(situation, primary),
    }
}

/// The configuration without anything under way.
fn base(situation: Situation<'_>, recovery: Recovery, gate: Gate) -> ServerConfig {
    let state = situation.state;
    let synchronous = match situation.sync() {
        // Named by the promotion: until then nothing that runs in recovery may acknowledge, by whomever
        // it is promoted.
        _ if recovery != Recovery::Primary => Synchronous::Impossible,
        Some(sync) => Synchronous::Peer(sync),
        // Both the state and this peer's own configuration must say so (rule 2).
        None if state.one_node_write_mode && situation.view.settings.one_node_write_mode => Synchronous::Nobody,
        None => Synchronous::Impossible,
    };
    ServerConfig { recovery, synchronous, gate, slots: situation.slots(Role::Primary) }
}

/// Requirement at the time of a state write whose outcome is not known: a replacement of the
/// sync that may still be written relies on it, also after PostgreSQL restarted.
fn required_before(situation: Situation<'_>) -> Synchronous {
    let given = situation.view.observed.given.as_ref();
    situation.config().or(given).map_or(Synchronous::Impossible, |config| config.synchronous)
}

/// A PostgreSQL that lives but does not answer commits nothing: hand over if somebody is fit.
fn hung(situation: Situation<'_>, for_ms: u64) -> Decision {
    let view = situation.view;
    if for_ms <= view.settings.restart_budget_ms {
        return wait(Reason::PrimaryHung);
    }
    if situation.connected() && !situation.registered() {
        return act(ServerAction::Stop(StopMode::Immediate), Reason::PrimaryHungStopped);
    }
    let sync_serves = situation.sync().is_some_and(|sync| suspicion::is_serving(view, sync));
    let can_hand_over = sync_serves && situation.next_sync().is_some() && !situation.state.is_frozen();
    if situation.connected() && can_hand_over {
        return act(ShardAction::LeaveElection, Reason::PrimaryHungHandsOver);
    }
    if for_ms > HUNG_ALONE_MS {
        return act(ServerAction::Stop(StopMode::Immediate), Reason::PrimaryHungRestarted);
    }
    wait(Reason::PrimaryHungAlone)
}

/// The takeover is written, also if that was before a crash: leave recovery.
fn promote(situation: Situation<'_>, standby: &StandbyStatus) -> Decision {
    let view = situation.view;
    // It would end the server, or wait for ever if it was begun before replay came to that.
    if let Some(decision) = restart_with_more(standby) {
        return decision;
    }
    if let Some(decision) = returning::before_promotion(situation, standby) {
        return decision;
    }
    // The gate stays as it was: a standby that served goes on to serve.
    let target = base(situation, Recovery::Detached, situation.gate());
    if view.local.config.as_ref() != Some(&target) {
        return act(ServerAction::Configure(target), Reason::PromotingStopsReceiver);
    }
    if !standby.receiver_stopped {
        return wait(Reason::PromotingAwaitsReceiver);
    }
    if view.zk.session != Session::Connected {
        return wait(Reason::PromotingWithoutZooKeeper);
    }
    let config = base(situation, Recovery::Primary, target.gate);
    let timeline = Promotion::of(situation.state).map(|promotion| promotion.timeline);
    act(ServerAction::Promote { config, timeline }, Reason::Promoting)
}

fn running(situation: Situation<'_>, primary: &PrimaryStatus) -> Decision {
    let view = situation.view;
    if let Some(decision) = join(view) {
        return decision;
    }
    let plan = replace::plan(situation, primary);
    let mut desired = base(situation, Recovery::Primary, Gate::Closed);
    let mut overlaps = false;
    if let (Some(old), Some(new)) = (situation.sync(), replace::overlap(&plan)) {
        let both = Synchronous::Both { new, old };
        let begun = situation.config().is_some_and(|config| config.synchronous == both);
        overlaps = begun || replace::is_settled(primary, old);
        if overlaps {
            desired.synchronous = both;
        }
    }
    let coming = one_node_write::coming_sync(situation, primary);
    if let Some(new) = coming {
        desired.synchronous = Synchronous::Peer(new);
    }
    if view.uncertain_write {
        desired.synchronous = required_before(situation);
    }
    let gate = gate(situation, primary, desired.synchronous);
    desired.gate = gate;
    if view.local.config.as_ref() != Some(&desired) || view.local.outdated {
        return act(ServerAction::Configure(desired), Reason::PrimaryConfigured { plan, gate });
    }
    if !situation.may_write() {
        return wait(Reason::PrimaryCannotWrite(plan));
    }
    if let SyncPlan::Replace { new, cause } = &plan {
        if overlaps {
            return replace::write(situation, primary, *new, cause.clone());
        }
        return wait(Reason::ReplacementSettles(plan));
    }
    if let Some(new) = coming {
        return one_node_write::leave(situation, primary, new);
    }
    if let Some(decision) = hand_over::prepare(situation) {
        return decision;
    }
    if let Some((state, why)) = membership::changes(situation, primary) {
        return situation.write(state, why);
    }
    wait(if gate == Gate::Open { Reason::PrimaryServes(plan) } else { Reason::PrimaryGateClosed(plan) })
}

/// Rule 7: after a start nobody is let in until whoever must acknowledge has what was there at the
/// start. Once open it stays open, except on a primary that may have been replaced without hearing of it.
fn gate(situation: Situation<'_>, primary: &PrimaryStatus, synchronous: Synchronous) -> Gate {
    let Situation { view, state, .. } = situation;
    if !situation.connected() && may_be_replaced(situation) {
        return Gate::Closed;
    }
    if situation.gate() == Gate::Open {
        return Gate::Open;
    }
    let first = view.observed.first_flush;
    let has_everything = |peer: PeerId| {
        let down = followers::downstream(primary, peer);
        down.is_some_and(|down| down.streaming && first.is_some_and(|first| down.flush >= first))
    };
    let open = match synchronous {
        Synchronous::Impossible => false,
        Synchronous::Nobody => state.one_node_write_mode && view.settings.one_node_write_mode,
        Synchronous::Peer(peer) => has_everything(peer),
        // The new one counts only if it may be the state's by now.
        Synchronous::Both { new, old } => has_everything(old) && (!view.uncertain_write || has_everything(new)),
    };
    if open { Gate::Open } else { Gate::Closed }
}

/// Without ZooKeeper: whether somebody else may be primary by now, which makes what this one shows
/// old (H7). A takeover needs the sync and an async (rule 5); while it hears all asyncs, and
/// nothing newer from anybody, there was none. A replacement that may have been written makes
/// another peer the sync.
fn may_be_replaced(situation: Situation<'_>) -> bool {
    let Situation { view, state, .. } = situation;
    if view.health.values().any(|health| health.generation.is_some_and(|seen| seen > state.generation)) {
        return true;
    }
    let coming = match required_before(situation) {
        Synchronous::Both { new, .. } if view.uncertain_write => Some(new),
        _ => None,
    };
    let lost = |peer: PeerId| suspicion::is_suspect(view, peer);
    situation.sync().into_iter().chain(coming).any(|sync| {
        let stalled_ms = view.observed.stalled_ms.get(&sync).copied().unwrap_or(0);
        let mut others = state.chain().map(|peer| peer.id).filter(|peer| *peer != situation.me() && *peer != sync);
        lost(sync) && stalled_ms >= view.settings.suspicion_timeout_ms && others.any(lost)
    })
}
