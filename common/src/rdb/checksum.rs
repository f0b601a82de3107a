//! CRC-64 of RDB streams and RESTORE payloads: CRC-64/REDIS (Jones polynomial, reflected, no final xor).

use crc_fast::{CrcAlgorithm, Digest};

/// Length of the checksum at the end of a stream.
const TRAILER: usize = 8;

/// CRC-64/REDIS of the bytes.
pub fn crc64(bytes: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64Redis, bytes)
}

/// The stream's own checksum does not match its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChecksumError {
    /// Fewer bytes than a checksum is long.
    #[error("the RDB ended after {0} bytes, before its checksum")]
    TooShort(u64),
    /// The bytes and the checksum differ.
    #[error(
        "the RDB's checksum is {stored:016x} but its bytes have {computed:016x}: the data was damaged on the way"
    )]
    Mismatch {
        /// What the server wrote.
        stored: u64,
        /// What the bytes give.
        computed: u64,
    },
}

/// What the check at the end of a stream found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// The checksum, and it is right.
    Verified(u64),
    /// The server wrote zero: it has `rdbchecksum no`.
    Disabled,
}

/// Verifies the trailer of an RDB stream while the stream is read: the last 8 bytes are the CRC-64 of all before.
///
/// It needs no knowledge of the format, so it works for streams of servers newer than this program
/// (RDB version 5 and above have the trailer).
pub struct ChecksumVerifier {
    digest: Digest,
    /// The last bytes seen, oldest first: they may be the trailer.
    tail: [u8; TRAILER],
    seen: u64,
}

impl Default for ChecksumVerifier {
    fn default() -> Self {
        Self::new()
    }
}

impl ChecksumVerifier {
    /// Before the first byte.
    pub fn new() -> Self {
        Self {
            digest: Digest::new(CrcAlgorithm::Crc64Redis),
            tail: [0; TRAILER],
            seen: 0,
        }
    }

    /// Takes the next piece of the stream, trailer included.
    pub fn update(&mut self, piece: &[u8]) {
        let held = usize::try_from(self.seen)
            .unwrap_or(usize::MAX)
            .min(TRAILER);
        self.seen = self.seen.saturating_add(piece.len() as u64);
        if let Some((body, last)) = piece.split_last_chunk::<TRAILER>() {
            self.digest
                .update(self.tail.get(TRAILER - held..).unwrap_or_default());
            self.digest.update(body);
            self.tail = *last;
            return;
        }
        // Shorter than the trailer: the oldest bytes held make room.
        let released = (held + piece.len()).saturating_sub(TRAILER);
        self.digest.update(
            self.tail
                .iter()
                .as_slice()
                .get(TRAILER - held..TRAILER - held + released)
                .unwrap_or_default(),
        );
        self.tail.rotate_left(piece.len());
        for (place, byte) in self.tail.iter_mut().skip(TRAILER - piece.len()).zip(piece) {
            *place = *byte;
        }
    }

    /// After the last byte: compares.
    pub fn finish(self) -> Result<Checked, ChecksumError> {
        if self.seen < TRAILER as u64 {
            return Err(ChecksumError::TooShort(self.seen));
        }
        let stored = u64::from_le_bytes(self.tail);
        let computed = self.digest.finalize();
        match stored {
            0 => Ok(Checked::Disabled),
            _ if stored == computed => Ok(Checked::Verified(stored)),
            _ => Err(ChecksumError::Mismatch { stored, computed }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(pieces: &[&[u8]]) -> Result<Checked, ChecksumError> {
        let mut verifier = ChecksumVerifier::new();
        for piece in pieces {
            verifier.update(piece);
        }
        verifier.finish()
    }

    #[test]
    fn the_check_value_of_the_algorithm() {
        assert_eq!(crc64(b"123456789"), 0xe9c6_d914_c4b8_d9ca);
    }

    #[test]
    fn zero_means_disabled_and_a_short_stream_is_an_error() {
        assert_eq!(check(&[b"REDIS0010", &[0; 8]]), Ok(Checked::Disabled));
        assert_eq!(check(&[b"REDIS"]), Err(ChecksumError::TooShort(5)));
    }

    proptest! {
        #[test]
        fn any_cut_verifies_and_any_damage_is_found(
            body in prop::collection::vec(any::<u8>(), 1..200),
            cuts in prop::collection::vec(1usize..12, 1..200),
            damage in any::<(prop::sample::Index, u8)>(),
        ) {
            let mut stream = body.clone();
            stream.extend(crc64(&body).to_le_bytes());
            let pieces = |stream: &[u8]| {
                let mut rest = stream;
                let mut verifier = ChecksumVerifier::new();
                for cut in cuts.iter().cycle() {
                    if rest.is_empty() { break; }
                    let (piece, more) = rest.split_at((*cut).min(rest.len()));
                    verifier.update(piece);
                    rest = more;
                }
                verifier.finish()
            };
            prop_assume!(crc64(&body) != 0);
            prop_assert_eq!(pieces(&stream), Ok(Checked::Verified(crc64(&body))));
            let (index, change) = damage;
            prop_assume!(change != 0);
            let at = index.index(stream.len());
            stream[at] ^= change;
            prop_assume!(stream[body.len()..] != [0; 8]);
            prop_assert!(pieces(&stream).is_err());
        }
    }
}
