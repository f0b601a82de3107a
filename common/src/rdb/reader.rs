//! The incremental reader of RDB streams: pieces of any size in, events out.

use std::ops::{ControlFlow, Range};

use super::cursor::{Cursor, malformed};
use super::error::RdbError;
use super::event::{Event, Key};
use super::shape;
use super::value_type::{Flavour, Header, ValueType};
use super::walker::{Progress, Walker};

/// Where to go on reading in mid-stream: at the start of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    /// The header of the stream.
    pub header: Header,
    /// The database selected at that place.
    pub db: u32,
    /// Offset of the record from the start of the stream.
    pub offset: u64,
}

/// Reads an RDB stream piece by piece, skipping over values without keeping them.
///
/// Memory does not depend on the stream, except that a key, a name or a function split over pieces is kept until
/// it is whole. No allocation per record.
pub struct RecordReader {
    header: Option<Header>,
    offset: u64,
    item: Item,
    walker: Walker,
    db: u32,
    prefix: Prefix,
    failed: Option<RdbError>,
}

/// What is being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    Nothing,
    Header,
    Aux,
    Function,
    SelectDb,
    ResizeDb,
    ExpireSeconds,
    ExpireMilliseconds,
    Frequency,
    Idle,
    Metadata,
    Ignored,
    ModuleAux,
    Value(ValueType),
    End,
    Finished,
}

/// What came before a key's type byte.
#[derive(Debug, Clone, Default)]
struct Prefix {
    record_start: Option<u64>,
    metadata: Option<Range<u64>>,
    expire_ms: Option<i64>,
    idle_seconds: Option<u64>,
    frequency: Option<u8>,
}

impl Default for RecordReader {
    fn default() -> Self {
        Self::new()
    }
}

impl RecordReader {
    /// A reader at the start of a stream.
    pub fn new() -> Self {
        Self {
            header: None,
            offset: 0,
            item: Item::Nothing,
            walker: Walker::new(),
            db: 0,
            prefix: Prefix::default(),
            failed: None,
        }
    }

    /// A reader at the start of a record in mid-stream.
    pub fn resume(at: Resume) -> Self {
        Self {
            header: Some(at.header),
            db: at.db,
            offset: at.offset,
            ..Self::new()
        }
    }

