//! Manatee 2's status endpoints, in its formats.

use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use manatee_shared::cluster::{ClusterState, Peer};
use manatee_shared::ids::PeerId;
use serde::Serialize;

use super::Api;
use crate::driver::status::Check;
use crate::machine::action::ActionKind;
use crate::status::Named;

/// `GET /ping`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Ping {
    healthy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    last_check: Timestamp,
}

/// 200 if the local PostgreSQL answers, 503 if not.
pub(super) async fn ping(State(api): State<Api>) -> Response {
    let (status, now) = (api.status.borrow().clone(), Instant::now());
    let healthy = status.passes(Check::Health, now);
    let age = now.saturating_duration_since(status.at);
    let last_check = Timestamp::now().checked_sub(age).unwrap_or(Timestamp::UNIX_EPOCH);
    let error = (!healthy).then(|| status.report.decision.reason.clone());
    let code = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(Ping { healthy, error, last_check })).into_response()
}

/// `GET /state`.
#[derive(Serialize)]
struct State2<'a> {
    id: PeerId,
    role: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pending: Option<&'a Named<ActionKind>>,
    zkstate: Option<&'a ClusterState>,
    zkpeers: &'a [Peer],
}

/// The peer's view of the shard.
pub(super) async fn state(State(api): State<Api>) -> Response {
    let status = api.status.borrow().clone();
    let pending = Some(&status.report.decision.action).filter(|action| **action != ActionKind::Wait);
    Json(State2 {
        id: status.report.id,
        role: status.role.to_string(),
        pending,
        zkstate: status.state.as_deref(),
        zkpeers: &status.active,
    })
    .into_response()
}
