//! The codecs of blocks. Another codec is added here and nowhere else in storage.

use bytes::Bytes;
use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};
use serde::{Deserialize, Serialize};

/// How the blocks of a shard are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Compression {
    /// As they are.
    None,
    /// Each block one gzip member (RFC 1952), so that the object is a plain `.gz` file.
    Gzip {
        /// 1 (fast) to 9 (small).
        level: u8,
    },
}

/// Level 1: on JSON-like records of 200 B one core compressed 115 MB/s to 0.28 of the size, at level 2 63 MB/s to 0.20, at
/// level 3 53 MB/s to 0.19 (flate2 with zlib-rs, busy machine of 2 cores, medians of 3). A Redis server writes about
/// 130 MB/s, so level 1 is what does not hold it up. To measure again:
/// `cargo run --release --package tests --example gzip_levels`.
impl Default for Compression {
    fn default() -> Self {
        Self::Gzip { level: 1 }
    }
}

impl Compression {
    /// End of the object's name.
    pub fn extension(self) -> &'static str {
        match self {
            Self::None => ".rdb",
            Self::Gzip { .. } => ".rdb.gz",
        }
    }

    /// What a custom resource asks for; levels outside 1 to 9 are moved to the nearest.
    pub fn from_spec(spec: &crds::BackupCompression) -> Self {
        match spec.kind {
            crds::CompressionType::None => Self::None,
            crds::CompressionType::Gzip => Self::Gzip {
                level: u8::try_from(spec.level.clamp(1, 9)).unwrap_or(1),
            },
        }
    }

    /// Whether blocks are stored as they are, so that compressing them takes no memory.
    pub(crate) fn is_identity(self) -> bool {
        matches!(self, Self::None)
    }

    /// Compresses a block into `out`, whose capacity is reused; `None` if the raw bytes are to be stored. `expected` is an
    /// estimate of the compressed length.
    pub(crate) fn compress(
        self,
        raw: &[u8],
        expected: usize,
        mut out: Vec<u8>,
    ) -> Result<Option<Vec<u8>>, CodecError> {
        match self {
            Self::None => Ok(None),
            Self::Gzip { level } => {
                gzip(raw, level, expected, &mut out)?;
                Ok(Some(out))
            }
        }
    }

    /// The raw bytes of a stored block, which has to hold exactly `length` of them. Never decompresses more than that.
    pub(crate) fn decompress(self, stored: Bytes, length: usize) -> Result<Bytes, CodecError> {
        match self {
            Self::None if stored.len() == length => Ok(stored),
            Self::None => Err(CodecError::Length(stored.len())),
            Self::Gzip { .. } => gunzip(&stored, length),
        }
    }
}

/// Why bytes cannot be compressed or decompressed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The library's own error.
    #[error("gzip: {0}")]
    Gzip(String),
    /// It holds more raw bytes than it should; the rest was not decompressed.
    #[error("it holds more")]
    TooLong,
    /// It holds this many raw bytes.
    #[error("it holds {0} raw bytes")]
    Length(usize),
    /// The compressed stream is not complete.
    #[error("it ends early")]
    Truncated,
    /// Bytes follow the end of the compressed stream.
    #[error("bytes follow its end")]
    TrailingBytes,
}

/// RFC 1952 with the largest window.
const WINDOW_BITS: u8 = 15;

/// One gzip member.
fn gzip(raw: &[u8], level: u8, expected: usize, out: &mut Vec<u8>) -> Result<(), CodecError> {
    /// Growing in large steps moves pages, not bytes.
    const STEP: usize = 1 << 20;
    out.clear();
    out.reserve_exact(expected + expected / 8 + 4096);
    let mut codec = Compress::new_gzip(flate2::Compression::new(u32::from(level)), WINDOW_BITS);
    loop {
        let consumed = usize::try_from(codec.total_in()).unwrap_or(usize::MAX);
        let rest = raw.get(consumed..).unwrap_or_default();
        let status = codec
            .compress_vec(rest, out, FlushCompress::Finish)
            .map_err(|error| CodecError::Gzip(error.to_string()))?;
        match status {
            Status::StreamEnd => return Ok(()),
            Status::Ok | Status::BufError => out.reserve_exact(STEP),
        }
    }
}

fn gunzip(stored: &[u8], length: usize) -> Result<Bytes, CodecError> {
    // Room for one byte more than the block may fill: a byte there shows that the length is wrong.
    let mut raw = Vec::with_capacity(length + 1);
    let mut codec = Decompress::new_gzip(WINDOW_BITS);
    let mut rest = stored;
    loop {
        let before = (codec.total_in(), raw.len());
        let status = codec
            .decompress_vec(rest, &mut raw, FlushDecompress::Finish)
            .map_err(|error| CodecError::Gzip(error.to_string()))?;
        let taken = usize::try_from(codec.total_in() - before.0).unwrap_or(usize::MAX);
        rest = rest.get(taken..).unwrap_or_default();
        if raw.len() > length {
            return Err(CodecError::TooLong);
        }
        match status {
            Status::StreamEnd => break,
            Status::Ok | Status::BufError if (codec.total_in(), raw.len()) == before => {
                return Err(CodecError::Truncated);
            }
            Status::Ok | Status::BufError => {}
        }
    }
    match (rest.is_empty(), raw.len() == length) {
        (true, true) => Ok(Bytes::from(raw)),
        (false, _) => Err(CodecError::TrailingBytes),
        (true, false) => Err(CodecError::Length(raw.len())),
    }
}
