//! CRC-64 of RDB streams and RESTORE payloads: CRC-64/REDIS (Jones polynomial, reflected, no final xor).

/// CRC-64/REDIS of the bytes.
pub fn crc64(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Redis, bytes)
}

/// The stream's own checksum does not match its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChecksumError {
    /// Fewer bytes than a checksum is long.
    #[error("the RDB ended after {0} bytes, before its checksum")]
    TooShort(u64),
    /// The bytes and the checksum differ.
    #[error(
        "the RDB's checksum is {stored:016x} but its bytes have {computed:016x}: the data was damaged on the way"
    )]
    Mismatch {
        /// What the server wrote.
        stored: u64,
        /// What the bytes give.
        computed: u64,
    },
}

/// What the check at the end of a stream found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// The checksum was right.
    Verified(u64),
    /// The server wrote zero: it has `rdbchecksum no`.
    Disabled,
}

/// Verifies the trailer of a whole RDB stream while it passes: the last 8 bytes are the CRC-64 of all before.
pub struct ChecksumVerifier {
    digest: crc_fast::Digest,
}

impl Default for ChecksumVerifier {
    fn default() -> Self {
        Self::new()
    }
}

impl ChecksumVerifier {
    /// Before the first byte.
    pub fn new() -> Self {
        Self {
            digest: crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Redis),
        }
    }

    /// Takes the next piece of the stream, trailer included.
    pub fn update(&mut self, piece: &[u8]) {
        self.digest.update(piece);
    }

    /// After the last byte: compares.
    pub fn finish(self) -> Result<Checked, ChecksumError> {
        todo!()
    }
}
