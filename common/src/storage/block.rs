//! One block: up to 8 MiB of the raw stream, stored by itself, provable by itself.

use super::{compression::Compression, digest::Sha256Digest};
use bytes::Bytes;
use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};
use serde::{Deserialize, Serialize};

/// Raw bytes of every block but the last.
pub const BLOCK_BYTES: usize = 8 << 20;

/// What is known of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockEntry {
    /// Where its raw bytes begin in the raw stream.
    pub raw_offset: u64,
    /// How many raw bytes it holds.
    pub raw_bytes: u64,
    /// Where its stored bytes begin in the object.
    pub stored_offset: u64,
    /// How many bytes are stored.
    pub stored_bytes: u64,
    /// Sum of the stored bytes.
    pub sha256: Sha256Digest,
    /// The first record that begins in this block; none if a large value goes on through all of it, or if the records were
    /// not walked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_record: Option<FirstRecord>,
}

/// Where reading can begin in the middle of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FirstRecord {
    /// Where the record (its expiry and idle opcodes included) begins in the raw stream.
    pub offset: u64,
    /// The database it belongs to.
    pub db: u32,
}

/// Why stored bytes are not the block they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BlockDamage {
    #[error("its SHA-256 is {found}, not {expected}")]
    Sum {
        expected: Sha256Digest,
        found: Sha256Digest,
    },
    #[error("it has {found} bytes, not {expected}")]
    Length { expected: u64, found: u64 },
    #[error("it is not one whole gzip member of {expected} raw bytes ({what})")]
    Gzip { expected: u64, what: String },
    #[error("it claims {0} raw bytes, more than a block may have")]
    Oversized(u64),
}

/// Compresses a block as one gzip member into `out`, whose capacity is used again; `expected` is how long it will become, as
/// far as one can tell.
pub(crate) fn gzip(
    raw: &[u8],
    level: u8,
    expected: usize,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    const WINDOW_BITS: u8 = 15;
    /// Growing in large steps moves pages, not bytes.
    const STEP: usize = 1 << 20;
    out.clear();
    out.reserve_exact(expected + expected / 8 + 4096);
    let mut codec = Compress::new_gzip(flate2::Compression::new(u32::from(level)), WINDOW_BITS);
    loop {
        let consumed = usize::try_from(codec.total_in()).unwrap_or(usize::MAX);
        let rest = raw.get(consumed..).unwrap_or_default();
        let status = codec
            .compress_vec(rest, out, FlushCompress::Finish)
            .map_err(|error| error.to_string())?;
        match status {
            Status::StreamEnd => return Ok(()),
            Status::Ok | Status::BufError => out.reserve_exact(STEP),
        }
    }
}

/// Proves stored bytes against their entry and gives back the raw bytes.
///
/// The sum is checked before anything is decompressed, and nothing is ever decompressed beyond the length that the entry
/// states and a block may have.
pub(crate) fn open(
    stored: Bytes,
    entry: &BlockEntry,
    compression: Compression,
) -> Result<Bytes, BlockDamage> {
    let found = stored.len() as u64;
    if found != entry.stored_bytes {
        return Err(BlockDamage::Length {
            expected: entry.stored_bytes,
            found,
        });
    }
    let sum = Sha256Digest::of(&stored);
    if sum != entry.sha256 {
        return Err(BlockDamage::Sum {
            expected: entry.sha256,
            found: sum,
        });
    }
    let length = usize::try_from(entry.raw_bytes)
        .ok()
        .filter(|length| *length <= BLOCK_BYTES)
        .ok_or(BlockDamage::Oversized(entry.raw_bytes))?;
    match compression {
        Compression::None if stored.len() == length => Ok(stored),
        Compression::None => Err(BlockDamage::Length {
            expected: entry.raw_bytes,
            found,
        }),
        Compression::Gzip { .. } => gunzip(&stored, length).map_err(|what| BlockDamage::Gzip {
            expected: entry.raw_bytes,
            what,
        }),
    }
}

