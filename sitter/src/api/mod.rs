//! The sitter's HTTP API: the same router on the peer's backup port and, where Manatee 2 had its
//! status server, on the status port. Reports only read the driver's newest [`Status`] and are open
//! to all; what changes or copies data needs the shard's token ([`auth`]).

mod auth;
mod backup;
mod fitness;
mod manatee2;
pub mod rebuild;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router, middleware};
use manatee_shared::config::Secret;
use serde::Serialize;
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use self::rebuild::Control;
use crate::driver::status::{Check, Status};
use crate::storage::progress::Progress;

/// Renders the Prometheus page.
pub type Metrics = Arc<dyn Fn() -> String + Send + Sync>;

/// State that the handlers read.
#[derive(Clone)]
pub struct Api {
    /// The driver's newest status.
    pub status: watch::Receiver<Arc<Status>>,
    /// The metrics page.
    pub metrics: Metrics,
    /// Copies of data to this peer.
    pub progress: Progress,
    /// Control of the data.
    pub control: Arc<dyn Control>,
    /// Shared secret of the shard; None refuses what needs it.
    pub token: Option<Secret>,
    /// Bounds the copies served at a time; see [`Api::transfers`].
    pub transfers: Arc<Semaphore>,
}

impl Api {
    /// For [`Api::transfers`]: as many as one peer serves.
    pub fn transfers() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(backup::TRANSFERS))
    }

    fn now(&self) -> (Arc<Status>, Instant) {
        (Arc::clone(&self.status.borrow()), Instant::now())
    }
}

/// The load balancers' checks. HEAD and GET are answered alike, 200 or 503.
const CHECKS: [(&str, Check); 13] = [
    ("/primary", Check::Primary),
    ("/read-write", Check::Primary),
    ("/sync", Check::Sync),
    ("/synchronous", Check::Sync),
    ("/async", Check::Async),
    ("/asynchronous", Check::Async),
    ("/replica", Check::Replica),
    ("/read-only", Check::ReadOnly),
    ("/health", Check::Health),
    ("/liveness", Check::Liveness),
    ("/healthz", Check::Liveness),
    ("/readiness", Check::Readiness),
    ("/readyz", Check::Readiness),
];

/// Other endpoints, for the list at `/`.
const PAGES: [&str; 9] =
    ["/", "/backup", "/heartbeat", "/metrics", "/ping", "/rebuild", "/restore", "/state", "/status"];

/// The API.
pub fn router(api: Api) -> Router {
    let mut router = Router::new()
        .route("/", get(index))
        .route("/status", get(status))
        .route("/heartbeat", get(heartbeat))
        .route("/metrics", get(metrics))
        .route("/ping", get(manatee2::ping))
        .route("/state", get(manatee2::state))
        .route("/restore", get(rebuild::restore));
    for (path, check) in CHECKS {
        router = router.route(path, get(move |State(api): State<Api>| async move { answer_check(&api, check) }));
    }
    let guarded = Router::new()
        .route("/backup", post(backup::backup))
        .route("/rebuild", post(rebuild::rebuild))
        .route_layer(middleware::from_fn_with_state(api.clone(), auth::require_token));
    router.merge(guarded).with_state(api)
}

/// Longest time for a client to take nothing of what is sent to it: else one that hangs would keep a transfer, and the
/// snapshot that is sent, for ever.
const UNREAD: Duration = Duration::from_secs(120);

/// Serves the API on `listener` until the returned future is dropped.
pub async fn serve(listener: TcpListener, router: Router) -> std::io::Result<()> {
    let listener = listener.tap_io(|connection| {
        // Also when the other side's system answers and its program does not (tcp(7)).
        if let Err(error) = SockRef::from(&*connection).set_tcp_user_timeout(Some(UNREAD)) {
            tracing::debug!(%error, "a connection has no bound");
        }
    });
    axum::serve(listener, router).await
}

/// Opens the API's port at `address`, waiting up to `patience` for one that is just being freed.
pub async fn bind(address: SocketAddr, patience: Duration) -> std::io::Result<TcpListener> {
    let end = Instant::now() + patience;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            result => return result,
        }
    }
}

async fn index() -> Json<Vec<&'static str>> {
    let mut paths: Vec<_> = PAGES.into_iter().chain(CHECKS.map(|(path, _)| path)).collect();
    paths.sort_unstable();
    Json(paths)
}

async fn status(State(api): State<Api>) -> Response {
    Json(&api.now().0.report).into_response()
}

/// A driver that is stuck gives no heartbeat: its peer must not pass for healthy.
async fn heartbeat(State(api): State<Api>) -> Response {
    let (status, now) = api.now();
    if !status.is_live(now) {
        return (StatusCode::SERVICE_UNAVAILABLE, "the sitter's driver is stuck").into_response();
    }
    Json(status.heartbeat()).into_response()
}

async fn metrics(State(api): State<Api>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], (api.metrics)()).into_response()
}

/// Body of a check's answer, for people.
#[derive(Serialize)]
struct CheckAnswer<'a> {
    role: String,
    generation: Option<u64>,
    reason: &'a str,
}

fn answer_check(api: &Api, check: Check) -> Response {
    let (status, now) = api.now();
    let code = if status.passes(check, now) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = CheckAnswer {
        role: status.role.to_string(),
        generation: status.report.generation,
        reason: &status.report.decision.reason,
    };
    (code, Json(body)).into_response()
}

#[cfg(test)]
mod tests;
