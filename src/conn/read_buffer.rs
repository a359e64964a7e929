//! Bytes that were read from a connection and could not be parsed yet.

/// Usually empty, without an allocation: whole requests are parsed where they were read. What is left over is put
/// before the next bytes, in one piece.
#[derive(Debug, Default)]
pub struct ReadBuffer(Vec<u8>);

impl ReadBuffer {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes the bytes out, to be joined with new ones by [`PendingBytes::join`].
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }

    /// Keeps what was not consumed. Without any, no memory is held.
    pub fn keep(&mut self, pending_bytes: PendingBytes<'_>) {
        debug_assert!(self.0.is_empty(), "taken and not put back");
        match pending_bytes.bytes {
            Bytes::Fresh(fresh) => self.0 = fresh[pending_bytes.consumed..].to_vec(),
            Bytes::Joined(mut joined) => {
                joined.drain(..pending_bytes.consumed);
                if !joined.is_empty() {
                    self.0 = joined;
                }
            }
        }
    }
}

/// All bytes of a connection that were not parsed yet, in one piece, and how many of them are consumed.
pub struct PendingBytes<'a> {
    bytes: Bytes<'a>,
    consumed: usize,
}

enum Bytes<'a> {
    Fresh(&'a mut [u8]),
    Joined(Vec<u8>),
}

impl<'a> PendingBytes<'a> {
    /// Appends `fresh` bytes to the `kept` ones. Without kept ones nothing is copied.
    pub fn join(mut kept: Vec<u8>, fresh: &'a mut [u8]) -> Self {
        let bytes = if kept.is_empty() {
            Bytes::Fresh(fresh)
        } else {
            kept.extend_from_slice(fresh);
            Bytes::Joined(kept)
        };
        PendingBytes { bytes, consumed: 0 }
    }

    /// The bytes not consumed yet.
    pub fn remaining(&mut self) -> &mut [u8] {
        match &mut self.bytes {
            Bytes::Fresh(fresh) => &mut fresh[self.consumed..],
            Bytes::Joined(joined) => &mut joined[self.consumed..],
        }
    }

    pub fn consume(&mut self, bytes: usize) {
        self.consumed += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_over_stands_before_what_comes_next() {
        let mut read_buffer = ReadBuffer::default();
        let mut fresh = *b"abcd";
        let mut pending_bytes = PendingBytes::join(read_buffer.take(), &mut fresh);
        pending_bytes.consume(2);
        read_buffer.keep(pending_bytes);
        let mut fresh = *b"ef";
        let mut pending_bytes = PendingBytes::join(read_buffer.take(), &mut fresh);
        assert_eq!(pending_bytes.remaining(), b"cdef");
        pending_bytes.consume(1);
        pending_bytes.consume(1);
        assert_eq!(pending_bytes.remaining(), b"ef");
        read_buffer.keep(pending_bytes);
        assert_eq!((read_buffer.is_empty(), read_buffer.len()), (false, 2));
        let mut pending_bytes = PendingBytes::join(read_buffer.take(), &mut []);
        pending_bytes.consume(2);
        read_buffer.keep(pending_bytes);
        assert_eq!((read_buffer.is_empty(), read_buffer.len()), (true, 0));
        assert_eq!(read_buffer.take().capacity(), 0);
        let mut fresh = *b"gh";
        let mut pending_bytes = PendingBytes::join(Vec::new(), &mut fresh);
        pending_bytes.consume(2);
        read_buffer.keep(pending_bytes);
        assert_eq!(read_buffer.take().capacity(), 0);
    }
}
