//! Decision whether a new decision is worth cancelling the action in flight.
//!
//! The driver decides on every change of the view, also while an action runs. If the decision
//! equals the action in flight, or does not preempt it, the action goes on; when it ends, the
//! newest decision counts.

use super::action::{Action, DataAction, ServerAction, ShardAction, StopMode};
use super::view::InFlight;

/// Whether the action in flight should be cancelled for `next`. Every action may be cancelled and
/// repeated safely; those that are short and bounded never are.
pub fn preempts(in_flight: &InFlight, next: &Action) -> bool {
    match &in_flight.action {
        Action::Wait { .. } => !matches!(next, Action::Wait { .. }),
        Action::Shard(_) | Action::Exit => false,
        Action::Server(now) => preempts_server(now, next),
        Action::Data(now) => preempts_data(now, next),
    }
}

/// Whether `next` ends PostgreSQL or the sitter.
fn ends(next: &Action) -> bool {
    matches!(next, Action::Server(ServerAction::Stop(_)) | Action::Exit)
}

fn preempts_server(now: &ServerAction, next: &Action) -> bool {
    match (now, next) {
        // Harmless in itself; what else there is to do is not held up by it.
        (ServerAction::Drain { .. }, next) => {
            !matches!(next, Action::Wait { .. } | Action::Server(ServerAction::Drain { .. }))
        }
        (ServerAction::Configure(now), Action::Server(ServerAction::Configure(next))) => next != now,
        (ServerAction::Stop(StopMode::Fast), next) => {
            matches!(next, Action::Server(ServerAction::Stop(StopMode::Immediate)))
        }
        (ServerAction::Stop(StopMode::Immediate), _) => false,
        (ServerAction::Start(_) | ServerAction::Promote { .. } | ServerAction::Configure(_), next) => ends(next),
    }
}

fn preempts_data(now: &DataAction, next: &Action) -> bool {
    match (now, next) {
        (DataAction::Initialise, _) => false,
        (DataAction::Survey, next) => ends(next),
        // It may take hours.
        (DataAction::Bootstrap { .. } | DataAction::Rejoin { .. }, Action::Shard(ShardAction::LeaveElection)) => true,
        (DataAction::Bootstrap { source }, Action::Data(DataAction::Bootstrap { source: other }))
        | (
            DataAction::Rejoin { source, .. },
            Action::Data(DataAction::Rejoin { source: other, .. } | DataAction::Bootstrap { source: other }),
        ) => other != source,
        (DataAction::Bootstrap { .. } | DataAction::Rejoin { .. }, next) => ends(next),
    }
}
