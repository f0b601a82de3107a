//! Who wrote a stream, and how a value in it is encoded.

/// The family of servers whose numbering a stream uses; both use the same numbers for different types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// Magic `REDIS`: every Redis, and Valkey before 9.
    Redis,
    /// Magic `VALKEY`: Valkey 9 and later.
    Valkey,
}

/// The magic of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Header {
    /// Whose numbering the stream uses.
    pub flavour: Flavour,
    /// RDB version, such as 10 for Redis 7.0.
    pub version: u16,
}

impl Header {
    /// Length of the magic in bytes: both families write 9.
    pub const LENGTH: usize = 9;

    /// Reads the magic: `REDIS` and 4 digits, or `VALKEY` and 3.
    pub fn parse(magic: [u8; Self::LENGTH]) -> Option<Self> {
        let (flavour, digits) = match magic.as_slice() {
            [b'R', b'E', b'D', b'I', b'S', digits @ ..] => (Flavour::Redis, digits),
            [b'V', b'A', b'L', b'K', b'E', b'Y', digits @ ..] => (Flavour::Valkey, digits),
            _ => return None,
        };
        digits
            .iter()
            .try_fold(0u16, |version, digit| {
                digit
                    .is_ascii_digit()
                    .then(|| version * 10 + u16::from(digit - b'0'))
            })
            .map(|version| Self { flavour, version })
    }
}

/// How a value is encoded. Only what this code can walk to its end; everything else is an unknown type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ValueType {
    /// 0: string.
    String,
    /// 1: list of strings.
    List,
    /// 2: set of strings.
    Set,
    /// 3: sorted set, scores as ASCII.
    ZSet,
    /// 4: hash of strings.
    Hash,
    /// 5: sorted set, scores as binary doubles.
    ZSet2,
    /// 7: module value with self-describing opcodes.
    Module2,
    /// 9: hash as zipmap.
    HashZipmap,
    /// 10: list as ziplist.
    ListZiplist,
    /// 11: set as intset.
    SetIntset,
    /// 12: sorted set as ziplist.
    ZSetZiplist,
    /// 13: hash as ziplist.
    HashZiplist,
    /// 14: list as quicklist of ziplists.
    ListQuicklist,
    /// 15: stream.
    Stream,
    /// 16: hash as listpack.
    HashListpack,
    /// 17: sorted set as listpack.
    ZSetListpack,
    /// 18: list as quicklist of plain or listpack nodes.
    ListQuicklist2,
    /// 19: stream with first id, maximal deleted id, entries added and read.
    Stream2,
    /// 20: set as listpack.
    SetListpack,
    /// 21: stream with the consumers' active times.
    Stream3,
    /// 22 of Redis: hash with field expiries, release candidates of 7.4 only.
    HashMetadataCandidate,
    /// 23 of Redis: hash with field expiries as listpack, release candidates of 7.4 only.
    HashListpackExpiryCandidate,
    /// 22 of Valkey: hash with field expiries.
    ValkeyHash2,
    /// 24: hash with field expiries.
    HashMetadata,
    /// 25: hash with field expiries as listpack.
    HashListpackExpiry,
    /// 26: stream with idempotent producers.
    Stream4,
    /// 27: stream with negatively acknowledged entries.
    Stream5,
}

impl ValueType {
    /// The type a stream of this family means by this byte.
    pub fn from_code(code: u8, flavour: Flavour) -> Option<Self> {
        Some(match (code, flavour) {
            (0, _) => Self::String,
            (1, _) => Self::List,
            (2, _) => Self::Set,
            (3, _) => Self::ZSet,
            (4, _) => Self::Hash,
            (5, _) => Self::ZSet2,
            (7, _) => Self::Module2,
            (9, _) => Self::HashZipmap,
            (10, _) => Self::ListZiplist,
            (11, _) => Self::SetIntset,
            (12, _) => Self::ZSetZiplist,
            (13, _) => Self::HashZiplist,
            (14, _) => Self::ListQuicklist,
            (15, _) => Self::Stream,
            (16, _) => Self::HashListpack,
            (17, _) => Self::ZSetListpack,
            (18, _) => Self::ListQuicklist2,
            (19, _) => Self::Stream2,
            (20, _) => Self::SetListpack,
            (21, _) => Self::Stream3,
            (22, Flavour::Redis) => Self::HashMetadataCandidate,
            (23, Flavour::Redis) => Self::HashListpackExpiryCandidate,
            (22, Flavour::Valkey) => Self::ValkeyHash2,
            (24, Flavour::Redis) => Self::HashMetadata,
            (25, Flavour::Redis) => Self::HashListpackExpiry,
            (26, Flavour::Redis) => Self::Stream4,
            (27, Flavour::Redis) => Self::Stream5,
            _ => return None,
        })
    }

    /// The byte that stands for the type in a stream and in a RESTORE payload.
    pub fn code(self) -> u8 {
        match self {
            Self::String => 0,
            Self::List => 1,
            Self::Set => 2,
            Self::ZSet => 3,
            Self::Hash => 4,
            Self::ZSet2 => 5,
            Self::Module2 => 7,
            Self::HashZipmap => 9,
            Self::ListZiplist => 10,
            Self::SetIntset => 11,
            Self::ZSetZiplist => 12,
            Self::HashZiplist => 13,
            Self::ListQuicklist => 14,
            Self::Stream => 15,
            Self::HashListpack => 16,
            Self::ZSetListpack => 17,
            Self::ListQuicklist2 => 18,
            Self::Stream2 => 19,
            Self::SetListpack => 20,
            Self::Stream3 => 21,
            Self::HashMetadataCandidate | Self::ValkeyHash2 => 22,
            Self::HashListpackExpiryCandidate => 23,
            Self::HashMetadata => 24,
            Self::HashListpackExpiry => 25,
            Self::Stream4 => 26,
            Self::Stream5 => 27,
        }
    }

    /// The lowest RDB version that knows the type: stamped on a payload, it lets every server take it that can.
    pub fn minimum_version(self) -> u16 {
        match self {
            Self::String
            | Self::List
            | Self::Set
            | Self::ZSet
            | Self::Hash
            | Self::HashZipmap
            | Self::ListZiplist
            | Self::SetIntset
            | Self::ZSetZiplist
            | Self::HashZiplist => 6,
            Self::ListQuicklist => 7,
            Self::ZSet2 | Self::Module2 => 8,
            Self::Stream => 9,
            Self::HashListpack | Self::ZSetListpack | Self::ListQuicklist2 | Self::Stream2 => 10,
            Self::SetListpack | Self::Stream3 => 11,
            Self::HashMetadataCandidate
            | Self::HashListpackExpiryCandidate
            | Self::HashMetadata
            | Self::HashListpackExpiry => 12,
            Self::Stream4 => 13,
            Self::Stream5 => 14,
            Self::ValkeyHash2 => 80,
        }
    }
}
