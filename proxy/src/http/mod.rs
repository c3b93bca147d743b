//! For people and machines that watch: `/metrics`, `/healthz`, `/readyz`, `/topology`, a status page.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use manatee_shared::cluster::Role;
use manatee_shared::ids::ShardName;
use manatee_shared::telemetry::PrometheusHandle;
use serde_json::{Value, json};

use crate::context::ProxyContext;
use crate::shards::Shard;
use crate::topology::Snapshot;

mod events;
mod exposition;

/// Sources of the answers.
#[derive(Clone)]
pub struct Sources {
    /// The proxy.
    pub shared: Arc<ProxyContext>,
    /// Metrics.
    pub metrics: PrometheusHandle,
}

/// The endpoints.
pub fn router(sources: Sources) -> Router {
    Router::new()
        .route("/", get(async || Html(include_str!("status.html"))))
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(async |sources: State<Sources>, which: Query<Which>| ready(sources, which, Ready::Any)))
        .route(
            "/readyz/primary",
            get(async |sources: State<Sources>, which: Query<Which>| ready(sources, which, Ready::Primary)),
        )
        .route(
            "/readyz/standby",
            get(async |sources: State<Sources>, which: Query<Which>| ready(sources, which, Ready::Standby)),
        )
        .route("/topology", get(topology))
        .route("/status", get(async |State(sources): State<Sources>| Json(status(&sources).await)))
        .route("/status/events", get(async |State(sources): State<Sources>| events::status(sources)))
        .with_state(sources)
}

/// The recorder's metrics, the session threads' and the process'.
async fn metrics(State(sources): State<Sources>) -> impl IntoResponse {
    let reports = sources.shared.console.threads().report(false).await;
    let mut text = sources.metrics.render();
    text.push_str(&exposition::sessions(&reports));
    let shards = sources.shared.shards.all();
    let snapshots: Vec<_> = shards.iter().map(|shard| (shard.name.clone(), shard.topology.snapshot())).collect();
    text.push_str(&exposition::standbys(&snapshots));
    text.push_str(&exposition::process(sources.shared.gate.certificates().expires()));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

/// Readiness that a load balancer asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ready {
    /// Any clients.
    Any,
    /// Those that write.
    Primary,
    /// Those that only read.
    Standby,
}

/// Shard that is meant.
#[derive(serde::Deserialize)]
struct Which {
    shard: Option<String>,
}

impl Which {
    /// The one that is named, or the default one.
    fn find(&self, shared: &ProxyContext) -> Option<Arc<Shard>> {
        let name = match &self.shard {
            Some(name) => name.parse().ok()?,
            None => shared.config.load().shard.name.clone(),
        };
        shared.shards.get(&name)
    }
}

/// 200 while new clients can be served in that way, so that a balancer may send some: those of the shard
/// that is named, or else of any.
fn ready(State(sources): State<Sources>, Query(which): Query<Which>, wanted: Ready) -> (StatusCode, String) {
    if sources.shared.closed.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n".to_owned());
    }
    let shards = match &which.shard {
        None => sources.shared.shards.all(),
        Some(_) => which.find(&sources.shared).into_iter().collect(),
    };
    let answers = shards.iter().map(|shard| ready_in(&shard.topology.snapshot(), wanted));
    let (status, text) =
        answers.min_by_key(|(status, _)| *status).unwrap_or((StatusCode::NOT_FOUND, "no such shard\n"));
    // What is open goes on; what is not can soon not be opened any more.
    let refused = sources.shared.own.refused_by();
    let refused = refused.iter().filter(|((name, _), _)| shards.iter().any(|shard| shard.name == *name));
    let details = refused.map(|((shard, node), cause)| format!("own role refused by {node} of {shard}: {cause}\n"));
    (status, text.to_owned() + &details.collect::<String>())
}

fn ready_in(snapshot: &Snapshot, wanted: Ready) -> (StatusCode, &'static str) {
    let no = |why| (StatusCode::SERVICE_UNAVAILABLE, why);
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
async fn topology(State(sources): State<Sources>, Query(which): Query<Which>, headers: HeaderMap) -> Response {
    let Some(shard) = which.find(&sources.shared) else {
        return (StatusCode::NOT_FOUND, "no such shard\n").into_response();
    };
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !accepted.contains("text/event-stream") {
        return Json(describe(&shard.name, &shard.topology.snapshot())).into_response();
    }
    match shard.state() {
        Some(state) => events::topology(state, sources.shared.handed_over.clone()).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the shard is not watched yet\n").into_response(),
    }
}

/// Content of the status page.
async fn status(sources: &Sources) -> Value {
    let shared = &sources.shared;
    let reports = shared.console.threads().report(false).await;
    let pools = || reports.iter().flat_map(|(_, report)| &report.pools);
    let nodes = pools().flat_map(|pool| &pool.nodes);
    let shards: Vec<Value> =
        shared.shards.all().iter().map(|shard| describe(&shard.name, &shard.topology.snapshot())).collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "clients": pools().map(|pool| pool.clients_active + pool.clients_waiting).sum::<usize>(),
        "waiting": pools().map(|pool| pool.clients_waiting).sum::<usize>(),
        "held": reports.iter().map(|(_, report)| report.held).sum::<usize>(),
        "servers": nodes.map(|node| node.in_use + node.idle + node.opening).sum::<usize>(),
        "shards": shards,
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
