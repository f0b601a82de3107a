//! One block: up to 8 MiB of the raw stream, stored and verified independently of the others.

use super::{
    codec::{CodecError, Compression},
    digest::Sha256Digest,
};
use bytes::Bytes;
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
    /// SHA-256 of the stored bytes.
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
    Checksum {
        expected: Sha256Digest,
        found: Sha256Digest,
    },
    #[error("it has {found} bytes, not {expected}")]
    Length { expected: u64, found: u64 },
    #[error("it is not one complete block of {expected} raw bytes ({source})")]
    Content { expected: u64, source: CodecError },
    #[error("it claims {0} raw bytes, more than a block may have")]
    Oversized(u64),
}

/// Proves stored bytes against their entry and returns the raw bytes.
///
/// The checksum is verified before anything is decompressed, and never more is decompressed than the entry states and a
/// block may have.
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
    let checksum = Sha256Digest::of(&stored);
    if checksum != entry.sha256 {
        return Err(BlockDamage::Checksum {
            expected: entry.sha256,
            found: checksum,
        });
    }
    let length = usize::try_from(entry.raw_bytes)
        .ok()
        .filter(|length| *length <= BLOCK_BYTES)
        .ok_or(BlockDamage::Oversized(entry.raw_bytes))?;
    let expected = entry.raw_bytes;
    let raw = compression.decompress(stored, length);
    raw.map_err(|source| BlockDamage::Content { expected, source })
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
        let compressed = compression.compress(raw, 0, Vec::new()).unwrap();
        compressed.map_or_else(|| Bytes::copy_from_slice(raw), Bytes::from)
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
            let found = matches!(open(damaged.into(), &entry, compression), Err(BlockDamage::Checksum { .. }));
            prop_assert!(found);
        }
    }

    #[test]
    fn wrong_raw_lengths_are_refused_under_a_right_checksum() {
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
                matches!(result, Err(BlockDamage::Content { .. })),
                "{result:?}"
            );
        }
    }
}
