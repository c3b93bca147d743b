//! How far the WAL of a server goes that does not run: for an operator who has to choose a primary
//! after the cluster state was lost (rule 8). Only reads.

use std::time::Duration;

use manatee_shared::lsn::{Lsn, WalPosition};

use super::error::Error;
use super::inner::Inner;
use crate::machine::local::{Data, Server};
use crate::rejoin;

/// How long reading the last record may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Takes note of the end of the local WAL, unless the server runs or it is known already.
pub(super) async fn survey(inner: &Inner) -> Result<(), Error> {
    {
        let local = inner.local.borrow();
        let down = matches!((&local.data, &local.server), (Data::Present(_), Server::Down { .. }));
        if !down || local.last_position.is_some() {
            return Ok(());
        }
    }
    let (last, _) = rejoin::last_record(inner, &inner.layout.data()).await?;
    let output = inner
        .tool("pg_waldump")
        .arg("--stats")
        .arg("--path")
        .arg(inner.layout.data().join("pg_wal"))
        .arg(format!("--timeline={}", last.timeline))
        .arg(format!("--start={}", last.lsn))
        .timeout(LIMIT)
        .run_any(&inner.user)
        .await?;
    // Where its end is not said, its beginning is still a position that is certainly there.
    let lsn = parse_end(&output.stderr).filter(|end| *end > last.lsn).unwrap_or(last.lsn);
    inner.known().last_position = Some(WalPosition { lsn, ..last });
    inner.refresh().await;
    Ok(())
}

/// The place after the last record: `error in WAL record at 0/30001C8: invalid record length at 0/3000240: …`.
fn parse_end(stderr: &str) -> Option<Lsn> {
    let (_, after) = stderr.lines().find_map(|line| line.split_once("error in WAL record at "))?;
    let (_, end) = after.split_once(" at ")?;
    end.split([':', ',', ' ']).next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_follows_the_last_record() {
        let text = "pg_waldump: first record is after 0/3000000\n\
            pg_waldump: error: error in WAL record at 0/30001C8: invalid record length at 0/3000240: wanted 24, got 0\n";
        assert_eq!(parse_end(text), Some(Lsn(0x300_0240)));
        let text =
            "pg_waldump: error: error in WAL record at 0/30001C8: record with incorrect prev-link 0/1 at 0/3000240\n";
        assert_eq!(parse_end(text), Some(Lsn(0x300_0240)));
        assert_eq!(parse_end("pg_waldump: error: error in WAL record at 0/30001C8: invalid magic number 0000"), None);
        assert_eq!(parse_end("pg_waldump: error: could not find file"), None);
    }
}
