//! Steps on the local PostgreSQL.

use super::{Outcome, Problem};
use crate::machine::action::Action;
use crate::postgres::{Error, Postgres};
use crate::rejoin::Rejoined;

/// `may_roll_back`: see [`crate::rejoin`].
pub(super) async fn execute(postgres: &Postgres, action: &Action, may_roll_back: bool) -> Result<Outcome, Problem> {
    match action {
        Action::Initialise => drop(postgres.initialise().await?),
        Action::Survey => postgres.survey_end().await?,
        Action::Start(config) => postgres.start(config).await?,
        Action::Configure(config) => postgres.configure(config).await?,
        Action::Stop(mode) => postgres.stop(*mode).await?,
        Action::Promote { config, timeline } => postgres.promote(config, *timeline).await?,
        Action::Drain { .. } => postgres.drain().await?,
        Action::Bootstrap { source } => {
            return Ok(Outcome::Rejoined(postgres.bootstrap(*source, may_roll_back).await?));
        }
        Action::Rejoin { source, from, init } => {
            return Ok(match postgres.rejoin(*source, *from, *init, may_roll_back).await? {
                Rejoined::Held(rung) => Outcome::Rejoined(rung),
                Rejoined::Condemned => Outcome::Done,
            });
        }
        _ => return Err(Error::NotAnswering.into()),
    }
    Ok(Outcome::Done)
}
