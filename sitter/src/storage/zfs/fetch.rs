//! Receiving a stream from a peer into staging.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use manatee_shared::ids::PeerId;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::process::Child;
use tokio::sync::OwnedMutexGuard;

use super::command::PATH;
use super::{Zfs, clean, stream};
use crate::host::osuser::OsUser;
use crate::host::{Error, files};
use crate::status::CopyMethod;
use crate::storage::directory::base_backup;
use crate::storage::progress::Begin;
use crate::storage::pull::{Incoming, Refusal};
use crate::storage::{Source, Storage, StreamRequest};

/// Longest time for `zfs receive` to end once its input has: it writes out what it has, or, of a broken
/// stream, what it needs to resume.
const ENDING: Duration = Duration::from_secs(120);

/// Longest time for `zfs receive` to take nothing: a pool that writes out what it has is slow, one that failed takes
/// nothing any more.
const STALL: Duration = Duration::from_secs(300);

/// Note beside a stream that may be resumed: only its own source can.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Transfer {
    source: PeerId,
    /// It builds upon nothing.
    full: bool,
}

/// The right to receive, for as long as anybody has a clone of it.
type StagingGuard = Arc<OwnedMutexGuard<()>>;

/// `zfs receive`. Dropping this ends it, in the background: one that is killed still writes out what it has taken, and
/// moves the point to resume from, before it is gone. Its turn lasts until then.
struct Receiver {
    child: Option<Child>,
    turn: StagingGuard,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let turn = Arc::clone(&self.turn);
        // Without a runtime the process ends, and `zfs receive` with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                // One that has ended already is as good.
                let _ = child.kill().await;
                drop(turn);
            });
        }
    }
}

/// Fills staging, by the best way that the source offers.
pub(super) async fn fetch(zfs: &Zfs, source: &Source) -> Result<CopyMethod, Error> {
    let timeout = Error::Timeout { what: "the end of an abandoned zfs receive".to_owned(), timeout: ENDING };
    let turn = tokio::time::timeout(ENDING, Arc::clone(&zfs.receiving).lock_owned()).await.map_err(|_| timeout)?;
    let turn = Arc::new(turn);
    zfs.make_root().await?;
    let resume = resumable(zfs, source).await?;
    let was_resumed = resume.is_some();
    match pull(zfs, source, resume, &turn).await {
        Err(Refusal::Gone) if was_resumed => match pull(zfs, source, None, &turn).await {
            Ok(method) => Ok(method),
            Err(refusal) => instead(zfs, source, refusal).await,
        },
        Ok(method) => Ok(method),
        Err(refusal) => instead(zfs, source, refusal).await,
    }
}

async fn instead(zfs: &Zfs, source: &Source, refusal: Refusal) -> Result<CopyMethod, Error> {
    match refusal {
        Refusal::NotFit(error) => Err(error),
        Refusal::Gone => {
            let problem = "it says that a stream is gone that nobody asked for".to_owned();
            Err(Error::SourceNotFit { source_peer: source.peer, problem })
        }
        Refusal::NoStreams => {
            if !source.tablespaces.is_empty() {
                let problem = "it has tablespaces, which the ZFS dataset here cannot hold: move what is in them to pg_default \
                               and drop them, or set storage.kind = \"directory\" here";
                return Err(Error::SourceNotFit { source_peer: source.peer, problem: problem.to_owned() });
            }
            tracing::info!(source = %source.peer, "the source has no ZFS streams: copying by pg_basebackup");
            zfs.stage().await?;
            base_backup(&zfs.bin_dir, &zfs.layout, &zfs.user, source, &zfs.progress).await?;
            Ok(CopyMethod::BaseBackup)
        }
    }
}

/// The token of an interrupted stream from `source`, of the kind that is wanted.
async fn resumable(zfs: &Zfs, source: &Source) -> Result<Option<String>, Error> {
    if !zfs.commands.is_open().await? || zfs.find(&zfs.staging()).await?.is_none() {
        return Ok(None);
    }
    let record = std::fs::read(zfs.layout.transfer()).ok();
    let record: Option<Transfer> = record.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    if record.is_none_or(|record| record.source != source.peer || !(record.full || source.incremental)) {
        return Ok(None);
    }
    let mut properties = zfs.commands.properties(&zfs.staging(), "receive_resume_token").await?;
    Ok(properties.remove("receive_resume_token"))
}