    /// Reads a piece of the stream and reports what it completes.
    ///
    /// Returns the number of bytes taken: all of them, unless the callback broke off or the stream ended; the rest
    /// is to be fed again. After an error the reader returns the same error for ever.
    pub fn feed(
        &mut self,
        piece: &[u8],
        on_event: &mut impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<usize, RdbError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let mut cursor = Cursor::new(piece, self.offset);
        let result = self.run(&mut cursor, on_event);
        self.offset = cursor.offset();
        self.walker.settle(piece);
        match result {
            Ok(()) => Ok(cursor.taken()),
            Err(error) => {
                self.failed = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Offset of the next byte to feed.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The place to resume at: the start of the record being read, or of the next one. Bytes before it are done with.
    /// Nothing before the header is read.
    pub fn position(&self) -> Option<Resume> {
        let offset = self.prefix.record_start.unwrap_or(self.offset);
        self.header.map(|header| Resume {
            header,
            db: self.db,
            offset,
        })
    }

    /// The key whose value is being read, if the end of the last piece lies in a value.
    pub fn current_key(&self) -> Option<&[u8]> {
        let start = self.prefix.record_start?;
        let in_value = matches!(self.item, Item::Value(_)) && self.walker.value_start > start;
        in_value.then(|| self.walker.name.get(&[]))
    }

    /// The stream's header, once read.
    pub fn header(&self) -> Option<Header> {
        self.header
    }

    /// Whether the end of the stream was read.
    pub fn is_finished(&self) -> bool {
        self.item == Item::Finished
    }

    fn run(
        &mut self,
        cursor: &mut Cursor<'_>,
        on_event: &mut impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<(), RdbError> {
        while self.item != Item::Finished {
            if self.walker.walk(cursor)? == Progress::Starved {
                return Ok(());
            }
            if self.complete(cursor, on_event)?.is_break()
                || self.item == Item::Finished
                || self.begin(cursor)? == Progress::Starved
            {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Reads the opcode or type of the next item.
    fn begin(&mut self, cursor: &mut Cursor<'_>) -> Result<Progress, RdbError> {
        let Some(header) = self.header else {
            return self.begin_stream(cursor);
        };
        let offset = cursor.offset();
        let Some(code) = cursor.byte() else {
            return Ok(Progress::Starved);
        };
        self.prefix.record_start.get_or_insert(offset);
        let (item, program) = match (code, header.flavour) {
            (255, _) if header.version < 5 => (Item::End, [].as_slice()),
            (255, _) => (Item::End, shape::EIGHT_BYTE_NUMBER),
            (254, _) => (Item::SelectDb, shape::LENGTH),
            (253, _) => (Item::ExpireSeconds, shape::SECONDS),
            (252, _) => (Item::ExpireMilliseconds, shape::EIGHT_BYTE_NUMBER),
            (251, _) => (Item::ResizeDb, shape::TWO_LENGTHS),
            (250, _) => (Item::Aux, shape::TWO_STRINGS),
            (249, _) => (Item::Frequency, shape::BYTE_NUMBER),
            (248, _) => (Item::Idle, shape::LENGTH),
            (247, _) => (Item::ModuleAux, shape::MODULE),
            (245, _) => (Item::Function, shape::TEXT),
            (244, _) => (Item::Ignored, shape::THREE_LENGTHS),
            (243, Flavour::Redis) => {
                self.prefix.metadata = Some(offset..offset);
                (Item::Metadata, shape::KEY_METADATA)
            }
            (243, Flavour::Valkey) => (Item::Ignored, shape::SLOT_IMPORT),
            _ => {
                let kind = ValueType::from_code(code, header.flavour)
                    .ok_or(RdbError::UnknownType { code, offset })?;
                self.walker.push(shape::of(kind));
                (Item::Value(kind), shape::KEY)
            }
        };
        self.item = item;
        self.walker.push(program);
        Ok(Progress::Done)
    }

    fn begin_stream(&mut self, cursor: &mut Cursor<'_>) -> Result<Progress, RdbError> {
        let Some(magic) = self.walker.magic::<{ Header::LENGTH }>(cursor) else {
            return Ok(Progress::Starved);
        };
        self.header = Some(Header::parse(magic).ok_or_else(|| RdbError::NotRdb(magic.to_vec()))?);
        self.item = Item::Header;
        Ok(Progress::Done)
    }

    /// Reports the item that was just walked over.
    fn complete(
        &mut self,
        cursor: &Cursor<'_>,
        on_event: &mut impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, RdbError> {
        let item = std::mem::replace(&mut self.item, Item::Nothing);
        let event = match item {
            Item::Value(kind) => {
                let prefix = std::mem::take(&mut self.prefix);
                return Ok(on_event(Event::Key(Key {
                    key: self.walker.name.get(cursor.piece),
                    db: self.db,
                    kind,
                    record_start: prefix.record_start.unwrap_or_default(),
                    value: self.walker.value_start..cursor.offset(),
                    metadata: prefix.metadata,
                    expire_ms: prefix.expire_ms,
                    idle_seconds: prefix.idle_seconds,
                    frequency: prefix.frequency,
                })));
            }
            Item::ExpireSeconds
            | Item::ExpireMilliseconds
            | Item::Frequency
            | Item::Idle
            | Item::Metadata => {
                self.complete_prefix(item, cursor.offset());
                return Ok(ControlFlow::Continue(()));
            }
            Item::Nothing | Item::Finished => return Ok(ControlFlow::Continue(())),
            Item::Header => self.header.map(Event::Header),
            Item::Aux => Some(Event::Aux {
                name: self.walker.name.get(cursor.piece),
                value: self.walker.text.get(cursor.piece),
            }),
            Item::Function => Some(Event::Function(self.walker.text.get(cursor.piece))),
            Item::SelectDb => {
                self.db = u32::try_from(self.walker.last)
                    .map_err(|_| malformed(cursor, "a database has a huge number"))?;
                Some(Event::SelectDb(self.db))
            }
            Item::ResizeDb => Some(Event::ResizeDb {
                keys: self.walker.previous,
                expires: self.walker.last,
            }),
            Item::Ignored => None,
            Item::ModuleAux => Some(Event::ModuleAux),
            Item::End => {
                self.item = Item::Finished;
                let has_crc = self.header.is_some_and(|header| header.version >= 5);
                Some(Event::End {
                    crc: if has_crc { self.walker.last } else { 0 },
                })
            }
        };
        self.prefix = Prefix::default();
        Ok(event.map_or(ControlFlow::Continue(()), on_event))
    }

    /// Keeps what precedes a key.
    #[allow(clippy::cast_possible_wrap, clippy::cast_possible_truncation)] // the bytes are meant as such numbers
    fn complete_prefix(&mut self, item: Item, offset: u64) {
        if item == Item::ExpireSeconds {
            self.prefix.expire_ms = Some(i64::from(self.walker.last as i32) * 1000);
        } else if item == Item::ExpireMilliseconds {
            self.prefix.expire_ms = Some(self.walker.last as i64);
        } else if item == Item::Frequency {
            self.prefix.frequency = Some(self.walker.last as u8);
        } else if item == Item::Idle {
            self.prefix.idle_seconds = Some(self.walker.last);
        } else if let Some(metadata) = &mut self.prefix.metadata {
            metadata.end = offset;
        }
    }
}
