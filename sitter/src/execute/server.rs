//! Steps on the local PostgreSQL.

use super::{Outcome, Problem};
use crate::machine::action::Action;
use crate::postgres::{Error, Postgres};

pub(super) async fn execute(postgres: &Postgres, action: &Action) -> Result<Outcome, Problem> {
    match action {
        Action::Initialise => drop(postgres.initialise().await?),
        Action::Start(config) => postgres.start(config).await?,
        Action::Configure(config) => postgres.configure(config).await?,
        Action::Stop(mode) => postgres.stop(*mode).await?,
        Action::Promote { config, timeline } => postgres.promote(config, *timeline).await?,
        Action::Drain { .. } => postgres.drain().await?,
        Action::Bootstrap { source } => postgres.bootstrap(*source).await?,
        Action::Rejoin { source, from, init } => {
            return Ok(Outcome::Rejoined(postgres.rejoin(*source, *from, *init).await?));
        }
        _ => return Err(Error::NotAnswering.into()),
    }
    Ok(Outcome::Done)
}
