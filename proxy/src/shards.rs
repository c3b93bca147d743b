//! The shards behind this proxy. Each has everything of its own: topology, look-ups, catalogs, and on
//! each session thread its pools. What happens to one does not touch another's clients.
//!
//! The table only grows: a shard that disappears from ZooKeeper is not known to be gone.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use manatee_shared::ids::{PeerId, ShardName};
use manatee_shared::topology::Topology as State;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::auth::verifier::{self, Verifiers};
use crate::auth::{Keys, ParameterCache};
use crate::catalog;
use crate::metrics;
use crate::pool::Catalogs;
use crate::topology::{self, Publisher, Topology, monitor};

/// Shards behind one proxy at most.
pub const MAX_SHARDS: usize = 256;

/// Longest wait for a primary that is asked whether there is a database.
const ASK_LIMIT: Duration = Duration::from_secs(2);

/// A shard's cluster state, as it was last read.
pub type StateWatch = watch::Receiver<Option<State>>;

/// A shard, as logins and sessions see it.
pub struct Shard {
    /// Its name in ZooKeeper.
    pub name: ShardName,
    /// Roles of its peers.
    pub topology: Topology,
    /// Its roles.
    pub verifiers: Verifiers,
    /// Secrets with which servers are persuaded.
    pub keys: Keys,
    /// Greetings for its clients when they connect.
    pub parameters: ParameterCache,
    /// Functions of its databases.
    pub catalogs: Arc<dyn Catalogs>,
    own: monitor::Settings,
    state: OnceLock<StateWatch>,
}

impl Shard {
    /// Whether the primary has a database of this name; `None` if it cannot be asked.
    pub async fn has_database(&self, name: &str) -> Option<bool> {
        let primary = self.topology.snapshot().primary()?;
        let ask = async {
            let client = self.own.connect(primary).await.ok()?.client;
            let question = "SELECT EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = $1::text::name)";
            client.query_one(question, &[&name]).await.ok()?.try_get(0).ok()
        };
        // Dropping it closes the connection.
        tokio::time::timeout(ASK_LIMIT, ask).await.ok().flatten()
    }

    /// Sees whether its servers take the proxy's own role.
    pub async fn prove_own_login(&self) {
        let snapshot = self.topology.snapshot();
        let standbys = snapshot.standbys.iter().map(|standby| standby.node);
        let nodes: Vec<_> = snapshot.primary().into_iter().chain(standbys).collect();
        self.own.prove_login(&nodes).await;
    }

    /// Its cluster state; none before it is watched.
    pub fn state(&self) -> Option<StateWatch> {
        self.state.get().cloned()
    }
}

/// Tasks of a shard that do not run yet.
pub struct Background {
    shard: Arc<Shard>,
    own: monitor::Settings,
    publisher: Publisher,
    suspicions: mpsc::Receiver<PeerId>,
    questions: verifier::Questions,
    catalogs: catalog::Requests,
}

/// Puts a shard's parts together. `own` says how its nodes are asked; `max_age` is `auth.verifier_max_age`.
pub fn prepare(own: monitor::Settings, max_age: Duration) -> (Arc<Shard>, Background) {
    let (publisher, topology, suspicions) = topology::channel();
    let (verifiers, questions) = Verifiers::new(max_age);
    let (catalogs, wanted) = catalog::Loader::new();
    // From the start: an alert sees the first failure.
    metrics::own_login_failures(own.shard.as_str()).increment(0);
    let shard = Arc::new(Shard {
        name: own.shard.clone(),
        parameters: ParameterCache::new(topology.clone(), own.servers.clone()),
        topology,
        verifiers,
        keys: Keys::default(),
        catalogs: Arc::new(catalogs),
        own: own.clone(),
        state: OnceLock::new(),
    });
    let background = Background { shard: shard.clone(), own, publisher, suspicions, questions, catalogs: wanted };
    (shard, background)
}

impl Background {
    /// Settings for asking its nodes.
    pub fn settings(&self) -> &monitor::Settings {
        &self.own
    }

    /// Follows `state` and serves look-ups until `stop`.
    pub async fn run(self, state: StateWatch, stop: CancellationToken) {
        let Self { shard, own, publisher, suspicions, questions, catalogs } = self;
        // Once: a background runs once.
        let _ = shard.state.set(state.clone());
        let topology = || shard.topology.clone();
        let verifiers = verifier::serve(own.clone(), topology(), questions, stop.clone());
        let catalogs = catalog::serve(own.clone(), topology(), catalogs, catalog::RELOAD_EVERY, stop.clone());
        let monitor = monitor::run(own, state, publisher, suspicions, stop);
        // Tasks of their own: a slow look-up must not delay the news of a primary.
        let tasks = [tokio::spawn(verifiers), tokio::spawn(catalogs), tokio::spawn(monitor)];
        for task in tasks {
            if task.await.is_err_and(|error| error.is_panic()) {
                tracing::error!("background work failed: aborting");
                std::process::abort();
            }
        }
    }
}

/// All shards, by name.
pub struct Shards {
    table: ArcSwap<BTreeMap<ShardName, Arc<Shard>>>,
}

impl Shards {
    /// With the first of them.
    pub fn new(first: Arc<Shard>) -> Self {
        Self { table: ArcSwap::from_pointee([(first.name.clone(), first)].into()) }
    }

    /// One of them.
    pub fn get(&self, name: &ShardName) -> Option<Arc<Shard>> {
        self.table.load().get(name).cloned()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Shard>> {
        self.table.load().values().cloned().collect()
    }

    /// Whether there is no room for another.
    pub fn is_full(&self) -> bool {
        self.table.load().len() >= MAX_SHARDS
    }

    /// Adds one. Whether it was new and there was room.
    pub fn add(&self, shard: Arc<Shard>) -> bool {
        let table = self.table.load();
        if table.len() >= MAX_SHARDS || table.contains_key(&shard.name) {
            return false;
        }
        let mut table = BTreeMap::clone(&table);
        table.insert(shard.name.clone(), shard);
        // One task adds: nothing is lost between.
        self.table.store(Arc::new(table));
        true
    }
}
