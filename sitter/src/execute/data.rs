//! Steps on the data directory.

use super::{Outcome, Problem};
use crate::machine::action::DataAction;
use crate::postgres::Postgres;
use crate::rejoin::Rejoined;

/// Does one. `may_roll_back`: see [`crate::rejoin`].
pub(super) async fn execute(postgres: &Postgres, action: DataAction, may_roll_back: bool) -> Result<Outcome, Problem> {
    Ok(match action {
        DataAction::Initialise => {
            postgres.initialise().await?;
            Outcome::Done
        }
        DataAction::Survey => {
            postgres.survey_end().await?;
            Outcome::Done
        }
        DataAction::Bootstrap { source } => Outcome::Rejoined(postgres.bootstrap(source, may_roll_back).await?),
        DataAction::Rejoin { source, from, init } => match postgres.rejoin(source, from, init, may_roll_back).await? {
            Rejoined::Held(rung) => Outcome::Rejoined(rung),
            Rejoined::Condemned => Outcome::Done,
        },
    })
}
