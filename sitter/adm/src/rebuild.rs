//! `manatee-adm rebuild`: orders a full copy of this host's data from another peer, and shows how far
//! it has come. The order is the sitter's to carry out: it goes on when this command is ended.

use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use manatee_shared::config::{self, Secret};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::confirm::confirm;
use super::connect::Connection;
use super::{Outcome, print};
use crate::machine::local::Server;
use crate::report::{CopyState, Restore, RestoreAnswer, SitterStatus};

/// Between two looks at the progress.
const LOOK: Duration = Duration::from_millis(500);
/// The same where nobody watches: a line for the log of whoever runs this.
const LINE: Duration = Duration::from_secs(10);
/// Longest silence of the sitter: it may be restarting.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest wait for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Width of the bar, in characters.
const BAR: u64 = 30;

/// Options.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Do not wait for the copy
    #[arg(long)]
    no_wait: bool,
}

/// Part of a sitter's configuration that matters here.
#[derive(Deserialize)]
struct SitterConfig {
    peer: PeerConfig,
    #[serde(default)]
    api: ApiConfig,
}

#[derive(Deserialize)]
struct PeerConfig {
    ip: IpAddr,
    backup_port: u16,
}

#[derive(Default, Deserialize)]
struct ApiConfig {
    token_file: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Problem {
    error: String,
}

/// The API of the sitter on this host.
struct Api {
    client: reqwest::Client,
    url: String,
    token: Secret,
}

impl Api {
    fn of(config: &Path) -> anyhow::Result<Self> {
        let SitterConfig { peer, api } = config::load(config)?;
        let Some(token) = api.token_file else {
            bail!(
                "{}: `api.token_file` is not set, so the sitter takes no orders; \
                 set it to the same secret on all peers of the shard",
                config.display()
            );
        };
        let client = reqwest::Client::builder().timeout(ANSWER_TIMEOUT).no_proxy().build()?;
        let url = format!("http://{}", SocketAddr::new(peer.ip, peer.backup_port));
        Ok(Self { client, url, token: config::read_secret(&token)? })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let answer = self.client.get(format!("{}{path}", self.url)).send().await?.error_for_status()?;
        Ok(answer.json().await?)
    }

    async fn restore(&self) -> anyhow::Result<Option<Restore>> {
        Ok(self.get::<RestoreAnswer>("/restore").await?.restore)
    }

    async fn order(&self) -> anyhow::Result<()> {
        let request = self.client.post(format!("{}/rebuild", self.url)).bearer_auth(self.token.expose());
        let answer = request.send().await?;
        if answer.status().is_success() {
            return Ok(());
        }
        let code = answer.status();
        match answer.json::<Problem>().await {
            Ok(problem) => bail!("the sitter refuses: {}", problem.error),
            Err(_) => bail!("the sitter refuses: {code}"),
        }
    }
}

/// Orders the copy and shows its progress.
pub async fn run(arguments: Arguments, outer: &Connection) -> anyhow::Result<Outcome> {
    let Some(config) = arguments.connection.sitter_config(outer) else {
        bail!("rebuild is for the peer of a sitter on this host: give --config with its configuration");
    };
    let api = Api::of(&config)?;
    let url = &api.url;
    let before = api.restore().await.with_context(|| format!("the sitter at {url} does not answer; start it first"))?;
    confirm(
        arguments.yes,
        &format!("All data of the peer at {url} is copied anew; until that is complete, the old data is kept aside."),
    )?;
    api.order().await?;
    if arguments.no_wait {
        print("ordered; see how far it is at /restore of the sitter's API\n")?;
        return Ok(Outcome::Fine);
    }
    let began = Instant::now();
    let copied = watch(&api, before.map(|restore| restore.uuid)).await?;
    print(&format!(
        "rebuilt: {} copied in {}, and it streams again\n",
        bytes(copied),
        duration(began.elapsed().as_secs())
    ))?;
    Ok(Outcome::Fine)
}

/// Shows the progress until the peer streams again; returns how much was copied.
async fn watch(api: &Api, before: Option<String>) -> anyhow::Result<u64> {
    let mut display = Display { terminal: io::stderr().is_terminal(), last: String::new(), printed: None };
    let (mut heard, mut reported) = (Instant::now(), None);
    loop {
        tokio::time::sleep(LOOK).await;
        match api.restore().await {
            Ok(restore) => {
                heard = Instant::now();
                let Some(restore) = restore.filter(|restore| before.as_ref() != Some(&restore.uuid)) else {
                    display.show("waiting for a peer to copy from");
                    continue;
                };
                if restore.done == CopyState::Failed && reported.as_ref() != Some(&restore.uuid) {
                    let error = restore.error.as_deref().unwrap_or("no reason given");
                    display.line(&format!("copying from {} failed: {error}; the sitter tries again", restore.source));
                    reported = Some(restore.uuid);
                } else if restore.done == CopyState::Done {
                    let status: SitterStatus = api.get("/status").await?;
                    if matches!(&status.local.server, Server::Standby(standby) if standby.streaming) {
                        display.end();
                        return Ok(restore.completed);
                    }
                    display.show("copied; waiting for it to stream");
                } else if restore.done == CopyState::Running {
                    display.show(&bar(&restore));
                }
            }
            Err(error) if heard.elapsed() > PATIENCE => {
                return Err(error.context(
                    "lost contact with the sitter; the rebuild stays ordered and resumes when the sitter restarts",
                ));
            }
            Err(_) => display.show("the sitter does not answer"),
        }
    }
}

/// One line that changes, on a terminal; now and then a line, elsewhere.
struct Display {
    terminal: bool,
    last: String,
    printed: Option<Instant>,
}

impl Display {
    fn show(&mut self, text: &str) {
        if self.terminal {
            // What was longer before is wiped.
            let width = self.last.chars().count();
            eprint!("\r{text:width$}");
            let _ = io::stderr().flush();
        } else if self.printed.is_none_or(|printed| printed.elapsed() >= LINE) {
            eprintln!("{text}");
            self.printed = Some(Instant::now());
        }
        text.clone_into(&mut self.last);
    }

