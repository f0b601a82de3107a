//! The incremental reader of RDB streams: pieces of any size in, events out.

use std::ops::ControlFlow;

use super::event::Event;
use super::value_type::Header;

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
pub struct RecordReader {
    offset: u64,
}

impl Default for RecordReader {
    fn default() -> Self {
        Self::new()
    }
}

impl RecordReader {
    /// A reader at the start of a stream.
    pub fn new() -> Self {
        Self { offset: 0 }
    }

    /// A reader at the start of a record in mid-stream.
    pub fn resume(at: Resume) -> Self {
        Self { offset: at.offset }
    }

    /// Reads a piece of the stream and reports what it completes.
    ///
    /// Returns the number of bytes taken: all of them, unless the callback broke off or the stream ended; the rest
    /// is to be fed again. After an error the reader returns the same error for ever.
    pub fn feed(
        &mut self,
        _piece: &[u8],
        _on_event: &mut impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<usize, RdbError> {
        todo!()
    }

    /// Offset of the next byte to feed.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The place to resume at: the start of the record being read, or of the next one. Bytes before it are done with.
    pub fn position(&self) -> Option<Resume> {
        todo!()
    }

    /// Whether the end of the stream was read.
    pub fn is_finished(&self) -> bool {
        todo!()
    }
}
