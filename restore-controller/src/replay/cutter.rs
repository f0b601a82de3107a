//! Cuts blocks into records: finds each record's value in the bytes of its block, and keeps what of a record the next
//! block continues.

use super::error::ReplayError;
use common::{
    rdb::{Event, Key, RdbError, RecordReader, Resume},
    storage::RawBlock,
};
use std::ops::{ControlFlow, Range};

/// A record as it lies in the blocks.
pub struct Cut<'a> {
    /// What the reader found.
    pub key: Key<'a>,
    /// The encoded value.
    pub body: &'a [u8],
    /// The block in which the record starts.
    pub block: u64,
}

/// What is found in a stream.
pub enum Found<'a> {
    /// A key.
    Record(Cut<'a>),
    /// The source code of a library of functions.
    Function(&'a [u8]),
    /// Data of a module that belongs to no key.
    ModuleAux,
}

/// Reads blocks one after another.
pub struct Cutter {
    reader: RecordReader,
    /// The start of the record that the blocks so far have not completed.
    carry: Carry,
    /// The longest record that is kept.
    longest: usize,
}

#[derive(Default)]
struct Carry {
    bytes: Vec<u8>,
    /// Offset of the first byte in the stream.
    start: u64,
    /// The block in which the record starts.
    block: u64,
}

impl Cutter {
    /// At the start of a stream, or at a record in its middle.
    pub fn new(resume: Option<Resume>, longest: usize) -> Self {
        Self {
            reader: resume.map_or_else(RecordReader::new, RecordReader::resume),
            carry: Carry::default(),
            longest,
        }
    }

    /// Whether the stream has been read to its end.
    pub fn is_finished(&self) -> bool {
        self.reader.is_finished()
    }

    /// Reads on in a block until `on_found` breaks off or the block has been read. Whether there is more to read in it.
    pub fn feed(
        &mut self,
        block: &RawBlock,
        on_found: &mut impl FnMut(Found<'_>) -> ControlFlow<()>,
    ) -> Result<bool, RdbError> {
        let (bytes, start) = (&block.bytes, block.raw_offset);
        let index = block.number as u64;
        let piece = tail(bytes, start, self.reader.offset());
        let carry = &mut self.carry;
        let taken = self.reader.feed(piece, &mut |event| match event {
            Event::Key(key) => {
                let (body, block) = if key.value.start >= start {
                    (slice(bytes, start, &key.value), index)
                } else {
                    let rest = slice(bytes, start, &(start..key.value.end));
                    carry.bytes.extend_from_slice(rest);
                    (slice(&carry.bytes, carry.start, &key.value), carry.block)
                };
                let block = if key.record_start >= start {
                    index
                } else {
                    carry.block.min(block)
                };
                on_found(Found::Record(Cut { key, body, block }))
            }
            Event::Function(code) => on_found(Found::Function(code)),
            Event::ModuleAux => on_found(Found::ModuleAux),
            Event::Header(_)
            | Event::Aux { .. }
            | Event::SelectDb(_)
            | Event::ResizeDb { .. }
            | Event::End { .. } => ControlFlow::Continue(()),
        })?;
        Ok(taken < piece.len() && !self.reader.is_finished())
    }

    /// Ends a block that has been read: keeps the start of an unfinished record. Returns the first block in which records
    /// may still start or end.
    pub fn end_block(&mut self, block: &RawBlock) -> Result<u64, ReplayError> {
        let index = block.number as u64;
        let end = block.raw_offset + block.bytes.len() as u64;
        let pending = self.reader.position().map_or(0, |at| at.offset);
        if self.reader.is_finished() || pending >= end {
            self.carry.bytes.clear();
            return Ok(index + 1);
        }
        if pending >= block.raw_offset {
            self.carry.bytes.clear();
            self.carry.start = pending;
            self.carry.block = index;
        }
        let more = tail(&block.bytes, block.raw_offset, self.carry.start);
        self.carry.bytes.extend_from_slice(more);
        if self.carry.bytes.len() > self.longest {
            return Err(ReplayError::TooLong {
                block: self.carry.block,
                longest: self.longest,
            });
        }
        Ok(self.carry.block)
    }
}

/// The bytes of a block from an offset of the stream on; all of them if the offset lies before the block.
fn tail(bytes: &[u8], start: u64, offset: u64) -> &[u8] {
    let skip = usize::try_from(offset.saturating_sub(start)).unwrap_or(usize::MAX);
    bytes.get(skip..).unwrap_or_default()
}

/// The bytes of a range of the stream.
fn slice<'a>(bytes: &'a [u8], start: u64, range: &Range<u64>) -> &'a [u8] {
    let from = usize::try_from(range.start.saturating_sub(start)).unwrap_or(usize::MAX);
    let to = usize::try_from(range.end.saturating_sub(start)).unwrap_or(usize::MAX);
    bytes.get(from..to).unwrap_or_default()
}
