//! Measures takeovers by this peer: by what, and how long each part took.

use std::time::{Duration, Instant};

use manatee_shared::cluster::Role;
use tracing::info;

use super::running::Ended;
use crate::machine::action::{Action, ServerAction, ShardAction};
use crate::machine::local::{Recovery, Server};
use crate::machine::view::View;
use crate::metrics::{Metrics, Phase};

/// Watches decisions, their ends and PostgreSQL go by.
#[derive(Debug, Default)]
pub(super) struct TakeoverClock {
    /// Reason, from the first step of a takeover until it is complete.
    reason: Option<&'static str>,
    /// The first step began.
    began: Option<Instant>,
    /// PostgreSQL left recovery; the sync has not attached yet.
    promoted: Option<Instant>,
}

impl TakeoverClock {
    /// `action` is begun on what `view` shows.
    pub(super) fn begins(&mut self, view: &View, action: &Action, now: Instant, metrics: &Metrics) {
        let Some((_, state)) = view.zk.state.valid() else { return };
        let is_sync = state.role_of(view.me.id) == Role::Sync;
        let first_step = match action {
            Action::Server(ServerAction::Configure(config)) => is_sync && config.recovery == Recovery::Detached,
            Action::Shard(ShardAction::WriteState { state: new, .. }) => is_sync && new.primary.id == view.me.id,
            _ => false,
        };
        if !first_step || self.reason.is_some() {
            return;
        }
        let health = view.health.get(&state.primary.id).cloned().unwrap_or_default();
        let missing_ms = view.observed.missing_ms.get(&state.primary.id).copied();
        let (reason, since_ms) = if health.stopping {
            ("stopping", None)
        } else if state.promote.is_some() {
            ("requested", None)
        } else if health.refused {
            ("sitter_gone", health.silent_ms)
        } else if health.postgres_down_ms.is_some() {
            ("postgres_down", health.postgres_down_ms)
        } else if missing_ms.is_some() {
            ("node_gone", health.silent_ms.max(missing_ms))
        } else {
            ("silent", health.silent_ms)
        };
        if let Some(since_ms) = since_ms {
            metrics.phase(Phase::Detect, Duration::from_millis(since_ms));
        }
        (self.reason, self.began) = (Some(reason), Some(now));
    }

    /// An action ended, well.
    pub(super) fn ended(&mut self, me: manatee_shared::ids::PeerId, ended: &Ended, metrics: &Metrics) {
        let Some(reason) = self.reason else { return };
        match &ended.action {
            Action::Server(ServerAction::Configure(config)) if config.recovery == Recovery::Detached => {
                metrics.phase(Phase::StopReceiver, ended.took);
            }
            Action::Shard(ShardAction::WriteState { state, .. }) if state.primary.id == me => {
                metrics.phase(Phase::WriteState, ended.took);
                metrics.took_over(reason);
            }
            Action::Server(ServerAction::Promote { .. }) => {
                metrics.phase(Phase::Promote, ended.took);
                self.promoted = Some(Instant::now());
            }
            _ => {}
        }
    }

    /// PostgreSQL and the state as `view` shows them.
    pub(super) fn watch(&mut self, view: &View, now: Instant, metrics: &Metrics) {
        let Some((_, state)) = view.zk.state.valid() else { return };
        match (state.role_of(view.me.id), &view.local.server) {
            (Role::Primary, Server::Primary(primary)) => {
                let Some(promoted) = self.promoted else { return };
                let sync_id = state.sync_peer.as_ref().map(|peer| peer.id);
                let attached = primary
                    .downstreams
                    .iter()
                    .any(|downstream| Some(downstream.peer) == sync_id && downstream.sync_priority > 0);
                if attached || sync_id.is_none() {
                    metrics.phase(Phase::SyncAttached, now.saturating_duration_since(promoted));
                    if let Some(began) = self.began {
                        let took_ms = now.saturating_duration_since(began).as_millis();
                        info!(generation = state.generation, took_ms, "takeover complete: the sync has attached");
                    }
                    *self = Self::default();
                }
            }
            // Somebody else took over, or the reason went away.
            (role, _) if role != Role::Primary && role != Role::Sync => *self = Self::default(),
            _ => {}
        }
    }
}
