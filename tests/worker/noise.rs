//! Bytes that both sides of a chaos can name without telling each other: those of one request differ from those of
//! another, and from themselves a little further on.

/// Prime, so that no buffer's size is a multiple of it: a piece that is left out or sent twice shows.
const PERIOD: usize = 65_521;

/// The endless noise of one request.
pub struct Noise {
    start: usize,
}

impl Noise {
    pub fn of(id: &str) -> Noise {
        let sum = id.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        Noise { start: sum % PERIOD }
    }

    /// Bytes `from..from + count` of it.
    pub fn bytes(&self, from: usize, count: usize) -> Vec<u8> {
        let table = table();
        let mut bytes = Vec::with_capacity(count);
        while bytes.len() < count {
            let at = (self.start + from + bytes.len()) % PERIOD;
            let piece = (PERIOD - at).min(count - bytes.len());
            bytes.extend_from_slice(&table[at..at + piece]);
        }
        bytes
    }
}

fn table() -> &'static [u8] {
    static TABLE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    TABLE.get_or_init(|| (0..PERIOD as u64).map(|index| ((index * 2_654_435_761) >> 11) as u8).collect())
}
