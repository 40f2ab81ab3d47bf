//! The checksums of the internet: RFC 1071 sums, their incremental update (RFC 1624), and SCTP's CRC32c (RFC 9260 appendix A).
//!
//! A [`Sum`] is kept in the machine's byte order, because a one's complement sum does not mind (RFC 1071 §2 B), and is
//! turned once at the end.

/// A one's complement sum that grows. Holds a gigabyte without loss.
#[derive(Clone, Copy, Default, Debug)]
pub struct Sum(u64);

impl Sum {
    /// The sum of `bytes`; an odd last byte is followed by a zero.
    #[inline]
    pub fn of(bytes: &[u8]) -> Sum {
        let (eights, rest) = bytes.as_chunks::<8>();
        let mut sum = 0;
        for eight in eights {
            let word = u64::from_ne_bytes(*eight);
            sum += (word & 0xffff_ffff) + (word >> 32);
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        let word = u64::from_ne_bytes(last);
        Sum(sum + (word & 0xffff_ffff) + (word >> 32))
    }

    /// Both together; for pieces of a whole, all but the last of even length.
    #[inline]
    pub fn plus(self, other: Sum) -> Sum {
        Sum(self.0 + other.0)
    }

    /// Adds a 16-bit word of the wire.
    #[inline]
    pub fn word(self, word: u16) -> Sum {
        Sum(self.0 + u64::from(word.to_be()))
    }

    /// Adds the change of some words of the wire from `old` to `new`: as many bytes of each, an even number.
    #[inline]
    pub fn change(self, old: &[u8], new: &[u8]) -> Sum {
        debug_assert!(old.len() == new.len() && old.len().is_multiple_of(2));
        let mut sum = self.0;
        for (old, new) in old.as_chunks().0.iter().zip(new.as_chunks().0) {
            sum += u64::from(!u16::from_ne_bytes(*old)) + u64::from(u16::from_ne_bytes(*new));
        }
        Sum(sum)
    }

    /// The sum in 16 bits: what a checksum field left to a device holds.
    #[inline]
    pub fn folded(self) -> u16 {
        // Twice each: the first sum may carry, the second cannot.
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff_ffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        u16::from_be(sum as u16)
    }

    /// The checksum: the complement of the sum.
    #[inline]
    pub fn checksum(self) -> u16 {
        !self.folded()
    }

    /// The checksum as UDP writes it: never 0, which means "none" (RFC 768).
    #[inline]
    pub fn udp_checksum(self) -> u16 {
        match self.checksum() {
            0 => 0xffff,
            checksum => checksum,
        }
    }

    /// With this sum of changes, what `checksum` becomes: equation 3 of RFC 1624, for any number of words.
    #[inline]
    pub fn amend(self, checksum: u16) -> u16 {
        self.word(!checksum).checksum()
    }
}

/// The pseudo-header of a transport protocol over IPv4: `addresses` are source and destination as they stand in the IP header,
/// `len` the bytes of transport header and payload.
#[inline]
pub fn pseudo_ipv4(addresses: &[u8; 8], proto: u8, len: u32) -> Sum {
    pseudo(addresses, proto, len)
}

/// The same over IPv6 (RFC 8200 §8.1).
#[inline]
pub fn pseudo_ipv6(addresses: &[u8; 32], proto: u8, len: u32) -> Sum {
    pseudo(addresses, proto, len)
}

#[inline]
fn pseudo(addresses: &[u8], proto: u8, len: u32) -> Sum {
    Sum::of(addresses).word(u16::from(proto)).word((len >> 16) as u16).word(len as u16)
}

/// CRC32c as SCTP uses it: over its packet with the checksum field taken as zero, stored with its low byte first.
pub mod crc32c {
    /// The Castagnoli polynomial, lowest power in the highest bit.
    const POLYNOMIAL: u32 = 0x82f6_3b78;

