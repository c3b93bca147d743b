//! Steps on the PostgreSQL server.

use super::{StepOutcome, StepProblem};
use crate::machine::action::ServerAction;
use crate::postgres::Postgres;

/// Does one.
pub(super) async fn execute(postgres: &Postgres, action: &ServerAction) -> Result<StepOutcome, StepProblem> {
    match action {
        ServerAction::Start(config) => postgres.start(config).await?,
        ServerAction::Configure(config) => postgres.configure(config).await?,
        ServerAction::Stop(mode) => postgres.stop(*mode).await?,
        ServerAction::Promote { config, timeline } => postgres.promote(config, *timeline).await?,
        ServerAction::Drain { .. } => postgres.drain().await?,
    }
    Ok(StepOutcome::Done)
}
