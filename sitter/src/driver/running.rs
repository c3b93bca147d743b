//! The one action in execution.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::Fatal;
use crate::execute::{Execute, StepOutcome, StepProblem};
use crate::machine::action::Action;

/// An action in a task of its own. Dropping it abandons the action.
pub(super) struct Running {
    pub(super) action: Action,
    pub(super) began: Instant,
    task: JoinHandle<Result<StepOutcome, StepProblem>>,
}

/// End of an action.
pub(super) struct Ended {
    pub(super) action: Action,
    pub(super) took: Duration,
    pub(super) result: Result<StepOutcome, StepProblem>,
}

impl Running {
    pub(super) fn begin(action: Action, execute: Arc<dyn Execute>) -> Self {
        let given = action.clone();
        let task = tokio::spawn(async move { execute.execute(&given).await });
        Self { action, began: Instant::now(), task }
    }

    /// Waits for the end. Cancel-safe: the task stays where it is.
    pub(super) async fn ended(&mut self) -> Result<Ended, Fatal> {
        let result = (&mut self.task).await.map_err(|_| Fatal::ActionPanicked(self.action.kind()))?;
        Ok(Ended { action: self.action.clone(), took: self.began.elapsed(), result })
    }

    /// Abandons the action and waits until nothing of it runs any more. It may have ended just
    /// before: then that is what counts.
    pub(super) async fn abandon(mut self) -> Result<Option<Ended>, Fatal> {
        self.task.abort();
        match (&mut self.task).await {
            Ok(result) => Ok(Some(Ended { action: self.action.clone(), took: self.began.elapsed(), result })),
            Err(error) if error.is_cancelled() => Ok(None),
            Err(_) => Err(Fatal::ActionPanicked(self.action.kind())),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}
