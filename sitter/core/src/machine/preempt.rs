//! When a new decision is worth cancelling the action in flight.
//!
//! The driver decides on every change of the view, also while an action runs. If the decision
//! equals the action in flight, or does not preempt it, the action goes on; when it ends, the
//! newest decision counts.

use super::action::{Action, StopMode};
use super::view::InFlight;

/// Whether the action in flight should be cancelled for `next`. Every action may be cancelled and
/// repeated safely; those that are short and bounded never are.
pub fn preempts(in_flight: &InFlight, next: &Action) -> bool {
    let ends = matches!(next, Action::Stop(_) | Action::Exit);
    match &in_flight.action {
        Action::Wait { .. } => !matches!(next, Action::Wait { .. }),
        // Harmless in itself; what else there is to do is not held up by it.
        Action::Drain { .. } => !matches!(next, Action::Wait { .. } | Action::Drain { .. }),
        Action::Survey | Action::Start(_) | Action::Promote { .. } => ends,
        Action::Configure(now) => match next {
            Action::Configure(config) => config != now,
            _ => ends,
        },
        Action::Bootstrap { source } => match next {
            Action::Bootstrap { source: other } => other != source,
            Action::LeaveElection => true,
            _ => ends,
        },
        Action::Rejoin { source, .. } => match next {
            Action::Rejoin { source: other, .. } | Action::Bootstrap { source: other } => other != source,
            Action::LeaveElection => true,
            _ => ends,
        },
        Action::Stop(StopMode::Fast) => matches!(next, Action::Stop(StopMode::Immediate)),
        Action::Stop(StopMode::Immediate)
        | Action::Initialise
        | Action::WriteState { .. }
        | Action::LeaveElection
        | Action::JoinElection
        | Action::Exit => false,
    }
}
