//! Where a replay begins: at the start, or at the first record of the block that an earlier attempt reached.

use super::ledger::Progress;
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
    /// The beginning, or where the earlier attempt left off. A stream whose records were not walked at backup time has no
    /// places to go on at: it begins anew.
    pub fn of(index: &ShardIndex, from: Progress) -> Self {
        let anew = Self {
            block: 0,
            resume: None,
            progress: Progress::default(),
        };
        let Some(header) = header(index).filter(|_| from.block > 0) else {
            return anew;
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
            None => anew,
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
