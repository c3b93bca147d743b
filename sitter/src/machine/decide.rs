//! The decision. Being written; the interface is settled.

use super::action::{Action, Decision};
use super::view::View;

/// What to do next, from the newest view only. Called again whenever the view changes, also while
/// an action is in flight: see [`super::preempt::preempts`].
pub fn decide(view: &View) -> Decision {
    let _ = view;
    Decision { action: Action::Wait { for_ms: None }, reason: "nothing is decided yet".to_owned() }
}
