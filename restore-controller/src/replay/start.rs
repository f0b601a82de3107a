//! Where a replay begins: at the start, or at the first record of the block that an earlier attempt reached.

use super::tracker::Progress;
use common::{
    rdb::{Flavour, Header, Resume},
    storage::ShardIndex,
};

/// Where a replay begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The first block to read; the number of blocks if none is left.
    pub block: u64,
    /// The first record in it; `None` at the start of the stream.
    pub resume: Option<Resume>,
    /// What counts as done.
    pub progress: Progress,
}

impl Start {
    /// The start, or where the earlier attempt ended. A stream whose records were not walked at backup time has no record to
    /// resume at: it is replayed from the start.
    pub fn of(index: &ShardIndex, from: Progress) -> Self {
        let from_start = Self {
            block: 0,
            resume: None,
            progress: Progress::default(),
        };
        let Some(header) = header(index).filter(|_| from.block > 0) else {
            return from_start;
        };
        let first = (0_u64..)
            .zip(&index.blocks)
            .skip_while(|(number, _)| *number < from.block)
            .find_map(|(number, block)| Some((number, block.first_record?)));
        match first {
            Some((block, record)) => Self {
                block,
                resume: Some(Resume {
                    header,
                    db: record.db,
                    offset: record.offset,
                }),
                // Blocks without a record of their own are done with the record that goes on through them.
                progress: Progress { block, ..from },
            },
            None if index.slots.is_some() => Self {
                block: index.blocks.len() as u64,
                resume: None,
                progress: Progress {
                    block: index.blocks.len() as u64,
                    ..from
                },
            },
            None => from_start,
        }
    }
}

fn header(index: &ShardIndex) -> Option<Header> {
    let flavour = match index.flavour.as_str() {
        "redis" => Flavour::Redis,
        "valkey" => Flavour::Valkey,
        _ => return None,
    };
    let version = u16::try_from(index.rdb_version).ok()?;
    Some(Header { flavour, version })
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::storage::{BLOCK_BYTES, BlockEntry, Compression, FirstRecord, Sha256Digest};

    /// An index of blocks whose first records stand so far into them.
    fn index(first_records: &[Option<u64>], walked: bool) -> ShardIndex {
        let block = |(number, first): (u64, &Option<u64>)| BlockEntry {
            raw_offset: number * BLOCK_BYTES as u64,
            raw_bytes: BLOCK_BYTES as u64,
            stored_offset: 0,
            stored_bytes: 1,
            sha256: Sha256Digest::of(b""),
            first_record: first.map(|offset| FirstRecord {
                offset: number * BLOCK_BYTES as u64 + offset,
                db: 0,
            }),
        };
        ShardIndex {
            schema: 1,
            backup_id: "20261121t003000z-3f9c2a10".parse().unwrap(),
            shard: 0,
            object: "shard".into(),
            compression: Compression::None,
            raw_bytes: 0,
            stored_bytes: 0,
            sha256: Sha256Digest::of(b""),
            flavour: "redis".into(),
            rdb_version: 10,
            blocks: (0..).zip(first_records).map(block).collect(),
            slots: walked.then(Vec::new),
        }
    }

    fn from(block: u64) -> Progress {
        Progress {
            block,
            keys: 5,
            ..Progress::default()
        }
    }

    #[test]
    fn a_first_attempt_begins_at_the_start() {
        let start = Start::of(&index(&[Some(9), Some(3)], true), Progress::default());
        assert_eq!((start.block, start.resume), (0, None));
    }

    #[test]
    fn another_attempt_begins_at_the_first_record_of_its_block() {
        let start = Start::of(&index(&[Some(9), Some(3)], true), from(1));
        assert_eq!((start.block, start.progress), (1, from(1)));
        assert_eq!(start.resume.unwrap().offset, BLOCK_BYTES as u64 + 3);
    }

    #[test]
    fn blocks_inside_a_long_record_are_passed_over() {
        let start = Start::of(&index(&[Some(9), None, None, Some(7)], true), from(1));
        assert_eq!((start.block, start.progress.block), (3, 3));
        let start = Start::of(&index(&[Some(9), None], true), from(1));
        assert_eq!((start.block, start.progress.block), (2, 2));
    }

    #[test]
    fn records_that_were_not_walked_are_replayed_from_the_start() {
        let start = Start::of(&index(&[Some(9), None], false), from(1));
        assert_eq!((start.block, start.progress), (0, Progress::default()));
    }
}
