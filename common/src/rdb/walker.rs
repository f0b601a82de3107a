//! Walks over what a program of ops describes, however the bytes are cut into pieces.

use std::io::Write;
use std::ops::Range;

use super::cursor::{Carry, Cursor, Length, malformed};
use super::error::RdbError;
use super::lzf;
use super::shape::{self, Kept, Op};

/// The walk of one record, suspended whenever a piece is used up.
pub(super) struct Walker {
    program: Vec<Frame>,
    pending: Pending,
    carry: Carry,
    /// The last two lengths or numbers read.
    pub(super) last: u64,
    pub(super) previous: u64,
    /// Where the value started.
    pub(super) value_start: u64,
    pub(super) name: Capture,
    pub(super) text: Capture,
    compressed: Capture,
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

/// A kept string: a range of the piece at hand, or bytes of our own.
#[derive(Default)]
pub(super) struct Capture {
    range: Option<Range<usize>>,
    bytes: Vec<u8>,
}

impl Capture {
    pub(super) fn get<'a>(&'a self, piece: &'a [u8]) -> &'a [u8] {
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
pub(super) enum Progress {
    Done,
    Starved,
}

impl Walker {
    pub(super) fn new() -> Self {
        Self {
            program: Vec::with_capacity(8),
            pending: Pending::Nothing,
            carry: Carry::default(),
            last: 0,
            previous: 0,
            value_start: 0,
            name: Capture::default(),
            text: Capture::default(),
            compressed: Capture::default(),
        }
    }

    /// The magic of a stream.
    pub(super) fn magic<const N: usize>(&mut self, cursor: &mut Cursor<'_>) -> Option<[u8; N]> {
        self.carry.take(cursor)
    }

    /// Copies what is kept of a piece that is about to go away.
    pub(super) fn settle(&mut self, piece: &[u8]) {
        for capture in [&mut self.name, &mut self.text, &mut self.compressed] {
            capture.settle(piece);
        }
    }

    /// Puts a body in front of what is to be walked.
    pub(super) fn push(&mut self, body: &'static [Op]) {
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
    pub(super) fn walk(&mut self, cursor: &mut Cursor<'_>) -> Result<Progress, RdbError> {
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
            Op::ValueStart => self.value_start = cursor.offset(),
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
