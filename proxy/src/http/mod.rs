//! For people and machines that watch: `/metrics`, `/healthz`, `/readyz`, `/topology`, a status page.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use manatee_shared::cluster::Role;
use manatee_shared::ids::ShardName;
use manatee_shared::telemetry::PrometheusHandle;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::server::Shared;
use crate::topology::Snapshot;

mod events;
mod exposition;

/// The cluster state as it was last read.
pub type StateWatch = watch::Receiver<Option<manatee_shared::topology::Topology>>;

/// What the answers are made from.
#[derive(Clone)]
pub struct Sources {
    /// The proxy.
    pub shared: Arc<Shared>,
    /// The shard's state in ZooKeeper.
    pub state: StateWatch,
    /// Metrics.
    pub metrics: PrometheusHandle,
}

/// The endpoints.
pub fn router(sources: Sources) -> Router {
    Router::new()
        .route("/", get(async || Html(include_str!("status.html"))))
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(async |State(sources): State<Sources>| ready(&sources, Ready::Any)))
        .route("/readyz/primary", get(async |State(sources): State<Sources>| ready(&sources, Ready::Primary)))
        .route("/readyz/standby", get(async |State(sources): State<Sources>| ready(&sources, Ready::Standby)))
        .route("/topology", get(topology))
        .route("/topology/events", get(async |State(sources): State<Sources>| events::topology(sources.state)))
        .route("/topology/{shard}", get(topology_of))
        .route("/status", get(async |State(sources): State<Sources>| Json(status(&sources).await)))
        .route("/status/events", get(async |State(sources): State<Sources>| events::status(sources)))
        .with_state(sources)
}

/// The recorder's metrics, the session threads' and the process'.
async fn metrics(State(sources): State<Sources>) -> impl IntoResponse {
    let reports = sources.shared.console.crew().report(false).await;
    let mut text = sources.metrics.render();
    text.push_str(&exposition::sessions(&reports));
    text.push_str(&exposition::process(sources.shared.gate.certificates().expires()));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

/// For what a load balancer asks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ready {
    /// Any clients.
    Any,
    /// Those that write.
    Primary,
    /// Those that only read.
    Standby,
}

/// 200 while new clients can be served in that way, so that a balancer may send some.
fn ready(sources: &Sources, wanted: Ready) -> (StatusCode, &'static str) {
    let no = |why| (StatusCode::SERVICE_UNAVAILABLE, why);
    if sources.shared.closed.is_cancelled() {
        return no("shutting down\n");
    }
    let snapshot = sources.shared.topology.snapshot();
    let (primary, standby) = (snapshot.primary.is_some(), snapshot.fit_standbys().next().is_some());
    match (wanted, primary, standby) {
        (Ready::Any | Ready::Primary, true, _) | (Ready::Standby, _, true) => (StatusCode::OK, "ok\n"),
        (Ready::Any, false, true) => (StatusCode::OK, "ok, without a primary: reads only\n"),
        _ if snapshot.generation == 0 => no("the cluster state is not known yet\n"),
        (Ready::Any, ..) => no("no server is fit\n"),
        (Ready::Primary, ..) => no("no primary\n"),
        (Ready::Standby, ..) => no("no standby is fit\n"),
    }
}

/// JSON, or events for whoever accepts those.
async fn topology(State(sources): State<Sources>, headers: HeaderMap) -> Response {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accepted.contains("text/event-stream") {
        return events::topology(sources.state).into_response();
    }
    let shard = sources.shared.config.load().shard.name.clone();
    Json(describe(&shard, &sources.shared.topology.snapshot())).into_response()
}

async fn topology_of(State(sources): State<Sources>, Path(shard): Path<String>) -> Response {
    let name = sources.shared.config.load().shard.name.clone();
    match name.to_string() == shard {
        true => Json(describe(&name, &sources.shared.topology.snapshot())).into_response(),
        false => (StatusCode::NOT_FOUND, "no such shard\n").into_response(),
    }
}

/// What the status page shows.
async fn status(sources: &Sources) -> Value {
    let shared = &sources.shared;
    let reports = shared.console.crew().report(false).await;
    let pools = || reports.iter().flat_map(|(_, report)| &report.pools);
    let nodes = pools().flat_map(|pool| &pool.nodes);
    let shard = shared.config.load().shard.name.clone();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "clients": pools().map(|pool| pool.clients_active + pool.clients_waiting).sum::<usize>(),
        "waiting": pools().map(|pool| pool.clients_waiting).sum::<usize>(),
        "held": reports.iter().map(|(_, report)| report.held).sum::<usize>(),
        "servers": nodes.map(|node| node.in_use + node.idle + node.opening).sum::<usize>(),
        "shards": [describe(&shard, &shared.topology.snapshot())],
    })
}

/// A snapshot as JSON.
pub fn describe(shard: &ShardName, snapshot: &Snapshot) -> Value {
    let primary = snapshot.primary.as_ref().map(|primary| {
        json!({
            "id": primary.node.id,
            "address": primary.node.address,
            "timeline": primary.timeline,
            "position": snapshot.positions.last().map(|sample| sample.lsn),
        })
    });
    let standbys: Vec<Value> = snapshot
        .standbys
        .iter()
        .map(|standby| {
            json!({
                "id": standby.node.id,
                "address": standby.node.address,
                "role": if standby.role == Role::Sync { "sync" } else { "async" },
                "replayed": standby.replayed.lsn,
                "lagMs": u64::try_from(standby.lag.as_millis()).unwrap_or(u64::MAX),
                "fit": standby.fit,
            })
        })
        .collect();
    json!({
        "shard": shard,
        "generation": snapshot.generation,
        "initWal": snapshot.init_wal,
        "namedPrimary": snapshot.reign.map(|reign| reign.primary),
        "primary": primary,
        "standbys": standbys,
        "stateIsCurrent": snapshot.state_is_current,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_known_is_said_plainly() {
        let text = describe(&"demo".parse().expect("name"), &Snapshot::unknown());
        assert_eq!(text["primary"], Value::Null);
        assert_eq!(text["generation"], 0);
        assert_eq!(text["standbys"], json!([]));
    }
}
