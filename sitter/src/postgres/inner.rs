//! State that the manager's actions and its observation share.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use manatee_shared::ids::PeerId;
use manatee_shared::lsn::WalPosition;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore, SemaphorePermit, mpsc, oneshot, watch};
use tokio_postgres::Client;

use super::error::Error;
use super::files;
use super::osuser::OsUser;
use super::process::Postmaster;
use super::refused::{self, Refused};
use super::settings::{Layout, Settings};
use super::tool::Tool;
use crate::machine::capacity::Capacities;
use crate::machine::local::{Breach, EndOfWal, Local, ServerConfig, SystemIdentifier};

/// Longest wait of an action for another to end.
const BUSY: Duration = Duration::from_millis(500);

/// The configuration last rendered, kept in `config.json` for the next sitter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// [`super::conf::identity`] of the files; what a session shows as `manatee.config_id`.
    pub(crate) id: String,
    /// Configuration that was rendered.
    pub(crate) config: ServerConfig,
    /// Whether it was seen to be in effect everywhere. False while a change is under way.
    pub(crate) confirmed: bool,
    /// Following under our own name: see [`super::guard`].
    #[serde(default)]
    pub(crate) trusted: bool,
}

/// Facts that actions tell the observation, and the other way round.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// The process, while it lives.
    pub(crate) postmaster: Option<Arc<Postmaster>>,
    /// The observation's session, for actions to use as well.
    pub(crate) session: Option<Arc<Client>>,
    /// The present postmaster was told to stop.
    pub(crate) told_to_stop: bool,
    /// The last postmaster ended without having been told to.
    pub(crate) crashed: bool,
    /// See [`Local::unfit`].
    pub(crate) unfit: Option<String>,
    /// See [`Local::loosened`].
    pub(crate) loosened: Vec<String>,
    /// The last time that something was loosened and is in force again, and when that was.
    pub(crate) breach: Option<(Breach, Instant)>,
    /// The configuration.
    pub(crate) record: Option<Record>,
    /// Rises with every change of `record` or `postmaster`: an observation that began under another
    /// number is thrown away, so that what is published was seen after what is confirmed.
    pub(crate) epoch: u64,
    /// Last position seen.
    pub(crate) last_position: Option<WalPosition>,
    /// See [`Local::end`]: of this data, and until a server runs over it.
    pub(crate) end: Option<EndOfWal>,
    /// Size of a WAL segment, once a server was seen to run.
    pub(crate) segment_bytes: Option<u64>,
    /// An upstream found to have another history than ours under the same numbers.
    pub(crate) foreign: Option<PeerId>,
    /// The shard's identity, once known.
    pub(crate) expected_system: Option<SystemIdentifier>,
}

/// Shared by [`super::Postgres`] and its observation task.
#[derive(Debug)]
pub(crate) struct Inner {
    /// Without what PostgreSQL refuses.
    pub(crate) settings: Settings,
    /// That.
    pub(crate) left_out: Vec<Refused>,
    pub(crate) layout: Layout,
    pub(crate) me: PeerId,
    pub(crate) user: OsUser,
    /// Major version of the programs, as in `PG_VERSION`.
    pub(crate) version: String,
    pub(crate) local: watch::Sender<Local>,
    /// The lowest of what the standbys of the shard run with.
    pub(crate) standbys: watch::Sender<Option<Capacities>>,
    /// Wakes the observation when the process changed.
    pub(crate) wake: Notify,
    /// Asks the observation for a fresh look; answered when it is published.
    pub(crate) looks: mpsc::Sender<oneshot::Sender<()>>,
    known: Mutex<Known>,
    /// One permit: one action at a time.
    actions: Semaphore,
}

impl Inner {
    pub(crate) fn new(
        settings: Settings,
        me: PeerId,
        local: Local,
    ) -> Result<(Arc<Self>, mpsc::Receiver<oneshot::Sender<()>>), Error> {
        settings.check(me)?;
        let mut settings = settings;
        let left_out = refused::leave_out(&mut settings)?;
        for refused in &left_out {
            let (key, problem) = (&refused.key, &refused.problem);
            tracing::error!(key, problem, "PostgreSQL refuses this setting: it is left out until it is corrected");
        }
        let user = OsUser::resolve(&settings.os_user)?;
        let version = major_version(&settings.bin_dir)?;
        let layout = settings.layout();
        // More than one action never waits for a look, but one dropped halfway may leave its own.
        let (looks, receiver) = mpsc::channel(8);
        let inner = Self {
            left_out,
            layout,
            me,
            user,
            version,
            local: watch::Sender::new(local),
            standbys: watch::Sender::new(None),
            wake: Notify::new(),
            looks,
            known: Mutex::default(),
            actions: Semaphore::new(1),
            settings,
        };
        Ok((Arc::new(inner), receiver))
    }

