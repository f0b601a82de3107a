//! Why a stream cannot be read.

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
