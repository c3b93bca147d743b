//! Messages in PostgreSQL's log about a standby that cannot stream. There is no other place: the
//! WAL receiver ends with its error, and no view keeps it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Meaning of a message for a standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// This data cannot follow this upstream.
    Hopeless,
    /// Probably the same, but normal for a moment while the upstream itself changes.
    HopelessIfItLasts,
}

/// Time for which a message of the second kind must go on.
const LASTS: Duration = Duration::from_secs(5);

/// Number of bytes of the log that are read at once; more is skipped, the messages repeat.
const CHUNK_BYTES: u64 = 64 << 10;

/// `walsender.c`, `walreceiver.c`, `xlogrecovery.c`, `slot.c` of PostgreSQL 13 to 18.
const MESSAGES: &[(&str, Meaning)] = &[
    ("has already been removed", Meaning::Hopeless),
    ("is not in this server's history", Meaning::Hopeless),
    ("before current recovery point", Meaning::Hopeless),
    ("is not a child of this server's history", Meaning::Hopeless),
    ("database system identifier differs", Meaning::Hopeless),
    ("is ahead of the WAL flush position", Meaning::HopelessIfItLasts),
    ("is behind recovery timeline", Meaning::HopelessIfItLasts),
    ("can no longer access replication slot", Meaning::HopelessIfItLasts),
    ("can no longer get changes from replication slot", Meaning::HopelessIfItLasts),
    ("exceeded the maximum reserved size", Meaning::HopelessIfItLasts),
];

/// Last words of a server whose WAL and timelines do not fit: xlogrecovery.c (`checkTimeLineSwitch`,
/// `InitWalRecovery`, `WaitForWALToBecomeAvailable`), timeline.c, of PostgreSQL 13 to 18. It followed somebody who was promoted
/// against the shard's will.
const UNFIT: &[&str] = &[
    "unexpected timeline ID",
    "unexpected previous timeline ID",
    "is not a child of this server's history",
    "does not contain minimum recovery point",
    "is not a child of database system timeline",
    "but previous recovered WAL file came from timeline",
];

/// Reason why a standby that ended by itself would end so again, by the end of its log.
pub(super) fn unfit(log: &str) -> Option<String> {
    let last_run = log.rsplit("starting PostgreSQL ").next()?;
    let fatal = |line: &&str| ["PANIC:  ", "FATAL:  "].iter().any(|level| line.contains(level));
    let line = last_run.lines().filter(fatal).find(|line| UNFIT.iter().any(|text| line.contains(text)))?;
    Some(line.split_once("] ").map_or(line, |(_, text)| text).trim().to_owned())
}

/// Last error of the WAL receiver, with its detail, by the end of the log.
pub(super) fn last_of_receiver(log: &str) -> Option<String> {
    let lines: Vec<&str> = log.lines().collect();
    let is_end =
        |line: &&str| line.contains("walreceiver") && ["FATAL:  ", "ERROR:  "].iter().any(|level| line.contains(level));
    let at = lines.iter().rposition(is_end)?;
    let text = |line: &str| line.split_once("walreceiver ").map_or(line, |(_, text)| text).trim().to_owned();
    let detail = lines.get(at + 1).filter(|line| line.contains("walreceiver DETAIL:  ")).map(|line| text(line));
    Some([Some(text(lines[at])), detail].into_iter().flatten().collect::<Vec<_>>().join("; "))
}

/// Meaning of a line of the log, if it has one.
pub(super) fn meaning(line: &str) -> Option<Meaning> {
    MESSAGES.iter().find(|(text, _)| line.contains(text)).map(|(_, meaning)| *meaning)
}

/// Follows the log.
#[derive(Debug)]
pub(super) struct Watcher {
    path: PathBuf,
    inode: u64,
    offset: u64,
    /// First sight of a message of the second kind.
    first: Option<Instant>,
    verdict: Option<String>,
    /// The last message that a WAL receiver ended with.
    receiver_error: Option<String>,
}

impl Watcher {
    /// Watches what is written to `path` from now on.
    pub(super) fn new(path: PathBuf) -> Self {
        let mut watcher = Self { path, inode: 0, offset: 0, first: None, verdict: None, receiver_error: None };
        watcher.forget();
        watcher
    }

    /// Forgets what was written so far: the standby streams, or was told otherwise.
    pub(super) fn forget(&mut self) {
        if let Ok(log) = std::fs::metadata(&self.path) {
            (self.inode, self.offset) = (log.ino(), log.len());
        }
        (self.first, self.verdict, self.receiver_error) = (None, None, None);
    }

    /// Reads on; the message by which this data cannot follow, if there was one.
    pub(super) fn look(&mut self, now: Instant) -> Option<&str> {
        for line in self.news().lines() {
            // Without time, process and kind of process.
            let text = line.split_once("] ").map_or(line, |(_, text)| text).trim();
            if let Some((_, error)) =
                text.split_once("walreceiver FATAL:  ").or(text.split_once("walreceiver ERROR:  "))
            {
                self.receiver_error = Some(error.to_owned());
            }
            let lasts = match meaning(line) {
                None => continue,
                Some(Meaning::Hopeless) => true,
                Some(Meaning::HopelessIfItLasts) => now.duration_since(*self.first.get_or_insert(now)) >= LASTS,
            };
            if lasts {
                self.verdict = Some(text.to_owned());
            }
        }
        self.verdict.as_deref()
    }

