//! Sees to it that a client that replicates does not take a peer's name, by which it would be counted as the
//! sync: its word that it has flushed something would then release commits. Pure.
//!
//! A server reports every `application_name` (ParameterStatus), however it was set, before it is ready for
//! the next command (ReadyForQuery); and a walsender takes a name into account when streaming begins
//! (`SyncRepInitConfig`), which takes a command. So commands are passed on one at a time, and what is
//! reported is looked at before the next one.

use crate::auth::check_name;
use crate::error::ProxyError;
use crate::wire::{HEADER_BYTES, Header, backend, frontend};

/// Longest ParameterStatus that is looked at; names have 63 bytes.
const MAX_STATUS_BYTES: usize = 8 << 10;

/// Boundaries of the messages of one direction.
#[derive(Debug, Default)]
struct Framing {
    /// Of the message that goes on.
    left: usize,
    /// The head of one that has not arrived.
    head: Vec<u8>,
}

impl Framing {
    /// Goes over the rest of a message, or over the head of one, which is returned once it is complete. Counts
    /// that off `bytes`.
    fn next(&mut self, bytes: &mut &[u8]) -> Result<Option<Header>, ProxyError> {
        if self.left > 0 {
            let skipped = self.left.min(bytes.len());
            self.left -= skipped;
            *bytes = &bytes[skipped..];
            return Ok(None);
        }
        while self.head.len() < HEADER_BYTES {
            let Some((&byte, rest)) = bytes.split_first() else { return Ok(None) };
            self.head.push(byte);
            *bytes = rest;
        }
        let header = Header::read(&self.head)?;
        self.head.clear();
        self.left = header.map_or(0, |header| header.size - HEADER_BYTES);
        Ok(header)
    }

    /// Whether a message begins with the next byte.
    fn is_between(&self) -> bool {
        self.left == 0 && self.head.is_empty()
    }
}

/// Both directions.
#[derive(Debug, Default)]
pub(super) struct Watch {
    client: Framing,
    server: Framing,
    /// A command was passed on and is not answered to its end.
    asked: bool,
    /// The ParameterStatus that is arriving.
    status: Option<Vec<u8>>,
}

impl Watch {
    /// Number of the client's bytes that may be passed on now. The others are held until [`Watch::hear`] says so.
    ///
    /// # Errors
    /// What is no message.
    pub(super) fn admit(&mut self, bytes: &[u8]) -> Result<usize, ProxyError> {
        let mut rest = bytes;
        loop {
            if rest.is_empty() || (self.client.is_between() && self.asked && rest[0] == frontend::QUERY) {
                return Ok(bytes.len() - rest.len());
            }
            if let Some(header) = self.client.next(&mut rest)? {
                self.asked |= header.tag == frontend::QUERY;
            }
        }
    }

    /// Bytes of the server, before they are passed on. Says whether held commands may go on.
    ///
    /// # Errors
    /// The client has taken a peer's name: the connection must end before anything else is passed on.
    pub(super) fn hear(&mut self, bytes: &[u8]) -> Result<bool, ProxyError> {
        let mut rest = bytes;
        let mut ready = false;
        while !rest.is_empty() {
            if let Some(status) = &mut self.status {
                let part = self.server.left.min(rest.len());
                if status.len() + part <= MAX_STATUS_BYTES {
                    status.extend_from_slice(&rest[..part]);
                }
                if part == self.server.left {
                    check_status(status)?;
                    self.status = None;
                }
            }
            match self.server.next(&mut rest)?.map(|header| header.tag) {
                Some(backend::PARAMETER_STATUS) => self.status = Some(Vec::new()),
                Some(backend::READY_FOR_QUERY) => {
                    self.asked = false;
                    ready = true;
                }
                _ => {}
            }
        }
        Ok(ready)
    }
}

fn check_status(body: &[u8]) -> Result<(), ProxyError> {
    match backend::parameter_status(body) {
        Ok((b"application_name", value)) => check_name(&String::from_utf8_lossy(value)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
    use bytes::BytesMut;

    use super::*;
    use crate::wire::backend::TxStatus;
    use crate::wire::put_message;

    fn messages(tags: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        tags.iter().for_each(|tag| put_message(&mut out, *tag, |out| out.extend_from_slice(b"text of any kind\0")));
        out
    }

    /// Bytes that are passed on if they come in pieces of `size`.
    fn admitted(watch: &mut Watch, bytes: &[u8], size: usize) -> usize {
        let mut sum = 0;
        for piece in bytes.chunks(size) {
            let count = watch.admit(piece).unwrap();
            sum += count;
            if count < piece.len() {
                break;
            }
        }
        sum
    }

    fn named(name: &str) -> BytesMut {
        let mut out = messages(b"C");
        backend::put_parameter_status(&mut out, b"TimeZone", b"UTC");
        backend::put_parameter_status(&mut out, b"application_name", name.as_bytes());
        backend::put_ready(&mut out, TxStatus::Idle);
        out
    }

    #[test]
    fn one_command_at_a_time() {
        let one = messages(b"Q").len();
        for size in 1..60 {
            let mut watch = Watch::default();
            // What is copied is no command.
            assert_eq!(admitted(&mut watch, &messages(b"ddQddcQd"), size), 6 * one, "{size}");
            let heard: Vec<bool> = named("x").chunks(size).map(|piece| watch.hear(piece).unwrap()).collect();
            assert_eq!(heard.iter().filter(|ready| **ready).count(), 1, "{size}");
            assert_eq!(admitted(&mut watch, &messages(b"QdQ"), size), 2 * one, "{size}");
        }
    }

    #[test]
    fn a_peers_name_is_noticed_in_any_pieces_and_before_another_command() {
        for size in 1..60 {
            let mut watch = Watch::default();
            watch.admit(&messages(b"Q")).unwrap();
            let refused = named("10.0.0.7:5432:12345").chunks(size).any(|piece| match watch.hear(piece) {
                Ok(ready) => {
                    assert!(!ready, "{size}");
                    false
                }
                Err(error) => error.to_string().contains("10.0.0.7:5432:12345"),
            });
            assert!(refused, "{size}");
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        assert!(Watch::default().admit(b"Q\0\0\0\x01").is_err());
        assert!(Watch::default().hear(b"Z\xff\xff\xff\xff").is_err());
    }
}
