//! What runs beside the sessions: ZooKeeper, the nodes' monitor, look-ups of roles, HTTP.

use std::sync::Arc;

use manatee_shared::shutdown::Hangups;
use manatee_shared::telemetry::{PrometheusHandle, keep_up};
use manatee_shared::topology::Topology as State;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::auth::verifier;
use crate::topology::{Publisher, monitor};
use crate::{catalog, http};
use manatee_shared::ids::PeerId;

/// The parts, not yet running.
pub struct Background {
    shared: Arc<Shared>,
    own: monitor::Settings,
    publisher: Publisher,
    suspicions: mpsc::Receiver<PeerId>,
    questions: verifier::Questions,
    catalogs: catalog::Requests,
}

impl Background {
    pub(super) fn new(
        shared: Arc<Shared>,
        own: monitor::Settings,
        publisher: Publisher,
        suspicions: mpsc::Receiver<PeerId>,
        questions: verifier::Questions,
        catalogs: catalog::Requests,
    ) -> Self {
        Self { shared, own, publisher, suspicions, questions, catalogs }
    }

    /// Follows `state` and serves look-ups until `stop`.
    pub async fn run(self, state: watch::Receiver<Option<State>>, stop: CancellationToken) {
        let Self { shared, own, publisher, suspicions, questions, catalogs } = self;
        let verifiers = verifier::serve(own.clone(), shared.topology.clone(), questions, stop.clone());
        let catalogs =
            catalog::serve(own.clone(), shared.topology.clone(), catalogs, catalog::RELOAD_EVERY, stop.clone());
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

/// Serves `/metrics` and the others until `stop`.
pub async fn serve_http(
    listener: TcpListener,
    shared: Arc<Shared>,
    state: http::StateWatch,
    metrics: PrometheusHandle,
    stop: CancellationToken,
) {
    let sources = http::Sources { shared, state, metrics: metrics.clone() };
    tokio::spawn(keep_up(metrics, stop.clone()));
    let served = axum::serve(listener, http::router(sources)).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = served.await {
        tracing::error!(%error, "HTTP ended");
    }
}

/// Reloads at every SIGHUP.
pub async fn follow_hangups(shared: Arc<Shared>) {
    let mut hangups = match Hangups::listen() {
        Ok(hangups) => hangups,
        Err(error) => return tracing::error!(%error, "cannot listen for SIGHUP"),
    };
    loop {
        hangups.next().await;
        // What went wrong is in the log.
        let _ = shared.reload().await;
    }
}