    /// `TABLES[k][b]`: what byte `b` followed by `k` zero bytes adds to the remainder.
    static TABLES: [[u32; 256]; 8] = {
        let mut tables = [[0u32; 256]; 8];
        let mut byte = 0;
        while byte < 256 {
            let mut crc = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg());
                bit += 1;
            }
            tables[0][byte] = crc;
            byte += 1;
        }
        let mut k = 1;
        while k < 8 {
            let mut byte = 0;
            while byte < 256 {
                let crc = tables[k - 1][byte];
                tables[k][byte] = (crc >> 8) ^ tables[0][(crc & 0xff) as usize];
                byte += 1;
            }
            k += 1;
        }
        tables
    };

    /// The CRC of the pieces together.
    pub fn of(pieces: &[&[u8]]) -> u32 {
        !pieces.iter().fold(!0, |crc, piece| remainder(crc, piece))
    }

    /// What to xor into a CRC when some of its bytes change by `difference` (old xor new) with `behind` bytes following them.
    /// CRCs are linear, so neither the other bytes nor the old CRC need be right: an error stays the same error.
    pub fn change(difference: &[u8], behind: usize) -> u32 {
        let mut crc = remainder(0, difference);
        // Multiplies by x^(8·behind), by squaring.
        let (mut power, mut left) = (1 << (31 - 8), behind);
        while left > 0 {
            if left & 1 == 1 {
                crc = multiply(power, crc);
            }
            power = multiply(power, power);
            left >>= 1;
        }
        crc
    }

    fn remainder(mut crc: u32, bytes: &[u8]) -> u32 {
        let (eights, rest) = bytes.as_chunks::<8>();
        for eight in eights {
            let word = u64::from_le_bytes(*eight) ^ u64::from(crc);
            crc = 0;
            for (k, byte) in word.to_le_bytes().into_iter().enumerate() {
                crc ^= TABLES[7 - k][usize::from(byte)];
            }
        }
        for byte in rest {
            crc = (crc >> 8) ^ TABLES[0][usize::from(crc as u8 ^ byte)];
        }
        crc
    }

    /// The product of two polynomials modulo [`POLYNOMIAL`].
    fn multiply(a: u32, mut b: u32) -> u32 {
        let mut product = 0;
        for bit in (0..32).rev() {
            product ^= b & (a >> bit & 1).wrapping_neg();
            b = (b >> 1) ^ (POLYNOMIAL & (b & 1).wrapping_neg());
        }
        product
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, word by word.
    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0u64;
        for pair in bytes.chunks(2) {
            sum += u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u64::from(*b));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_example_of_rfc_1071_sums_to_ddf2() {
        assert_eq!(Sum::of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]).folded(), 0xddf2);
    }

    #[test]
    fn a_computed_zero_is_written_as_ffff_in_udp_only() {
        let sum = Sum::default().word(0xffff);
        assert_eq!((sum.checksum(), sum.udp_checksum()), (0, 0xffff));
    }

    #[test]
    fn the_crc_of_123456789_is_the_published_one() {
        assert_eq!(crc32c::of(&[b"123456789"]), 0xe306_9283);
        assert_eq!(crc32c::of(&[b"1234", b"56789"]), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn the_fast_sum_is_the_plain_sum(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(Sum::of(&bytes).folded(), plain(&bytes));
        }

        #[test]
        fn amending_a_checksum_gives_the_checksum_of_the_changed_bytes(
            mut bytes in proptest::collection::vec(any::<u8>(), 20..100), at in 0usize..8, new: [u8; 4],
        ) {
            let before = Sum::of(&bytes).checksum();
            let place = 2 * at..2 * at + 4;
            let delta = Sum::default().change(&bytes[place.clone()], &new);
            bytes[place].copy_from_slice(&new);
            prop_assume!(bytes.iter().any(|b| *b != 0));
            prop_assert_eq!(delta.amend(before), Sum::of(&bytes).checksum());
        }

        #[test]
        fn a_changed_crc_is_the_crc_of_the_changed_bytes(
            mut bytes in proptest::collection::vec(any::<u8>(), 4..200), at in 0usize..200, new: [u8; 4],
        ) {
            let at = at % (bytes.len() - 3);
            let before = crc32c::of(&[&bytes]);
            let difference: Vec<u8> = bytes[at..].iter().zip(new).map(|(a, b)| a ^ b).collect();
            let change = crc32c::change(&difference, bytes.len() - at - 4);
            bytes[at..at + 4].copy_from_slice(&new);
            prop_assert_eq!(before ^ change, crc32c::of(&[&bytes]));
        }
    }
}
