//! Steps on the data directory.

use super::{Outcome, Problem};
use crate::data::{LocalData, Rejoined};
use crate::machine::action::DataAction;

/// Does one. `may_roll_back`: see [`crate::data::rejoin`].
pub(super) async fn execute(data: &LocalData, action: DataAction, may_roll_back: bool) -> Result<Outcome, Problem> {
    Ok(match action {
        DataAction::Initialise => {
            data.initialise().await?;
            Outcome::Done
        }
        DataAction::Survey => {
            data.survey_end().await?;
            Outcome::Done
        }
        DataAction::Bootstrap { source } => Outcome::Rejoined(data.bootstrap(source, may_roll_back).await?),
        DataAction::Rejoin { source, from, init } => match data.rejoin(source, from, init, may_roll_back).await? {
            Rejoined::Held(rung) => Outcome::Rejoined(rung),
            Rejoined::Condemned => Outcome::Done,
        },
    })
}