    /// Last error of a WAL receiver, of what was read.
    pub(super) fn receiver_error(&self) -> Option<&str> {
        self.receiver_error.as_deref()
    }

    /// Complete lines written since.
    fn news(&mut self) -> String {
        let mut read = || {
            let mut log = File::open(&self.path)?;
            let facts = log.metadata()?;
            if facts.ino() != self.inode || facts.len() < self.offset {
                // Put away, or cut: a new one.
                (self.inode, self.offset) = (facts.ino(), 0);
            }
            self.offset = self.offset.max(facts.len().saturating_sub(CHUNK_BYTES));
            if facts.len() == self.offset {
                return Ok(String::new());
            }
            log.seek(SeekFrom::Start(self.offset))?;
            let mut bytes = Vec::new();
            log.take(CHUNK_BYTES).read_to_end(&mut bytes)?;
            let complete = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
            bytes.truncate(complete);
            self.offset += complete as u64;
            std::io::Result::Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn messages_of_divergence_are_known() {
        let table = [
            (
                "FATAL:  could not start WAL streaming: ERROR:  requested starting point 0/5000000 on timeline 1 is not in this server's history",
                Some(Meaning::Hopeless),
            ),
            (
                "FATAL:  could not receive data from WAL stream: ERROR:  requested WAL segment 000000010000000000000003 has already been removed",
                Some(Meaning::Hopeless),
            ),
            (
                "LOG:  new timeline 2 forked off current database system timeline 1 before current recovery point 0/40003A8",
                Some(Meaning::Hopeless),
            ),
            (
                "FATAL:  highest timeline 1 of the primary is behind recovery timeline 2",
                Some(Meaning::HopelessIfItLasts),
            ),
            ("FATAL:  could not connect to the primary server: Connection refused", None),
            ("FATAL:  could not start WAL streaming: ERROR:  replication slot \"x\" does not exist", None),
        ];
        for (line, expected) in table {
            assert_eq!(meaning(line), expected, "{line}");
        }
    }

    #[test]
    fn last_words_count_of_the_last_run_only() {
        let start = "x [1] LOG:  starting PostgreSQL 15.8 on x86_64";
        let panic = "x [2] startup PANIC:  unexpected timeline ID 2 (after 1) in checkpoint record";
        let end = "x [1] LOG:  startup process (PID 2) was terminated by signal 6: Aborted";
        let log = |lines: &[&str]| lines.join("\n");
        let said = unfit(&log(&[start, panic, end]));
        assert_eq!(said.as_deref(), Some("startup PANIC:  unexpected timeline ID 2 (after 1) in checkpoint record"));
        assert_eq!(unfit(&log(&[start, panic, end, start, end])), None, "an earlier run");
        assert_eq!(unfit(&log(&[start, "x [2] PANIC:  could not write to file: No space left on device"])), None);
        let mixed = "x [2] startup FATAL:  according to history file, WAL location 0/465FFE8 belongs to timeline 1, but \
                     previous recovered WAL file came from timeline 2";
        assert!(unfit(&log(&[start, mixed, end])).is_some());
        let note = "x [2] LOG:  unexpected timeline ID 2 in WAL segment";
        assert_eq!(unfit(&log(&[start, note])), None, "not what it ended of");
    }

    #[test]
    fn only_news_count_and_streaming_forgets_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let old = "x [1] walreceiver FATAL:  a has already been removed\n";
        std::fs::write(&path, old).unwrap();
        let mut watcher = Watcher::new(path.clone());
        let now = Instant::now();
        assert_eq!(watcher.look(now), None);
        let mut log = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        write!(log, "x [1] walreceiver FATAL:  b has already ").unwrap();
        assert_eq!(watcher.look(now), None, "not a complete line yet");
        writeln!(log, "been removed").unwrap();
        assert_eq!(watcher.look(now), Some("walreceiver FATAL:  b has already been removed"));
        watcher.forget();
        assert_eq!(watcher.look(now), None);
    }

    #[test]
    fn what_a_receiver_ended_with_is_kept_until_it_streams() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "").unwrap();
        let mut watcher = Watcher::new(path.clone());
        let mut log = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        let full = "could not connect to the primary server: FATAL:  number of requested standby connections exceeds \
                    max_wal_senders (currently 5)";
        writeln!(log, "x [1] walreceiver FATAL:  {full}\nx [2] startup LOG:  waiting for WAL").unwrap();
        assert_eq!(watcher.look(Instant::now()), None);
        assert_eq!(watcher.receiver_error(), Some(full));
        watcher.forget();
        assert_eq!(watcher.receiver_error(), None);
    }

    #[test]
    fn ambiguous_messages_must_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "").unwrap();
        let mut watcher = Watcher::new(path.clone());
        let mut log = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        let start = Instant::now();
        for (second, hopeless) in [(0, false), (3, false), (5, true)] {
            writeln!(log, "[1] FATAL:  highest timeline 1 of the primary is behind recovery timeline 2").unwrap();
            assert_eq!(watcher.look(start + Duration::from_secs(second)).is_some(), hopeless, "{second}");
        }
    }
}
