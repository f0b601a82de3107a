//! A place in a stream that arrives in pieces.

use super::error::RdbError;

/// A piece being read and how much of it is read.
pub(super) struct Cursor<'p> {
    pub(super) piece: &'p [u8],
    pub(super) rest: &'p [u8],
    /// Offset in the stream of the piece's end.
    end: u64,
}

impl<'p> Cursor<'p> {
    pub(super) fn new(piece: &'p [u8], offset: u64) -> Self {
        Self {
            piece,
            rest: piece,
            end: offset.saturating_add(piece.len() as u64),
        }
    }

    /// Offset in the stream of the next byte.
    pub(super) fn offset(&self) -> u64 {
        self.end - self.rest.len() as u64
    }

    /// Number of bytes read of the piece.
    pub(super) fn taken(&self) -> usize {
        self.piece.len() - self.rest.len()
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    /// Goes on by up to `length` bytes; how many of them the piece lacks.
    #[inline]
    pub(super) fn skip(&mut self, length: u64) -> u64 {
        let here = usize::try_from(length)
            .unwrap_or(usize::MAX)
            .min(self.rest.len());
        self.take(here);
        length - here as u64
    }

    /// The next `length` bytes, or all there are.
    #[inline]
    pub(super) fn take(&mut self, length: usize) -> &'p [u8] {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .unwrap_or((self.rest, &[]));
        self.rest = rest;
        taken
    }
}

/// A length, or the announcement of a specially encoded string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    Plain(u64),
    Encoded(u8),
}

/// The bytes of a small thing that is split over pieces: at most a magic or a length of 9 bytes.
#[derive(Default)]
pub(super) struct Carry {
    bytes: [u8; 9],
    length: usize,
}

impl Carry {
    /// The next `N` bytes, once all of them have come.
    #[inline]
    pub(super) fn take<const N: usize>(&mut self, cursor: &mut Cursor<'_>) -> Option<[u8; N]> {
        if self.length == 0
            && let Some((bytes, rest)) = cursor.rest.split_first_chunk::<N>()
        {
            cursor.rest = rest;
            return Some(*bytes);
        }
        self.collect(cursor)
    }

    #[cold]
    fn collect<const N: usize>(&mut self, cursor: &mut Cursor<'_>) -> Option<[u8; N]> {
        let more = cursor.take(N.saturating_sub(self.length));
        for (place, byte) in self.bytes.iter_mut().skip(self.length).zip(more) {
            *place = *byte;
        }
        self.length += more.len();
        if self.length < N {
            return None;
        }
        self.length = 0;
        self.bytes.first_chunk::<N>().copied()
    }

    /// The next length; nothing while its bytes have not all come.
    #[inline]
    pub(super) fn length(&mut self, cursor: &mut Cursor<'_>) -> Result<Option<Length>, RdbError> {
        let first = match (self.length, self.bytes) {
            (0, _) => match cursor.rest.split_first() {
                None => return Ok(None),
                Some((first, rest)) if *first < 0x40 => {
                    cursor.rest = rest;
                    return Ok(Some(Length::Plain(u64::from(*first))));
                }
                Some((first, _)) => *first,
            },
            (_, [first, ..]) => first,
        };
        Ok(match first {
            0x00..=0x3f => self
                .take(cursor)
                .map(|[low]: [u8; 1]| Length::Plain(u64::from(low))),
            0x40..=0x7f => self
                .take(cursor)
                .map(|bytes| Length::Plain(u64::from(u16::from_be_bytes(bytes) & 0x3fff))),
            0x80 => self
                .take(cursor)
                .map(|[_, bytes @ ..]: [u8; 5]| Length::Plain(u32::from_be_bytes(bytes).into())),
            0x81 => self
                .take(cursor)
                .map(|[_, bytes @ ..]: [u8; 9]| Length::Plain(u64::from_be_bytes(bytes))),
            0x82..=0xbf => {
                return Err(malformed(
                    cursor,
                    "a length starts with a byte that has no meaning",
                ));
            }
            0xc0..=0xff => self
                .take(cursor)
                .map(|[code]: [u8; 1]| Length::Encoded(code & 0x3f)),
        })
    }
}

pub(super) fn malformed(cursor: &Cursor<'_>, reason: &'static str) -> RdbError {
    RdbError::Malformed {
        offset: cursor.offset(),
        reason,
    }
}
