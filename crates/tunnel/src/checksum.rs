//! The Internet checksum (RFC 1071), over pieces.
//!
//! Read [`Sum`]. It adds in the machine's own byte order and turns the result at the end, which comes to the same
//! (RFC 1071, 2B). All pieces but the last have an even length, as headers have.

/// A sum that is not yet folded.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum(u64);

impl Sum {
    /// With these bytes added. A last odd byte counts as if a zero followed.
    pub(crate) fn add(self, bytes: &[u8]) -> Self {
        // Sums side by side, which the compiler turns into vector instructions. None of them overflows:
        // packets are shorter than 2^32 words.
        let (mut low, mut high) = ([0_u64; 8], [0_u64; 8]);
        let (blocks, rest) = bytes.as_chunks::<64>();
        for block in blocks {
            let (words, _) = block.as_chunks::<8>();
            for ((low, high), word) in low.iter_mut().zip(&mut high).zip(words) {
                let word = u64::from_ne_bytes(*word);
                *low += word & 0xffff_ffff;
                *high += word >> 32;
            }
        }
        let mut sum = low.into_iter().chain(high).fold(self.0, u64::wrapping_add);
        let (words, rest) = rest.as_chunks::<4>();
        for word in words {
            sum += u64::from(u32::from_ne_bytes(*word));
        }
        let (pairs, last) = rest.as_chunks::<2>();
        for pair in pairs {
            sum += u64::from(u16::from_ne_bytes(*pair));
        }
        if let [odd] = last {
            sum += u64::from(u16::from_ne_bytes([*odd, 0]));
        }
        Self(sum)
    }

    /// With the rest of a pseudo header added: protocol and length (RFC 9293 3.1, RFC 8200 8.1).
    pub(crate) fn add_pseudo(self, protocol: u8, length: usize) -> Self {
        let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
        self.add(&length).add(&[0, protocol])
    }

    /// Folded to 16 bits, not inverted: what a kernel expects in a checksum that it shall finish.
    pub(crate) fn partial(self) -> [u8; 2] {
        let mut sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        ((sum & 0xffff) as u16).to_ne_bytes()
    }

    /// The checksum.
    pub(crate) fn finish(self) -> [u8; 2] {
        self.partial().map(|byte| !byte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 to the letter.
    fn plainly(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_the_rfc() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().add(&bytes).partial(), [0xdd, 0xf2]);
    }

    proptest! {
        #[test]
        fn it_is_the_plain_sum(bytes in prop::collection::vec(any::<u8>(), 0..3000), cut in 0_usize..1500) {
            let cut = (cut * 2).min(bytes.len() / 2 * 2);
            let sum = Sum::default().add(&bytes[..cut]).add(&bytes[cut..]);
            prop_assert_eq!(u16::from_be_bytes(sum.finish()), plainly(&bytes));
        }

        #[test]
        fn ones_do_not_overflow(length in 0_usize..70_000) {
            let bytes = vec![0xff; length];
            prop_assert_eq!(u16::from_be_bytes(Sum::default().add(&bytes).finish()), plainly(&bytes));
        }
    }
}
