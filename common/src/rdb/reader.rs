//! The incremental reader of RDB streams: pieces of any size in, events out.

use std::io::Write;
use std::ops::{ControlFlow, Range};

use super::cursor::{Carry, Cursor, Length, malformed};
use super::event::{Event, Key};
use super::lzf;
use super::shape::{self, Kept, Op};
use super::value_type::{Flavour, Header, ValueType};

/// Why a stream could not be read on. Offsets count bytes from the start of the stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RdbError {
    /// The stream does not start like an RDB.
    #[error("the stream starts with {0:?}, which is no RDB header")]
    NotRdb(Vec<u8>),
    /// A type or opcode this version does not know; nothing after it can be read.
    #[error(
        "type or opcode {code} at byte {offset} is not known: the data comes from a server newer than this program supports"
    )]
    UnknownType {
        /// The byte found.
        code: u8,
        /// Where it was.
        offset: u64,
    },
    /// The bytes break the format.
    #[error("the data is damaged at byte {offset}: {reason}")]
    Malformed {
        /// Where, within a few bytes.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
}

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
    program: Vec<Frame>,
    pending: Pending,
    carry: Carry,
    /// The last two lengths or numbers read.
    last: u64,
    previous: u64,
    name: Capture,
    text: Capture,
    compressed: Capture,
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

/// A body being walked: what is left of this round, and how many rounds, this one included.
struct Frame {
    ops: &'static [Op],
    body: &'static [Op],
    rounds: u64,
}

/// Bytes to pass before the program goes on.
#[derive(Debug, Clone, Copy)]
enum Pending {
    Nothing,
    Skip(u64),
    /// All of them still to come.
    Keep(Target, u64),
    /// The first of them are kept, so many are still to come.
    KeepMore(Target, u64),
}

/// Where kept bytes go.
#[derive(Debug, Clone, Copy)]
enum Target {
    Plain(Kept),
    Compressed(Kept),
}

/// What came before a key's type byte, and where its value starts.
#[derive(Debug, Clone, Default)]
struct Prefix {
    record_start: Option<u64>,
    value_start: u64,
    metadata: Option<Range<u64>>,
    expire_ms: Option<i64>,
    idle_seconds: Option<u64>,
    frequency: Option<u8>,
}

/// A kept string: a range of the piece at hand, or bytes of our own.
#[derive(Default)]
struct Capture {
    range: Option<Range<usize>>,
    bytes: Vec<u8>,
}

impl Capture {
    fn get<'a>(&'a self, piece: &'a [u8]) -> &'a [u8] {
        match &self.range {
            Some(range) => piece.get(range.clone()).unwrap_or_default(),
            None => &self.bytes,
        }
    }

    fn own(&mut self) -> &mut Vec<u8> {
        self.range = None;
        self.bytes.clear();
        &mut self.bytes
    }

    /// Copies what lies in a piece that is about to go away.
    fn settle(&mut self, piece: &[u8]) {
        if let Some(bytes) = self.range.take().and_then(|range| piece.get(range)) {
            self.bytes.clear();
            self.bytes.extend_from_slice(bytes);
        }
    }
}

