//! Buffers that the sessions of one thread use in turns: one is held only while bytes are in it, or
//! are about to be. An idle client has none.

use bytes::{Buf, BytesMut};

/// Room of a buffer, and read at once.
pub const BUFFER_BYTES: usize = 16 << 10;

/// Buffers kept for the next who needs one: about as many as are in use between two looks at the
/// sockets. More are given back to the system.
const MOST_SPARE: usize = 64;

/// Room of a buffer for a side that has more to say than [`BUFFER_BYTES`] at a time: a large answer, a COPY.
pub const LONG_BYTES: usize = 4 * BUFFER_BYTES;

/// Of these kept: about as many as carry something long at a time.
const MOST_SPARE_LONG: usize = 8;

/// Capacity above which a buffer is not kept: it was for one large message.
const KEPT_BYTES: usize = LONG_BYTES;

/// Empty buffers. A buffer without any capacity holds none of them: whoever takes bytes from its head does so by
/// [`consume`].
#[derive(Debug, Default)]
pub struct Buffers {
    spare: Vec<BytesMut>,
    long: Vec<BytesMut>,
    /// Buffer that the next reader reads into; it is kept only if bytes came.
    reading: BytesMut,
}

/// Takes the first `count` bytes away, at most all of them. A full one that was advanced to its very end would have no
/// capacity, though it holds all its room.
pub fn consume(buffer: &mut BytesMut, count: usize) {
    if count >= buffer.len() { buffer.clear() } else { buffer.advance(count) }
}

impl Buffers {
    /// Sees to it that `buffer`, if it has no room at all, has [`BUFFER_BYTES`].
    pub fn lend(&mut self, buffer: &mut BytesMut) {
        if buffer.capacity() == 0 {
            *buffer = self.take();
        }
    }

    fn take(&mut self) -> BytesMut {
        self.spare.pop().unwrap_or_else(|| BytesMut::with_capacity(BUFFER_BYTES))
    }

    /// Buffer to read into for one that holds nothing. If bytes came, it is to be swapped with that one.
    pub fn reading(&mut self) -> &mut BytesMut {
        if self.reading.capacity() == 0 {
            self.reading = self.take();
        }
        &mut self.reading
    }

    /// Sees to it that `buffer`, if there is not much in it, has [`LONG_BYTES`].
    pub fn lend_long(&mut self, buffer: &mut BytesMut) {
        if buffer.len() > BUFFER_BYTES / 4 || buffer.try_reclaim(LONG_BYTES - buffer.len()) {
            return;
        }
        let long = self.long.pop().unwrap_or_else(|| BytesMut::with_capacity(LONG_BYTES));
        let mut short = std::mem::replace(buffer, long);
        buffer.extend_from_slice(&short);
        short.clear();
        self.give_back(&mut short);
    }

    /// Takes `buffer`'s room away if it is empty.
    pub fn give_back(&mut self, buffer: &mut BytesMut) {
        if buffer.is_empty() && buffer.capacity() > 0 {
            self.keep(std::mem::take(buffer));
        }
    }

    fn keep(&mut self, mut room: BytesMut) {
        if room.capacity() == BUFFER_BYTES {
            if self.spare.len() < MOST_SPARE {
                self.spare.push(room);
            }
        // What was consumed from its head is room again.
        } else if room.try_reclaim(LONG_BYTES) {
            if self.long.len() < MOST_SPARE_LONG && room.capacity() <= KEPT_BYTES {
                self.long.push(room);
            }
        } else if self.spare.len() < MOST_SPARE && room.try_reclaim(BUFFER_BYTES) {
            self.spare.push(room);
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
            return consume(from, count);
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
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::*;

    #[test]
    fn what_was_given_back_is_lent_again() {
        let mut buffers = Buffers::default();
        let mut buffer = BytesMut::new();
        buffers.lend(&mut buffer);
        buffer.extend_from_slice(&[1; 9000]);
        buffers.give_back(&mut buffer);
        assert_eq!(buffer.len(), 9000, "it is in use");
        consume(&mut buffer, 1);
        assert_eq!(buffer.len(), 8999);
        consume(&mut buffer, 9000);
        let room = buffer.as_ptr() as usize - 1;
        buffers.give_back(&mut buffer);
        assert_eq!((buffer.capacity(), buffers.spare.len()), (0, 1));
        buffers.lend(&mut buffer);
        assert_eq!((buffer.as_ptr() as usize, buffers.spare.len()), (room, 0));
        assert!(buffer.capacity() >= BUFFER_BYTES);
    }

    #[test]
    fn long_ones_are_for_what_is_long() {
        let mut buffers = Buffers::default();
        let mut buffer = BytesMut::new();
        buffers.lend(&mut buffer);
        buffers.lend_long(&mut buffer);
        assert!(buffer.capacity() >= LONG_BYTES);
        buffer.extend_from_slice(&[1; LONG_BYTES]);
        buffers.lend_long(&mut buffer);
        buffers.give_back(&mut buffer);
        assert_eq!(buffer.len(), LONG_BYTES, "it is in use");
        consume(&mut buffer, LONG_BYTES);
        buffers.give_back(&mut buffer);
        assert_eq!((buffers.spare.len(), buffers.long.len()), (1, 1));
        buffers.lend(&mut buffer);
        buffer.extend_from_slice(b"abc");
        buffers.lend_long(&mut buffer);
        assert_eq!((&buffer[..], buffers.spare.len(), buffers.long.len()), (&b"abc"[..], 1, 0));
        buffer.clear();
        buffers.give_back(&mut buffer);
        buffers.lend(&mut buffer);
        assert!(buffer.capacity() < LONG_BYTES);
    }

    #[test]
    fn what_has_grown_is_not_kept() {
        let mut buffers = Buffers::default();
        let mut buffer = BytesMut::with_capacity(KEPT_BYTES + 1);
        buffers.give_back(&mut buffer);
        assert_eq!((buffer.capacity(), buffers.spare.len(), buffers.long.len()), (0, 0, 0));
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
