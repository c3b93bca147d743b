//! Facts that a data directory tells about itself while no server runs: `pg_control`, `PG_VERSION`,
//! timeline histories. Parsers are pure.

use std::path::{Path, PathBuf};

use manatee_shared::lsn::{Lsn, Timeline, TimelineHistory, WalPosition};

use super::error::Error;
use super::layout::Layout;
use crate::machine::local::{Data, SystemIdentifier};

/// `DBState` of `pg_control` (`catalog/pg_control.h`, the same in PostgreSQL 13 to 18).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClusterMode {
    /// Stopped cleanly as a primary.
    ShutDown,
    /// Stopped cleanly as a standby.
    ShutDownInRecovery,
    /// Ended, or running, as a primary (also: in crash recovery).
    Producing,
    /// Ended, or running, as a standby.
    Recovering,
}

/// Start of `pg_control`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Control {
    /// Identity of the cluster.
    pub(crate) system: SystemIdentifier,
    /// State in which it was last left.
    pub(crate) mode: ClusterMode,
}

/// `ControlFileData` begins with the system identifier (8 bytes), two versions (4 each) and the
/// state (4), in the machine's byte order.
pub(crate) fn parse_control(bytes: &[u8]) -> Option<Control> {
    let system = u64::from_ne_bytes(bytes.get(..8)?.try_into().ok()?);
    let mode = match u32::from_ne_bytes(bytes.get(16..20)?.try_into().ok()?) {
        1 => ClusterMode::ShutDown,
        2 => ClusterMode::ShutDownInRecovery,
        0 | 3 | 4 | 6 => ClusterMode::Producing,
        5 => ClusterMode::Recovering,
        _ => return None,
    };
    (system != 0).then(|| Control { system: SystemIdentifier(system.to_string()), mode })
}

/// Reads `pg_control`.
pub(crate) fn read_control(data: &Path) -> Result<Control, Error> {
    let path = data.join("global/pg_control");
    let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
    parse_control(&bytes).ok_or_else(|| Error::DataNotFit(format!("{} is damaged", path.display())))
}

/// Classifies the data directory; `version` is the major version of the programs.
pub(crate) fn classify(layout: &Layout, version: &str) -> Data {
    let data = &layout.data();
    match std::fs::read_dir(data) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Data::Absent,
        Err(error) => return Data::Unusable(format!("{} cannot be read: {error}", data.display())),
        Ok(mut entries) => {
            if entries.next().is_none() {
                return Data::Absent;
            }
        }
    }
    // A marker that cannot be read is no proof that all is well.
    if !matches!(layout.incomplete().try_exists(), Ok(false)) {
        return Data::Incomplete;
    }
    match std::fs::read_to_string(data.join("PG_VERSION")) {
        Err(error) => return Data::Unusable(format!("{} has no readable PG_VERSION: {error}", data.display())),
        Ok(found) if found.trim() != version => {
            return Data::Unusable(format!(
                "{} is of PostgreSQL {}, the programs are of {version}",
                data.display(),
                found.trim()
            ));
        }
        Ok(_) => {}
    }
    match read_control(data) {
        // Here a marker that cannot be read means the opposite: the data is somebody's.
        Ok(control) if matches!(layout.fresh().try_exists(), Ok(true)) => Data::Fresh(control.system),
        Ok(control) => Data::Present(control.system),
        Err(error) => Data::Unusable(error.to_string()),
    }
}

/// Positions according to `pg_controldata` (with `LC_ALL=C`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ControlPositions {
    /// Start of the latest checkpoint record.
    pub(crate) checkpoint: Lsn,
    /// Begin of a recovery.
    pub(crate) redo: WalPosition,
    /// Least end of a recovery; zero for a primary.
    pub(crate) minimum_recovery: WalPosition,
    /// Size of a WAL segment.
    pub(crate) segment_bytes: u64,
}

/// Reads the output of `pg_controldata`.
pub(crate) fn parse_controldata(text: &str) -> Option<ControlPositions> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let timeline = |name: &str| field(name)?.parse().ok().map(Timeline);
    let lsn = |name: &str| field(name)?.parse::<Lsn>().ok();
    Some(ControlPositions {
        checkpoint: lsn("Latest checkpoint location")?,
        redo: WalPosition {
            timeline: timeline("Latest checkpoint's TimeLineID")?,
            lsn: lsn("Latest checkpoint's REDO location")?,
        },
        minimum_recovery: WalPosition {
            timeline: timeline("Min recovery ending loc's timeline")?,
            lsn: lsn("Minimum recovery ending location")?,
        },
        segment_bytes: field("Bytes per WAL segment")?.parse().ok()?,
    })
}

