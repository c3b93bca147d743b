//! Whether WAL here and WAL at a peer are the same, byte for byte, where ours ends.
//!
//! Timelines and positions do not tell that. A primary whose disk came back older writes other WAL under the same
//! numbers, and two servers promoted by hand that do not know of each other begin the same timeline.
//! A standby at a place that both have would stream on top of its own WAL, and `pg_rewind` sees one timeline
//! on both sides and finds nothing to do. The bytes do tell: each record holds its transaction, the time of its commit,
//! a checksum, and where the record before it is.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use manatee_shared::ids::PeerId;
use manatee_shared::lsn::{Lsn, WalPosition};

use super::error::Error;
use super::inner::Inner;
use super::source::SourceFacts;
use super::{control, session};

/// Number of bytes that are compared: a page and more, so that records are among them whose like is nowhere else.
const COMPARED_BYTES: u64 = 16 << 10;
/// Size of a segment where nobody says (`initdb --wal-segsize`).
pub(crate) const USUAL_SEGMENT_BYTES: u64 = 16 << 20;

/// Result of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    Same,
    /// Two histories under one number.
    Other,
    /// It cannot be told: the source does not have that part any more, or does not let us look.
    Unknown,
}

/// Compares what is here before `end`, which lies on the source's path as far as numbers go.
pub(crate) async fn compare(
    inner: &Inner,
    data: &Path,
    end: WalPosition,
    segment_bytes: u64,
    source: PeerId,
    facts: &SourceFacts,
) -> Result<Comparison, Error> {
    let Some(names) = &facts.wal else { return Ok(Comparison::Unknown) };
    let Some(part) = Part::before(end.lsn, segment_bytes) else { return Ok(Comparison::Unknown) };
    let own = control::segment_file(end.timeline, Lsn(part.segment), segment_bytes);
    let Some(theirs) = newest_of(names, &own, facts) else { return Ok(Comparison::Unknown) };
    let Ok(ours) = part.read(&data.join("pg_wal").join(&own)) else { return Ok(Comparison::Unknown) };
    let session = session::remote(inner, source).await?;
    // Names of segments are digits and letters; missing files give null.
    let sql =
        format!("SELECT encode(pg_read_binary_file('pg_wal/{theirs}', {}, {}, true), 'hex')", part.offset, part.length);
    let what = "read the source's WAL";
    let row = session::row(&session, &sql, what).await?;
    let theirs: Option<&str> = row.try_get(0).map_err(Error::query(what))?;
    Ok(match theirs {
        Some(theirs) if theirs.len() == ours.len() * 2 => {
            let same = ours.iter().map(|byte| format!("{byte:02x}")).collect::<String>() == theirs;
            if same { Comparison::Same } else { Comparison::Other }
        }
        _ => Comparison::Unknown,
    })
}

/// The file at the source that has this segment on its path: a timeline begins with a copy of the segment in which it
/// leaves the one before, so the newest is right wherever the path is shared.
fn newest_of<'a>(names: &'a [String], own: &str, facts: &SourceFacts) -> Option<&'a String> {
    let timeline = |name: &String| u32::from_str_radix(name.get(..8)?, 16).ok();
    let on_path = |number: &u32| {
        *number == facts.position.timeline.0 || facts.history.0.iter().any(|left| left.timeline.0 == *number)
    };
    let candidates = names.iter().filter(|name| name.len() == own.len() && name.get(8..) == own.get(8..));
    candidates.filter(|name| timeline(name).as_ref().is_some_and(on_path)).max_by_key(|name| timeline(name))
}

/// A part of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    /// Begin of the segment.
    segment: u64,
    offset: u64,
    length: u64,
}

impl Part {
    /// Part to be compared before `end`; None if that is nothing.
    fn before(end: Lsn, segment_bytes: u64) -> Option<Self> {
        let last = end.0.checked_sub(1)?;
        let segment = last - last % segment_bytes.max(1);
        let offset = end.0.saturating_sub(COMPARED_BYTES).max(segment) - segment;
        Some(Self { segment, offset, length: end.0 - segment - offset })
    }

    fn read(self, path: &Path) -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        file.take(self.length).read_to_end(&mut bytes)?;
        if bytes.len() as u64 == self.length { Ok(bytes) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_before_the_end_lies_in_one_segment() {
        let part = |end| Part::before(Lsn(end), 16 << 20);
        let begin = 3 << 24;
        assert_eq!(part(begin + 100), Some(Part { segment: begin, offset: 0, length: 100 }));
        assert_eq!(part(begin + 0x9000), Some(Part { segment: begin, offset: 0x5000, length: 0x4000 }));
        // An end at a segment's beginning is the end of the one before.
        let before = Part { segment: 2 << 24, offset: (1 << 24) - 0x4000, length: 0x4000 };
        assert_eq!(part(begin), Some(before));
        assert_eq!(part(0), None);
    }
}
