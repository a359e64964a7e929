//! A histogram of times, in the buckets of all of them. Pure.

use std::time::Duration;

/// Upper bounds of the latency buckets, in seconds: from a local answer to the longest timeout that makes sense.
pub(super) const BOUNDS_S: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

#[derive(Debug, Clone, Default)]
pub(crate) struct Histogram {
    pub(super) counts: [u64; BOUNDS_S.len()],
    pub(super) count: u64,
    pub(super) sum: Duration,
}

impl Histogram {
    /// What has been added since `before`.
    pub(crate) fn since(&self, before: &Histogram) -> Histogram {
        Histogram {
            counts: std::array::from_fn(|bucket| self.counts[bucket].saturating_sub(before.counts[bucket])),
            count: self.count.saturating_sub(before.count),
            sum: self.sum.saturating_sub(before.sum),
        }
    }

    /// The time that this share of all stays below, as Prometheus estimates it: even within a bucket. Above the last
    /// bound it is that bound. `None`: there is nothing.
    pub(crate) fn quantile(&self, share: f64) -> Option<Duration> {
        if self.count == 0 {
            return None;
        }
        let rank = share * self.count as f64;
        let (mut below, mut lower) = (0.0, 0.0);
        for (bound, count) in BOUNDS_S.iter().zip(self.counts) {
            let count = count as f64;
            if count > 0.0 && below + count >= rank {
                return Some(Duration::from_secs_f64(lower + (bound - lower) * (rank - below) / count));
            }
            (below, lower) = (below + count, *bound);
        }
        Some(Duration::from_secs_f64(lower))
    }

    pub(super) fn observe(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        if let Some(bucket) = BOUNDS_S.iter().position(|bound| seconds <= *bound) {
            self.counts[bucket] += 1;
        }
        self.count += 1;
        self.sum += time;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_estimated_within_their_bucket() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        for ms in [3, 3, 3, 3, 30, 30, 30, 30, 30, 70_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        let ms = |share| histogram.quantile(share).map(|time| time.as_secs_f64() * 1000.0);
        assert_eq!(ms(0.2), Some(3.75), "in the middle of 2.5 to 5");
        assert_eq!(ms(0.4), Some(5.0));
        assert_eq!(ms(0.9), Some(50.0));
        assert_eq!(ms(0.99), Some(10_000.0), "above the last bound");
        let later = histogram.clone();
        histogram.observe(Duration::from_millis(3));
        assert_eq!(histogram.since(&later).quantile(1.0), Some(Duration::from_millis(5)));
    }
}
