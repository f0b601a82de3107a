//! Takes the raw bytes of one shard and writes them as one object of blocks.
//!
//! ```text
//! buffer() ─► 8 MiB raw ─► compress + SHA-256 (parallel) ─► in order ─► SHA-256 of the object ─► parts ─► bucket
//!     ▲___________________________│ buffers are reused         │_______________________________│
//! ```

use super::{
    block::{BLOCK_BYTES, BlockEntry, FirstRecord},
    codec::Compression,
    digest::Sha256Digest,
    error::StorageError,
    object_store::ObjectStore,
    pool::{CompressionPool, WorkCancelled},
    upload::{DEFAULT_PART, MultipartUpload, PARALLEL_PARTS},
};
use bytes::BytesMut;
use sha2::{Digest as _, Sha256};
use std::collections::VecDeque;
use tokio::task::JoinHandle;

/// Blocks of one stream that are compressed at the same time.
const PARALLEL_BLOCKS: usize = 2;
/// Room for what blocks are compressed to, beside three blocks and three parts.
const COMPRESSED_ROOM: usize = 4 << 20;

/// Writes one object of blocks.
///
/// The caller reads into [`Self::buffer`] and calls [`Self::commit`]; or gives slices to [`Self::write`]. Memory: three
/// blocks, three parts and a little, 52 MiB with the default part size, whatever the length of the stream.
/// End with [`Self::complete`] or [`Self::abort`]; dropping it aborts as well.
#[derive(Debug)]
pub struct ShardWriter {
    upload: MultipartUpload,
    pool: CompressionPool,
    compression: Compression,
    /// The block that is being filled.
    filling: BytesMut,
    /// Blocks that are being compressed, oldest first.
    compressing: VecDeque<JoinHandle<Result<Encoded, StorageError>>>,
    /// The part that is being filled.
    part: BytesMut,
    object_checksum: Sha256,
    blocks: Vec<BlockEntry>,
    first_records: Vec<Option<FirstRecord>>,
    sealed_bytes: u64,
    stored_bytes: u64,
    /// What the last block came to, as an estimate of what the next will.
    last_stored: usize,
    /// Buffers of blocks and parts that wait to be used again.
    spare: Vec<BytesMut>,
    spare_stored: Vec<Vec<u8>>,
}

/// A block on its way from compression into parts.
#[derive(Debug)]
struct Encoded {
    raw: BytesMut,
    /// `None`: stored as it is.
    stored: Option<Vec<u8>>,
    sha256: Sha256Digest,
}

impl Encoded {
    fn stored(&self) -> &[u8] {
        self.stored.as_deref().unwrap_or(&self.raw)
    }
}

/// A finished object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredObject {
    /// Key.
    pub key: String,
    /// Length of the object in bytes.
    pub stored_bytes: u64,
    /// Length of the raw stream in bytes.
    pub raw_bytes: u64,
    /// SHA-256 of the object.
    pub sha256: Sha256Digest,
    /// Length and SHA-256 of each block, in order.
    pub blocks: Vec<BlockEntry>,
}

impl ShardWriter {
    /// Begins an object; asks no server yet. `part_size`: see [`super::upload::part_size_for`]; what the location asks for
    /// comes first.
    pub fn new(
        store: ObjectStore,
        key: String,
        compression: Compression,
        pool: CompressionPool,
        part_size: Option<usize>,
    ) -> Self {
        let part_size = store.location().part_size().or(part_size);
        Self {
            part: BytesMut::new(),
            upload: MultipartUpload::new(store, key, part_size.unwrap_or(DEFAULT_PART)),
            pool,
            compression,
            filling: BytesMut::with_capacity(BLOCK_BYTES),
            compressing: VecDeque::with_capacity(PARALLEL_BLOCKS),
            object_checksum: Sha256::new(),
            blocks: Vec::new(),
            first_records: Vec::new(),
            sealed_bytes: 0,
            stored_bytes: 0,
            last_stored: BLOCK_BYTES / 4,
            spare: Vec::new(),
            spare_stored: Vec::new(),
        }
    }

