//! `POST /backup`: this peer's data for another one. See [`crate::backup`] for the protocol.

use std::io;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use metrics::{counter, gauge};

use super::Api;
use super::auth::problem;
use crate::backup::{Wish, fitness, headers};
use crate::metrics::{BACKUPS, SENT};
use crate::postgres::Error;
use crate::storage::zfs::stream::Outgoing;

/// Streams that one peer serves at a time: more would only make each slower, and the peer itself.
pub(super) const TRANSFERS: usize = 2;

pub(super) async fn backup(State(api): State<Api>, wish: Result<Json<Wish>, JsonRejection>) -> Response {
    let wish = match wish {
        Ok(Json(wish)) => wish,
        Err(rejection) => return problem(StatusCode::BAD_REQUEST, rejection.body_text()),
    };
    if let Some(reason) = fitness::problem(&api.now().0, &wish.system_identifier) {
        return problem(StatusCode::CONFLICT, reason);
    }
    let Ok(permit) = Arc::clone(&api.transfers).try_acquire_owned() else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, format!("this peer serves {TRANSFERS} copies already"));
    };
    let outgoing = match api.control.send(&wish).await {
        Ok(Some(outgoing)) => outgoing,
        Ok(None) => {
            return problem(StatusCode::NOT_IMPLEMENTED, "this peer's storage has no snapshots: use pg_basebackup");
        }
        Err(error @ Error::NotResumable(_)) => return problem(StatusCode::GONE, error.to_string()),
        Err(error) => {
            tracing::warn!(peer = %wish.peer, error = &error as &dyn std::error::Error, "a copy could not begin");
            return problem(StatusCode::CONFLICT, error.to_string());
        }
    };
    tracing::info!(peer = %wish.peer, snapshot = outgoing.snapshot.name, base = outgoing.base.as_ref().map(|base| &base.name),
        size = outgoing.size, "a peer copies our data");
    let headers = describe(&outgoing);
    let status = api.status.clone();
    let system = wish.system_identifier.clone();
    // What was sent by a peer that is not fit any more must not be taken for good.
    let still_fit = move || match fitness::problem(&status.borrow(), &system) {
        Some(reason) => Err(io::Error::other(format!("not fit any more: {reason}"))),
        None => Ok(Bytes::new()),
    };
    let end = futures_util::stream::once(async move { still_fit() });
    let sent = counter!(SENT);
    let serving = Serving::begin(wish.peer.to_string());
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
struct Serving {
    peer: String,
}

impl Serving {
    fn begin(peer: String) -> Self {
        gauge!(BACKUPS).increment(1.0);
        Self { peer }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        gauge!(BACKUPS).decrement(1.0);
        tracing::info!(peer = self.peer, "the copy of our data has ended");
    }
}
