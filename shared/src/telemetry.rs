//! Logs and metrics, the same way in both programs.

use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, PrometheusBuilder};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

pub use metrics_exporter_prometheus::PrometheusHandle;

/// Format of log events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The `[log]` section of both programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    /// Text or JSON.
    pub format: LogFormat,
    /// Filter of the log, in tracing-subscriber's syntax.
    pub filter: String,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".to_owned() }
    }
}

/// Reason why logs or metrics could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not in tracing-subscriber's syntax.
    #[error("`log.filter`: `{filter}` is not a filter: {problem}; write it like \"info,manatee_sitter=debug\"")]
    Filter {
        /// As configured.
        filter: String,
        /// Problem.
        problem: String,
    },
    /// Something else in this process already took the logs.
    #[error("logging is already set up: {0}")]
    LogsTaken(String),
    /// The metrics cannot be set up.
    #[error("cannot set up metrics")]
    Metrics(#[from] BuildError),
    /// Something else in this process already took the metrics.
    #[error("metrics are already set up: {0}")]
    MetricsTaken(String),
}

impl LogSettings {
    fn env_filter(&self) -> Result<EnvFilter, TelemetryError> {
        EnvFilter::try_new(&self.filter)
            .map_err(|error| TelemetryError::Filter { filter: self.filter.clone(), problem: error.to_string() })
    }

    /// Checks the settings without applying them.
    pub fn check(&self) -> Result<(), TelemetryError> {
        self.env_filter().map(drop)
    }
}

/// Sends this process's log events to standard error. Once per process.
pub fn init(settings: &LogSettings) -> Result<(), TelemetryError> {
    let builder = tracing_subscriber::fmt().with_env_filter(settings.env_filter()?).with_writer(std::io::stderr);
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    match settings.format {
        LogFormat::Text => builder.with_ansi(ansi).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(|error| TelemetryError::LogsTaken(error.to_string()))
}

/// Bounds of the histograms' buckets in seconds: from a quick query to a takeover gone wrong.
/// Without buckets the exporter would make summaries, which cannot be added up.
pub const SECONDS_BUCKETS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0];

/// Interval of [`PrometheusHandle::run_upkeep`]: histograms queue raw samples until then.
pub const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Makes this process's metrics available for `/metrics` (`handle.render()`). Once per process.
/// [`keep_up`] must run as long as metrics are recorded.
pub fn install_recorder() -> Result<PrometheusHandle, TelemetryError> {
    let recorder = PrometheusBuilder::new().set_buckets(&SECONDS_BUCKETS)?.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|error| TelemetryError::MetricsTaken(error.to_string()))?;
    Ok(handle)
}

/// Empties the histograms' queues every [`UPKEEP_INTERVAL`] until `stop`.
pub async fn keep_up(handle: PrometheusHandle, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
    // Both branches are cancel-safe; neither holds anything.
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        handle.run_upkeep();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_is_none_is_refused_with_the_key() {
        let settings = LogSettings { filter: "info,=,[".to_owned(), ..LogSettings::default() };
        let error = settings.check().expect_err("no filter").to_string();
        assert!(error.starts_with("`log.filter`: `info,=,[` is not a filter"), "{error}");
        assert!(LogSettings::default().check().is_ok());
    }

    #[test]
    fn histograms_come_out_as_histograms() {
        let recorder = PrometheusBuilder::new().set_buckets(&SECONDS_BUCKETS).expect("buckets").build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || metrics::histogram!("manatee_test_seconds").record(0.3));
        let text = handle.render();
        assert!(text.contains("# TYPE manatee_test_seconds histogram"), "{text}");
        assert!(text.contains("manatee_test_seconds_bucket{le=\"0.5\"} 1"), "{text}");
    }
}