/// Reads a `.history` file (`timeline.c`): per line the parent timeline, where it was left, and a
/// reason; `#` begins a comment.
pub(crate) fn parse_history(text: &str) -> TimelineHistory {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        Some(WalPosition { timeline: Timeline(words.next()?.parse().ok()?), lsn: words.next()?.parse().ok()? })
    };
    TimelineHistory(text.lines().filter_map(line).collect())
}

/// Name of a timeline's history file.
pub(crate) fn history_file(timeline: Timeline) -> String {
    format!("{:08X}.history", timeline.0)
}

/// Name of the segment file that holds the byte at `lsn`.
pub(crate) fn segment_file(timeline: Timeline, lsn: Lsn, segment_bytes: u64) -> String {
    let segment_bytes = segment_bytes.max(1);
    let number = lsn.0 / segment_bytes;
    let per_log = (1 << 32) / segment_bytes;
    format!("{:08X}{:08X}{:08X}", timeline.0, number / per_log, number % per_log)
}

/// Begin of the segment of this file's name.
pub(crate) fn segment_begin(name: &str, segment_bytes: u64) -> Option<Lsn> {
    let part = |range| u64::from_str_radix(name.get(range)?, 16).ok();
    let per_log = (1 << 32) / segment_bytes.max(1);
    let number = part(8..16)?.checked_mul(per_log)?.checked_add(part(16..24)?)?;
    number.checked_mul(segment_bytes).map(Lsn)
}

/// Ancestry of `timeline` from `pg_wal`; empty for the first.
pub(crate) fn read_history(data: &Path, timeline: Timeline) -> TimelineHistory {
    std::fs::read_to_string(data.join("pg_wal").join(history_file(timeline)))
        .map(|text| parse_history(&text))
        .unwrap_or_default()
}

/// Mark in the history file of a timeline that a promotion left out.
pub(crate) const NEVER_USED: &str = "# never used\n";

/// History files of timelines left out that are newer than every timeline in use.
pub(crate) fn unused_on_top(data: &Path) -> Vec<PathBuf> {
    let folder = std::fs::read_dir(data.join("pg_wal"));
    let paths = folder.into_iter().flatten().filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let mut histories: Vec<_> = paths.filter(|path| path.extension().is_some_and(|end| end == "history")).collect();
    // Eight hexadecimal digits: the order of the names is that of the numbers.
    histories.sort();
    let unused = |path: &PathBuf| std::fs::read_to_string(path).is_ok_and(|text| text == NEVER_USED);
    histories.into_iter().rev().take_while(unused).collect()
}

