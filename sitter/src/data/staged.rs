//! Staged data that becomes the data.

use crate::host::{Error, files};
use crate::postgres::inner::Inner;
use crate::storage::Storage;

/// Makes what is staged the data of a standby; what was the data is set aside.
pub(super) async fn adopt(inner: &Inner, storage: &dyn Storage, why: &'static str) -> Result<(), Error> {
    // Nobody must ever start this as a primary.
    files::replace(&inner.layout.staging().join("standby.signal"), "", &inner.user)?;
    storage.set_aside(why).await?;
    files::remove(&inner.layout.incomplete())?;
    files::remove(&inner.layout.fresh())?;
    storage.publish().await?;
    inner.known().crashed = false;
    inner.known().unfit = None;
    inner.known().last_position = None;
    inner.known().end = None;
    inner.refresh().await;
    Ok(())
}
