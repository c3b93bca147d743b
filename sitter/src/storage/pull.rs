//! Pulling a stream from another peer's API.

use std::time::Duration;

use bytes::Bytes;
use manatee_shared::config::Secret;
use manatee_shared::ids::PeerId;
use serde::Deserialize;

use super::types::{StreamRequest, headers};
use crate::host::Error;

/// Longest time for making a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest wait for the source to begin: it makes a snapshot first.
const BEGIN: Duration = Duration::from_secs(120);
/// Longest silence of a stream: a busy source reads from its disks, a dead one says nothing.
const SILENCE: Duration = Duration::from_secs(30);

/// Asks other peers for their data.
#[derive(Clone, Debug)]
pub struct Client {
    http: Option<reqwest::Client>,
    token: Option<Secret>,
}

/// Reason why there is no stream.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The source's storage has none.
    NoStreams,
    /// The transfer to be resumed is not there any more.
    Gone,
    /// Another peer should be asked, or this one later.
    NotFit(Error),
}

/// A stream that has begun.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) dataset: String,
    /// Identity of the snapshot that comes.
    pub(crate) snapshot: u64,
    /// Identity of the one it builds upon.
    pub(crate) base: Option<u64>,
    pub(crate) size: Option<u64>,
    source: PeerId,
    response: reqwest::Response,
}

#[derive(Deserialize)]
struct Problem {
    error: String,
}

impl Client {
    /// With the shard's token.
    pub fn new(token: Option<Secret>) -> Self {
        // Peers are reached directly, whatever the environment says of proxies.
        let http = reqwest::Client::builder().connect_timeout(CONNECT).no_proxy().build();
        Self { http: http.ok(), token }
    }

    /// Asks `source` for a stream.
    pub(crate) async fn pull(&self, source: PeerId, request: &StreamRequest) -> Result<Incoming, Refusal> {
        let not_fit = |problem: String| Refusal::NotFit(Error::SourceNotFit { source_peer: source, problem });
        let Some(http) = &self.http else { return Err(not_fit("no HTTP client could be made".to_owned())) };
        let Some(token) = &self.token else {
            return Err(not_fit("it gives its data only to those who know the token: set `api.token_file`".to_owned()));
        };
        let address = std::net::SocketAddr::new(source.ip, source.backup_port);
        let request = http.post(format!("http://{address}/backup")).bearer_auth(token.expose()).json(request);
        let response = match tokio::time::timeout(BEGIN, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(not_fit(describe(&error))),
            Err(_) => return Err(not_fit(format!("no answer within {} s", BEGIN.as_secs()))),
        };
        let code = response.status().as_u16();
        if code != 200 {
            let said = tokio::time::timeout(SILENCE, response.json::<Problem>()).await;
            let said = said.ok().and_then(Result::ok).map(|problem| problem.error).unwrap_or_default();
            return Err(match code {
                501 => Refusal::NoStreams,
                410 => Refusal::Gone,
                _ => not_fit(format!("{said} (HTTP {code})")),
            });
        }
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let number = |name: &str| header(name).and_then(|text| text.parse().ok());
        let snapshot = number(headers::SNAPSHOT).ok_or_else(|| not_fit("it does not say what it sends".to_owned()))?;
        Ok(Incoming {
            dataset: header(headers::DATASET).unwrap_or_default(),
            snapshot,
            base: number(headers::BASE),
            size: number(headers::SIZE),
            source,
            response,
        })
    }
}

impl Incoming {
    /// The next piece; None at the end of a complete stream. Safe to drop.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let broken = |problem: String| Error::SourceNotFit { source_peer: self.source, problem };
        match tokio::time::timeout(SILENCE, self.response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(broken(format!("its stream broke off: {}", describe(&error)))),
            Err(_) => Err(broken(format!("its stream was silent for {} s", SILENCE.as_secs()))),
        }
    }
}

/// An error of the HTTP client with its causes, without the address, which is known.
fn describe(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(error) = cause {
        text = if text.is_empty() { error.to_string() } else { format!("{text}: {error}") };
        cause = error.source();
    }
    if text.is_empty() { "the connection failed".to_owned() } else { text }
}
