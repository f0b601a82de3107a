//! Stored blocks of one shard out of the bucket: fetched ahead, verified, decompressed, returned in order.

use super::{
    block::{self, BlockEntry, FirstRecord},
    codec::Compression,
    error::StorageError,
    index::ShardIndex,
    object_store::ObjectStore,
    pool::CompressionPool,
};
use bytes::Bytes;
use futures::{
    Stream, StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use std::sync::Arc;

/// Stored bytes that one request fetches at most, unless a single block is larger.
const LARGEST_FETCH: u64 = 8 << 20;
/// Requests that are in flight at the same time.
const FETCHES_AHEAD: usize = 2;
/// Blocks that are verified and decompressed ahead of the one that is returned.
const BLOCKS_AHEAD: usize = 2;

/// Raw bytes of one block, verified.
#[derive(Clone, Debug)]
pub struct RawBlock {
    /// Number of the block, from 0.
    pub number: usize,
    /// Where its bytes begin in the raw stream.
    pub raw_offset: u64,
    /// The first record that begins in it.
    pub first_record: Option<FirstRecord>,
    /// Content after decompression.
    pub bytes: Bytes,
}

/// Reads the blocks of one object from a block on.
///
/// Holds at most three fetches (8 MiB each) and three raw blocks. Dropping it cancels what is in flight.
pub struct BlockReader {
    blocks: BoxStream<'static, Result<RawBlock, StorageError>>,
}

impl std::fmt::Debug for BlockReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockReader").finish_non_exhaustive()
    }
}

impl BlockReader {
    /// Begins at block `first` (0 for all) of the object under `key`. The index has to be proven before
    /// ([`super::ShardRecord::check_index`]). Asks no server before the first [`Self::next`].
    pub fn new(
        store: ObjectStore,
        key: String,
        index: Arc<ShardIndex>,
        first: usize,
        pool: CompressionPool,
    ) -> Self {
        let fetch = Fetch {
            store,
            key: key.into(),
            compression: index.compression,
            pool,
        };
        let blocks = fetch.blocks(index, first);
        Self {
            blocks: blocks.boxed(),
        }
    }

    /// The next block, `None` after the last. After an error there is nothing more to come.
    pub async fn next(&mut self) -> Result<Option<RawBlock>, StorageError> {
        self.blocks.try_next().await
    }
}

/// What every step of reading one object needs.
#[derive(Clone)]
struct Fetch {
    store: ObjectStore,
    key: Arc<str>,
    compression: Compression,
    pool: CompressionPool,
}

/// Consecutive blocks that are fetched together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Group {
    first: usize,
    count: usize,
    offset: u64,
    bytes: u64,
}

impl Fetch {
    fn blocks(
        self,
        index: Arc<ShardIndex>,
        first: usize,
    ) -> impl Stream<Item = Result<RawBlock, StorageError>> + Send + 'static {
        let (fetching, proving) = (self.clone(), self);
        let plan = groups(&index.blocks, first);
        stream::iter(plan)
            .map(move |group| fetching.clone().fetch(group))
            .buffered(FETCHES_AHEAD)
            .map_ok(move |(group, bytes)| stream::iter(cut(&index.blocks, group, &bytes)).map(Ok))
            .try_flatten()
            .map_ok(move |(number, entry, stored)| proving.clone().prove(number, entry, stored))
            .try_buffered(BLOCKS_AHEAD)
    }

    async fn fetch(self, group: Group) -> Result<(Group, Bytes), StorageError> {
        let fetched = self.store.get_range(&self.key, group.offset, group.bytes);
        Ok((group, fetched.await?))
    }

    async fn prove(
        self,
        number: usize,
        entry: BlockEntry,
        stored: Bytes,
    ) -> Result<RawBlock, StorageError> {
        let compression = self.compression;
        let opened = self
            .pool
            .run(move || block::open(stored, &entry, compression));
        match opened.await? {
            Ok(bytes) => Ok(RawBlock {
                number,
                raw_offset: entry.raw_offset,
                first_record: entry.first_record,
                bytes,
            }),
            Err(damage) => Err(StorageError::DamagedBlock {
                path: self.store.path(&self.key).into(),
                block: number,
                what: damage.to_string(),
            }),
        }
    }
}

/// Joins neighbours as long as they stay within one fetch.
fn groups(blocks: &[BlockEntry], first: usize) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (number, block) in blocks.iter().enumerate().skip(first) {
        match groups.last_mut() {
            Some(group) if group.bytes + block.stored_bytes <= LARGEST_FETCH => {
                group.count += 1;
                group.bytes += block.stored_bytes;
            }
            _ => groups.push(Group {
                first: number,
                count: 1,
                offset: block.stored_offset,
                bytes: block.stored_bytes,
            }),
        }
    }
    groups
}

/// The stored bytes of each block of a group, without a copy.
fn cut(blocks: &[BlockEntry], group: Group, bytes: &Bytes) -> Vec<(usize, BlockEntry, Bytes)> {
    let mut rest = bytes.clone();
    blocks
        .iter()
        .enumerate()
        .skip(group.first)
        .take(group.count)
        .map(|(number, block)| {
            let length = usize::try_from(block.stored_bytes).unwrap_or(usize::MAX);
            (number, *block, rest.split_to(length.min(rest.len())))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::digest::Sha256Digest;
    use proptest::prelude::*;

    fn table(stored: &[u64]) -> Vec<BlockEntry> {
        let mut offset = 0;
        stored
            .iter()
            .map(|&stored_bytes| {
                let entry = BlockEntry {
                    raw_offset: 0,
                    raw_bytes: 0,
                    stored_offset: offset,
                    stored_bytes,
                    sha256: Sha256Digest::of(b""),
                    first_record: None,
                };
                offset += stored_bytes;
                entry
            })
            .collect()
    }

    proptest! {
        #[test]
        fn groups_are_all_blocks_in_order_and_small(
            stored in proptest::collection::vec(1_u64..9 << 20, 0..60), first in 0_usize..70,
        ) {
            let blocks = table(&stored);
            let groups = groups(&blocks, first);
            let mut next = first.min(blocks.len());
            for group in groups {
                prop_assert_eq!(group.first, next);
                let members = &blocks[next..next + group.count];
                prop_assert_eq!(group.offset, members[0].stored_offset);
                prop_assert_eq!(group.bytes, members.iter().map(|b| b.stored_bytes).sum::<u64>());
                prop_assert!(group.count == 1 || group.bytes <= LARGEST_FETCH);
                next += group.count;
            }
            prop_assert_eq!(next, blocks.len());
        }
    }
}
