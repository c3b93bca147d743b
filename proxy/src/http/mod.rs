//! For people and machines that watch: `/metrics`, `/healthz`, `/readyz`, `/topology`.

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use manatee_shared::cluster::Role;
use manatee_shared::ids::ShardName;
use manatee_shared::telemetry::PrometheusHandle;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::topology::{Snapshot, Topology};

/// What the answers are made from.
#[derive(Clone)]
pub struct Sources {
    /// The shard served.
    pub shard: ShardName,
    /// Its topology.
    pub topology: Topology,
    /// Metrics.
    pub metrics: PrometheusHandle,
    /// Cancelled once the proxy is on its way out.
    pub drain: CancellationToken,
}

/// The endpoints.
pub fn router(sources: Sources) -> Router {
    Router::new()
        .route("/metrics", get(async |State(sources): State<Sources>| sources.metrics.render()))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/topology", get(topology))
        .with_state(sources)
}

/// 200 while new clients can be served in some way, so that a balancer may send some.
async fn ready(State(sources): State<Sources>) -> (StatusCode, &'static str) {
    let snapshot = sources.topology.snapshot();
    if sources.drain.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n")
    } else if snapshot.primary.is_some() {
        (StatusCode::OK, "ok\n")
    } else if snapshot.fit_standbys().next().is_some() {
        (StatusCode::OK, "ok, without a primary: reads only\n")
    } else if snapshot.generation == 0 {
        (StatusCode::SERVICE_UNAVAILABLE, "the cluster state is not known yet\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no server is fit\n")
    }
}

async fn topology(State(sources): State<Sources>) -> Json<Value> {
    Json(describe(&sources.shard, &sources.topology.snapshot()))
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
