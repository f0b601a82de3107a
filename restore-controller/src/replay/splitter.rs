//! Splits blocks into records: finds each record's value in the bytes of its block, and keeps the start of a record that
//! the next block continues.

use super::{error::ReplayError, value_limit::ValueLimit};
use common::{
    rdb::{Event, Key, RdbError, RecordReader, Resume},
    storage::RawBlock,
};
use std::ops::{ControlFlow, Range};

/// A record as it lies in the blocks.
pub struct SplitRecord<'a> {
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
    Record(SplitRecord<'a>),
    /// The source code of a library of functions.
    Function(&'a [u8]),
    /// Data of a module that belongs to no key.
    ModuleAux,
}

/// Reads blocks one after another.
pub struct RecordSplitter {
    reader: RecordReader,
    /// The start of the record that the blocks so far have not completed.
    carry: UnfinishedRecord,
    longest: ValueLimit,
}

#[derive(Default)]
struct UnfinishedRecord {
    bytes: Vec<u8>,
    /// Offset of the first byte in the stream.
    start: u64,
    /// The block in which the record starts.
    block: u64,
}

impl RecordSplitter {
    /// At the start of a stream, or at a record in its middle.
    pub fn new(resume: Option<Resume>, longest: ValueLimit) -> Self {
        Self {
            reader: resume.map_or_else(RecordReader::new, RecordReader::resume),
            carry: UnfinishedRecord::default(),
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
                on_found(Found::Record(SplitRecord { key, body, block }))
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
        if self.carry.bytes.len() > self.longest.bytes() {
            let key = self.reader.current_key().unwrap_or_default();
            return Err(ReplayError::too_long(key, self.carry.block, self.longest));
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

#[cfg(test)]
mod tests {
    use super::*;
    use common::rdb::{Flavour, Header};
    use proptest::prelude::*;

    /// A stream of strings, and where each record and each body begins.
    struct Stream {
        bytes: Vec<u8>,
        records: Vec<(u64, Vec<u8>, Vec<u8>)>,
    }

    fn stream(values: &[(Option<i64>, usize)]) -> Stream {
        let mut bytes = b"REDIS0010".to_vec();
        bytes.extend_from_slice(b"\xfe\x00");
        let mut records = Vec::new();
        for (number, (expire_ms, length)) in values.iter().enumerate() {
            let start = bytes.len() as u64;
            if let Some(at) = expire_ms {
                bytes.push(252);
                bytes.extend_from_slice(&at.to_le_bytes());
            }
            let key = format!("key:{number}").into_bytes();
            bytes.push(0);
            bytes.push(u8::try_from(key.len()).unwrap());
            bytes.extend_from_slice(&key);
            let mut body = vec![0x80];
            body.extend_from_slice(&u32::try_from(*length).unwrap().to_be_bytes());
            body.extend(std::iter::repeat_n(b'x', *length));
            bytes.extend_from_slice(&body);
            records.push((start, key, body));
        }
        bytes.push(255);
        bytes.extend_from_slice(&[0; 8]);
        Stream { bytes, records }
    }

    fn blocks(stream: &Stream, size: usize) -> Vec<RawBlock> {
        let pieces = stream.bytes.chunks(size).enumerate();
        pieces
            .map(|(number, piece)| RawBlock {
                number,
                raw_offset: (number * size) as u64,
                first_record: None,
                bytes: piece.to_vec().into(),
            })
            .collect()
    }

    type Seen = Vec<(Vec<u8>, Vec<u8>, u64)>;

    /// Every record, breaking off after each `pause` of them; and the first open block after each block.
    fn cut(splitter: &mut RecordSplitter, blocks: &[RawBlock], pause: usize) -> (Seen, Vec<u64>) {
        let mut seen = Vec::new();
        let mut open = Vec::new();
        for block in blocks {
            loop {
                let mut taken = 0;
                let more = splitter.feed(block, &mut |found| {
                    if let Found::Record(cut) = found {
                        seen.push((cut.key.key.to_vec(), cut.body.to_vec(), cut.block));
                        taken += 1;
                    }
                    if taken < pause {
                        ControlFlow::Continue(())
                    } else {
                        ControlFlow::Break(())
                    }
                });
                if !more.unwrap() {
                    break;
                }
            }
            open.push(splitter.end_block(block).unwrap());
        }
        (seen, open)
    }

    fn values() -> impl Strategy<Value = Vec<(Option<i64>, usize)>> {
        prop::collection::vec((prop::option::of(1..i64::MAX), 0..400_usize), 1..30)
    }

    proptest! {
        /// However the stream is divided into blocks, every record comes out whole and belongs to the block it starts in; a block
        /// is closed only when everything that starts in it came out.
        #[test]
        fn records_come_out_complete(values in values(), size in 20..1500_usize, pause in 1..5_usize) {
            let stream = stream(&values);
            let blocks = blocks(&stream, size);
            let mut splitter = RecordSplitter::new(None, ValueLimit::default());
            let (seen, open) = cut(&mut splitter, &blocks, pause);
            let wanted: Seen = stream
                .records
                .iter()
                .map(|(start, key, body)| (key.clone(), body.clone(), start / size as u64))
                .collect();
            prop_assert_eq!(seen, wanted);
            prop_assert!(splitter.is_finished());
            prop_assert_eq!(*open.last().unwrap(), blocks.len() as u64);
            prop_assert!(open.is_sorted());
            for (number, open) in open.iter().enumerate() {
                prop_assert!(*open <= number as u64 + 1);
            }
        }

        /// From any record on, the rest comes out the same.
        #[test]
        fn reading_goes_on_at_any_record(values in values(), size in 20..1500_usize, pick in any::<prop::sample::Index>()) {
            let stream = stream(&values);
            let blocks = blocks(&stream, size);
            let from = pick.index(stream.records.len());
            let offset = stream.records[from].0;
            let header = Header { flavour: Flavour::Redis, version: 10 };
            let mut splitter = RecordSplitter::new(Some(Resume { header, db: 0, offset }), ValueLimit::default());
            let first = usize::try_from(offset).unwrap() / size;
            let (seen, _) = cut(&mut splitter, &blocks[first..], usize::MAX);
            let keys: Vec<_> = seen.into_iter().map(|(key, _, _)| key).collect();
            let wanted: Vec<_> = stream.records[from..].iter().map(|(_, key, _)| key.clone()).collect();
            prop_assert_eq!(keys, wanted);
            prop_assert!(splitter.is_finished());
        }
    }

    #[test]
    fn a_value_beyond_the_limit_is_refused_with_its_key() {
        let stream = stream(&[(None, 5 << 20)]);
        let blocks = blocks(&stream, 1 << 20);
        let mut splitter = RecordSplitter::new(None, ValueLimit::within(Some(0), 1));
        let mut nothing = |_: Found<'_>| ControlFlow::Continue(());
        let refused = blocks.iter().find_map(|block| {
            splitter.feed(block, &mut nothing).unwrap();
            splitter.end_block(block).err()
        });
        let message = refused.unwrap().to_string();
        assert!(message.contains("key \"key:0\" (slot "), "{message}");
        assert!(message.contains("longer than 4 MiB"), "{message}");
        assert!(
            message.contains("raise that limit or lower --streams"),
            "{message}"
        );
    }
}
