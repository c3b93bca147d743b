//! Reads what each database's functions and views do ([`Catalog`]), and keeps it current.
//!
//! The first session of a database makes its slot and starts a task for it, which reads the catalog
//! as the proxy's own role, preferably from the primary, and looks every [`RELOAD_EVERY`] whether it
//! has changed. Until the first answer the slot is empty and the database's texts go to the primary.
//! What is created between two looks is unknown, hence the primary's too; what was safe and is not any
//! more is caught by a standby's 25006.
//!
//! A task holds its slot weakly: when the last session thread lets go of it, the task ends.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::pool::Catalogs;
use crate::route::Catalog;
use crate::route::volatility::{CATALOG_SIGNATURE_SQL, CATALOG_SQL};
use crate::topology::monitor::{ConnectError, Settings};
use crate::topology::{Node, Topology};

/// Age up to which what is known is used.
pub const RELOAD_EVERY: Duration = Duration::from_secs(30);
/// After a failure it is tried again this soon, and then after twice the time, up to [`RELOAD_EVERY`].
const FIRST_RETRY: Duration = Duration::from_millis(200);
/// Longest wait for one node: connection and answers. A hundred thousand functions take about a second.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// Databases followed at most; sessions of more than that use the primary only.
const MAX_DATABASES: usize = 256;

/// Place of one database's catalog, once it has been read.
type Slot = ArcSwapOption<Catalog>;

/// All databases' catalogs. Shared by all threads; asked once per database and thread.
pub struct Loader {
    slots: Mutex<HashMap<String, Followed>>,
    wanted: mpsc::Sender<Wanted>,
}

/// A database that is followed.
struct Followed {
    slot: Weak<Slot>,
    is_gone: Arc<AtomicBool>,
}

/// A database whose first session has begun.
struct Wanted {
    database: String,
    slot: Weak<Slot>,
    is_gone: Arc<AtomicBool>,
}

/// The task's end of the queue; give it to [`serve`].
pub struct Requests(mpsc::Receiver<Wanted>);

impl Loader {
    /// Knows nothing yet. [`serve`] must run for it.
    #[must_use]
    pub fn new() -> (Self, Requests) {
        // Every database can be in it once.
        let (wanted, requests) = mpsc::channel(MAX_DATABASES);
        (Self { slots: Mutex::default(), wanted }, Requests(requests))
    }
}

impl Catalogs for Loader {
    fn of(&self, database: &str) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(database).and_then(|followed| followed.slot.upgrade()) {
            return slot;
        }
        slots.retain(|_, followed| followed.slot.strong_count() > 0);
        let slot = Arc::new(Slot::empty());
        if slots.len() >= MAX_DATABASES {
            tracing::warn!(database, limit = MAX_DATABASES, "too many databases: reads of this one use the primary");
            return slot;
        }
        let (is_gone, followed) = (Arc::<AtomicBool>::default(), Arc::downgrade(&slot));
        let wanted = Wanted { database: database.to_owned(), slot: followed.clone(), is_gone: is_gone.clone() };
        if self.wanted.try_send(wanted).is_ok() {
            slots.insert(database.to_owned(), Followed { slot: followed, is_gone });
        }
        slot
    }

    fn is_gone(&self, database: &str) -> bool {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.get(database).is_some_and(|followed| followed.is_gone.load(Ordering::Relaxed))
    }
}

/// Follows all databases asked for until `stop`, on the background runtime.
///
/// Each database is looked at again after `reload_every`, normally [`RELOAD_EVERY`].
pub async fn serve(
    settings: Settings,
    topology: Topology,
    mut requests: Requests,
    reload_every: Duration,
    stop: CancellationToken,
) {
    let tasks = TaskTracker::new();
    // `recv` is cancel-safe.
    while let Some(Some(wanted)) = stop.run_until_cancelled(requests.0.recv()).await {
        let (settings, topology, stop) = (settings.clone(), topology.clone(), stop.clone());
        tasks.spawn(async move {
            // Dropped between two statements at worst: they only read.
            stop.run_until_cancelled(follow(settings, topology, wanted, reload_every)).await;
        });
    }
    tasks.close();
    tasks.wait().await;
}

