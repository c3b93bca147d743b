//! Sending: which stream to offer, and the pipe from `zfs send`.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdout};
use tokio::sync::Mutex;

use super::Zfs;
use super::command::{Commands, PATH};
use crate::host::Error;
use crate::host::osuser::OsUser;
use crate::storage::{Outgoing, Snapshot, Snapshots, StreamRequest};

/// The tag of our holds. zfs-fuse cannot list tags, so there is only this one.
const TAG: &str = "manatee";
/// Pieces of a stream are at most this large.
const PIECE_BYTES: usize = 1 << 20;
/// One smaller than [`SMALL_BYTES`] is given this time to grow: `zfs send` writes block by block, and to carry each on
/// by itself costs more than its bytes. The pipe holds what comes meanwhile, so that nobody waits for us.
const GATHER: Duration = Duration::from_millis(1);
/// Worth carrying on.
const SMALL_BYTES: usize = 128 << 10;
/// Bytes that the kernel may buffer between `zfs` and us: fewer, larger reads and writes.
const PIPE_BYTES: i32 = 1 << 20;
/// Longest time for `zfs send` to give nothing: longer than the other side waits, so that it is the one to complain.
const STALL: Duration = Duration::from_secs(60);
/// Number of bytes that are kept of what `zfs send` says of a failure.
const SAID_BYTES: u64 = 2048;

/// Snapshots that transfers use, held so that nobody destroys them. Clones are one.
#[derive(Clone, Debug)]
pub(crate) struct Holds {
    commands: Arc<Commands>,
    /// Number of transfers that use each; locked while its hold changes.
    counts: Arc<Mutex<BTreeMap<String, usize>>>,
}

/// A snapshot is held as long as this lives.
#[derive(Debug)]
struct HoldGuard {
    holds: Holds,
    snapshot: String,
}

impl Holds {
    pub(super) fn new(commands: Arc<Commands>) -> Self {
        Self { commands, counts: Arc::default() }
    }

    async fn hold(&self, snapshot: &str) -> Result<HoldGuard, Error> {
        let mut counts = self.counts.lock().await;
        let count = counts.entry(snapshot.to_owned()).or_default();
        if *count == 0 {
            let output = self.commands.any(&["hold", TAG, snapshot]).await?;
            // Left by a process that died: as good as ours.
            if !output.success && !output.stderr.contains("exists") {
                counts.remove(snapshot);
                return Err(output.into_error("zfs"));
            }
        }
        *count += 1;
        Ok(HoldGuard { holds: self.clone(), snapshot: snapshot.to_owned() })
    }

    /// Gives up the hold of a process before us.
    pub(super) async fn forget(&self, snapshot: &str) {
        let counts = self.counts.lock().await;
        if !counts.contains_key(snapshot) {
            // It usually has none, which is an error to `zfs`.
            let _ = self.commands.any(&["release", TAG, snapshot]).await;
        }
    }

    async fn release(&self, snapshot: &str) {
        let mut counts = self.counts.lock().await;
        let Some(count) = counts.get_mut(snapshot) else { return };
        *count -= 1;
        if *count == 0 {
            counts.remove(snapshot);
            if let Err(error) = self.commands.run(&["release", TAG, snapshot]).await {
                tracing::warn!(error = &error as &dyn std::error::Error, snapshot, "a hold was not released");
            }
        }
    }
}

impl Drop for HoldGuard {
    fn drop(&mut self) {
        let (holds, snapshot) = (self.holds.clone(), std::mem::take(&mut self.snapshot));
        // Without a runtime the process ends, and the next start releases it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { holds.release(&snapshot).await });
        }
    }
}

/// A stream that could be sent.
#[derive(Debug)]
struct Offer {
    /// Dataset that is sent.
    dataset: String,
    /// The snapshot that the other side will have.
    snapshot: Snapshot,
    /// The one of theirs that it builds upon.
    base: Option<Snapshot>,
    /// Estimate of its bytes.
    size: Option<u64>,
    /// `zfs send` and its options.
    arguments: Vec<String>,
    holds: Vec<HoldGuard>,
}

/// Begins to send what was asked for.
pub(super) async fn send(zfs: &Zfs, request: &StreamRequest) -> Result<Outgoing, Error> {
    let offer = offer(zfs, request).await?;
    begin(&zfs.commands, offer)
}