fn gunzip(stored: &[u8], length: usize) -> Result<Bytes, String> {
    const WINDOW_BITS: u8 = 15;
    // One byte of room more than the block may fill: whatever gets there shows that the length is wrong.
    let mut raw = Vec::with_capacity(length + 1);
    let mut codec = Decompress::new_gzip(WINDOW_BITS);
    let mut rest = stored;
    loop {
        let before = (codec.total_in(), raw.len());
        let status = codec
            .decompress_vec(rest, &mut raw, FlushDecompress::Finish)
            .map_err(|error| error.to_string())?;
        let taken = usize::try_from(codec.total_in() - before.0).unwrap_or(usize::MAX);
        rest = rest.get(taken..).unwrap_or_default();
        if raw.len() > length {
            return Err("it holds more".to_owned());
        }
        match status {
            Status::StreamEnd => break,
            Status::Ok | Status::BufError if (codec.total_in(), raw.len()) == before => {
                return Err("it ends early".to_owned());
            }
            Status::Ok | Status::BufError => {}
        }
    }
    match (rest.is_empty(), raw.len() == length) {
        (true, true) => Ok(Bytes::from(raw)),
        (false, _) => Err("something follows its end".to_owned()),
        (true, false) => Err(format!("it holds {} raw bytes", raw.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(raw: &[u8], stored: &[u8]) -> BlockEntry {
        BlockEntry {
            raw_offset: 0,
            raw_bytes: raw.len() as u64,
            stored_offset: 0,
            stored_bytes: stored.len() as u64,
            sha256: Sha256Digest::of(stored),
            first_record: None,
        }
    }

    fn stored(raw: &[u8], compression: Compression) -> Bytes {
        match compression {
            Compression::None => Bytes::copy_from_slice(raw),
            Compression::Gzip { level } => {
                let mut out = Vec::new();
                gzip(raw, level, 0, &mut out).unwrap();
                out.into()
            }
        }
    }

    fn compressions() -> impl Strategy<Value = Compression> {
        prop_oneof![
            Just(Compression::None),
            (1_u8..=9).prop_map(|level| Compression::Gzip { level })
        ]
    }

    /// Bytes that compress well, badly, or not at all.
    fn raw_bytes() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..20_000),
            proptest::collection::vec(0_u8..3, 0..100_000),
            (any::<u8>(), 0_usize..300_000).prop_map(|(byte, count)| vec![byte; count]),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_block_comes_back(raw in raw_bytes(), compression in compressions()) {
            let stored = stored(&raw, compression);
            let entry = entry(&raw, &stored);
            prop_assert_eq!(open(stored, &entry, compression), Ok(Bytes::from(raw)));
        }

        #[test]
        fn any_changed_byte_is_found(raw in raw_bytes(), at in any::<prop::sample::Index>(), flip in 1_u8..=255) {
            let compression = Compression::default();
            let stored = stored(&raw, compression);
            let entry = entry(&raw, &stored);
            let mut damaged = stored.to_vec();
            let at = at.index(damaged.len());
            damaged[at] ^= flip;
            let is_sum = matches!(open(damaged.into(), &entry, compression), Err(BlockDamage::Sum { .. }));
            prop_assert!(is_sum);
        }
    }

    #[test]
    fn wrong_raw_lengths_are_refused_whatever_the_sum_says() {
        let raw = vec![b'x'; 1_000_000];
        let stored = stored(&raw, Compression::default());
        for claimed in [0, 1, 999_999, 1_000_001, 9 << 20, u64::MAX] {
            let entry = BlockEntry {
                raw_bytes: claimed,
                ..entry(&raw, &stored)
            };
            let result = open(stored.clone(), &entry, Compression::default());
            assert!(result.is_err(), "{claimed} raw bytes were believed");
        }
    }

    #[test]
    fn bytes_behind_the_member_are_refused() {
        let raw = b"some raw bytes";
        for tail in [&b"x"[..], &stored(b"", Compression::default())] {
            let long: Bytes = [&stored(raw, Compression::default()), tail].concat().into();
            let result = open(long.clone(), &entry(raw, &long), Compression::default());
            assert!(
                matches!(result, Err(BlockDamage::Gzip { .. })),
                "{result:?}"
            );
        }
    }
}
