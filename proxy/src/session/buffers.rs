//! Buffers that the sessions of one thread use in turns: one is held only while bytes are in it, or
//! are about to be. An idle client has none.

use bytes::{Buf, BytesMut};

/// Room of a buffer, and read at once.
pub const BUFFER_BYTES: usize = 16 << 10;

/// Buffers kept for the next who needs one: about as many as are in use between two looks at the
/// sockets. More are given back to the system.
const MOST_SPARE: usize = 64;

/// What has grown above this is not kept: it was for one large message.
const KEPT_BYTES: usize = 4 * BUFFER_BYTES;

/// Empty buffers.
#[derive(Debug, Default)]
pub struct Buffers {
    spare: Vec<BytesMut>,
}

impl Buffers {
    /// Sees to it that `buffer`, if it has no room at all, has [`BUFFER_BYTES`].
    pub fn lend(&mut self, buffer: &mut BytesMut) {
        if buffer.capacity() == 0 {
            *buffer = self.spare.pop().unwrap_or_else(|| BytesMut::with_capacity(BUFFER_BYTES));
        }
    }

    /// Takes `buffer`'s room away if it is empty.
    pub fn give_back(&mut self, buffer: &mut BytesMut) {
        if buffer.is_empty() && buffer.capacity() > 0 {
            let mut room = std::mem::take(buffer);
            // What was consumed from its head is room again.
            if self.spare.len() < MOST_SPARE && room.try_reclaim(BUFFER_BYTES) && room.capacity() <= KEPT_BYTES {
                self.spare.push(room);
            }
        }
    }

    /// Moves the first `count` bytes of `from` to the end of `to`: the buffer itself where that does,
    /// so that large answers are not copied.
    pub fn forward(&mut self, from: &mut BytesMut, count: usize, to: &mut BytesMut) {
        let rest = from.len() - count;
        if count == 0 {
            return;
        }
        if !to.is_empty() || rest > count / 2 {
            self.lend(to);
            to.extend_from_slice(&from[..count]);
            return from.advance(count);
        }
        std::mem::swap(from, to);
        if rest > 0 {
            self.lend(from);
            from.extend_from_slice(&to[count..]);
            to.truncate(count);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn what_was_given_back_is_lent_again() {
        let mut buffers = Buffers::default();
        let mut buffer = BytesMut::new();
        buffers.lend(&mut buffer);
        buffer.extend_from_slice(&[1; 9000]);
        buffers.give_back(&mut buffer);
        assert_eq!(buffer.len(), 9000, "it is in use");
        buffer.advance(9000);
        let room = buffer.as_ptr() as usize - 9000;
        buffers.give_back(&mut buffer);
        assert_eq!((buffer.capacity(), buffers.spare.len()), (0, 1));
        buffers.lend(&mut buffer);
        assert_eq!((buffer.as_ptr() as usize, buffers.spare.len()), (room, 0));
        assert!(buffer.capacity() >= BUFFER_BYTES);
    }

    #[test]
    fn what_has_grown_is_not_kept() {
        let mut buffers = Buffers::default();
        let mut buffer = BytesMut::with_capacity(KEPT_BYTES + 1);
        buffers.give_back(&mut buffer);
        assert_eq!((buffer.capacity(), buffers.spare.len()), (0, 0));
    }

    #[test]
    fn bytes_are_moved_in_order_with_and_without_a_copy() {
        let mut buffers = Buffers::default();
        for (begun, count) in [(0, 10), (0, 9), (0, 1), (0, 0), (3, 10), (3, 9), (3, 0)] {
            let mut from = BytesMut::from(&b"0123456789"[..]);
            let mut to = BytesMut::from(&b"abc"[..begun]);
            buffers.forward(&mut from, count, &mut to);
            let both = [&to[..], &from[..]].concat();
            assert_eq!(both, [&b"abc"[..begun], b"0123456789"].concat(), "{begun} {count}");
            assert_eq!(from.len(), 10 - count);
        }
    }
}