/// The newest timeline that `pg_wal` holds the end of WAL at `end` on, beginning the search at
/// `known`. PostgreSQL fetches a history file before it streams or replays the timeline, and
/// makes the segment file only when it comes to it; recycled segments never have a newer timeline
/// than the one in use.
pub(crate) fn newest_timeline(data: &Path, known: Timeline, end: Lsn, segment_bytes: u64) -> Timeline {
    // Bounds the search: between two timelines in use are those reserved and never used.
    const GAP: u32 = 32;
    let wal = data.join("pg_wal");
    let mut newest = known;
    let mut candidate = known;
    while candidate.0 - newest.0 < GAP {
        candidate = Timeline(candidate.0.saturating_add(1));
        let segment = segment_file(candidate, Lsn(end.0.saturating_sub(1)), segment_bytes);
        if wal.join(history_file(candidate)).exists() && wal.join(segment).exists() {
            newest = candidate;
        }
        if candidate.0 == u32::MAX {
            break;
        }
    }
    newest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_file_start_is_read() {
        let mut bytes = vec![0; 8192];
        bytes[..8].copy_from_slice(&7_300_000_000_000_000_123_u64.to_ne_bytes());
        bytes[16..20].copy_from_slice(&5_u32.to_ne_bytes());
        let control = parse_control(&bytes).unwrap();
        assert_eq!(control.system.0, "7300000000000000123");
        assert_eq!(control.mode, ClusterMode::Recovering);
        assert_eq!(parse_control(&bytes[..19]), None);
        bytes[16] = 99;
        assert_eq!(parse_control(&bytes), None);
    }

    #[test]
    fn histories_are_read_with_comments() {
        let text = "# made by hand\n1\t0/3000060\tno recovery target specified\n\n2\t1/A0\tx\n";
        let at = |timeline, lsn| WalPosition { timeline: Timeline(timeline), lsn: Lsn(lsn) };
        assert_eq!(parse_history(text), TimelineHistory(vec![at(1, 0x300_0060), at(2, 0x1_0000_00A0)]));
        assert_eq!(parse_history("garbage"), TimelineHistory::default());
    }

    #[test]
    fn segment_names_are_postgresqls() {
        assert_eq!(segment_file(Timeline(2), Lsn(0x1_0300_0060), 16 << 20), "000000020000000100000003");
        assert_eq!(segment_file(Timeline(1), Lsn(0x4000_0000), 1 << 30), "000000010000000000000001");
        assert_eq!(segment_begin("000000020000000100000003", 16 << 20), Some(Lsn(0x1_0300_0000)));
        assert_eq!(segment_begin("000000010000000000000001", 1 << 30), Some(Lsn(0x4000_0000)));
        assert_eq!(segment_begin("00000001.history", 16 << 20), None);
    }

    #[test]
    fn timeline_is_raised_only_with_history_and_segment() {
        let dir = tempfile::tempdir().unwrap();
        let wal = dir.path().join("pg_wal");
        std::fs::create_dir(&wal).unwrap();
        let newest = || newest_timeline(dir.path(), Timeline(1), Lsn(0x300_0060), 16 << 20);
        std::fs::write(wal.join("00000002.history"), "").unwrap();
        assert_eq!(newest(), Timeline(1));
        std::fs::write(wal.join("000000020000000000000003"), "").unwrap();
        assert_eq!(newest(), Timeline(2));
    }

    #[test]
    fn timelines_left_out_are_known_until_a_newer_one_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let wal = dir.path().join("pg_wal");
        assert!(unused_on_top(dir.path()).is_empty());
        std::fs::create_dir(&wal).unwrap();
        for (number, text) in [(2, NEVER_USED), (3, "1\t0/3000060\tx\n"), (4, NEVER_USED), (5, NEVER_USED)] {
            std::fs::write(wal.join(history_file(Timeline(number))), text).unwrap();
        }
        let left_out = |number| wal.join(history_file(Timeline(number)));
        assert_eq!(unused_on_top(dir.path()), [left_out(5), left_out(4)]);
        std::fs::write(left_out(6), "3\t0/4000060\tx\n").unwrap();
        assert!(unused_on_top(dir.path()).is_empty());
    }

    #[test]
    fn controldata_is_read() {
        let text = "pg_control version number:            1300\n\
            Latest checkpoint location:           0/3000060\n\
            Latest checkpoint's REDO location:    0/3000028\n\
            Latest checkpoint's TimeLineID:       2\n\
            Minimum recovery ending location:     0/0\n\
            Min recovery ending loc's timeline:   0\n\
            Bytes per WAL segment:                16777216\n";
        let positions = parse_controldata(text).unwrap();
        assert_eq!(positions.redo, WalPosition { timeline: Timeline(2), lsn: Lsn(0x300_0028) });
        assert_eq!((positions.checkpoint, positions.segment_bytes), (Lsn(0x300_0060), 16 << 20));
        assert_eq!(parse_controldata(""), None);
    }

    #[test]
    fn data_is_classified() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().to_owned());
        let data = layout.data();
        let classify = |version| classify(&layout, version);
        std::fs::create_dir(layout.run()).unwrap();
        assert_eq!(classify("15"), Data::Absent);
        std::fs::create_dir_all(data.join("global")).unwrap();
        assert!(matches!(classify("15"), Data::Unusable(_)));
        std::fs::write(data.join("PG_VERSION"), "15\n").unwrap();
        let mut control = vec![0; 8192];
        control[0] = 9;
        control[16] = 1;
        std::fs::write(data.join("global/pg_control"), &control).unwrap();
        let expected: Vec<u8> = control[..8].to_vec();
        let number = u64::from_ne_bytes(expected.try_into().unwrap());
        assert_eq!(classify("15"), Data::Present(SystemIdentifier(number.to_string())));
        assert!(matches!(classify("16"), Data::Unusable(_)));
        std::fs::write(layout.fresh(), "").unwrap();
        assert_eq!(classify("15"), Data::Fresh(SystemIdentifier(number.to_string())));
        std::fs::write(layout.incomplete(), "").unwrap();
        assert_eq!(classify("15"), Data::Incomplete);
    }
}