    /// Where to append raw bytes. There is always room up to the end of a block; what goes beyond is moved to the next one.
    /// Call [`Self::commit`] after each read.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.filling
    }

    /// Room that [`Self::buffer`] has until the block ends: never 0 after a commit.
    pub fn room(&self) -> usize {
        BLOCK_BYTES.saturating_sub(self.filling.len())
    }

    /// Takes over what was appended to the buffer. Waits only if compression or the store do not keep up; never longer than
    /// 45 s without progress.
    pub async fn commit(&mut self) -> Result<(), StorageError> {
        while self.filling.len() >= BLOCK_BYTES {
            let excess = match self.filling.len() {
                BLOCK_BYTES => BytesMut::new(),
                _ => self.filling.split_off(BLOCK_BYTES),
            };
            self.seal().await?;
            self.filling.extend_from_slice(&excess);
        }
        Ok(())
    }

    /// Appends raw bytes: for callers that have them elsewhere.
    pub async fn write(&mut self, mut raw: &[u8]) -> Result<(), StorageError> {
        while !raw.is_empty() {
            let (now, later) = raw.split_at(raw.len().min(self.room()));
            self.filling.extend_from_slice(now);
            self.commit().await?;
            raw = later;
        }
        Ok(())
    }

    /// Remembers that a record begins at this offset of the raw stream. Cheap to call for every record, in order; its block
    /// may be sealed already.
    pub fn record_begins(&mut self, offset: u64, db: u32) {
        let block = usize::try_from(offset / BLOCK_BYTES as u64).unwrap_or(usize::MAX);
        if block < self.first_records.len() || block == usize::MAX {
            return;
        }
        self.first_records.resize(block, None);
        self.first_records.push(Some(FirstRecord { offset, db }));
    }

    /// Raw bytes taken so far.
    pub fn raw_bytes(&self) -> u64 {
        self.sealed_bytes + self.filling.len() as u64
    }

    /// Bytes that the store has taken so far.
    pub fn stored_bytes(&self) -> u64 {
        self.upload.bytes()
    }

    /// Passes the block that is being filled to compression and begins the next.
    async fn seal(&mut self) -> Result<(), StorageError> {
        self.make_room().await?;
        let next = self.empty_buffer(BLOCK_BYTES);
        let raw = std::mem::replace(&mut self.filling, next);
        self.sealed_bytes += raw.len() as u64;
        let out = self.spare_stored.pop().unwrap_or_default();
        let (pool, compression, expected) = (self.pool.clone(), self.compression, self.last_stored);
        self.compressing.push_back(tokio::spawn(async move {
            pool.run(move || encode(raw, compression, expected, out))
                .await?
        }));
        Ok(())
    }

    /// Waits until one more block can be compressed without holding more memory than is allowed.
    async fn make_room(&mut self) -> Result<(), StorageError> {
        loop {
            let blocks = self.compressing.len();
            let block = self.size_of_new(BLOCK_BYTES);
            let stored = if self.spare_stored.is_empty() {
                self.expected_stored()
            } else {
                0
            };
            if blocks < PARALLEL_BLOCKS && self.memory() + block + stored <= self.allowance() {
                return Ok(());
            }
            if blocks > 0 {
                self.absorb_oldest().await?;
            } else if self.upload.in_flight() > 0 {
                self.await_part().await?;
            } else {
                return Ok(());
            }
        }
    }

    /// Bytes of the buffers that exist, wherever they are.
    fn memory(&self) -> usize {
        let spare: usize = self.spare.iter().map(BytesMut::capacity).sum();
        let spare_stored: usize = self.spare_stored.iter().map(Vec::capacity).sum();
        self.filling.capacity()
            + self.compressing.len() * (BLOCK_BYTES + self.expected_stored())
            + self.part.capacity()
            + self.upload.in_flight() * self.upload.part_size()
            + spare
            + spare_stored
    }

    fn allowance(&self) -> usize {
        3 * BLOCK_BYTES + (PARALLEL_PARTS + 1) * self.upload.part_size() + COMPRESSED_ROOM
    }

    /// Bytes that a block is expected to be compressed to.
    fn expected_stored(&self) -> usize {
        if self.compression.is_identity() {
            return 0;
        }
        self.last_stored
    }

    /// What an empty buffer of this size costs: nothing where one can be used again.
    fn size_of_new(&self, size: usize) -> usize {
        self.spare_of(size).map_or(size, |_| 0)
    }

    fn spare_of(&self, size: usize) -> Option<usize> {
        let fits = |buffer: &BytesMut| buffer.capacity() >= size;
        self.spare.iter().position(fits)
    }

    /// Waits for a part to arrive and keeps its buffer.
    async fn await_part(&mut self) -> Result<(), StorageError> {
        let buffer = self.upload.arrival().await?;
        self.spare.extend(buffer);
        Ok(())
    }

    /// A buffer that is used again, or a new one.
    fn empty_buffer(&mut self, size: usize) -> BytesMut {
        match self.spare_of(size) {
            Some(position) => self.spare.swap_remove(position),
            None => BytesMut::with_capacity(size),
        }
    }

    /// Appends the oldest block to the parts.
    async fn absorb_oldest(&mut self) -> Result<(), StorageError> {
        let Some(oldest) = self.compressing.front_mut() else {
            return Ok(());
        };
        // Popped only when done: a caller that is cancelled here must not lose the block out of order.
        let encoded = oldest.await.map_err(|_| WorkCancelled)??;
        self.compressing.pop_front();
        self.absorb(encoded).await
    }

    async fn absorb(&mut self, encoded: Encoded) -> Result<(), StorageError> {
        let stored_bytes = encoded.stored().len();
        self.last_stored = stored_bytes;
        self.blocks.push(BlockEntry {
            raw_offset: self.blocks.len() as u64 * BLOCK_BYTES as u64,
            raw_bytes: encoded.raw.len() as u64,
            stored_offset: self.stored_bytes,
            stored_bytes: stored_bytes as u64,
            sha256: encoded.sha256,
            first_record: None,
        });
        self.stored_bytes += stored_bytes as u64;
        let encoded = self.add_to_checksum(encoded).await?;
        let Encoded { raw, stored, .. } = encoded;
        if let Some(stored) = stored {
            // First of all: the parts may need it.
            self.recycle(raw);
            self.fill_parts(&stored).await?;
            // All of its capacity is touched at the next use; what one block needed most do not.
            if stored.capacity() <= 2 * stored_bytes.max(1 << 20) {
                self.spare_stored.push(stored);
            }
        } else {
            self.fill_parts(&raw).await?;
            self.recycle(raw);
        }
        Ok(())
    }

    async fn fill_parts(&mut self, mut stored: &[u8]) -> Result<(), StorageError> {
        while !stored.is_empty() {
            if self.part.capacity() == 0 {
                self.part = self.empty_part().await?;
            }
            let room = self.upload.part_size() - self.part.len();
            let (now, later) = stored.split_at(stored.len().min(room));
            self.part.extend_from_slice(now);
            stored = later;
            if self.part.len() == self.upload.part_size() {
                while self.upload.in_flight() >= PARALLEL_PARTS {
                    self.await_part().await?;
                }
                let full = std::mem::take(&mut self.part);
                self.upload.send(full).await?;
            }
        }
        Ok(())
    }

    /// A buffer for the next part; waits for a part in flight rather than exceed the memory allowance.
    async fn empty_part(&mut self) -> Result<BytesMut, StorageError> {
        let size = self.upload.part_size();
        while self.upload.in_flight() > 0
            && self.memory() + self.size_of_new(size) > self.allowance()
        {
            self.await_part().await?;
        }
        Ok(self.empty_buffer(size))
    }

    /// The checksum of the object is computed in order and takes milliseconds: on a blocking thread.
    async fn add_to_checksum(&mut self, encoded: Encoded) -> Result<Encoded, StorageError> {
        let mut checksum = std::mem::take(&mut self.object_checksum);
        let added = tokio::task::spawn_blocking(move || {
            checksum.update(encoded.stored());
            (checksum, encoded)
        });
        let (checksum, encoded) = added.await.map_err(|_| WorkCancelled)?;
        self.object_checksum = checksum;
        Ok(encoded)
    }

    fn recycle(&mut self, mut buffer: BytesMut) {
        buffer.clear();
        self.spare.push(buffer);
    }

    /// Stores what is left and completes the object. After an error, or if the future was dropped midway, the caller has
    /// to [`Self::abort`].
    pub async fn complete(&mut self) -> Result<StoredObject, StorageError> {
        self.flush().await?;
        let last = std::mem::take(&mut self.part);
        self.upload.complete(last).await?;
        let first_records = std::mem::take(&mut self.first_records)
            .into_iter()
            .chain(std::iter::repeat(None));
        let blocks = std::mem::take(&mut self.blocks)
            .into_iter()
            .zip(first_records);
        Ok(StoredObject {
            key: self.upload.key().to_owned(),
            stored_bytes: self.stored_bytes,
            raw_bytes: self.sealed_bytes,
            sha256: Sha256Digest::finish(std::mem::take(&mut self.object_checksum)),
            blocks: blocks
                .map(|(block, first_record)| BlockEntry {
                    first_record,
                    ..block
                })
                .collect(),
        })
    }

    async fn flush(&mut self) -> Result<(), StorageError> {
        if !self.filling.is_empty() {
            self.seal().await?;
        }
        while !self.compressing.is_empty() {
            self.absorb_oldest().await?;
        }
        Ok(())
    }

    /// Aborts the upload: nothing of the object stays in the bucket.
    pub async fn abort(self) {
        for block in &self.compressing {
            block.abort();
        }
        self.upload.abort().await;
    }
}

fn encode(
    raw: BytesMut,
    compression: Compression,
    expected: usize,
    out: Vec<u8>,
) -> Result<Encoded, StorageError> {
    let stored = compression.compress(&raw, expected, out)?;
    let sha256 = Sha256Digest::of(stored.as_deref().unwrap_or(&raw));
    Ok(Encoded {
        raw,
        stored,
        sha256,
    })
}