    fn line(&mut self, text: &str) {
        self.end();
        eprintln!("{text}");
    }

    fn end(&mut self) {
        if self.terminal && !self.last.is_empty() {
            eprintln!();
        }
        self.last.clear();
    }
}

/// `[######------------------------]  20 % 1.2 GiB of 6.0 GiB at 110.0 MiB/s, 0m43s left`.
fn bar(restore: &Restore) -> String {
    let (done, rate) = (restore.completed, restore.rate);
    let at = format!("{} at {}/s", bytes(done), bytes(rate));
    let Some(size) = restore.size.filter(|size| *size > 0) else {
        return format!("{at} from {}", restore.source);
    };
    // The size is an estimate, and may turn out too small.
    let size = size.max(done);
    let filled = usize::try_from(done.saturating_mul(BAR) / size).unwrap_or_default();
    let percent = done.saturating_mul(100) / size;
    let left = (size - done).checked_div(rate).map_or(String::new(), |seconds| format!(", {} left", duration(seconds)));
    let width = usize::try_from(BAR).unwrap_or_default();
    format!(
        "[{:-<width$}] {percent:3} % {} of {} at {}/s{left}",
        "#".repeat(filled),
        bytes(done),
        bytes(size),
        bytes(rate)
    )
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let (mut value, mut unit) = (count as f64 / 1024.0, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    format!("{value:.1} {}", UNITS[unit])
}

fn duration(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
        (hours, minutes, seconds) => format!("{hours}h{minutes:02}m{seconds:02}s"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::*;

    fn restore(size: Option<u64>, completed: u64, rate: u64) -> Restore {
        let json = serde_json::json!({"uuid": "a-1", "host": "10.0.0.2", "port": 5432, "dataset": "x", "done": false,
            "size": size, "completed": completed, "source": "10.0.0.2:5432:12345", "method": "base-backup",
            "rate": rate, "started": "2026-01-01T00:00:00Z", "ended": null, "error": null});
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn the_bar_shows_share_amount_rate_and_time() {
        assert_eq!(
            bar(&restore(Some(6 << 30), (6 << 30) / 5 + 1, 110 << 20)),
            "[######------------------------]  20 % 1.2 GiB of 6.0 GiB at 110.0 MiB/s, 0m44s left"
        );
        let full = format!("[{}] 100 % 2.0 KiB of 2.0 KiB at 0 B/s", "#".repeat(30));
        assert_eq!(bar(&restore(Some(1024), 2048, 0)), full, "the estimate was too small");
        assert_eq!(bar(&restore(None, 512, 256)), "512 B at 256 B/s from 10.0.0.2:5432:12345");
        assert_eq!(duration(3_723), "1h02m03s");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
    }

    #[test]
    fn without_a_token_nothing_is_ordered() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let peer = "shard = \"x\"\n[peer]\nip = \"127.0.0.1\"\npg_port = 1\nbackup_port = 2\n";
        std::fs::write(file.path(), peer).unwrap();
        let error = Api::of(file.path()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("`api.token_file` is not set"), "{error}");
    }
}
