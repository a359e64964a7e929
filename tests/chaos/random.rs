//! Choices that a seed repeats.

/// SplitMix64: small, and good enough to choose with.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Each `stream` of a seed chooses on its own.
    pub fn new(seed: u64, stream: u64) -> Random {
        let mut random = Random(seed ^ stream.wrapping_mul(0xa076_1d64_78bd_642f));
        random.next();
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// `least..=most`
    pub fn between(&mut self, least: usize, most: usize) -> usize {
        let choices = (most - least + 1) as u64;
        least + (self.next() % choices) as usize
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.between(1, 100) <= percent
    }

    pub fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.between(0, list.len() - 1)]
    }
}
