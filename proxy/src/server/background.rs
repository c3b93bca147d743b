//! Tasks beside the sessions and the shards' own work: HTTP, and requests to reload.

use std::sync::Arc;

use manatee_shared::shutdown::Hangups;
use manatee_shared::telemetry::{PrometheusHandle, keep_up};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::context::ProxyContext;
use crate::http;

/// Serves `/metrics` and the others until `stop`.
pub async fn serve_http(
    listener: TcpListener,
    shared: Arc<ProxyContext>,
    metrics: PrometheusHandle,
    stop: CancellationToken,
) {
    let sources = http::Sources { shared, metrics: metrics.clone() };
    tokio::spawn(keep_up(metrics, stop.clone()));
    let served = axum::serve(listener, http::router(sources)).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = served.await {
        tracing::error!(%error, "HTTP ended");
    }
}

/// Reloads at every SIGHUP.
pub async fn reload_on_hangup(shared: Arc<ProxyContext>) {
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
