//! [`Spread`]: a histogram with few, fixed bounds, as metrics have it.

use serde::Serialize;

/// The upper ends of the buckets, in nanoseconds: 1 us to 10 s.
pub const BOUNDS_NS: [u64; 15] = [
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    5_000_000,
    25_000_000,
    100_000_000,
    1_000_000_000,
    10_000_000_000,
];

/// How many values were no larger than each bound, how many there were, and their sum, as exactly as the finer histogram tells.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    pub cumulative: [u64; BOUNDS_NS.len()],
    pub count: u64,
    pub sum_ns: f64,
}

impl Spread {
    /// Counts `count` values of about `value_ns`.
    pub fn add(&mut self, value_ns: u64, count: u64) {
        for (cumulative, bound) in self.cumulative.iter_mut().zip(BOUNDS_NS) {
            *cumulative += if value_ns <= bound { count } else { 0 };
        }
        self.count += count;
        self.sum_ns += value_ns as f64 * count as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_count_below_each_bound_that_they_do_not_exceed() {
        let mut spread = Spread::default();
        spread.add(1_000, 2);
        spread.add(1_001, 1);
        spread.add(u64::MAX, 1);
        assert_eq!((spread.cumulative[0], spread.cumulative[1], spread.cumulative[14], spread.count), (2, 3, 3, 4));
    }
}
