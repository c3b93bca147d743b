//! The sitter's HTTP API: the same router on the peer's backup port and, where Manatee 2 had its
//! status server, on the status port. Everything here only reads the driver's newest [`Status`].

mod manatee2;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::driver::status::{Check, Status};
use crate::heartbeat::Answer;

/// Renders the Prometheus page.
pub type Metrics = Arc<dyn Fn() -> String + Send + Sync>;

/// What the handlers read.
#[derive(Clone)]
pub struct Api {
    /// The driver's newest status.
    pub status: watch::Receiver<Arc<Status>>,
    /// The metrics page.
    pub metrics: Metrics,
}

impl Api {
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
const PAGES: [&str; 6] = ["/", "/heartbeat", "/metrics", "/ping", "/state", "/status"];

/// The API.
pub fn router(api: Api) -> Router {
    let mut router = Router::new()
        .route("/", get(index))
        .route("/status", get(status))
        .route("/heartbeat", get(heartbeat))
        .route("/metrics", get(metrics))
        .route("/ping", get(manatee2::ping))
        .route("/state", get(manatee2::state));
    for (path, check) in CHECKS {
        router = router.route(path, get(move |State(api): State<Api>| async move { answer_check(&api, check) }));
    }
    router.with_state(api)
}

/// Serves the API on `listener` until the returned future is dropped.
pub async fn serve(listener: TcpListener, router: Router) -> std::io::Result<()> {
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
    Json(&*api.now().0).into_response()
}

/// A driver that is stuck gives no heartbeat: its peer must not pass for healthy.
async fn heartbeat(State(api): State<Api>) -> Response {
    let (status, now) = api.now();
    if !status.is_live(now) {
        return (StatusCode::SERVICE_UNAVAILABLE, "the sitter's driver is stuck").into_response();
    }
    let answer = Answer {
        id: status.id,
        stopping: status.stopping,
        postgres_down_ms: status.postgres_down_ms,
        suspects: status.suspects.clone(),
        data: Some(status.local.data.clone()),
        streaming: Some(status.streaming),
        generation: status.generation,
    };
    Json(answer).into_response()
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
    let body =
        CheckAnswer { role: status.role.to_string(), generation: status.generation, reason: &status.decision.reason };
    (code, Json(body)).into_response()
}
