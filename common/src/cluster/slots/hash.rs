//! From a key to a number: its hash tag, and the CRC-16 of that.

/// The part of a key that decides its slot.
pub(super) fn tag(key: &[u8]) -> &[u8] {
    let tag = key.iter().position(|b| *b == b'{').and_then(|open| {
        let rest = key.get(open + 1..)?;
        let close = rest.iter().position(|b| *b == b'}')?;
        rest.get(..close)
    });
    tag.filter(|tag| !tag.is_empty()).unwrap_or(key)
}

/// Tables for four bytes at a time: `CRC16[n]` is the checksum of a byte and `n` zeros after it.
const CRC16: [[u16; 256]; 4] = crc16_tables();

#[allow(clippy::indexing_slicing)] // evaluated by the compiler: an index out of bounds does not build
const fn crc16_tables() -> [[u16; 256]; 4] {
    let mut tables = [[0u16; 256]; 4];
    let mut byte = 0;
    while byte < 256 {
        #[allow(clippy::cast_possible_truncation)] // below 256
        let mut crc = (byte as u16) << 8;
        let mut zeros = 0;
        while zeros < 4 {
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 0x8000 == 0 {
                    crc << 1
                } else {
                    (crc << 1) ^ 0x1021
                };
                bit += 1;
            }
            tables[zeros][byte] = crc;
            zeros += 1;
        }
        byte += 1;
    }
    tables
}

/// CRC-16/XMODEM. Every key of a backup passes here, so the bytes go through in fours.
pub(super) fn crc16(bytes: &[u8]) -> u16 {
    let [zero, one, two, three] = &CRC16;
    let (fours, rest) = bytes.as_chunks::<4>();
    let crc = fours.iter().fold(0u16, |crc, [a, b, c, d]| {
        let [high, low] = crc.to_be_bytes();
        entry(three, high ^ a) ^ entry(two, low ^ b) ^ entry(one, *c) ^ entry(zero, *d)
    });
    rest.iter().fold(crc, |crc, byte| {
        let [high, low] = crc.to_be_bytes();
        (u16::from(low) << 8) ^ entry(zero, high ^ byte)
    })
}

/// A byte is always a valid index of 256 entries, so the fallback is never taken.
#[inline]
fn entry(table: &[u16; 256], byte: u8) -> u16 {
    table.get(usize::from(byte)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// CRC-16/XMODEM bit by bit, as its definition has it.
    fn plain_crc16(bytes: &[u8]) -> u16 {
        bytes.iter().fold(0, |crc, byte| {
            (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
                if crc & 0x8000 == 0 {
                    crc << 1
                } else {
                    (crc << 1) ^ 0x1021
                }
            })
        })
    }

    proptest! {
        #[test]
        fn the_checksum_is_that_of_the_definition(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(crc16(&bytes), plain_crc16(&bytes));
        }
    }
}