async fn pull(zfs: &Zfs, source: &Source, resume: Option<String>, turn: &StagingGuard) -> Result<CopyMethod, Refusal> {
    let resumes = resume.is_some();
    let fail = Refusal::NotFit;
    let mut snapshots = Vec::new();
    if !resumes {
        // Also: an earlier attempt may have borrowed the data's snapshots.
        zfs.unstage_all().await.map_err(fail)?;
        if source.incremental {
            snapshots = super::Snapshots::list(zfs).await.map_err(fail)?;
        }
    }
    let request = StreamRequest {
        peer: zfs.me,
        system_identifier: source.system.0.clone(),
        snapshots,
        resume,
        open_zfs: zfs.commands.is_open().await.map_err(fail)?,
    };
    let incoming = zfs.client.pull(source.peer, &request).await?;
    let method = match incoming.base {
        _ if resumes => CopyMethod::ZfsResumed,
        Some(_) => CopyMethod::ZfsIncremental,
        None => CopyMethod::ZfsFull,
    };
    if let Some(guid) = incoming.base {
        let base = request.snapshots.iter().find(|snapshot| snapshot.guid == guid);
        let unknown =
            || Error::SourceNotFit { source_peer: source.peer, problem: "it builds upon what we lack".into() };
        let base = base.ok_or_else(unknown).map_err(fail)?;
        zfs.clone_to_staging(base).await.map_err(fail)?;
        // A stream is only received by the file system that has the snapshot it builds upon.
        zfs.commands.run(&["promote", &zfs.staging()]).await.map_err(fail)?;
    }
    if !resumes {
        let transfer = Transfer { source: source.peer, full: incoming.base.is_none() };
        let record = serde_json::to_string(&transfer).unwrap_or_default();
        files::replace(&zfs.layout.transfer(), &record, &zfs.user).map_err(fail)?;
    }
    let received = receive(zfs, source.peer, incoming, method, turn).await;
    if let Err(error) = received {
        if resumable(zfs, source).await.ok().flatten().is_none()
            && let Err(error) = zfs.unstage_all().await
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "a broken copy was not removed");
        }
        return Err(fail(error));
    }
    let path = zfs.layout.staging();
    zfs.mount(&zfs.staging(), &path).await.map_err(fail)?;
    clean::clean(&path, &zfs.user).await.map_err(fail)?;
    files::remove(&zfs.layout.transfer()).map_err(fail)?;
    Ok(method)
}

async fn receive(
    zfs: &Zfs,
    source: PeerId,
    mut incoming: Incoming,
    method: CopyMethod,
    turn: &StagingGuard,
) -> Result<(), Error> {
    let copying = zfs.progress.begin(Begin {
        source,
        port: source.backup_port,
        dataset: incoming.dataset.clone(),
        method,
        size: incoming.size,
    });
    let wanted = incoming.snapshot;
    let result = pump(zfs, &mut incoming, turn, |bytes| copying.completed(bytes)).await;
    let result = match result {
        Ok(()) => arrived(zfs, wanted).await,
        Err(error) => Err(error),
    };
    match &result {
        Ok(()) => copying.done(),
        Err(error) => copying.failed(error),
    }
    result
}

/// From the network into `zfs receive`. Dropping this ends it.
async fn pump(zfs: &Zfs, incoming: &mut Incoming, turn: &StagingGuard, completed: impl Fn(u64)) -> Result<(), Error> {
    let program = zfs.commands.program();
    let open = zfs.commands.is_open().await?;
    let mut command = std::process::Command::new(&program);
    // Not mounted while it is half, and kept when it is interrupted, where that can be asked for.
    command.arg("receive").args(if open { &["-s", "-u"][..] } else { &[] }).arg(zfs.staging());
    command.env_clear().env("PATH", PATH).env("LC_ALL", "C").current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    OsUser::ourselves().apply(&mut command);
    OsUser::die_with_parent(&mut command);
    let mut command = tokio::process::Command::from(command);
    let mut child = command.kill_on_drop(true).spawn().map_err(Error::io("run", &program))?;
    let said = tokio::spawn(stream::what_was_said(child.stderr.take()));
    let no_pipe = || Error::io("run", &program)(std::io::Error::other("no pipe"));
    let mut stdin = child.stdin.take().ok_or_else(no_pipe)?;
    let mut receiver = Receiver { child: Some(child), turn: Arc::clone(turn) };
    stream::widen_pipe(&stdin);
    let mut total = 0;
    let broken = loop {
        match incoming.next().await {
            Ok(Some(piece)) => {
                let stalled = |_| Error::Timeout { what: "zfs receive".to_owned(), timeout: STALL };
                if tokio::time::timeout(STALL, stdin.write_all(&piece)).await.map_err(stalled)?.is_err() {
                    // It ended; it says why.
                    break None;
                }
                total += piece.len() as u64;
                completed(total);
            }
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    drop(stdin);
    let timeout = Error::Timeout { what: "the end of zfs receive".to_owned(), timeout: ENDING };
    let Some(child) = &mut receiver.child else { return Err(no_pipe()) };
    let status = tokio::time::timeout(ENDING, child.wait()).await.map_err(|_| timeout)?;
    let status = status.map_err(Error::io("wait for", &program))?;
    receiver.child = None;
    if let Some(error) = broken {
        return Err(error);
    }
    if status.success() {
        return Ok(());
    }
    let said = said.await.unwrap_or_default();
    Err(Error::Program { program: "zfs receive", outcome: status.to_string(), output: said.trim().to_owned() })
}

/// Whether what has arrived is what was announced.
async fn arrived(zfs: &Zfs, wanted: u64) -> Result<(), Error> {
    let found = zfs.commands.snapshots(&zfs.staging()).await?;
    if found.last().is_some_and(|snapshot| snapshot.guid == wanted) {
        return Ok(());
    }
    Err(Error::DataNotFit("the snapshot that was announced did not arrive".to_owned()))
}
