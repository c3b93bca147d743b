//! End of the WAL of a server that does not run: for an operator who has to choose a primary
//! after the cluster state was lost (rule 8). Only reads.

use manatee_shared::lsn::{Lsn, WalPosition};

use super::rejoin::{self, WalEnd};
use crate::host::{Error, control};
use crate::machine::local::{Data, EndOfWal, Server};
use crate::postgres::inner::Inner;

/// Takes note of the end of the local WAL, unless the server runs or it is known already.
pub(super) async fn survey(inner: &Inner) -> Result<(), Error> {
    {
        let local = inner.local.borrow();
        let down = matches!((&local.data, &local.server), (Data::Present(_), Server::Down { .. }));
        if !down || local.last_position.is_some() {
            return Ok(());
        }
    }
    let position = end_of_wal(inner).await?;
    inner.known().last_position = Some(position);
    inner.refresh().await;
    Ok(())
}

/// Shows in [`crate::machine::local::Local::end`] how far the WAL of a server goes that does not run: before it is
/// started as a primary, which writes. Reads only.
pub(super) async fn survey_end(inner: &Inner) -> Result<(), Error> {
    if inner.postmaster().is_some() {
        return Err(Error::Running);
    }
    let position = match end_of_wal(inner).await {
        Ok(end) => end,
        // Its files are gone. What the data itself has reached is certainly there, and a rejoin that says so goes on to
        // what needs no WAL; as a primary it does not start, and has less than its sync.
        Err(Error::DataNotFit(problem)) => {
            let redo = rejoin::redo(inner, &inner.layout.data()).await?;
            tracing::warn!(%problem, %redo, "our WAL cannot be read; the last checkpoint counts as its end");
            redo
        }
        Err(error) => return Err(error),
    };
    let history = control::read_history(&inner.layout.data(), position.timeline);
    tracing::info!(end = %position, "read how far our WAL goes");
    {
        let mut known = inner.known();
        known.last_position = Some(position);
        known.end = Some(EndOfWal { position, history });
    }
    inner.refresh().await;
    Ok(())
}

/// End of recovery: after the last record that is whole, or at the end of what is there of one
/// that is not. A walsender sends the beginning of a record that spans pages before the rest is written, and
/// PostgreSQL goes on behind such a piece (`missingContrecPtr` in xlogrecovery.c), so it counts.
async fn end_of_wal(inner: &Inner) -> Result<WalPosition, Error> {
    let WalEnd { last, message, segment_bytes } = rejoin::wal_end(inner, &inner.layout.data()).await?;
    // Where its end is not said, its beginning is still a position that is certainly there.
    let lsn = parse_end(&message, segment_bytes).filter(|end| *end > last.lsn).unwrap_or(last.lsn);
    Ok(WalPosition { lsn, ..last })
}

/// The place after the last record: `error in WAL record at 0/30001C8: invalid record length at 0/3000240: …`, or the
/// page that does not go on: `… invalid magic number 0000 in log segment 000000010000000000000003, offset 8192`, since
/// PostgreSQL 16 `… in WAL segment …, LSN 0/3002000, offset 8192`.
fn parse_end(stderr: &str, segment_bytes: u64) -> Option<Lsn> {
    let (_, after) = stderr.lines().find_map(|line| line.split_once("error in WAL record at "))?;
    let number = |text: &str| text.split([':', ',', ' ', ';']).next().unwrap_or_default().trim().to_owned();
    if let Some((_, segment)) = after.split_once(" segment ")
        && let Some((_, offset)) = segment.split_once(", offset ")
    {
        let begin = control::segment_begin(&number(segment), segment_bytes)?;
        return Some(Lsn(begin.0 + number(offset).parse::<u64>().ok()?));
    }
    let (_, end) = after.split_once(" at ")?;
    number(end).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_follows_the_last_record() {
        let text = "pg_waldump: first record is after 0/3000000\n\
            pg_waldump: error: error in WAL record at 0/30001C8: invalid record length at 0/3000240: wanted 24, got 0\n";
        assert_eq!(parse_end(text, 16 << 20), Some(Lsn(0x300_0240)));
        let text =
            "pg_waldump: error: error in WAL record at 0/30001C8: record with incorrect prev-link 0/1 at 0/3000240\n";
        assert_eq!(parse_end(text, 16 << 20), Some(Lsn(0x300_0240)));
        let text = "pg_waldump: error: error in WAL record at 0/30001C8: invalid magic number 0000 in log segment \
            000000010000000000000003, offset 8192\n";
        assert_eq!(parse_end(text, 16 << 20), Some(Lsn(0x300_2000)));
        let text = "pg_waldump: error: error in WAL record at 1/30001C8: unexpected pageaddr 0/1000 in WAL segment \
            000000020000000100000003, LSN 1/3002000, offset 8192\n";
        assert_eq!(parse_end(text, 16 << 20), Some(Lsn(0x1_0300_2000)));
        assert_eq!(parse_end("pg_waldump: error: could not find file", 16 << 20), None);
    }
}
