//! Decompression of LZF, the way the server writes strings of more than 20 bytes that get shorter by it.
//!
//! A control byte below 32 announces that many bytes plus one as they are; any other holds the length (3 bits, minus 2)
//! and the high bits of the distance (5 bits) of a copy out of what was written; length 7 is extended by a byte.

/// Appends the plain bytes to `out`, which grows by what is really there, never by what `plain` claims.
/// Nothing on damage, and when the result is not `plain` bytes long.
pub(super) fn inflate(compressed: &[u8], plain: u64, out: &mut Vec<u8>) -> Option<()> {
    let start = out.len();
    let end = start.checked_add(usize::try_from(plain).ok()?)?;
    let mut input = compressed.iter();
    while let Some(control) = input.next() {
        let control = usize::from(*control);
        if control < 32 {
            let (literal, rest) = input.as_slice().split_at_checked(control + 1)?;
            out.extend_from_slice(literal);
            input = rest.iter();
        } else {
            let mut length = (control >> 5) + 2;
            if length == 9 {
                length += usize::from(*input.next()?);
            }
            let distance = ((control & 31) << 8) + usize::from(*input.next()?) + 1;
            copy_back(out, start, distance, length)?;
        }
        if out.len() > end {
            return None;
        }
    }
    (out.len() == end).then_some(())
}

/// Appends `length` bytes starting `distance` before the end; they may overlap what they append.
fn copy_back(out: &mut Vec<u8>, start: usize, distance: usize, length: usize) -> Option<()> {
    let from = out
        .len()
        .checked_sub(distance)
        .filter(|from| *from >= start)?;
    let mut left = length;
    while left > 0 {
        let step = left.min(distance);
        out.extend_from_within(from..from + step);
        left -= step;
        // What was just appended repeats the pattern, so the next step may take it from the same place.
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain(compressed: &[u8], length: u64) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        inflate(compressed, length, &mut out).map(|()| out)
    }

    #[test]
    fn literals_and_copies() {
        assert_eq!(plain(&[2, b'a', b'b', b'c'], 3).unwrap(), b"abc");
        // "a", then 3 + 2 more of it from distance 1.
        assert_eq!(plain(&[0, b'a', 3 << 5, 0], 6).unwrap(), b"aaaaaa");
        // "abc", then a long copy of 9 + 11 bytes from distance 3.
        assert_eq!(
            plain(&[2, b'a', b'b', b'c', 7 << 5, 11, 2], 23).unwrap(),
            b"abcabcabcabcabcabcabcab"
        );
    }

    #[test]
    fn damage_is_found() {
        assert_eq!(plain(&[2, b'a'], 3), None);
        assert_eq!(plain(&[0, b'a', 3 << 5], 6), None);
        assert_eq!(plain(&[0, b'a', 3 << 5, 1], 6), None);
        assert_eq!(plain(&[0, b'a'], 2), None);
        assert_eq!(plain(&[1, b'a', b'b'], 1), None);
        assert_eq!(plain(&[], u64::MAX), None);
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_bounded_answer(bytes in prop::collection::vec(any::<u8>(), 0..300), length in 0u64..3000) {
            if let Some(out) = plain(&bytes, length) {
                prop_assert_eq!(out.len() as u64, length);
            }
        }
    }
}