/// Stream that can be sent, held.
async fn offer(zfs: &Zfs, request: &StreamRequest) -> Result<Offer, Error> {
    let open = request.open_zfs && zfs.commands.is_open().await?;
    check_extent(zfs)?;
    if let Some(token) = &request.resume {
        return resume(zfs, token).await;
    }
    let data = zfs.data();
    let mine = zfs.commands.snapshots(&data).await?;
    let theirs = |snapshot: &&Snapshot| request.snapshots.iter().any(|their| their.guid == snapshot.guid);
    let base = mine.iter().rev().find(theirs).cloned();
    let mut holds = Vec::new();
    if let Some(base) = &base {
        holds.push(zfs.holds.hold(&format!("{data}@{}", base.name)).await?);
    }
    let snapshot = zfs.take().await?;
    let full = format!("{data}@{}", snapshot.name);
    holds.push(zfs.holds.hold(&full).await?);
    let mut arguments: Vec<String> = Vec::new();
    if open {
        let encryption = zfs.commands.properties(&data, "encryption").await?;
        let is_encrypted = encryption.get("encryption").is_some_and(|value| value != "off");
        // Raw: stays encrypted on the way and there. Else as it is on disk: compressed, in its own blocks.
        arguments
            .extend(if is_encrypted { &["-w"][..] } else { &["-L", "-c"][..] }.iter().map(|&flag| flag.to_owned()));
    }
    if let Some(base) = &base {
        arguments.extend(["-i".to_owned(), format!("@{}", base.name)]);
    }
    arguments.push(full.clone());
    let size = if open { dry_run(zfs, &arguments).await?.0 } else { estimate(zfs, &full, base.is_some()).await };
    Ok(Offer { dataset: data, snapshot, base, size, arguments, holds })
}

/// The rest of an interrupted stream. The token names the snapshot, which must be one of ours.
async fn resume(zfs: &Zfs, token: &str) -> Result<Offer, Error> {
    let arguments = vec!["-t".to_owned(), token.to_owned()];
    let refused = |problem: String| Error::NotResumable(problem);
    // `1-…-…-…` in hexadecimal digits (`zfs_send_resume_token_to_nvlist`).
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
        return Err(refused("that is no token".to_owned()));
    }
    let (size, name) = dry_run(zfs, &arguments).await.map_err(|error| refused(error.to_string()))?;
    let name = name.ok_or_else(|| refused("the token names no snapshot".to_owned()))?;
    let data = zfs.data();
    let wanted = name.strip_prefix(&format!("{data}@")).ok_or_else(|| refused(format!("{name} is not sent here")))?;
    let mine = zfs.commands.snapshots(&data).await?;
    let snapshot = mine.into_iter().find(|snapshot| snapshot.name == wanted);
    let snapshot = snapshot.ok_or_else(|| refused(format!("{name} is gone")))?;
    let holds = vec![zfs.holds.hold(&name).await?];
    Ok(Offer { dataset: data, snapshot, base: None, size, arguments, holds })
}

/// Size, and the snapshot's name if a token named it, of a stream that OpenZFS would send.
async fn dry_run(zfs: &Zfs, arguments: &[String]) -> Result<(Option<u64>, Option<String>), Error> {
    let arguments: Vec<&str> = ["send", "-nvP"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
    let output = zfs.commands.any(&arguments).await?;
    if !output.success {
        return Err(output.into_error("zfs"));
    }
    let said = format!("{}\n{}", output.stdout, output.stderr);
    Ok(parse_dry_run(&said))
}

fn parse_dry_run(said: &str) -> (Option<u64>, Option<String>) {
    let size = said.lines().rev().find_map(|line| line.strip_prefix("size\t")?.trim().parse().ok());
    let name = said.lines().find_map(|line| line.trim().strip_prefix("toname = ").map(str::to_owned));
    (size, name)
}

/// zfs-fuse does not tell: of a full stream, what it refers to, unpacked.
async fn estimate(zfs: &Zfs, snapshot: &str, incremental: bool) -> Option<u64> {
    if incremental {
        return None;
    }
    let properties = zfs.commands.properties(snapshot, "referenced,compressratio").await.ok()?;
    let referenced: u64 = properties.get("referenced")?.parse().ok()?;
    // "1.66x"
    let ratio = properties.get("compressratio").map_or("1.00", |ratio| ratio.trim_end_matches('x'));
    let (whole, part) = ratio.split_once('.').unwrap_or((ratio, "0"));
    let hundredths =
        whole.parse::<u64>().ok()?.checked_mul(100)?.checked_add(format!("{part:0<2}").get(..2)?.parse().ok()?)?;
    Some(referenced.saturating_mul(hundredths) / 100)
}

/// One snapshot must hold everything.
fn check_extent(zfs: &Zfs) -> Result<(), Error> {
    match outside(&zfs.layout.data())? {
        None => Ok(()),
        Some(what) => Err(Error::DataNotFit(format!("{what} lies outside of the ZFS dataset"))),
    }
}

/// Part of the data that is not in its own dataset: no copy of it can be made by ZFS.
pub(crate) fn outside(data: &Path) -> Result<Option<&'static str>, Error> {
    let wal = data.join("pg_wal");
    if std::fs::symlink_metadata(&wal).map_err(Error::io("look at", &wal))?.is_symlink() {
        return Ok(Some("pg_wal"));
    }
    let spaces = data.join("pg_tblspc");
    let mut entries = std::fs::read_dir(&spaces).map_err(Error::io("list", &spaces))?;
    Ok(entries.next().is_some().then_some("a tablespace"))
}

