//! The index of one stored shard: where its blocks are and what its slots hold.

use super::{
    block::{BLOCK_BYTES, BlockEntry},
    codec::Compression,
    digest::Sha256Digest,
    layout::{BackupId, SCHEMA},
};
use crate::cluster::slots::Slot;
use serde::{Deserialize, Serialize};

/// Describes the object of one shard and is stored beside it. The manifest holds the SHA-256 of this document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShardIndex {
    /// Version of this format: [`SCHEMA`].
    pub schema: u32,
    /// The backup it belongs to.
    pub backup_id: BackupId,
    /// Number of the shard in the backup, from 0.
    pub shard: u32,
    /// Name of the object it describes, relative to the backup's root.
    pub object: String,
    /// How the blocks are stored.
    pub compression: Compression,
    /// Length of the raw stream in bytes.
    pub raw_bytes: u64,
    /// Length of the object in bytes.
    pub stored_bytes: u64,
    /// SHA-256 of the object.
    pub sha256: Sha256Digest,
    /// Server family of the stream's header: `redis` or `valkey`.
    pub flavour: String,
    /// Version of the stream's RDB format, which reading in mid-stream needs.
    pub rdb_version: u32,
    /// The blocks in order, without gap or overlap.
    pub blocks: Vec<BlockEntry>,
    /// What each slot holds; absent if a value type was met that the walk does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<Vec<SlotCount>>,
}

/// Keys of one slot, written as `[slot, keys, expires, first expiry or null]`. Slots without keys are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "WireCount", try_from = "WireCount")]
pub struct SlotCount {
    /// Number of the slot, 0 to 16383.
    pub slot: Slot,
    /// Keys in it, expiring ones included.
    pub keys: u64,
    /// Those of them that expire.
    pub expires: u64,
    /// When the first of them expires, in milliseconds since 1970.
    pub first_expiry_ms: Option<i64>,
}

type WireCount = (u16, u64, u64, Option<i64>);

impl From<SlotCount> for WireCount {
    fn from(count: SlotCount) -> Self {
        (
            count.slot.get(),
            count.keys,
            count.expires,
            count.first_expiry_ms,
        )
    }
}

impl TryFrom<WireCount> for SlotCount {
    type Error = String;

    fn try_from((slot, keys, expires, first_expiry_ms): WireCount) -> Result<Self, String> {
        let slot = Slot::new(slot).map_err(|error| error.to_string())?;
        Ok(Self {
            slot,
            keys,
            expires,
            first_expiry_ms,
        })
    }
}

impl ShardIndex {
    /// Proves that the blocks are one complete stream in one complete object; otherwise says what is wrong.
    pub fn validate(&self) -> Result<(), String> {
        if self.schema != SCHEMA {
            return Err(format!(
                "its format is {}, this version reads {SCHEMA}",
                self.schema
            ));
        }
        let (mut raw, mut stored) = (0_u64, 0_u64);
        let last = self.blocks.len().saturating_sub(1);
        for (number, block) in self.blocks.iter().enumerate() {
            if (block.raw_offset, block.stored_offset) != (raw, stored) {
                return Err(format!(
                    "block {number} does not begin where the one before it ends"
                ));
            }
            let full = block.raw_bytes == BLOCK_BYTES as u64;
            if !full && (number != last || block.raw_bytes > BLOCK_BYTES as u64) {
                return Err(format!("block {number} has {} raw bytes", block.raw_bytes));
            }
            if block.raw_bytes == 0 || block.stored_bytes == 0 {
                return Err(format!("block {number} is empty"));
            }
            let end = raw.saturating_add(block.raw_bytes);
            if let Some(first) = block.first_record
                && !(raw..end).contains(&first.offset)
            {
                return Err(format!(
                    "the first record of block {number} is outside of it"
                ));
            }
            raw = end;
            stored = stored.saturating_add(block.stored_bytes);
        }
        if (raw, stored) != (self.raw_bytes, self.stored_bytes) {
            return Err(format!(
                "its blocks have {raw} raw and {stored} stored bytes instead of {} and {}",
                self.raw_bytes, self.stored_bytes
            ));
        }
        Ok(())
    }

    /// Keys of the shard, if they were counted.
    pub fn keys(&self) -> Option<u64> {
        self.sum(|count| count.keys)
    }

    /// Keys of the shard that expire, if they were counted.
    pub fn expires(&self) -> Option<u64> {
        self.sum(|count| count.expires)
    }

    fn sum(&self, part: impl Fn(&SlotCount) -> u64) -> Option<u64> {
        let slots = self.slots.as_ref()?;
        Some(slots.iter().map(part).sum())
    }
}
