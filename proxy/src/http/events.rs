//! Server-sent events. `topology`: an array of PostgreSQL URLs, primary, sync, asyncs, at once and
//! with every change: what node-manatee's `topology` event gave. `status`: what the status page shows. Both
//! end when a successor takes over: browsers and other clients then ask it.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::unfold;
use futures_util::{Stream, StreamExt as _};
use manatee_shared::topology::Topology as State;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Sources;
use crate::shards::StateWatch;

/// A comment is sent so often, so that whoever is gone is noticed on both sides.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// The status page is refreshed so often.
const STATUS_EVERY: Duration = Duration::from_secs(1);

type Events<S> = Sse<axum::response::sse::KeepAliveStream<S>>;

fn sse(
    events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static,
    stop: CancellationToken,
) -> Events<impl Stream<Item = Result<Event, Infallible>>> {
    Sse::new(events.take_until(stop.cancelled_owned())).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}

/// URLs that are sent for a state, in replication order.
fn urls(state: &State) -> Vec<String> {
    state.chain_urls().into_iter().map(str::to_owned).collect()
}

/// The chain, at once if it is known, then with every change of it.
pub(super) fn topology(
    state: StateWatch,
    stop: CancellationToken,
) -> Events<impl Stream<Item = Result<Event, Infallible>>> {
    let first = (state, None::<Vec<String>>, true);
    let events = unfold(first, async |(mut state, sent, first)| {
        let mut look_first = first;
        loop {
            if !std::mem::take(&mut look_first) && state.changed().await.is_err() {
                // Nobody watches any more: the proxy ends.
                return None;
            }
            let newest = state.borrow_and_update().as_ref().map(|state| (state.version, urls(state)));
            let Some((version, urls)) = newest else { continue };
            if sent.as_ref() != Some(&urls) {
                let data = json!(urls).to_string();
                let event = Event::default().event("topology").id(version.to_string()).data(data);
                return Some((Ok(event), (state, Some(urls), false)));
            }
        }
    });
    sse(events, stop)
}

/// Everything the status page shows, every second.
pub(super) fn status(sources: Sources) -> Events<impl Stream<Item = Result<Event, Infallible>>> {
    let stop = sources.shared.handed_over.clone();
    let events = unfold((sources, Instant::now()), async |(sources, due)| {
        // Cancel-safe: a client that leaves ends the stream between two events.
        tokio::time::sleep_until(due).await;
        let data = super::status(&sources).await.to_string();
        Some((Ok(Event::default().event("status").data(data)), (sources, Instant::now() + STATUS_EVERY)))
    });
    sse(events, stop)
}
