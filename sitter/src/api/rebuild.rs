//! Copies of data to this peer: how far one has come, and the operator's order for one.
//!
//! - `GET /restore` → `{"restore": null}` before the first copy since the sitter started, else
//!   `{"restore": {uuid, host, port, dataset, done: false | true | "failed", size, completed,
//!   source, method, rate, started, ended, error}}` ([`RestoreAnswer`]). Open to
//!   all, like the other reports.
//! - `POST /rebuild` (needs the token; no body) orders a full copy of this peer's data from another
//!   peer. 202 `{"accepted": true}`: PostgreSQL is stopped and the copy begins as soon as a source
//!   is ready; watch `/restore` (a new `uuid`, then `done`) and `/status`. The order survives a
//!   restart of the sitter. The old data is set aside when the copy is complete.
//!   409 `{"error": …}`: not now, and why: this peer is primary or sync, or a copy is under way.
//!   401, 403: see [`super::auth`]. 503: the sitter is busy; try again.

use std::sync::Arc;

use async_trait::async_trait;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use manatee_shared::cluster::Role;
use serde::Serialize;

use super::Api;
use super::auth::problem;
use crate::data::LocalData;
use crate::driver::status::Status;
use crate::host::Error;
use crate::status::RestoreAnswer;
use crate::storage::{Outgoing, StreamRequest};

/// Control of the local data by the API.
#[async_trait]
pub trait Control: Send + Sync {
    /// Marks the local data as to be replaced by a full copy.
    async fn mark_for_replacement(&self) -> Result<(), Error>;

    /// Begins to send the local data to a peer; None if the storage has no streams.
    async fn send(&self, request: &StreamRequest) -> Result<Option<Outgoing>, Error>;
}

#[async_trait]
impl Control for LocalData {
    async fn mark_for_replacement(&self) -> Result<(), Error> {
        self.order_rebuild().await
    }

    async fn send(&self, request: &StreamRequest) -> Result<Option<Outgoing>, Error> {
        LocalData::send(self, request).await
    }
}

pub(super) async fn restore(State(api): State<Api>) -> Response {
    Json(RestoreAnswer { restore: api.progress.restore() }).into_response()
}

/// `POST /rebuild`.
#[derive(Serialize)]
struct Accepted {
    accepted: bool,
}

pub(super) async fn rebuild(State(api): State<Api>) -> Response {
    if let Some(reason) = refusal(&api.now().0, api.progress.is_copying()) {
        return problem(StatusCode::CONFLICT, reason);
    }
    tracing::warn!("an operator ordered a rebuild of this peer's data");
    match Arc::clone(&api.control).mark_for_replacement().await {
        Ok(()) => (StatusCode::ACCEPTED, Json(Accepted { accepted: true })).into_response(),
        Err(error @ Error::Busy) => problem(StatusCode::SERVICE_UNAVAILABLE, format!("{error}; try again")),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// Reason why this peer's data must not be replaced now.
fn refusal(status: &Status, copying: bool) -> Option<String> {
    if copying || status.report.changes_data() {
        return Some("this peer's data is being copied or rejoined already: see /restore".to_owned());
    }
    if status.state.is_none() {
        return Some("the cluster state was not read yet, so this peer's role is not known".to_owned());
    }
    match status.role {
        Role::Primary => Some("this peer is primary: its data is the shard's; promote another peer first".to_owned()),
        Role::Sync => Some(
            "this peer is sync: without its data the shard could not take over; promote the first async to sync first"
                .to_owned(),
        ),
        Role::Async(_) | Role::Deposed | Role::Unassigned => None,
    }
}