/// Whether a step ended because it was done or because the piece was used up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Done,
    Starved,
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
            program: Vec::with_capacity(8),
            pending: Pending::Nothing,
            carry: Carry::default(),
            last: 0,
            previous: 0,
            name: Capture::default(),
            text: Capture::default(),
            compressed: Capture::default(),
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
        for capture in [&mut self.name, &mut self.text, &mut self.compressed] {
            capture.settle(piece);
        }
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
            if self.walk(cursor)? == Progress::Starved {
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
                self.push(shape::of(kind));
                (Item::Value(kind), shape::KEY)
            }
        };
        self.item = item;
        self.push(program);
        Ok(Progress::Done)
    }

    fn begin_stream(&mut self, cursor: &mut Cursor<'_>) -> Result<Progress, RdbError> {
        let Some(magic) = self.carry.take::<{ Header::LENGTH }>(cursor) else {
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
                    key: self.name.get(cursor.piece),
                    db: self.db,
                    kind,
                    record_start: prefix.record_start.unwrap_or_default(),
                    value: prefix.value_start..cursor.offset(),
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
                name: self.name.get(cursor.piece),
                value: self.text.get(cursor.piece),
            }),
            Item::Function => Some(Event::Function(self.text.get(cursor.piece))),
            Item::SelectDb => {
                self.db = u32::try_from(self.last)
                    .map_err(|_| malformed(cursor, "a database has a huge number"))?;
                Some(Event::SelectDb(self.db))
            }
            Item::ResizeDb => Some(Event::ResizeDb {
                keys: self.previous,
                expires: self.last,
            }),
            Item::Ignored => None,
            Item::ModuleAux => Some(Event::ModuleAux),
            Item::End => {
                self.item = Item::Finished;
                let has_crc = self.header.is_some_and(|header| header.version >= 5);
                Some(Event::End {
                    crc: if has_crc { self.last } else { 0 },
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
            self.prefix.expire_ms = Some(i64::from(self.last as i32) * 1000);
        } else if item == Item::ExpireMilliseconds {
            self.prefix.expire_ms = Some(self.last as i64);
        } else if item == Item::Frequency {
            self.prefix.frequency = Some(self.last as u8);
        } else if item == Item::Idle {
            self.prefix.idle_seconds = Some(self.last);
        } else if let Some(metadata) = &mut self.prefix.metadata {
            metadata.end = offset;
        }
    }

    fn push(&mut self, body: &'static [Op]) {
        self.push_repeated(body, 1);
    }

    fn push_repeated(&mut self, body: &'static [Op], rounds: u64) {
        self.program.push(Frame {
            ops: body,
            body,
            rounds,
        });
    }

    /// Walks to the end of the item, or of the piece.
    fn walk(&mut self, cursor: &mut Cursor<'_>) -> Result<Progress, RdbError> {
        if self.pass(cursor)? == Progress::Starved {
            return Ok(Progress::Starved);
        }
        while let Some(frame) = self.program.last_mut() {
            let Some((op, rest)) = frame.ops.split_first() else {
                if frame.rounds > 1 {
                    frame.rounds -= 1;
                    frame.ops = frame.body;
                } else {
                    self.program.pop();
                }
                continue;
            };
            // An op that needs more bytes is taken back and started again with the next piece: what it had read is carried.
            let before = std::mem::replace(&mut frame.ops, rest);
            let depth = self.program.len();
            if self.step(*op, cursor)? == Progress::Starved {
                if let Some(frame) = self.program.get_mut(depth - 1) {
                    frame.ops = before;
                }
                return Ok(Progress::Starved);
            }
            if self.pass(cursor)? == Progress::Starved {
                return Ok(Progress::Starved);
            }
        }
        Ok(Progress::Done)
    }

    /// One op; starved means nothing was done but carrying.
    #[inline]
    fn step(&mut self, op: Op, cursor: &mut Cursor<'_>) -> Result<Progress, RdbError> {
        match op {
            Op::Length => return self.number_length(cursor),
            Op::String => return self.skip_string(cursor),
            Op::Bytes(count) => self.pending = Pending::Skip(u64::from(count)),
            Op::Number(width) => return Ok(self.number(width, cursor)),
            Op::AsciiDouble => {
                let Some(length) = cursor.byte() else {
                    return Ok(Progress::Starved);
                };
                self.pending = Pending::Skip(if length < 253 { u64::from(length) } else { 0 });
            }
            Op::Repeat(body) => {
                if self.number_length(cursor)? == Progress::Starved {
                    return Ok(Progress::Starved);
                }
                if self.last > 0 {
                    self.push_repeated(body, self.last);
                }
            }
            Op::ModuleFields => return self.module_field(cursor),
            Op::Name => return self.keep_string(Kept::Name, cursor),
            Op::Text => return self.keep_string(Kept::Text, cursor),
            Op::ValueStart => self.prefix.value_start = cursor.offset(),
            Op::SkipPrevious => self.pending = Pending::Skip(self.previous),
            Op::Inflate(kept) => {
                self.pending = Pending::Keep(Target::Compressed(kept), self.previous);
            }
            Op::Decimal(kept, width) => self.keep_decimal(kept, width),
        }
        Ok(Progress::Done)
    }

    fn remember(&mut self, number: u64) {
        self.previous = std::mem::replace(&mut self.last, number);
    }

    fn number_length(&mut self, cursor: &mut Cursor<'_>) -> Result<Progress, RdbError> {
        match self.carry.length(cursor)? {
            None => Ok(Progress::Starved),
            Some(Length::Plain(length)) => {
                self.remember(length);
                Ok(Progress::Done)
            }
            Some(Length::Encoded(_)) => {
                Err(malformed(cursor, "a string is where a length belongs"))
            }
        }
    }

    fn number(&mut self, width: u8, cursor: &mut Cursor<'_>) -> Progress {
        let number = match width {
            1 => cursor.byte().map(u64::from),
            2 => self
                .carry
                .take(cursor)
                .map(|bytes| u16::from_le_bytes(bytes).into()),
            4 => self
                .carry
                .take(cursor)
                .map(|bytes| u32::from_le_bytes(bytes).into()),
            _ => self.carry.take(cursor).map(u64::from_le_bytes),
        };
        number.map_or(Progress::Starved, |number| {
            self.remember(number);
            Progress::Done
        })
    }

    #[inline]
    fn skip_string(&mut self, cursor: &mut Cursor<'_>) -> Result<Progress, RdbError> {
        let Some(length) = self.carry.length(cursor)? else {
            return Ok(Progress::Starved);
        };
        self.pending = Pending::Skip(match length {
            Length::Plain(length) => length,
            Length::Encoded(0) => 1,
            Length::Encoded(1) => 2,
            Length::Encoded(2) => 4,
            Length::Encoded(3) => {
                self.push(shape::LZF);
                0
            }
            Length::Encoded(_) => {
                return Err(malformed(cursor, "a string has an unknown encoding"));
            }
        });
        Ok(Progress::Done)
    }

    fn keep_string(&mut self, kept: Kept, cursor: &mut Cursor<'_>) -> Result<Progress, RdbError> {
        let Some(length) = self.carry.length(cursor)? else {
            return Ok(Progress::Starved);
        };
        match length {
            Length::Plain(length) => self.pending = Pending::Keep(Target::Plain(kept), length),
            Length::Encoded(encoding @ 0..=2) => self.push(shape::integer(kept, encoding)),
            Length::Encoded(3) => self.push(match kept {
                Kept::Name => shape::LZF_NAME,
                Kept::Text => shape::LZF_TEXT,
            }),
            Length::Encoded(_) => {
                return Err(malformed(cursor, "a string has an unknown encoding"));
            }
        }
        Ok(Progress::Done)
    }

    /// Passes the bytes an op announced.
    #[inline]
    fn pass(&mut self, cursor: &mut Cursor<'_>) -> Result<Progress, RdbError> {
        match self.pending {
            Pending::Nothing => return Ok(Progress::Done),
            Pending::Skip(length) => {
                let left = cursor.skip(length);
                if left > 0 {
                    self.pending = Pending::Skip(left);
                    return Ok(Progress::Starved);
                }
            }
            Pending::Keep(target, length) => {
                let start = cursor.taken();
                let Some(whole) = usize::try_from(length)
                    .ok()
                    .filter(|length| *length <= cursor.rest.len())
                else {
                    self.capture(target).own();
                    return self.keep_more(target, length, cursor);
                };
                cursor.take(whole);
                self.capture(target).range = Some(start..start + whole);
                self.kept(target, cursor)?;
            }
            Pending::KeepMore(target, left) => return self.keep_more(target, left, cursor),
        }
        self.pending = Pending::Nothing;
        Ok(Progress::Done)
    }

    /// Copies what has come of a string to keep. Memory grows by what came, never by what was announced.
    #[cold]
    fn keep_more(
        &mut self,
        target: Target,
        left: u64,
        cursor: &mut Cursor<'_>,
    ) -> Result<Progress, RdbError> {
        let bytes = cursor.take(usize::try_from(left).unwrap_or(usize::MAX));
        self.capture(target).bytes.extend_from_slice(bytes);
        let left = left - bytes.len() as u64;
        if left > 0 {
            self.pending = Pending::KeepMore(target, left);
            return Ok(Progress::Starved);
        }
        self.kept(target, cursor)?;
        self.pending = Pending::Nothing;
        Ok(Progress::Done)
    }

    fn capture(&mut self, target: Target) -> &mut Capture {
        match target {
            Target::Plain(Kept::Name) => &mut self.name,
            Target::Plain(Kept::Text) => &mut self.text,
            Target::Compressed(_) => &mut self.compressed,
        }
    }

    /// A string to keep is whole.
    fn kept(&mut self, target: Target, cursor: &Cursor<'_>) -> Result<(), RdbError> {
        let Target::Compressed(kept) = target else {
            return Ok(());
        };
        let plain = match kept {
            Kept::Name => self.name.own(),
            Kept::Text => self.text.own(),
        };
        lzf::inflate(self.compressed.get(cursor.piece), self.last, plain)
            .ok_or_else(|| malformed(cursor, "a compressed string does not decompress"))
    }

    #[allow(clippy::cast_possible_wrap, clippy::cast_possible_truncation)] // the bytes are meant as such numbers
    fn keep_decimal(&mut self, kept: Kept, width: u8) {
        let number = match width {
            1 => i64::from(self.last as i8),
            2 => i64::from(self.last as i16),
            _ => i64::from(self.last as i32),
        };
        let out = self.capture(Target::Plain(kept)).own();
        // Writing to a Vec does not fail.
        let _ = write!(out, "{number}");
    }

    fn module_field(&mut self, cursor: &mut Cursor<'_>) -> Result<Progress, RdbError> {
        if self.number_length(cursor)? == Progress::Starved {
            return Ok(Progress::Starved);
        }
        let field = match self.last {
            0 => return Ok(Progress::Done),
            1 | 2 => shape::MODULE_INTEGER,
            3 => shape::MODULE_FLOAT,
            4 => shape::MODULE_DOUBLE,
            5 => shape::MODULE_STRING,
            _ => return Err(malformed(cursor, "a module field has an unknown kind")),
        };
        // The fields are last in their frame, so the next one takes the frame's place: no depth per field.
        if let Some(frame) = self.program.last_mut() {
            frame.ops = field;
        }
        Ok(Progress::Done)
    }
}