/// Widens the pipe that `zfs send` writes to, or reads from: `zfs` is not to wait for us more than needed.
pub(super) fn widen_pipe(pipe: &impl std::os::fd::AsFd) {
    // A limit of the system (`fs.pipe-max-size`) only costs speed.
    let _ = nix::fcntl::fcntl(pipe.as_fd(), nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
}

struct Pump {
    child: Child,
    stdout: ChildStdout,
    said: tokio::task::JoinHandle<String>,
    buffer: BytesMut,
    _holds: Vec<HoldGuard>,
}

fn begin(commands: &Commands, offer: Offer) -> Result<Outgoing, Error> {
    let program = commands.program();
    let mut command = std::process::Command::new(&program);
    command.arg("send").args(&offer.arguments).env_clear().env("PATH", PATH).env("LC_ALL", "C").current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    OsUser::ourselves().apply(&mut command);
    OsUser::die_with_parent(&mut command);
    let mut command = tokio::process::Command::from(command);
    let mut child = command.kill_on_drop(true).spawn().map_err(Error::io("run", &program))?;
    let no_pipe = || Error::io("run", &program)(io::Error::other("no pipe"));
    let stdout = child.stdout.take().ok_or_else(no_pipe)?;
    widen_pipe(&stdout);
    let said = tokio::spawn(what_was_said(child.stderr.take()));
    let pump = Pump { child, stdout, said, buffer: BytesMut::new(), _holds: offer.holds };
    let stream = futures_util::stream::unfold(Some(pump), |pump| async move { step(pump?).await }).boxed();
    let Offer { dataset, snapshot, base, size, .. } = offer;
    Ok(Outgoing { dataset, snapshot, base, size, stream })
}

/// The next piece; at the end, whether `zfs send` was content.
async fn step(mut pump: Pump) -> Option<(io::Result<Bytes>, Option<Pump>)> {
    pump.buffer.reserve(PIECE_BYTES);
    let stalled = || io::Error::other(format!("zfs send gave nothing for {} s", STALL.as_secs()));
    match tokio::time::timeout(STALL, pump.stdout.read_buf(&mut pump.buffer)).await {
        Ok(Ok(0)) => {}
        Ok(Ok(_)) => {
            if pump.buffer.len() < SMALL_BYTES {
                tokio::time::sleep(GATHER).await;
                // Its end, or an error, is met again by the next step.
                let _ = tokio::time::timeout(Duration::ZERO, pump.stdout.read_buf(&mut pump.buffer)).await;
            }
            return Some((Ok(pump.buffer.split().freeze()), Some(pump)));
        }
        Ok(Err(error)) => return Some((Err(error), None)),
        Err(_) => return Some((Err(stalled()), None)),
    }
    match tokio::time::timeout(STALL, pump.child.wait()).await {
        Ok(Ok(status)) if status.success() => None,
        Ok(Ok(status)) => {
            let said = tokio::time::timeout(STALL, &mut pump.said).await;
            let said = said.ok().and_then(Result::ok).unwrap_or_default();
            Some((Err(io::Error::other(format!("zfs send: {status}: {}", said.trim()))), None))
        }
        Ok(Err(error)) => Some((Err(error), None)),
        Err(_) => Some((Err(stalled()), None)),
    }
}

/// The beginning of what comes.
pub(super) async fn what_was_said(stderr: Option<ChildStderr>) -> String {
    let mut text = Vec::new();
    if let Some(stderr) = stderr {
        let mut stderr = BufReader::new(stderr);
        // Whatever could be read is better than nothing; the rest is read so that nobody waits for us.
        let _ = (&mut stderr).take(SAID_BYTES).read_to_end(&mut text).await;
        let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::parse_dry_run;

    #[test]
    fn dry_runs_are_read() {
        let said = "resume token contents:\nnvlist version: 0\n\tobject = 0x2\n\ttoguid = 0x1\n\
            \ttoname = tank/a/data@1700000000001\nfull\ttank/a/data@1700000000001\t1234\nsize\t1234\n";
        assert_eq!(parse_dry_run(said), (Some(1234), Some("tank/a/data@1700000000001".to_owned())));
        assert_eq!(parse_dry_run("full\tx@1\t99\nsize\t99\n"), (Some(99), None));
        assert_eq!(parse_dry_run(""), (None, None));
    }
}