    /// Takes the right to act; given back on drop. Waits for a moment: an action that was dropped
    /// is gone at once, and the guard's own takes milliseconds.
    pub(crate) async fn begin(&self) -> Result<SemaphorePermit<'_>, Error> {
        let permit = tokio::time::timeout(BUSY, self.actions.acquire()).await;
        permit.ok().and_then(Result::ok).ok_or(Error::Busy)
    }

    /// The right to act, if nobody has it.
    pub(crate) fn try_begin(&self) -> Option<SemaphorePermit<'_>> {
        self.actions.try_acquire().ok()
    }

    /// Locks what is known. Never held across an await.
    pub(crate) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The running postmaster.
    pub(crate) fn postmaster(&self) -> Option<Arc<Postmaster>> {
        self.known().postmaster.clone()
    }

    /// The session, if PostgreSQL answers.
    pub(crate) fn session(&self) -> Result<Arc<Client>, Error> {
        self.known().session.clone().filter(|session| !session.is_closed()).ok_or(Error::NotAnswering)
    }

    /// A process was started or found.
    pub(crate) fn set_postmaster(&self, postmaster: Arc<Postmaster>) {
        {
            let mut known = self.known();
            known.postmaster = Some(postmaster);
            known.session = None;
            (known.told_to_stop, known.crashed, known.unfit, known.end) = (false, false, None, None);
            known.foreign = None;
            known.epoch += 1;
        }
        self.wake.notify_one();
    }

    /// Notes the configuration, in the file first.
    pub(crate) fn set_record(&self, record: Record) -> Result<(), Error> {
        // A struct of strings, enums and sets always serialises.
        let text = serde_json::to_string_pretty(&record).unwrap_or_default();
        files::replace_volatile(&self.layout.record(), &text, &self.user)?;
        let mut known = self.known();
        known.record = Some(record);
        known.epoch += 1;
        Ok(())
    }

    /// Waits until an observation that began after this call was published, or could not be made.
    pub(crate) async fn refresh(&self) {
        let (sender, receiver) = oneshot::channel();
        if self.looks.send(sender).await.is_ok() {
            // An observation bounds itself; the sender is dropped with the task.
            let _ = receiver.await;
        }
    }

    /// One of PostgreSQL's programs.
    pub(crate) fn tool(&self, name: &'static str) -> Tool {
        Tool::new(&self.settings.bin_dir, name)
    }

    /// Makes the peer's folders.
    pub(crate) fn make_folders(&self) -> Result<(), Error> {
        let dir = self.layout.dir();
        std::fs::create_dir_all(&dir).map_err(Error::io("make", &dir))?;
        // The OS user must reach what is below and make its staging folder here.
        self.user.own(&dir)?;
        files::make_folder(&self.layout.run(), &self.user)?;
        files::make_folder(&self.layout.isolated(), &self.user)
    }
}

/// Major version of `postgres` in `bin_dir`, as `PG_VERSION` has it.
fn major_version(bin_dir: &Path) -> Result<String, Error> {
    let program = bin_dir.join("postgres");
    let output = std::process::Command::new(&program).arg("--version").output().map_err(Error::io("run", &program))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    parse_version(&text).ok_or_else(|| Error::Setting {
        key: "postgres.bin_dir".to_owned(),
        problem: format!("{} says `{}` instead of its version", program.display(), text.trim()),
    })
}

/// `postgres (PostgreSQL) 15.14 (Debian …)`, `… 18beta1`.
fn parse_version(text: &str) -> Option<String> {
    let version = text.split_once("(PostgreSQL) ")?.1;
    let major: String = version.chars().take_while(char::is_ascii_digit).collect();
    (!major.is_empty()).then_some(major)
}

#[cfg(test)]
mod tests {
    use super::parse_version;

    #[test]
    fn versions_are_read() {
        assert_eq!(parse_version("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n").as_deref(), Some("15"));
        assert_eq!(parse_version("postgres (PostgreSQL) 18beta1").as_deref(), Some("18"));
        assert_eq!(parse_version("mysqld 8"), None);
    }
}
