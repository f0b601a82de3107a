//! What a stream proves of itself while it is read: its checksum, and what a walk over its records counts. The walk gives up
//! at a record it does not know, without harm to the backup.

use super::CaptureError;
use common::{
    cluster::slots::SlotSet,
    rdb::{
        Event, Flavour, Header, RdbError, RecordReader,
        checksum::{Checked, ChecksumVerifier},
        counts::SlotCounts,
    },
    storage::{BLOCK_BYTES, SlotCount, manifest},
};
use std::ops::ControlFlow;

/// The proof of a stream that still comes.
pub struct Proof {
    /// The walk over its records.
    pub walk: Walk,
    checksum: ChecksumVerifier,
}

/// What a complete stream has proven to be.
pub struct Proven {
    /// Family and RDB version, from its first bytes.
    pub header: Header,
    /// Keys by slot, and functions.
    pub counted: Counted,
    /// Its CRC-64, 16 hex digits, or that the server is configured to write none.
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
            Checked::Verified(checksum) => format!("{checksum:016x}"),
            Checked::Disabled => manifest::CRC_DISABLED.to_owned(),
        };
        Ok(Proven {
            header: self.walk.header().ok_or(CaptureError::Empty)?,
            counted: self.walk.finish(),
            crc64,
        })
    }
}

/// Counts records while the stream passes.
pub struct Walk {
    reader: RecordReader,
    tally: Tally,
    /// Why the counts are unknown.
    unknown: Option<RdbError>,
}

/// What is counted.
struct Tally {
    slots: SlotCounts,
    own: SlotSet,
    header: Option<Header>,
    keys: u64,
    functions: u64,
    foreign_keys: u64,
    /// The block in which the last first record was found.
    block: Option<u64>,
    /// First records of blocks, not yet taken.
    first_records: Vec<(u64, u32)>,
}

/// The counts of a complete stream.
pub struct Counted {
    /// Per slot; `None` when a record was met that cannot be walked.
    pub slots: Option<Vec<SlotCount>>,
    /// Libraries of functions.
    pub functions: Option<u64>,
    /// Keys outside of the shard's own slots.
    pub foreign_keys: u64,
}

impl Walk {
    /// A walk at the start of the stream of a shard that owns these slots.
    pub fn new(own: SlotSet) -> Self {
        Self {
            reader: RecordReader::new(),
            tally: Tally {
                slots: SlotCounts::new(),
                own,
                header: None,
                keys: 0,
                functions: 0,
                foreign_keys: 0,
                block: None,
                first_records: Vec::with_capacity(2),
            },
            unknown: None,
        }
    }

    /// Takes the next piece of the stream. Only a stream that is no RDB at all is an error; with a type that is not known the
    /// counts are, and the stream goes on.
    pub fn feed(&mut self, piece: &[u8]) -> Result<(), RdbError> {
        if self.unknown.is_some() {
            return Ok(());
        }
        let tally = &mut self.tally;
        match self.reader.feed(piece, &mut |event| tally.count(&event)) {
            Ok(_) => Ok(()),
            Err(error @ RdbError::NotRdb(_)) => Err(error),
            Err(error @ (RdbError::UnknownType { .. } | RdbError::Malformed { .. })) => {
                tracing::warn!(%error, "the keys of this shard cannot be counted; the backup goes on");
                self.unknown = Some(error);
                Ok(())
            }
        }
    }

    /// Offsets and databases of the first records of blocks found since the last call.
    pub fn first_records(&mut self) -> impl Iterator<Item = (u64, u32)> {
        self.tally.first_records.drain(..)
    }

    /// The magic of the stream.
    pub fn header(&self) -> Option<Header> {
        self.tally.header
    }

    /// Keys so far; `None` once they cannot be counted.
    pub fn keys(&self) -> Option<u64> {
        self.unknown.is_none().then_some(self.tally.keys)
    }

    /// After the last byte. A walk that did not arrive at the end record knows nothing.
    pub fn finish(self) -> Counted {
        let known = self.unknown.is_none() && self.reader.is_finished();
        let slots = self.tally.slots.occupied().map(|(slot, count)| SlotCount {
            slot,
            keys: count.keys,
            expires: count.expires,
            first_expiry_ms: count.first_expiry_ms,
        });
        Counted {
            slots: known.then(|| slots.collect()),
            functions: known.then_some(self.tally.functions),
            foreign_keys: self.tally.foreign_keys,
        }
    }
}

impl Tally {
    fn count(&mut self, event: &Event<'_>) -> ControlFlow<()> {
        match event {
            Event::Key(key) => {
                let slot = self.slots.add(key.key, key.expire_ms);
                self.keys += 1;
                self.foreign_keys += u64::from(!self.own.contains(slot));
                let block = key.record_start / BLOCK_BYTES as u64;
                if self.block.is_none_or(|last| block > last) {
                    self.block = Some(block);
                    self.first_records.push((key.record_start, key.db));
                }
            }
            Event::Header(header) => self.header = Some(*header),
            Event::Function(_) => self.functions += 1,
            Event::Aux { .. }
            | Event::SelectDb(_)
            | Event::ResizeDb { .. }
            | Event::ModuleAux
            | Event::End { .. } => {}
        }
        ControlFlow::Continue(())
    }
}

/// The family of servers as manifest and index write it.
pub fn flavour(header: Header) -> &'static str {
    match header.flavour {
        Flavour::Redis => "redis",
        Flavour::Valkey => "valkey",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::rdb::checksum::crc64;

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
        let checksum = crc64(&stream);
        stream.extend(checksum.to_le_bytes());
        stream
    }

    #[test]
    fn a_complete_stream_is_counted_and_checked() {
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
    fn a_damaged_byte_fails_even_a_capture_without_counts() {
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
