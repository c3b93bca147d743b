//! Further shards: those that the configuration names, and those that appear under the root.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use manatee_shared::ids::ShardName;
use manatee_shared::topology::TopologyWatcher;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::context::ProxyContext;
use crate::shards;
use crate::topology::monitor;

/// Interval of looking whether there are new ones.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// All shards that the configuration speaks of.
fn named(config: &Config) -> BTreeSet<ShardName> {
    let mapped = config.databases.values().map(|database| database.shard.clone());
    let listened = config.listen.shards.iter().map(|listen| listen.shard.clone());
    config.shards.names.iter().cloned().chain(mapped).chain(listened).collect()
}

/// Adds shards until `stop`. `first` is the default shard's watcher: it is asked for names.
pub(super) async fn discover_shards(
    shared: Arc<ProxyContext>,
    own: monitor::Settings,
    first: TopologyWatcher,
    stop: CancellationToken,
) {
    // Dropping a watcher ends it: they live as long as this does.
    let mut watchers: HashMap<ShardName, TopologyWatcher> = HashMap::new();
    let mut warned = false;
    loop {
        let config = shared.config.load_full();
        let mut wanted = named(&config);
        if config.shards.discover {
            // Bounded by the client. Without an answer what is known stays.
            match first.shards().await {
                Ok(names) => wanted.extend(names.iter().filter_map(|name| name.parse().ok())),
                Err(error) => tracing::debug!(%error, "cannot look for shards"),
            }
        }
        for name in wanted.into_iter().filter(|name| shared.shards.get(name).is_none()) {
            if shared.shards.is_full() {
                if !std::mem::replace(&mut warned, true) {
                    tracing::warn!(shard = %name, limit = shards::MAX_SHARDS, "too many shards: not served");
                }
                continue;
            }
            let watcher = match TopologyWatcher::spawn(&config.zookeeper, &name) {
                Ok(watcher) => watcher,
                Err(error) => {
                    tracing::error!(shard = %name, %error, "cannot follow a shard");
                    continue;
                }
            };
            let settings = monitor::Settings { shard: name.clone(), ..own.clone() };
            let (shard, background) = shards::prepare(settings, config.auth.verifier_max_age);
            if !shared.shards.add(shard) {
                continue;
            }
            tracing::info!(shard = %name, "serving another shard");
            tokio::spawn(background.run(watcher.topology(), stop.clone()));
            watchers.insert(name, watcher);
        }
        // Cancel-safe: only the moment is waited for.
        if stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
            return;
        }
    }
}
