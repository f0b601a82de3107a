//! The grammar of records as data: what to walk over to find where a record ends.

use super::value_type::ValueType;

/// One thing to walk over.
#[derive(Debug, Clone, Copy)]
pub(super) enum Op {
    /// A length; its value is kept.
    Length,
    /// A string in any encoding.
    String,
    /// So many bytes.
    Bytes(u8),
    /// A little-endian number of so many bytes, at most 8; its value is kept.
    Number(u8),
    /// A double as ASCII after a length byte; 253 to 255 stand for NaN and the infinities and have no text.
    AsciiDouble,
    /// A length, then the body so many times.
    Repeat(&'static [Op]),
    /// Self-describing fields of a module up to their end opcode; only last in a program or body.
    ModuleFields,
    /// A string to keep: a key or a name.
    Name,
    /// A second string to keep.
    Text,
    /// The value begins here.
    ValueStart,
    /// As many bytes as the length before the last one says.
    SkipPrevious,
    /// An LZF string to keep whose compressed and plain length were the last two.
    Inflate(Kept),
    /// The last number, signed and of so many bytes, is a string to keep in decimal.
    Decimal(Kept, u8),
}

/// Which of the two kept strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    Name,
    Text,
}

use Op::{
    AsciiDouble, Bytes, Decimal, Inflate, Length, ModuleFields, Name, Number, Repeat, SkipPrevious,
    String, Text, ValueStart,
};

pub(super) const KEY: &[Op] = &[Name, ValueStart];
pub(super) const LENGTH: &[Op] = &[Length];
pub(super) const TWO_LENGTHS: &[Op] = &[Length, Length];
pub(super) const THREE_LENGTHS: &[Op] = &[Length, Length, Length];
pub(super) const TWO_STRINGS: &[Op] = &[Name, Text];
pub(super) const TEXT: &[Op] = &[Text];
pub(super) const BYTE_NUMBER: &[Op] = &[Number(1)];
pub(super) const SECONDS: &[Op] = &[Number(4)];
pub(super) const EIGHT_BYTE_NUMBER: &[Op] = &[Number(8)];
pub(super) const SLOT_IMPORT: &[Op] = &[String, Repeat(TWO_LENGTHS)];
/// Metadata of a key: classes of 4 bytes, each with fields.
pub(super) const KEY_METADATA: &[Op] = &[Repeat(&[Bytes(4), ModuleFields])];

pub(super) const MODULE: &[Op] = &[Length, ModuleFields];
pub(super) const MODULE_INTEGER: &[Op] = &[Length, ModuleFields];
pub(super) const MODULE_FLOAT: &[Op] = &[Bytes(4), ModuleFields];
pub(super) const MODULE_DOUBLE: &[Op] = &[Bytes(8), ModuleFields];
pub(super) const MODULE_STRING: &[Op] = &[String, ModuleFields];

pub(super) const LZF: &[Op] = &[Length, Length, SkipPrevious];
pub(super) const LZF_NAME: &[Op] = &[Length, Length, Inflate(Kept::Name)];
pub(super) const LZF_TEXT: &[Op] = &[Length, Length, Inflate(Kept::Text)];

/// A string to keep that is written as a signed number; `encoding` 0, 1, 2 stand for 1, 2, 4 bytes.
pub(super) fn integer(kept: Kept, encoding: u8) -> &'static [Op] {
    match (kept, encoding) {
        (Kept::Name, 0) => &[Number(1), Decimal(Kept::Name, 1)],
        (Kept::Name, 1) => &[Number(2), Decimal(Kept::Name, 2)],
        (Kept::Name, _) => &[Number(4), Decimal(Kept::Name, 4)],
        (Kept::Text, 0) => &[Number(1), Decimal(Kept::Text, 1)],
        (Kept::Text, 1) => &[Number(2), Decimal(Kept::Text, 2)],
        (Kept::Text, _) => &[Number(4), Decimal(Kept::Text, 4)],
    }
}

const ENTRY_ID: &[Op] = &[Bytes(16)];
const PENDING: Op = Repeat(&[Bytes(16), Bytes(8), Length]);
const CONSUMERS: Op = Repeat(&[String, Bytes(8), Repeat(ENTRY_ID)]);
const ACTIVE_CONSUMERS: Op = Repeat(&[String, Bytes(8), Bytes(8), Repeat(ENTRY_ID)]);
const ENTRIES: Op = Repeat(&[String, String]);
const GROUPS: Op = Repeat(&[String, Length, Length, PENDING, CONSUMERS]);
const GROUPS_2: Op = Repeat(&[String, Length, Length, Length, PENDING, CONSUMERS]);
const GROUPS_3: Op = Repeat(&[String, Length, Length, Length, PENDING, ACTIVE_CONSUMERS]);
const GROUPS_5: Op = Repeat(&[
    String,
    Length,
    Length,
    Length,
    PENDING,
    ACTIVE_CONSUMERS,
    Repeat(ENTRY_ID),
]);
/// Idempotent producers: each its name and its ids, and where each id's entry is.
const PRODUCERS: Op = Repeat(&[String, Repeat(&[String, Length, Length])]);

const STREAM: &[Op] = &[ENTRIES, Length, Length, Length, GROUPS];
#[rustfmt::skip]
const STREAM_2: &[Op] = &[
    ENTRIES, Length, Length, Length, Length, Length, Length, Length, Length, GROUPS_2,
];
#[rustfmt::skip]
const STREAM_3: &[Op] = &[
    ENTRIES, Length, Length, Length, Length, Length, Length, Length, Length, GROUPS_3,
];
#[rustfmt::skip]
const STREAM_4: &[Op] = &[
    ENTRIES, Length, Length, Length, Length, Length, Length, Length, Length, GROUPS_3,
    Length, Length, PRODUCERS, Length, Length,
];
#[rustfmt::skip]
const STREAM_5: &[Op] = &[
    ENTRIES, Length, Length, Length, Length, Length, Length, Length, Length, GROUPS_5,
    Length, Length, PRODUCERS, Length, Length,
];

/// What a value of this type consists of.
pub(super) fn of(kind: ValueType) -> &'static [Op] {
    match kind {
        ValueType::String
        | ValueType::HashZipmap
        | ValueType::ListZiplist
        | ValueType::SetIntset
        | ValueType::ZSetZiplist
        | ValueType::HashZiplist
        | ValueType::HashListpack
        | ValueType::ZSetListpack
        | ValueType::SetListpack
        | ValueType::HashListpackExpiryCandidate => &[String],
        ValueType::List | ValueType::Set | ValueType::ListQuicklist => &[Repeat(&[String])],
        ValueType::ZSet => &[Repeat(&[String, AsciiDouble])],
        ValueType::ZSet2 => &[Repeat(&[String, Bytes(8)])],
        ValueType::Hash => &[Repeat(&[String, String])],
        ValueType::Module2 => MODULE,
        ValueType::Stream => STREAM,
        ValueType::ListQuicklist2 => &[Repeat(&[Length, String])],
        ValueType::Stream2 => STREAM_2,
        ValueType::Stream3 => STREAM_3,
        ValueType::HashMetadataCandidate => &[Repeat(&[Length, String, String])],
        ValueType::ValkeyHash2 => &[Repeat(&[String, String, Bytes(8)])],
        ValueType::HashMetadata => &[Bytes(8), Repeat(&[Length, String, String])],
        ValueType::HashListpackExpiry => &[Bytes(8), String],
        ValueType::Stream4 => STREAM_4,
        ValueType::Stream5 => STREAM_5,
    }
}
