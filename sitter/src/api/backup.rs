//! `POST /backup`: this peer's data for another one. See [`crate::storage::types`] for the protocol.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use manatee_shared::cluster::Role;
use metrics::{counter, gauge};
use tokio::sync::watch;

use super::Api;
use super::auth::problem;
use super::fitness;
use crate::driver::status::Status;
use crate::host::Error;
use crate::metrics::{BACKUPS, SENT};
use crate::storage::types::{Outgoing, StreamRequest, headers};

/// Streams that one peer serves at a time: more would only make each slower, and the peer itself.
pub(super) const TRANSFERS: usize = 2;
/// Longest time for a peer that is not fit when it has sent everything to be fit again: a server that was too busy to
/// answer for half a second, or a session with ZooKeeper that is being made anew, must not cost the other side all that
/// it has received. Less than that waits in silence.
const SETTLES: Duration = Duration::from_secs(20);

pub(super) async fn backup(State(api): State<Api>, request: Result<Json<StreamRequest>, JsonRejection>) -> Response {
    let request = match request {
        Ok(Json(request)) => request,
        Err(rejection) => return problem(StatusCode::BAD_REQUEST, rejection.body_text()),
    };
    if let Some(reason) = fitness::problem(&api.now().0, &request.system_identifier) {
        return problem(StatusCode::CONFLICT, reason);
    }
    let Ok(permit) = Arc::clone(&api.transfers).try_acquire_owned() else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, format!("this peer serves {TRANSFERS} copies already"));
    };
    let outgoing = match api.control.send(&request).await {
        Ok(Some(outgoing)) => outgoing,
        Ok(None) => {
            return problem(StatusCode::NOT_IMPLEMENTED, "this peer's storage has no snapshots: use pg_basebackup");
        }
        Err(error @ Error::NotResumable(_)) => return problem(StatusCode::GONE, error.to_string()),
        Err(error) => {
            tracing::warn!(peer = %request.peer, error = &error as &dyn std::error::Error, "a copy could not begin");
            return problem(StatusCode::CONFLICT, error.to_string());
        }
    };
    tracing::info!(peer = %request.peer, snapshot = outgoing.snapshot.name, base = outgoing.base.as_ref().map(|base| &base.name),
        size = outgoing.size, "a peer copies our data");
    let headers = describe(&outgoing);
    let status = api.status.clone();
    let system = request.system_identifier.clone();
    let end = futures_util::stream::once(still_fit(status, system));
    let sent = counter!(SENT);
    let serving = ServingGuard::begin(request.peer.to_string());
    let body = outgoing.stream.chain(end).inspect(move |piece| {
        // Dropped with the stream, and so at its end.
        let _held = (&permit, &serving);
        match piece {
            Ok(piece) => sent.increment(piece.len() as u64),
            Err(error) => tracing::warn!(peer = serving.peer, %error, "a copy of our data broke off"),
        }
    });
    // An empty piece would mean nothing to HTTP.
    let body = body.filter(|piece| std::future::ready(!matches!(piece, Ok(piece) if piece.is_empty())));
    (headers, Body::from_stream(body)).into_response()
}

/// The end of the body: what was sent by a peer that is not fit any more must not be taken for good.
async fn still_fit(mut status: watch::Receiver<Arc<Status>>, system: String) -> io::Result<Bytes> {
    let problem = |status: &Status| fitness::problem(status, &system);
    // Who has lost its place does not get it back in time.
    let is_settled = |status: &Arc<Status>| {
        problem(status).is_none() || status.report.stopping || matches!(status.role, Role::Deposed | Role::Unassigned)
    };
    // Only looks, so it may be dropped. Too late, or without a driver, the last status counts.
    let _ = tokio::time::timeout(SETTLES, status.wait_for(is_settled)).await;
    let reason = problem(&status.borrow());
    match reason {
        Some(reason) => Err(io::Error::other(format!("not fit any more: {reason}"))),
        None => Ok(Bytes::new()),
    }
}

fn describe(outgoing: &Outgoing) -> HeaderMap {
    let mut map = HeaderMap::new();
    let mut put = |name: &'static str, value: Option<String>| {
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(&value).ok()) {
            map.insert(HeaderName::from_static(name), value);
        }
    };
    put("content-type", Some("application/octet-stream".to_owned()));
    put(headers::DATASET, Some(outgoing.dataset.clone()));
    put(headers::SNAPSHOT, Some(outgoing.snapshot.guid.to_string()));
    put(headers::BASE, outgoing.base.as_ref().map(|base| base.guid.to_string()));
    put(headers::SIZE, outgoing.size.map(|size| size.to_string()));
    map
}

/// Counts a transfer while it lives.
struct ServingGuard {
    peer: String,
}

impl ServingGuard {
    fn begin(peer: String) -> Self {
        gauge!(BACKUPS).increment(1.0);
        Self { peer }
    }
}

impl Drop for ServingGuard {
    fn drop(&mut self) {
        gauge!(BACKUPS).decrement(1.0);
        tracing::info!(peer = self.peer, "the copy of our data has ended");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use manatee_shared::cluster::Peer;
    use manatee_shared::zk::Session;

    use super::*;
    use crate::driver::status::samples::primary;
    use crate::machine::local::{Data, Server, SystemIdentifier};

    #[tokio::test]
    async fn a_moments_silence_at_the_end_costs_no_copy() {
        let me = Peer::new("10.0.0.1:5432:12345".parse().unwrap(), "a");
        let mut status = Status::nothing(me, "demo".parse().unwrap(), Instant::now());
        status.report.local.data = Data::Present(SystemIdentifier("7".to_owned()));
        (status.role, status.report.zk.session) = (Role::Primary, Session::Connected.into());
        status.report.local.server = Server::Hung { for_ms: 600 };
        let sender = watch::Sender::new(Arc::new(status.clone()));
        for (role, server, fit) in [(Role::Primary, primary(), true), (Role::Deposed, primary(), false)] {
            sender.send_replace(Arc::new(status.clone()));
            let mut end = Box::pin(still_fit(sender.subscribe(), "7".to_owned()));
            assert!(tokio::time::timeout(Duration::ZERO, &mut end).await.is_err(), "it may be over at once");
            let mut after = status.clone();
            (after.role, after.report.local.server) = (role, server);
            sender.send_replace(Arc::new(after));
            let end = tokio::time::timeout(SETTLES / 2, end).await.expect("settled");
            assert_eq!(end.is_ok(), fit, "{role:?} {end:?}");
        }
    }
}
