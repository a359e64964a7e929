//! Buffers for heads, kept for reuse: no request allocates one while others give theirs back. All heads are in
//! buffers from here, so that no more are kept than there were requests at once.

/// A usual request's head fits, with what the server adds to it; made so large at once, a new one need not grow.
const USUAL_BYTES: usize = 512;
/// One that has grown above this is not kept, since few heads need it.
const LARGEST_KEPT_BYTES: usize = 4096;
/// All that are kept, together: usual ones for the default queue.
const KEPT_BYTES: usize = 4 << 20;

#[derive(Debug, Default)]
pub(crate) struct Buffers {
    kept: Vec<Vec<u8>>,
    bytes: usize,
}

impl Buffers {
    pub(crate) fn take(&mut self) -> Vec<u8> {
        match self.kept.pop() {
            Some(buffer) => {
                self.bytes -= buffer.capacity();
                buffer
            }
            None => Vec::with_capacity(USUAL_BYTES),
        }
    }

    pub(crate) fn give_back(&mut self, mut buffer: Vec<u8>) {
        let is_kept = (1..=LARGEST_KEPT_BYTES).contains(&buffer.capacity())
            && self.bytes + buffer.capacity() <= KEPT_BYTES;
        if is_kept {
            buffer.clear();
            self.bytes += buffer.capacity();
            self.kept.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_buffers_come_back_empty_and_are_bounded() {
        let mut buffers = Buffers::default();
        let mut buffer = buffers.take();
        buffer.extend_from_slice(b"GET / HTTP/1.1");
        buffers.give_back(buffer);
        assert!(buffers.take().is_empty());
        buffers.give_back(Vec::with_capacity(LARGEST_KEPT_BYTES + 1));
        assert_eq!(buffers.bytes, 0, "large ones are not kept");
        for _ in 0..=KEPT_BYTES / USUAL_BYTES {
            buffers.give_back(Vec::with_capacity(USUAL_BYTES));
        }
        assert!(buffers.bytes <= KEPT_BYTES);
        while !buffers.kept.is_empty() {
            buffers.take();
        }
        assert_eq!(buffers.bytes, 0);
    }

    #[test]
    fn a_buffer_is_made_for_a_usual_head_and_kept_up_to_4_kib_each_and_4_mib_together() {
        let mut buffers = Buffers::default();
        let buffer = buffers.take();
        assert!(buffer.is_empty() && buffer.capacity() >= 512);
        buffers.give_back(Vec::new());
        assert!(buffers.kept.is_empty(), "nothing is worth keeping");
        for count in 1..=1024 {
            buffers.give_back(Vec::with_capacity(4096));
            assert_eq!((buffers.kept.len(), buffers.bytes), (count, 4096 * count));
        }
        buffers.give_back(Vec::with_capacity(1));
        assert_eq!(buffers.bytes, 4 * 1024 * 1024, "that many, and none beyond");
        for left in (0..1024).rev() {
            assert!(buffers.take().capacity() >= 4096);
            assert_eq!((buffers.kept.len(), buffers.bytes), (left, 4096 * left));
        }
    }
}
