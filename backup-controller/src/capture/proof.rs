//! What a stream proves of itself while it passes: its checksum, and the records that a walk over them finds.

use super::{
    CaptureError,
    walk::{Counted, Walk},
};
use common::{
    cluster::slots::SlotSet,
    rdb::{
        Header,
        checksum::{Checked, ChecksumVerifier},
    },
    storage::manifest,
};

/// The proof of a stream that still comes.
pub struct Proof {
    /// The walk over its records.
    pub walk: Walk,
    checksum: ChecksumVerifier,
}

/// What a whole stream has proven to be.
pub struct Proven {
    /// Its magic.
    pub header: Header,
    /// Its records.
    pub counted: Counted,
    /// Its CRC-64, 16 hex digits, or that the server was told to write none.
    pub crc64: String,
}

impl Proof {
    /// Before the first byte of the stream of a shard that owns these slots.
    pub fn new(own: SlotSet) -> Self {
        Self {
            walk: Walk::new(own),
            checksum: ChecksumVerifier::new(),
        }
    }

    /// Takes the next piece.
    pub fn feed(&mut self, piece: &[u8]) -> Result<(), CaptureError> {
        self.checksum.update(piece);
        self.walk.feed(piece)?;
        Ok(())
    }

    /// After the last byte.
    pub fn finish(self) -> Result<Proven, CaptureError> {
        let crc64 = match self.checksum.finish()? {
            Checked::Verified(sum) => format!("{sum:016x}"),
            Checked::Disabled => manifest::CRC_DISABLED.to_owned(),
        };
        Ok(Proven {
            header: self.walk.header().ok_or(CaptureError::Empty)?,
            counted: self.walk.finish(),
            crc64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::{kubernetes::errors::Classified, rdb::checksum::crc64};

    /// A type that no version has.
    const UNKNOWN: u8 = 200;

    /// The key `a` with the value `b` in database 0, these bytes, and the end.
    fn stream(more: &[u8]) -> Vec<u8> {
        [&b"REDIS0010\xfe\x00\x00\x01a\x01b"[..], more, b"\xff"].concat()
    }

    fn prove(stream: &[u8]) -> Result<Proven, CaptureError> {
        let mut proof = Proof::new(SlotSet::full());
        for piece in stream.chunks(5) {
            proof.feed(piece)?;
        }
        proof.finish()
    }

    fn signed(mut stream: Vec<u8>) -> Vec<u8> {
        let sum = crc64(&stream);
        stream.extend(sum.to_le_bytes());
        stream
    }

    #[test]
    fn a_whole_stream_is_counted_and_its_sum_told() {
        let plain = stream(b"");
        let proven = prove(&signed(plain.clone())).unwrap();
        assert_eq!(proven.crc64, format!("{:016x}", crc64(&plain)));
        let slots = proven.counted.slots.unwrap();
        assert_eq!(slots.iter().map(|slot| slot.keys).sum::<u64>(), 1);
    }

    #[test]
    fn an_unknown_type_makes_the_counts_unknown_and_nothing_else() {
        let proven = prove(&signed(stream(&[UNKNOWN, 1, 2, 3]))).unwrap();
        assert_eq!(proven.counted.slots, None);
        assert_eq!(proven.counted.functions, None);
        assert_eq!(proven.header.version, 10);
    }

    #[test]
    fn a_damaged_byte_fails_the_capture_though_its_counts_would_be_unknown() {
        for more in [&b""[..], &[UNKNOWN, 1, 2, 3]] {
            let mut damaged = signed(stream(more));
            damaged[15] ^= 1; // the value
            let error = prove(&damaged).err().unwrap();
            assert_eq!(error.reason(), "StreamDamaged", "{error}");
        }
    }

    #[test]
    fn a_server_without_checksums_is_believed() {
        let unsigned = [stream(b""), vec![0; 8]].concat();
        assert_eq!(prove(&unsigned).unwrap().crc64, manifest::CRC_DISABLED);
    }

    #[test]
    fn what_is_no_rdb_is_refused_at_once() {
        let error = prove(b"HTTP/1.1 200 OK\r\n\r\n").err().unwrap();
        assert!(matches!(error, CaptureError::NotRdb(_)), "{error}");
    }
}
