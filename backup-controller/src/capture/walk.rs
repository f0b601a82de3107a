//! The record walk beside the stream: what it counts, and where it gives up without harm to the backup.

use common::{
    cluster::slots::SlotSet,
    rdb::{Event, Flavour, Header, RdbError, RecordReader, counts::SlotCounts},
    storage::{BLOCK_BYTES, SlotCount},
};
use std::ops::ControlFlow;

/// Counts records while the stream passes.
pub struct Walk {
    reader: RecordReader,
    tally: Tally,
    /// Why the counts are unknown.
    lost: Option<RdbError>,
}

/// What is counted.
struct Tally {
    slots: SlotCounts,
    own: SlotSet,
    header: Option<Header>,
    keys: u64,
    functions: u64,
    foreign_keys: u64,
    /// The block in which the last first record was found.
    block: Option<u64>,
    /// First records of blocks, not yet taken.
    first_records: Vec<(u64, u32)>,
}

/// The counts of a whole stream.
pub struct Counted {
    /// Per slot; `None` when a record was met that cannot be walked.
    pub slots: Option<Vec<SlotCount>>,
    /// Libraries of functions.
    pub functions: Option<u64>,
    /// Keys outside of the shard's own slots.
    pub foreign_keys: u64,
}

impl Walk {
    /// A walk at the start of the stream of a shard that owns these slots.
    pub fn new(own: SlotSet) -> Self {
        Self {
            reader: RecordReader::new(),
            tally: Tally {
                slots: SlotCounts::new(),
                own,
                header: None,
                keys: 0,
                functions: 0,
                foreign_keys: 0,
                block: None,
                first_records: Vec::with_capacity(2),
            },
            lost: None,
        }
    }

    /// Takes the next piece of the stream. Only a stream that is no RDB at all is an error; with a type that is not known the
    /// counts are, and the stream goes on.
    pub fn feed(&mut self, piece: &[u8]) -> Result<(), RdbError> {
        if self.lost.is_some() {
            return Ok(());
        }
        let tally = &mut self.tally;
        match self.reader.feed(piece, &mut |event| tally.count(&event)) {
            Ok(_) => Ok(()),
            Err(error @ RdbError::NotRdb(_)) => Err(error),
            Err(error @ (RdbError::UnknownType { .. } | RdbError::Malformed { .. })) => {
                tracing::warn!(%error, "the keys of this shard cannot be counted; the backup goes on");
                self.lost = Some(error);
                Ok(())
            }
        }
    }

    /// Offsets and databases of the first records of blocks found since the last call.
    pub fn first_records(&mut self) -> impl Iterator<Item = (u64, u32)> {
        self.tally.first_records.drain(..)
    }

    /// The magic of the stream.
    pub fn header(&self) -> Option<Header> {
        self.tally.header
    }

    /// Keys so far; `None` once they cannot be counted.
    pub fn keys(&self) -> Option<u64> {
        self.lost.is_none().then_some(self.tally.keys)
    }

    /// After the last byte. A walk that did not arrive at the end record knows nothing.
    pub fn finish(self) -> Counted {
        let known = self.lost.is_none() && self.reader.is_finished();
        let slots = self.tally.slots.occupied().map(|(slot, count)| SlotCount {
            slot,
            keys: count.keys,
            expires: count.expires,
            first_expiry_ms: count.first_expiry_ms,
        });
        Counted {
            slots: known.then(|| slots.collect()),
            functions: known.then_some(self.tally.functions),
            foreign_keys: self.tally.foreign_keys,
        }
    }
}

impl Tally {
    fn count(&mut self, event: &Event<'_>) -> ControlFlow<()> {
        match event {
            Event::Key(key) => {
                let slot = self.slots.add(key.key, key.expire_ms);
                self.keys += 1;
                self.foreign_keys += u64::from(!self.own.contains(slot));
                let block = key.record_start / BLOCK_BYTES as u64;
                if self.block.is_none_or(|last| block > last) {
                    self.block = Some(block);
                    self.first_records.push((key.record_start, key.db));
                }
            }
            Event::Header(header) => self.header = Some(*header),
            Event::Function(_) => self.functions += 1,
            Event::Aux { .. }
            | Event::SelectDb(_)
            | Event::ResizeDb { .. }
            | Event::ModuleAux
            | Event::End { .. } => {}
        }
        ControlFlow::Continue(())
    }
}

/// The family of servers as manifest and index write it.
pub fn flavour(header: Header) -> &'static str {
    match header.flavour {
        Flavour::Redis => "redis",
        Flavour::Valkey => "valkey",
    }
}
