//! What a reader of an RDB stream reports.

use std::ops::Range;

use super::value_type::{Header, ValueType};

/// One thing found in an RDB stream. Borrowed bytes live until the callback returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// The magic at the very start.
    Header(Header),
    /// A named fact about the server that wrote the stream, such as `redis-ver`.
    Aux {
        /// Its name; unknown names are to be ignored.
        name: &'a [u8],
        /// Its value as text.
        value: &'a [u8],
    },
    /// The source code of one function library.
    Function(&'a [u8]),
    /// The keys that follow are in this database.
    SelectDb(u32),
    /// A hint of how much follows in this database.
    ResizeDb {
        /// Number of keys.
        keys: u64,
        /// Number of those that expire.
        expires: u64,
    },
    /// A key and where its value lies.
    Key(Key<'a>),
    /// Data of a module that belongs to no key; RESTORE cannot carry it.
    ModuleAux,
    /// The last record; nothing of the stream follows.
    End {
        /// The CRC-64 the server wrote; zero when it has checksums disabled.
        crc: u64,
    },
}

/// A key of the stream. Offsets count bytes from the start of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key<'a> {
    /// The key itself, decoded.
    pub key: &'a [u8],
    /// The database it is in.
    pub db: u32,
    /// How its value is encoded.
    pub kind: ValueType,
    /// Where the record starts: its expiry, eviction or metadata prefix if it has one, else its type byte.
    pub record_start: u64,
    /// The encoded value without type byte and key: what a RESTORE payload holds.
    pub value: Range<u64>,
    /// Metadata classes (Redis 8.6 and later), from the opcode to before the type byte.
    pub metadata: Option<Range<u64>>,
    /// When the key expires, in milliseconds since the Unix epoch.
    pub expire_ms: Option<i64>,
    /// Seconds since the last access, when the server evicts by LRU.
    pub idle_seconds: Option<u64>,
    /// Access frequency counter, when the server evicts by LFU.
    pub frequency: Option<u8>,
}
