//! Settings of PostgreSQL that Manatee owns stay in force, whatever is done to them meanwhile (rule 2).
//!
//! Our settings are the last ones of `postgresql.conf`, but `postgresql.auto.conf`, where ALTER SYSTEM writes, is read
//! after that (`ProcessConfigFileInternal` in guc.c), and both files are anybody's who may write there. So every
//! observation (each 50 ms)
//!
//! * compares the values in effect with what was confirmed ([`conf::WATCHED`]). What differs is published in
//!   [`crate::machine::local::Local::loosened`], and the configuration counts as not confirmed while who acknowledges or
//!   who is followed is among it;
//! * looks whether either file was written, and cleans it: usually before anybody has PostgreSQL read it.
//!
//! Each finding is put right at once by a task of its own, without waiting for a decision: the configuration
//! given last is right until another is given, also while the cluster state is not known (rule 9).
//!
//! Bound: a change takes effect with a reload, is seen within 50 ms, and is undone by a reload of ours, which takes some
//! milliseconds. What was acknowledged in between was on this server alone, and is told: in the log, in `/status`, by
//! `manatee-adm explain` and by a metric.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use tokio::task::JoinHandle;

use super::error::Error;
use super::inner::{Inner, Record};
use super::{apply, conf, files, render};
use crate::machine::local::Breach;

/// Between two tries to put right what does not give way, such as an option of a postmaster started by hand.
const PAUSE: Duration = Duration::from_millis(500);

/// A file as it was when it was last looked at.
type Written = Option<(u64, u64, SystemTime)>;

fn written(path: &Path) -> Written {
    let file = std::fs::metadata(path).ok()?;
    Some((file.ino(), file.len(), file.modified().ok()?))
}

/// Driven by the observation; puts right in a task of its own, one at a time.
pub(super) struct InForce {
    inner: Arc<Inner>,
    task: Option<JoinHandle<()>>,
    tried: Option<Instant>,
    /// `postgresql.conf` and `postgresql.auto.conf`.
    files: [Written; 2],
    /// The files were written, and nobody has cleaned them since: an action was under way, or another task.
    unclean: Arc<AtomicBool>,
    /// Settings that are not in force, and since when.
    loosened: Option<(Vec<String>, Instant)>,
}

impl InForce {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Self { inner, task: None, tried: None, files: [None; 2], unclean: Arc::default(), loosened: None }
    }

    /// Forgets the files: another server may have other ones.
    pub(super) fn forget(&mut self) {
        self.files = [None; 2];
        self.loosened = None;
    }

    /// Compares the `values` of [`conf::WATCHED`] with what `record` says. Returns what is not in force, and whether the
    /// configuration itself is among it.
    pub(super) fn look(&mut self, record: Option<&Record>, values: &[String]) -> (Vec<String>, bool) {
        let layout = &self.inner.layout;
        let files = [layout.main_conf(), layout.altered()].map(|path| written(&path));
        if std::mem::replace(&mut self.files, files) != files {
            self.unclean.store(true, Ordering::Relaxed);
        }
        let Some(record) = record.filter(|record| record.confirmed) else {
            // It is being changed, which cleans the files and confirms the values; what was loosened is so until then.
            return (self.loosened.as_ref().map(|(loosened, _)| loosened.clone()).unwrap_or_default(), true);
        };
        let places = conf::loosened(&self.inner.settings, self.inner.me, &record.config, values);
        let decided = places.iter().any(|place| *place < conf::DECIDED);
        let loosened: Vec<String> = places.iter().map(|place| told(*place, values)).collect();
        self.note(&loosened);
        let may_try = self.tried.is_none_or(|tried| tried.elapsed() >= PAUSE);
        let due = self.unclean.load(Ordering::Relaxed) || (!loosened.is_empty() && may_try);
        if due {
            self.put_right(record.clone(), !loosened.is_empty());
        }
        (loosened, decided)
    }

    /// Logs what has changed, once.
    fn note(&mut self, loosened: &[String]) {
        match &self.loosened {
            None if loosened.is_empty() => {}
            Some((known, _)) if known == loosened => {}
            Some((known, since)) if loosened.is_empty() => {
                let lasted_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
                tracing::error!(
                    settings = known.join("; "),
                    lasted_ms,
                    "settings that Manatee owns are in force again"
                );
                let breach = Breach { settings: known.clone(), lasted_ms };
                self.inner.known().breach = Some((breach, Instant::now()));
                metrics::counter!(crate::metrics::LOOSENED_TOTAL).increment(1);
                self.loosened = None;
                self.tried = None;
            }
            _ => {
                tracing::error!(
                    settings = loosened.join("; "),
                    "settings that Manatee owns are not in force: somebody changed them by ALTER SYSTEM or in a file; putting them right"
                );
                let since = self.loosened.take().map_or_else(Instant::now, |(_, since)| since);
                self.loosened = Some((loosened.to_vec(), since));
            }
        }
    }

    fn put_right(&mut self, record: Record, loosened: bool) {
        if self.task.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        self.tried = Some(Instant::now());
        let (inner, unclean) = (Arc::clone(&self.inner), Arc::clone(&self.unclean));
        self.task = Some(tokio::spawn(async move {
            if let Err(error) = put_right(&inner, &record, loosened, &unclean).await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "PostgreSQL's settings could not be put right"
                );
            }
        }));
    }
}

impl Drop for InForce {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// For people: what a setting is. A connection string may hold a password.
fn told(place: usize, values: &[String]) -> String {
    let (name, value) = (conf::WATCHED[place], values.get(place).map_or("", String::as_str));
    if name == "primary_conninfo" { format!("{name} was replaced") } else { format!("{name} is '{value}'") }
}

/// Cleans the files and, if that changed anything or values are wrong, has PostgreSQL read them and confirms it.
/// `unclean` stays set where it could not look, because of an action under way: what was written meanwhile is not forgotten.
async fn put_right(inner: &Inner, record: &Record, loosened: bool, unclean: &AtomicBool) -> Result<(), Error> {
    // An action under way writes the files and confirms the values itself.
    let Some(_one) = inner.try_begin() else { return Ok(()) };
    if inner.known().record.as_ref() != Some(record) {
        return Ok(());
    }
    // Before the files are read: what is written from now on is seen by the next look.
    unclean.store(false, Ordering::Relaxed);
    let cleaned = render::clean_altered(inner)?;
    let included = render::keep_include(inner)?;
    if !cleaned && !included && !loosened {
        return Ok(());
    }
    if loosened {
        // Not confirmed until every process has it again, not only the session that sees the values.
        inner.set_record(Record { confirmed: false, ..record.clone() })?;
    }
    if let Some(postmaster) = inner.postmaster() {
        postmaster.signal(Signal::HUP);
    }
    let confirm = async {
        if cleaned {
            files::make_durable(&inner.layout.altered())?;
        }
        apply::apply(inner, &record.config).await
    };
    let outcome = confirm.await;
    if outcome.is_err() && loosened {
        // To be tried again, also where nobody decides: the values tell that it is not in force.
        inner.set_record(record.clone())?;
    }
    outcome
}
