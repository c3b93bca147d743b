//! Steps on the data directory.

use super::{StepOutcome, StepProblem};
use crate::data::{LocalData, Rejoined};
use crate::machine::action::DataAction;

/// Does one. `may_roll_back`: see [`crate::data::rejoin`].
pub(super) async fn execute(
    data: &LocalData,
    action: DataAction,
    may_roll_back: bool,
) -> Result<StepOutcome, StepProblem> {
    Ok(match action {
        DataAction::Initialise => {
            data.initialise().await?;
            StepOutcome::Done
        }
        DataAction::Survey => {
            data.survey_end().await?;
            StepOutcome::Done
        }
        DataAction::Bootstrap { source } => StepOutcome::Rejoined(data.bootstrap(source, may_roll_back).await?),
        DataAction::Rejoin { source, from, init } => match data.rejoin(source, from, init, may_roll_back).await? {
            Rejoined::Held(rung) => StepOutcome::Rejoined(rung),
            Rejoined::NeedsCopy => StepOutcome::Done,
        },
    })
}
