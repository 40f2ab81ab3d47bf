//! Hashing keys: words in, 64 well-mixed bits out, seeded so that the author of packets cannot aim at a bucket.
//!
//! Pairs of words are multiplied crosswise and summed (the NH construction of Black et al., "UMAC", CRYPTO 1999),
//! then mixed once. The products do not depend on each other, so a whole key costs little more than its loads.

use crate::flow::Key;
use crate::flow::field::WORDS;

/// Random numbers that stand between a packet and its bucket.
#[derive(Clone, Debug)]
pub struct Seeds {
    words: [u64; WORDS + 1],
}

impl Seeds {
    /// Seeds that differ from process to process, and from one call to the next.
    pub fn random() -> Seeds {
        use std::hash::{BuildHasher, RandomState};
        let state = RandomState::new();
        Seeds { words: std::array::from_fn(|i| state.hash_one(i)) }
    }

    /// The hash of a whole key.
    #[inline]
    pub fn key(&self, key: &Key) -> u64 {
        let words = key.words();
        let mut sum = u128::from(words[WORDS - 1].wrapping_add(self.words[WORDS - 1])) * u128::from(self.words[WORDS]);
        for i in 0..WORDS / 2 {
            sum = sum.wrapping_add(cross(
                words[2 * i].wrapping_add(self.words[2 * i]),
                words[2 * i + 1].wrapping_add(self.words[2 * i + 1]),
            ));
        }
        mix(sum)
    }

    /// What [`list`](Seeds::list) says of the masked words of a key: `words` says which, and which bits of them.
    #[inline(always)]
    pub fn masked(&self, key: &[u64; WORDS], words: &[(u8, u64)]) -> u64 {
        let word = |(index, mask): (u8, u64)| key[index as usize] & mask;
        let mut sum = 0u128;
        let mut pairs = words.chunks_exact(2);
        for (pair, seed) in (&mut pairs).zip(self.words.chunks_exact(2)) {
            sum = sum.wrapping_add(cross(word(pair[0]).wrapping_add(seed[0]), word(pair[1]).wrapping_add(seed[1])));
        }
        if let [last] = pairs.remainder() {
            sum = sum.wrapping_add(cross(word(*last).wrapping_add(self.words[WORDS - 1]), self.words[WORDS]));
        }
        mix(sum)
    }

    /// The hash of a list of at most [`WORDS`] words.
    #[inline]
    pub fn list(&self, words: &[u64]) -> u64 {
        let mut sum = 0u128;
        let mut pairs = words.chunks_exact(2);
        for (pair, seed) in (&mut pairs).zip(self.words.chunks_exact(2)) {
            sum = sum.wrapping_add(cross(pair[0].wrapping_add(seed[0]), pair[1].wrapping_add(seed[1])));
        }
        if let [last] = pairs.remainder() {
            sum = sum.wrapping_add(cross(last.wrapping_add(self.words[WORDS - 1]), self.words[WORDS]));
        }
        mix(sum)
    }
}

#[inline]
fn cross(a: u64, b: u64) -> u128 {
    u128::from(a) * u128::from(b)
}

#[inline]
fn mix(sum: u128) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let folded = (sum as u64) ^ ((sum >> 64) as u64).rotate_left(32);
    let product = cross(folded ^ ODD, ODD);
    (product as u64) ^ ((product >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_differ_in_one_bit_spread_over_the_low_bits() {
        let seeds = Seeds::random();
        let mut buckets = [0u32; 256];
        for bit in 0..WORDS * 64 {
            let mut key = Key::ZERO;
            key.words_mut()[bit / 64] |= 1 << (bit % 64);
            buckets[seeds.key(&key) as usize & 255] += 1;
        }
        // 1,088 keys in 256 buckets: 4.25 each; a bucket of 25 would be ten standard deviations off.
        assert!(buckets.iter().all(|&n| n < 25), "{buckets:?}");
    }

    #[test]
    fn counting_addresses_spread_over_the_low_bits() {
        let seeds = Seeds::random();
        let mut buckets = [0u32; 1024];
        for i in 0..65_536u64 {
            buckets[seeds.list(&[7, i, 9]) as usize & 1023] += 1;
        }
        assert!(
            buckets.iter().all(|&n| (16..160).contains(&n)),
            "min {:?} max {:?}",
            buckets.iter().min(),
            buckets.iter().max()
        );
    }
}
