//! Framing of protocol 3 (manual, chapter 55): a tag byte, a length that counts itself, a body.
//!
//! Pure: bytes in, borrowed views out; builders append to a buffer. Nothing here keeps state.

use bytes::{BufMut, BytesMut};

pub mod backend;
pub mod frontend;
pub mod proxy_protocol;
pub mod scram;
pub mod startup;
mod switches;

/// Longest message accepted after authentication: PostgreSQL's own limit (`PQ_LARGE_MESSAGE_LIMIT`
/// is `MaxAllocSize`, 1 GiB − 1).
pub const MAX_MESSAGE_BYTES: usize = 0x3FFF_FFFF;

/// Bytes of a message before its body.
pub const HEADER_BYTES: usize = 5;

/// Reason why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The length field is smaller than itself or above the cap.
    #[error("invalid message length {0}")]
    Length(u32),
    /// The tag is none that may be sent by this side.
    #[error("invalid frontend message type {0}")]
    Tag(u8),
    /// The body is not what the tag promises.
    #[error("invalid format of message type {0:?}")]
    Body(char),
}

/// Tag and size of the message at the head of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Message type.
    pub tag: u8,
    /// Size of the whole message, tag included.
    pub size: usize,
}

impl Header {
    /// Reads the header at the head of `bytes`; `None` until all five bytes are there.
    pub fn read(bytes: &[u8]) -> Result<Option<Self>, WireError> {
        let Some(&[tag, a, b, c, d]) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]);
        let size = length as usize;
        if !(4..=MAX_MESSAGE_BYTES).contains(&size) {
            return Err(WireError::Length(length));
        }
        Ok(Some(Self { tag, size: size + 1 }))
    }
}

/// The complete message at the head of `bytes`: header and body. `None` until it is all there.
pub fn complete(bytes: &[u8]) -> Result<Option<(Header, &[u8])>, WireError> {
    match Header::read(bytes)? {
        Some(header) => Ok(bytes.get(HEADER_BYTES..header.size).map(|body| (header, body))),
        None => Ok(None),
    }
}

/// Appends one message whose body `fill` writes.
pub fn put_message(out: &mut BytesMut, tag: u8, fill: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    let start = out.len();
    out.put_u32(0);
    fill(out);
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// Splits a NUL-terminated string off the head of `bytes`.
pub fn take_cstr(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(0, bytes)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// Appends a NUL-terminated string.
pub fn put_cstr(out: &mut BytesMut, text: &[u8]) {
    out.put_slice(text);
    out.put_u8(0);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::*;

    #[test]
    fn header_needs_five_bytes_and_a_sane_length() {
        assert_eq!(Header::read(b"Q\0\0\0"), Ok(None));
        assert_eq!(Header::read(b"S\0\0\0\x04"), Ok(Some(Header { tag: b'S', size: 5 })));
        assert_eq!(Header::read(b"S\0\0\0\x03"), Err(WireError::Length(3)));
        assert_eq!(Header::read(b"S\xff\xff\xff\xff"), Err(WireError::Length(u32::MAX)));
        assert_eq!(complete(b"Q\0\0\0\x06a"), Ok(None));
        assert_eq!(complete(b"Q\0\0\0\x06a\0x").unwrap().unwrap().1, b"a\0");
    }

    #[test]
    fn put_message_counts_its_length() {
        let mut out = BytesMut::from(&b"before"[..]);
        put_message(&mut out, b'Q', |out| put_cstr(out, b"select 1"));
        assert_eq!(&out[6..], b"Q\0\0\0\x0dselect 1\0");
    }
}
