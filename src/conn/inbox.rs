//! Bytes that were read and could not be used yet.

/// Usually empty and without memory of its own: whole requests are parsed where they were read. What is left over
/// stands before the next bytes, in one piece.
#[derive(Debug, Default)]
pub struct Inbox(Vec<u8>);

impl Inbox {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes the bytes out, to be joined with fresh ones by [`Unread::join`].
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }

    /// Keeps what `unread` has left, without holding memory for nothing.
    pub fn keep(&mut self, unread: Unread<'_>) {
        debug_assert!(self.0.is_empty(), "taken and not put back");
        match unread.bytes {
            Bytes::Fresh(fresh) if unread.consumed < fresh.len() => {
                self.0 = fresh[unread.consumed..].to_vec()
            }
            Bytes::Fresh(_) => {}
            Bytes::Joined(mut joined) => {
                joined.drain(..unread.consumed);
                if !joined.is_empty() {
                    self.0 = joined;
                }
            }
        }
    }
}

/// All unread bytes of a connection in one piece, and how far they have been consumed.
pub struct Unread<'a> {
    bytes: Bytes<'a>,
    consumed: usize,
}

enum Bytes<'a> {
    Fresh(&'a mut [u8]),
    Joined(Vec<u8>),
}

impl<'a> Unread<'a> {
    /// Puts `fresh` bytes behind the `kept` ones; without kept ones nothing is copied.
    pub fn join(mut kept: Vec<u8>, fresh: &'a mut [u8]) -> Self {
        let bytes = if kept.is_empty() {
            Bytes::Fresh(fresh)
        } else {
            kept.extend_from_slice(fresh);
            Bytes::Joined(kept)
        };
        Unread { bytes, consumed: 0 }
    }

    /// The bytes not consumed yet.
    pub fn rest(&mut self) -> &mut [u8] {
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
        let mut inbox = Inbox::default();
        let mut fresh = *b"abcd";
        let mut unread = Unread::join(inbox.take(), &mut fresh);
        unread.consume(2);
        inbox.keep(unread);
        let mut fresh = *b"ef";
        let mut unread = Unread::join(inbox.take(), &mut fresh);
        assert_eq!(unread.rest(), b"cdef");
        unread.consume(4);
        inbox.keep(unread);
        assert!(inbox.is_empty());
    }
}
