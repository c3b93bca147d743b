//! Whether the data lies within its ZFS dataset: a tablespace outside is told as soon as it is there, not when a copy is
//! needed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::postgres::inner::Inner;
use crate::storage::{StorageSettings, zfs};

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(5);

/// Looks again and again, until it is dropped.
#[derive(Debug)]
pub(super) struct Extent {
    outside: watch::Receiver<Option<String>>,
    /// None: plain folders have nothing outside.
    watching: Option<JoinHandle<()>>,
}

impl Drop for Extent {
    fn drop(&mut self) {
        if let Some(watching) = &self.watching {
            watching.abort();
        }
    }
}

impl Extent {
    pub(super) fn watch(inner: &Arc<Inner>, settings: &StorageSettings) -> Self {
        let (sender, outside) = watch::channel(None);
        let watching = match settings {
            StorageSettings::Directory => None,
            StorageSettings::Zfs { .. } => Some(tokio::spawn(look(Arc::clone(inner), sender))),
        };
        Self { outside, watching }
    }

    /// Part of the data that lies outside.
    pub(super) fn outside(&self) -> watch::Receiver<Option<String>> {
        self.outside.clone()
    }
}

async fn look(inner: Arc<Inner>, sender: watch::Sender<Option<String>>) {
    loop {
        let data = inner.layout.data();
        // None where there is no data to look at.
        let found = tokio::task::spawn_blocking(move || zfs::stream::outside(&data).ok().flatten()).await;
        let outside = found.ok().flatten().map(str::to_owned);
        let changed = sender.send_if_modified(|before| {
            let changed = *before != outside;
            before.clone_from(&outside);
            changed
        });
        if let Some(what) = outside.filter(|_| changed) {
            tracing::warn!("{what} lies outside of the ZFS dataset: no peer can be copied from here while it does");
        }
        tokio::time::sleep(PERIOD).await;
    }
}
