//! Doing what the machine decided, one step at a time. Nothing here chooses: each step is fenced
//! against the newest state, done, and its outcome told.
//!
//! One file per family: [`shard`] acts on ZooKeeper, [`server`] on PostgreSQL, [`data`] on its directory; [`fence`] is
//! the check before anything that would let this peer acknowledge or overwrite.

mod data;
mod server;
mod shard;

use std::sync::Arc;

use async_trait::async_trait;
use manatee_shared::cluster::{Peer, Role};
use manatee_shared::zk::{Coordination, ZkError};
pub use manatee_sitter_core::fence;

use crate::data::LocalData;
use crate::host::Error;
use crate::machine::action::{Action, Rung};
use crate::machine::failure::FailureKind;
use crate::machine::local::SystemIdentifier;
use crate::postgres::Postgres;

/// Success of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepOutcome {
    /// It is done.
    Done,
    /// Data was brought back in line in this way.
    Rejoined(Rung),
}

/// Reason why a step did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum StepProblem {
    /// The newest state no longer gives this peer the right to it.
    #[error(transparent)]
    Fenced(#[from] fence::Fenced),
    /// ZooKeeper.
    #[error("{0}")]
    Zk(#[from] ZkError),
    /// PostgreSQL.
    #[error("{0}")]
    Postgres(#[from] Error),
}

impl StepProblem {
    /// Kind of this failure, where an operator can do something about it.
    pub fn kind(&self) -> Option<FailureKind> {
        match self {
            Self::Fenced(_) | Self::Zk(_) => None,
            Self::Postgres(error) => error.kind(),
        }
    }
}

/// Executes steps. Dropping the future abandons the step; each can be repeated.
#[async_trait]
pub trait Execute: Send + Sync + 'static {
    /// Does one step.
    async fn execute(&self, action: &Action) -> Result<StepOutcome, StepProblem>;
}

/// The real executor.
pub struct Executor {
    me: Peer,
    zk: Arc<dyn Coordination>,
    postgres: Arc<Postgres>,
    data: Arc<LocalData>,
}

impl Executor {
    /// For this peer's PostgreSQL and its data in this shard.
    pub fn new(me: Peer, zk: Arc<dyn Coordination>, postgres: Arc<Postgres>, data: Arc<LocalData>) -> Self {
        Self { me, zk, postgres, data }
    }
}

#[async_trait]
impl Execute for Executor {
    async fn execute(&self, action: &Action) -> Result<StepOutcome, StepProblem> {
        let may_roll_back = {
            let zk = self.zk.view();
            let zk = zk.borrow();
            fence::check(action, &zk, self.me.id)?;
            let identifier = zk.state.valid().and_then(|(_, state)| state.system_identifier.clone());
            self.postgres.expect_system_identifier(identifier.map(SystemIdentifier));
            zk.state.valid().is_some_and(|(_, state)| state.role_of(self.me.id) != Role::Sync)
        };
        match action {
            Action::Wait { .. } | Action::Exit => Ok(StepOutcome::Done),
            Action::Shard(action) => shard::execute(&*self.zk, &self.me, action).await,
            Action::Server(action) => server::execute(&self.postgres, action).await,
            Action::Data(action) => data::execute(&self.data, *action, may_roll_back).await,
        }
    }
}