/// Reason why a catalog could not be read.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("no node can be asked")]
    NoNode,
    #[error("it does not exist any more")]
    Gone,
    #[error("{node} cannot be asked")]
    Node { node: String, source: ConnectError },
    #[error("{node} did not answer within {ANSWER_LIMIT:?}")]
    Silent { node: String },
}

/// A catalog and by what its changes are noticed.
struct Known {
    signature: String,
    catalog: Option<Catalog>,
}

/// Keeps one database's catalog current until nobody wants it.
async fn follow(settings: Settings, topology: Topology, wanted: Wanted, reload_every: Duration) {
    let Wanted { database, slot, is_gone } = wanted;
    let mut signature = String::new();
    let mut retry = FIRST_RETRY;
    let mut failed = false;
    loop {
        let result = read(&settings, &topology, &database, &signature).await;
        let Some(slot) = slot.upgrade() else { return };
        let pause = match result {
            Ok(known) => {
                is_gone.store(false, Ordering::Relaxed);
                if let Some(catalog) = known.catalog {
                    tracing::info!(%database, functions = catalog.functions(), "functions and views read");
                    slot.store(Some(Arc::new(catalog)));
                    signature = known.signature;
                }
                retry = FIRST_RETRY;
                failed = false;
                reload_every
            }
            // Nothing is wrong: nobody can use it, and the session threads forget it with its last client.
            Err(ReadError::Gone) => {
                if !is_gone.swap(true, Ordering::Relaxed) {
                    tracing::info!(%database, "the database does not exist any more");
                }
                slot.store(None);
                signature.clear();
                reload_every
            }
            Err(error) => {
                // Once per failure: what is known stays in use, and nothing is urgent.
                if !std::mem::replace(&mut failed, true) {
                    // tokio-postgres keeps what the server said one level deeper.
                    let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
                    let cause = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
                    tracing::warn!(%database, %error, cause, "cannot read functions and views");
                }
                let pause = retry;
                retry = (retry * 2).min(reload_every);
                pause
            }
        };
        drop(slot);
        tokio::time::sleep(pause).await;
    }
}

/// Asks the primary, then the standbys, until one answers.
async fn read(settings: &Settings, topology: &Topology, database: &str, signature: &str) -> Result<Known, ReadError> {
    let snapshot = topology.snapshot();
    let nodes = snapshot.primary().into_iter().chain(snapshot.standbys.iter().map(|standby| standby.node));
    let is_primary = |node: Node| snapshot.primary() == Some(node);
    let mut last = ReadError::NoNode;
    for node in nodes {
        // Dropping the attempt closes the connection.
        last = match tokio::time::timeout(ANSWER_LIMIT, read_from(settings, node, database, signature)).await {
            Ok(Ok(known)) => return Ok(known),
            // The primary has the last word; a standby may not have heard that it was made.
            Ok(Err(ConnectError::Server(error))) if is_primary(node) && is_no_such_database(&error) => {
                return Err(ReadError::Gone);
            }
            Ok(Err(source)) => ReadError::Node { node: node.id.to_string(), source },
            Err(_) => ReadError::Silent { node: node.id.to_string() },
        };
    }
    Err(last)
}

fn is_no_such_database(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&tokio_postgres::error::SqlState::INVALID_CATALOG_NAME)
}

/// Reads the catalog from `node`; none if it has the same signature as before.
async fn read_from(settings: &Settings, node: Node, database: &str, before: &str) -> Result<Known, ConnectError> {
    let (client, driver) = settings.connect_to(node, database).await?;
    let result = async {
        let signature: String = client.query_one(CATALOG_SIGNATURE_SQL, &[]).await?.try_get(0)?;
        if signature == before {
            return Ok(Known { signature, catalog: None });
        }
        let rows = client.query(CATALOG_SQL, &[]).await?;
        let mut fields: Vec<[&str; 5]> = Vec::with_capacity(rows.len());
        for row in &rows {
            fields.push([row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?]);
        }
        Ok(Known { signature, catalog: Some(Catalog::from_rows(fields)) })
    }
    .await;
    // A connection per look: the next is half a minute away.
    drop(client);
    let _ = driver.await;
    result
}
