//! Messages of protocol 3 (manual, section 55.7). Not the proxy's own code, whose mistakes it would share.

/// Bytes of a message before its body: a tag, and a length that counts itself.
const HEADER: usize = 5;

/// Object that a Describe or Close names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A prepared statement.
    Statement,
    /// A portal.
    Portal,
}

impl Kind {
    /// As it is sent.
    pub(super) fn tag(self) -> u8 {
        match self {
            Self::Statement => b'S',
            Self::Portal => b'P',
        }
    }
}

/// The 32 bits of a length or count. What is said here is short.
fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes()
}

/// Appends a count of 16 bits.
pub(super) fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&u16::try_from(count).unwrap_or(u16::MAX).to_be_bytes());
}

/// Appends a value with its length; None: NULL.
pub(super) fn put_value(out: &mut Vec<u8>, value: Option<&[u8]>) {
    match value {
        Some(value) => {
            out.extend_from_slice(&length(value.len()));
            out.extend_from_slice(value);
        }
        None => out.extend_from_slice(&[0xFF; 4]),
    }
}

/// Appends a string.
pub(super) fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(text);
    out.push(0);
}

/// Appends what `fill` writes, with its length in front; `tag` only once the session has begun.
pub(super) fn put_message(out: &mut Vec<u8>, tag: Option<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    out.extend(tag);
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    fill(out);
    let size = length(out.len() - start);
    out[start..start + 4].copy_from_slice(&size);
}

/// Tag, body and size of the message at the head of `bytes`; None until it is all there.
pub(super) fn complete(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let size = 1 + usize::try_from(u32_at(bytes.get(..HEADER)?, 1)).ok()?;
    Some((bytes[0], bytes.get(HEADER..size)?, size))
}

/// Splits a string off.
pub(super) fn take_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// The number at this place; 0 if the bytes end before.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_be_bytes)
}

/// The number at this place; 0 if the bytes end before.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_be_bytes)
}
