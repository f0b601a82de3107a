//! ConditionUpdate the mark that ends a snapshot.

use bytes::BytesMut;

/// Length of the mark.
pub(super) const LENGTH: usize = 40;

/// Looks for the mark in bytes as they come, and keeps back only what may be its beginning.
///
/// What is kept back is always a prefix of the mark, so only its length needs to be remembered.
pub(super) struct EndMark {
    mark: [u8; LENGTH],
    /// By the last byte of a window: how far the mark may be moved on without passing over itself (Horspool).
    shifts: [u8; 256],
    held: usize,
}

/// What the bytes seen hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScanResult {
    Payload,
    End,
}

impl EndMark {
    pub(super) fn new(mark: [u8; LENGTH]) -> Self {
        let mut shifts = [40; 256];
        for (shift, byte) in (1..40).rev().zip(mark) {
            if let Some(place) = shifts.get_mut(usize::from(byte)) {
                *place = shift;
            }
        }
        Self {
            mark,
            shifts,
            held: 0,
        }
    }

    /// Number of bytes kept back, which `take` may put in front of new ones.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Looks at the bytes of the buffer from `start` on, which have just come, and leaves only payload there.
    pub(super) fn take(&mut self, buffer: &mut BytesMut, start: usize) -> ScanResult {
        self.release(buffer, start);
        let fresh = buffer.get(start..).unwrap_or_default();
        if let Some(end) = self.find(fresh) {
            buffer.truncate(start + end);
            return ScanResult::End;
        }
        self.held = self.longest_beginning(fresh);
        buffer.truncate(buffer.len() - self.held);
        ScanResult::Payload
    }

    /// Puts what was kept back in front of the new bytes.
    fn release(&mut self, buffer: &mut BytesMut, start: usize) {
        let held = std::mem::take(&mut self.held);
        let Some(kept) = self.mark.get(..held).filter(|kept| !kept.is_empty()) else {
            return;
        };
        let end = buffer.len();
        buffer.extend_from_slice(kept);
        buffer.copy_within(start..end, start + held);
        for (place, byte) in buffer.iter_mut().skip(start).zip(kept) {
            *place = *byte;
        }
    }

    fn find(&self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(window) = bytes.get(at..at + LENGTH) {
            if window == self.mark {
                return Some(at);
            }
            let last = window.last().copied().unwrap_or_default();
            at += usize::from(self.shifts.get(usize::from(last)).copied().unwrap_or(1));
        }
        None
    }

    /// Length of the longest end of the bytes that is a beginning of the mark.
    fn longest_beginning(&self, bytes: &[u8]) -> usize {
        (1..LENGTH)
            .rev()
            .find(|length| {
                self.mark
                    .get(..*length)
                    .is_some_and(|beginning| bytes.ends_with(beginning))
            })
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Payload delivered of a stream cut into pieces, and whether the end was seen.
    fn run(mark: [u8; LENGTH], stream: &[u8], sizes: &[usize]) -> (Vec<u8>, ScanResult) {
        let mut end_mark = EndMark::new(mark);
        let mut buffer = BytesMut::new();
        let mut rest = stream;
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, more) = rest.split_at((*size).min(rest.len()));
            let start = buffer.len();
            buffer.extend_from_slice(piece);
            if end_mark.take(&mut buffer, start) == ScanResult::End {
                return (buffer.to_vec(), ScanResult::End);
            }
            rest = more;
        }
        (buffer.to_vec(), ScanResult::Payload)
    }

    proptest! {
        /// Few letters, so that beginnings of the mark and marks like `aaaa` happen all the time.
        #[test]
        fn the_first_mark_ends_the_payload(
            mark in prop_oneof![prop::array::uniform32(b'a'..=b'b'), Just([b'a'; 32])],
            pieces in prop::collection::vec((any::<prop::sample::Index>(), prop::collection::vec(b'a'..=b'b', 0..50)), 0..6),
            sizes in prop::collection::vec(1usize..60, 1..10),
            ends in any::<bool>(),
        ) {
            let mut full = [b'a'; LENGTH];
            full[8..].copy_from_slice(&mark);
            let mut stream = Vec::new();
            for (cut, noise) in pieces {
                stream.extend(&full[..cut.index(LENGTH)]);
                stream.extend(noise);
            }
            if ends {
                stream.extend(full);
                stream.extend(b"\n\nafter");
            }
            let expected = stream.windows(LENGTH).position(|window| window == full);
            let (payload, seen) = run(full, &stream, &sizes);
            if let Some(end) = expected {
                prop_assert_eq!(seen, ScanResult::End);
                prop_assert_eq!(payload, &stream[..end]);
            } else {
                prop_assert_eq!(seen, ScanResult::Payload);
                prop_assert!(stream.starts_with(&payload));
                prop_assert!(full.starts_with(&stream[payload.len()..]));
            }
        }
    }
}
