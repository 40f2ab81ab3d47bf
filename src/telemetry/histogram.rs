//! [`Histogram`]: how long something took, each time, so that percentiles can be told.
//!
//! Buckets are log-linear: below 64 one a value, above it 32 to each power of two, so that a bucket is no wider than a
//! thirty-second of the values in it. All times up to 68 s take 1,024 counts, 8 KiB.

use super::Counter;
use super::spread::Spread;

/// Buckets to a power of two, as a power of two.
const FINE_BITS: u32 = 5;
const FINE: usize = 1 << FINE_BITS;

/// Values have at most so many bits; larger ones are counted as the largest.
const VALUE_BITS: u32 = 36;
const LARGEST: u64 = (1 << VALUE_BITS) - 1;

const BUCKETS: usize = ((VALUE_BITS - FINE_BITS + 1) as usize) << FINE_BITS;

/// Counts of values by size; values are nanoseconds up to 68 s, larger ones count as that.
///
/// # Thread-safety
/// As [`Counter`]: one thread records, with plain loads and stores; anybody reads. Who reads while a value is recorded
/// sees it or does not.
#[derive(Debug)]
pub struct Histogram {
    buckets: Box<[Counter; BUCKETS]>,
    largest: Counter,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { buckets: Box::new(std::array::from_fn(|_| Counter::default())), largest: Counter::default() }
    }
}

impl Histogram {
    /// Counts one value.
    #[inline]
    pub fn record(&self, value: u64) {
        let value = value.min(LARGEST);
        self.buckets[bucket(value)].add(1);
        if value > self.largest.get() {
            self.largest.set(value);
        }
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(Counter::get).sum()
    }

    /// The largest value counted; 0 without any.
    pub fn max(&self) -> u64 {
        self.largest.get()
    }

    /// The value that a `share` (0 to 1) of all values does not exceed, at most a thirty-second too large; 0 without any.
    pub fn at(&self, share: f64) -> u64 {
        let counts: Vec<u64> = self.buckets.iter().map(Counter::get).collect();
        let all: u64 = counts.iter().sum();
        let rank = ((share * all as f64).ceil() as u64).clamp(1, all.max(1));
        let mut passed = 0;
        let found = counts.iter().position(|count| {
            passed += count;
            passed >= rank
        });
        found.map_or(0, |bucket| upper(bucket).min(self.max()))
    }

    /// The same with few bounds.
    pub fn spread(&self) -> Spread {
        let mut spread = Spread::default();
        let counted = self.buckets.iter().map(Counter::get).enumerate().filter(|(_, count)| *count > 0);
        counted.for_each(|(bucket, count)| spread.add(upper(bucket), count));
        spread
    }

    /// Counts all that `other` has counted, too.
    pub fn add(&self, other: &Histogram) {
        for (mine, theirs) in self.buckets.iter().zip(other.buckets.iter()) {
            mine.add(theirs.get());
        }
        self.largest.set(self.max().max(other.max()));
    }

    /// What was counted since `earlier`, a reading of this histogram. Its largest value is known as exactly as a bucket tells.
    pub fn since(&self, earlier: &Histogram) -> Histogram {
        let since = Histogram::default();
        for (bucket, count) in since.buckets.iter().enumerate() {
            count.set(self.buckets[bucket].get().saturating_sub(earlier.buckets[bucket].get()));
            if count.get() > 0 {
                since.largest.set(upper(bucket).min(self.max()));
            }
        }
        since
    }
}

/// Where values of this size are counted; `value` is at most [`LARGEST`].
#[inline]
fn bucket(value: u64) -> usize {
    let shift = 63 - (value | FINE as u64).leading_zeros() - FINE_BITS;
    ((shift as usize) << FINE_BITS) + (value >> shift) as usize
}

/// The largest value that is counted in a bucket.
fn upper(bucket: usize) -> u64 {
    let shift = (bucket >> FINE_BITS).saturating_sub(1);
    let leading = bucket - (shift << FINE_BITS);
    ((leading as u64 + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_follow_each_other_without_a_gap_and_end_at_the_largest_value() {
        for at in 0..BUCKETS - 1 {
            assert_eq!((bucket(upper(at)), bucket(upper(at) + 1)), (at, at + 1));
        }
        assert_eq!((upper(BUCKETS - 1), bucket(LARGEST)), (LARGEST, BUCKETS - 1));
        let histogram = Histogram::default();
        histogram.record(u64::MAX);
        assert_eq!((histogram.count(), histogram.max(), histogram.at(0.5)), (1, LARGEST, LARGEST));
    }

    #[test]
    fn nothing_recorded_is_zero_everywhere() {
        let empty = Histogram::default();
        assert_eq!((empty.count(), empty.max(), empty.at(0.5), empty.at(1.0)), (0, 0, 0, 0));
    }

    #[test]
    fn what_was_cleared_is_not_seen_any_more_not_even_as_the_maximum() {
        let (all, cleared) = (Histogram::default(), Histogram::default());
        all.record(1_000_000);
        cleared.add(&all);
        assert_eq!(all.since(&cleared).max(), 0);
        all.record(40);
        let since = all.since(&cleared);
        assert_eq!((since.count(), since.max(), since.at(0.999)), (1, 40, 40));
        assert_eq!(all.max(), 1_000_000);
    }

    proptest! {
        #[test]
        fn percentiles_are_those_of_the_sorted_values_but_for_the_width_of_a_bucket(
            values in prop::collection::vec((0u32..36, any::<u64>()).prop_map(|(bits, value)| value >> (63 - bits)), 1..400),
            share in 0.0f64..=1.0,
        ) {
            let (one, two) = (Histogram::default(), Histogram::default());
            for (i, value) in values.iter().enumerate() {
                [&one, &two][i % 2].record(*value);
            }
            one.add(&two);
            let mut sorted: Vec<u64> = values.iter().map(|value| (*value).min(LARGEST)).collect();
            sorted.sort_unstable();
            let rank = ((share * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len());
            let (exact, told) = (sorted[rank - 1], one.at(share));
            prop_assert!(exact <= told && told - exact <= exact / FINE as u64, "{} for {}", told, exact);
            prop_assert_eq!(one.max(), *sorted.last().unwrap());
            prop_assert_eq!(one.count(), sorted.len() as u64);
        }
    }
}
