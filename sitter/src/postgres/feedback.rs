//! A standby's word that its readers need nothing old any more, given in place of one that is away.
//!
//! No function takes the `xmin` off a physical slot: `pg_replication_slot_advance` moves the WAL only, and a copy of
//! the slot has it too. Dropping the slot would give up WAL that its peer may still need. What clears it is
//! the message of a standby whose `hot_standby_feedback` was turned off: zero for both horizons
//! (`ProcessStandbyHSFeedbackMessage`, walsender.c of PostgreSQL 13 to 18; manual, section 55.4). So the slot is
//! taken for a moment by a walsender of our own, which is told that and nothing else: as no flush position is
//! reported, the WAL that the slot keeps stays as it is.

use std::time::Duration;

use manatee_shared::ids::PeerId;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_postgres::Client;

use super::error::Error;
use super::settings::Settings;
use super::{APPLICATION_NAME, ask};

/// For all of it. The peer waits meanwhile, if it comes back just then.
const LIMIT: Duration = Duration::from_secs(2);
/// The longest message that is looked at: those of a walsender are shorter, WAL is skipped.
const MESSAGE_BYTES: usize = 16 << 10;

/// Microseconds since 2000, the number of each horizon, the epoch of each horizon: all zero.
const NOTHING_NEEDED: [u8; 25] = {
    let mut message = [0; 25];
    message[0] = b'h';
    message
};

/// Takes the `xmin` off `slot`, which must be unused.
pub(super) async fn clear(settings: &Settings, me: PeerId, session: &Client, slot: &str) -> Result<(), Error> {
    // From the very end: what is sent before we are gone is next to nothing.
    let end = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
               ELSE pg_current_wal_flush_lsn() END::text";
    let end = ask::text(session, end).await?.unwrap_or_default();
    let path = settings.layout().socket(me.pg_port);
    let timeout = Error::Timeout { what: "to release an unused replication slot".to_owned(), timeout: LIMIT };
    let talking = async {
        let stream = UnixStream::connect(&path).await.map_err(Error::io("reach", &path))?;
        // A slot's name is letters, digits and underscores.
        let start = format!("START_REPLICATION SLOT \"{slot}\" PHYSICAL {end}");
        talk(stream, &settings.superuser, &start).await.map_err(Error::io("talk to PostgreSQL over", &path))
    };
    tokio::time::timeout(LIMIT, talking).await.map_err(|_| timeout)?
}

async fn talk(mut stream: UnixStream, superuser: &str, start: &str) -> std::io::Result<()> {
    let mut out = bytes::BytesMut::new();
    // With a database, as pg_hba.conf's word `all` does not cover sessions that have none.
    let parameters = [
        ("user", superuser),
        ("database", "postgres"),
        ("replication", "database"),
        ("application_name", APPLICATION_NAME),
    ];
    frontend::startup_message(parameters, &mut out)?;
    stream.write_all(&out).await?;
    until(&mut stream, b'Z').await?;
    out.clear();
    frontend::query(start, &mut out)?;
    stream.write_all(&out).await?;
    until(&mut stream, b'W').await?;
    out.clear();
    frontend::CopyData::new(&NOTHING_NEEDED[..])?.write(&mut out);
    // Messages are taken in order: once this one is answered, so was the other.
    frontend::copy_done(&mut out);
    stream.write_all(&out).await?;
    until(&mut stream, b'Z').await?;
    out.clear();
    frontend::terminate(&mut out);
    stream.write_all(&out).await
}

/// Reads up to the message with this tag; an error that comes before it is one.
async fn until(stream: &mut UnixStream, wanted: u8) -> std::io::Result<()> {
    loop {
        let tag = stream.read_u8().await?;
        let length = stream.read_u32().await?.checked_sub(4).ok_or_else(|| std::io::Error::other("no message"))?;
        let length = usize::try_from(length).map_err(std::io::Error::other)?;
        let mut body = vec![0; length.min(MESSAGE_BYTES)];
        stream.read_exact(&mut body).await?;
        let rest = (length - body.len()) as u64;
        tokio::io::copy(&mut (&mut *stream).take(rest), &mut tokio::io::sink()).await?;
        match tag {
            b'E' => return Err(std::io::Error::other(told(&body))),
            // Anything but "authenticated": the socket's own user needs no password.
            b'R' if body.get(..4) != Some(&[0; 4]) => return Err(std::io::Error::other("asked for a password")),
            tag if tag == wanted => return Ok(()),
            _ => {}
        }
    }
}

/// The text of an ErrorResponse: fields of a letter and a string each (manual, section 55.8).
fn told(body: &[u8]) -> String {
    let text = body.split(|byte| *byte == 0).find_map(|field| field.strip_prefix(b"M"));
    String::from_utf8_lossy(text.unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::told;

    #[test]
    fn the_text_of_an_error_is_found() {
        assert_eq!(told(b"SERROR\0VERROR\0C55006\0Mslot is active\0Fslot.c\0\0"), "slot is active");
        assert_eq!(told(b"\0"), "");
    }
}
