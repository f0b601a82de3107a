//! RDB streams made up for tests, together with the events a reader must report.

use std::ops::{ControlFlow, Range};

use super::checksum::crc64;
use super::error::RdbError;
use super::event::Event;
use super::reader::RecordReader;
use super::value_type::{Flavour, Header, ValueType};

/// Every type of either family.
pub(super) const KINDS: &[ValueType] = &[
    ValueType::String,
    ValueType::List,
    ValueType::Set,
    ValueType::ZSet,
    ValueType::Hash,
    ValueType::ZSet2,
    ValueType::Module2,
    ValueType::HashZipmap,
    ValueType::ListZiplist,
    ValueType::SetIntset,
    ValueType::ZSetZiplist,
    ValueType::HashZiplist,
    ValueType::ListQuicklist,
    ValueType::Stream,
    ValueType::HashListpack,
    ValueType::ZSetListpack,
    ValueType::ListQuicklist2,
    ValueType::Stream2,
    ValueType::SetListpack,
    ValueType::Stream3,
    ValueType::HashMetadataCandidate,
    ValueType::HashListpackExpiryCandidate,
    ValueType::ValkeyHash2,
    ValueType::HashMetadata,
    ValueType::HashListpackExpiry,
    ValueType::Stream4,
    ValueType::Stream5,
];

/// An event that owns its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    Header(Header),
    Aux(Vec<u8>, Vec<u8>),
    Function(Vec<u8>),
    SelectDb(u32),
    ResizeDb(u64, u64),
    Key(SeenKey),
    ModuleAux,
    End(u64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SeenKey {
    pub(super) key: Vec<u8>,
    pub(super) db: u32,
    pub(super) kind: ValueType,
    pub(super) record_start: u64,
    pub(super) value: Range<u64>,
    pub(super) metadata: Option<Range<u64>>,
    pub(super) expire_ms: Option<i64>,
    pub(super) idle_seconds: Option<u64>,
    pub(super) frequency: Option<u8>,
}

impl Seen {
    pub(super) fn as_key(&self) -> Option<&SeenKey> {
        if let Self::Key(key) = self {
            Some(key)
        } else {
            None
        }
    }
}

impl From<Event<'_>> for Seen {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Header(header) => Seen::Header(header),
            Event::Aux { name, value } => Seen::Aux(name.to_vec(), value.to_vec()),
            Event::Function(code) => Seen::Function(code.to_vec()),
            Event::SelectDb(db) => Seen::SelectDb(db),
            Event::ResizeDb { keys, expires } => Seen::ResizeDb(keys, expires),
            Event::Key(key) => Seen::Key(SeenKey {
                key: key.key.to_vec(),
                db: key.db,
                kind: key.kind,
                record_start: key.record_start,
                value: key.value,
                metadata: key.metadata,
                expire_ms: key.expire_ms,
                idle_seconds: key.idle_seconds,
                frequency: key.frequency,
            }),
            Event::ModuleAux => Seen::ModuleAux,
            Event::End { crc } => Seen::End(crc),
        }
    }
}

/// Feeds the stream in pieces of the given sizes, over and over.
pub(super) fn read_in_pieces(
    reader: &mut RecordReader,
    stream: &[u8],
    sizes: &[usize],
) -> (Vec<Seen>, Result<usize, RdbError>) {
    let mut seen = Vec::new();
    let mut taken = 0;
    let mut sizes = sizes.iter().cycle();
    while taken < stream.len() && !reader.is_finished() {
        let size = sizes.next().copied().unwrap_or(1).max(1);
        let piece = &stream[taken..stream.len().min(taken + size)];
        let result = reader.feed(piece, &mut |event| {
            seen.push(event.into());
            ControlFlow::Continue(())
        });
        match result {
            Ok(fed) => taken += fed,
            Err(error) => return (seen, Err(error)),
        }
    }
    (seen, Ok(taken))
}

/// A stream being written, and the events expected of it.
pub(super) struct Writer {
    pub(super) bytes: Vec<u8>,
    pub(super) expected: Vec<Seen>,
    flavour: Flavour,
    db: u32,
    random: u64,
}

impl Writer {
    pub(super) fn new(flavour: Flavour, seed: u64) -> Self {
        let (magic, version) = match flavour {
            Flavour::Redis => (b"REDIS0014", 14),
            Flavour::Valkey => (b"VALKEY080", 80),
        };
        let header = Header { flavour, version };
        Self {
            bytes: magic.to_vec(),
            expected: vec![Seen::Header(header)],
            flavour,
            db: 0,
            random: seed,
        }
    }

    pub(super) fn finish(mut self) -> (Vec<u8>, Vec<Seen>) {
        self.bytes.push(255);
        let crc = crc64(&self.bytes);
        self.bytes.extend(crc.to_le_bytes());
        self.expected.push(Seen::End(crc));
        (self.bytes, self.expected)
    }

    /// Something that is no key.
    pub(super) fn other(&mut self, which: u8) {
        match which % 7 {
            0 => {
                self.bytes.push(250);
                let (name, value) = (self.string(), self.string());
                self.expected.push(Seen::Aux(name, value));
            }
            1 => {
                self.bytes.push(245);
                let code = self.string();
                self.expected.push(Seen::Function(code));
            }
            2 => {
                self.bytes.push(254);
                self.db = u32::try_from(self.below(20)).unwrap();
                self.length(self.db.into());
                self.expected.push(Seen::SelectDb(self.db));
            }
            3 => {
                self.bytes.push(251);
                let (keys, expires) = (self.below(1 << 40), self.below(100));
                self.length(keys);
                self.length(expires);
                self.expected.push(Seen::ResizeDb(keys, expires));
            }
            4 => {
                self.bytes.push(247);
                self.length(u64::MAX);
                self.module_fields();
                self.expected.push(Seen::ModuleAux);
            }
            5 => {
                self.bytes.push(244);
                (0..3).for_each(|_| self.any_length());
            }
            _ if self.flavour == Flavour::Valkey => {
                self.bytes.push(243);
                self.string();
                self.repeat(|w| (0..2).for_each(|_| w.any_length()));
            }
            _ => {}
        }
    }

    /// A key of any type the family has.
    pub(super) fn key(&mut self, kind: ValueType) {
        let kind = ValueType::from_code(kind.code(), self.flavour).unwrap_or(ValueType::String);
        let record_start = self.at();
        let (expire_ms, idle_seconds, frequency, metadata) = self.prefix();
        self.bytes.push(kind.code());
        let key = self.string();
        let start = self.at();
        self.value(kind);
        let value = start..self.at();
        self.expected.push(Seen::Key(SeenKey {
            key,
            db: self.db,
            kind,
            record_start,
            value,
            metadata,
            expire_ms,
            idle_seconds,
            frequency,
        }));
    }

    #[allow(clippy::type_complexity)]
    fn prefix(&mut self) -> (Option<i64>, Option<u64>, Option<u8>, Option<Range<u64>>) {
        let (mut expire, mut idle, mut frequency, mut metadata) = (None, None, None, None);
        match self.below(4) {
            0 => {
                let ms = i64::try_from(self.below(1 << 45)).unwrap();
                self.bytes.push(252);
                self.bytes.extend(ms.to_le_bytes());
                expire = Some(ms);
            }
            1 => {
                let seconds = i32::try_from(self.below(1 << 31)).unwrap();
                self.bytes.push(253);
                self.bytes.extend(seconds.to_le_bytes());
                expire = Some(i64::from(seconds) * 1000);
            }
            _ => {}
        }
        match self.below(4) {
            0 => {
                let seconds = self.below(1 << 33);
                self.bytes.push(248);
                self.length(seconds);
                idle = Some(seconds);
            }
            1 => {
                let count = u8::try_from(self.below(256)).unwrap();
                self.bytes.extend([249, count]);
                frequency = Some(count);
            }
            _ => {}
        }
        if self.flavour == Flavour::Redis && self.below(6) == 0 {
            let start = self.at();
            self.bytes.push(243);
            self.repeat(|w| {
                w.filler(4);
                w.module_fields();
            });
            metadata = Some(start..self.at());
        }
        (expire, idle, frequency, metadata)
    }

    fn value(&mut self, kind: ValueType) {
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
            | ValueType::HashListpackExpiryCandidate => drop(self.string()),
            ValueType::List | ValueType::Set | ValueType::ListQuicklist => {
                self.repeat(|w| {
                    w.string();
                });
            }
            ValueType::ZSet => self.repeat(|w| {
                w.string();
                match w.below(4) {
                    0 => {
                        let special = 253 + u8::try_from(w.below(3)).unwrap();
                        w.bytes.push(special);
                    }
                    length => {
                        w.bytes.push(u8::try_from(length).unwrap());
                        w.filler(length);
                    }
                }
            }),
            ValueType::ZSet2 => self.repeat(|w| {
                w.string();
                w.filler(8);
            }),
            ValueType::Hash => self.repeat(|w| {
                w.string();
                w.string();
            }),
            ValueType::Module2 => {
                self.any_length();
                self.module_fields();
            }
            ValueType::ListQuicklist2 => self.repeat(|w| {
                w.length(2);
                w.string();
            }),
            ValueType::HashListpackExpiry => {
                self.filler(8);
                self.string();
            }
            ValueType::HashMetadata => {
                self.filler(8);
                self.value(ValueType::HashMetadataCandidate);
            }
            ValueType::HashMetadataCandidate => self.repeat(|w| {
                w.any_length();
                w.string();
                w.string();
            }),
            ValueType::ValkeyHash2 => self.repeat(|w| {
                w.string();
                w.string();
                w.filler(8);
            }),
            ValueType::Stream => self.stream(1),
            ValueType::Stream2 => self.stream(2),
            ValueType::Stream3 => self.stream(3),
            ValueType::Stream4 => self.stream(4),
            ValueType::Stream5 => self.stream(5),
        }
    }

    fn stream(&mut self, version: u8) {
        self.repeat(|w| {
            w.string();
            w.string();
        });
        (0..if version == 1 { 3 } else { 8 }).for_each(|_| self.any_length());
        self.repeat(|w| {
            w.string();
            (0..if version == 1 { 2 } else { 3 }).for_each(|_| w.any_length());
            w.repeat(|w| {
                w.filler(24);
                w.any_length();
            });
            w.repeat(|w| {
                w.string();
                w.filler(if version < 3 { 8 } else { 16 });
                w.repeat(|w| w.filler(16));
            });
            if version == 5 {
                w.repeat(|w| w.filler(16));
            }
        });
        if version >= 4 {
            (0..2).for_each(|_| self.any_length());
            self.repeat(|w| {
                w.string();
                w.repeat(|w| {
                    w.string();
                    (0..2).for_each(|_| w.any_length());
                });
            });
            (0..2).for_each(|_| self.any_length());
        }
    }

    fn module_fields(&mut self) {
        for _ in 0..self.below(4) {
            let field = 1 + self.below(5);
            self.length(field);
            match field {
                1 | 2 => self.any_length(),
                3 => self.filler(4),
                4 => self.filler(8),
                _ => drop(self.string()),
            }
        }
        self.length(0);
    }

    fn repeat(&mut self, body: impl Fn(&mut Self)) {
        let rounds = self.below(4);
        self.length(rounds);
        (0..rounds).for_each(|_| body(self));
    }

    /// A string in any encoding; its plain bytes.
    fn string(&mut self) -> Vec<u8> {
        match self.below(8) {
            0 => {
                let number = i8::try_from(self.below(128)).unwrap() - 64;
                self.bytes.push(0xc0);
                self.bytes.extend(number.to_le_bytes());
                number.to_string().into_bytes()
            }
            1 => {
                let number = i16::try_from(self.below(1 << 15)).unwrap() - 9999;
                self.bytes.push(0xc1);
                self.bytes.extend(number.to_le_bytes());
                number.to_string().into_bytes()
            }
            2 => {
                let number = -i32::try_from(self.below(1 << 31)).unwrap();
                self.bytes.push(0xc2);
                self.bytes.extend(number.to_le_bytes());
                number.to_string().into_bytes()
            }
            3 => {
                // One literal byte and a copy of it, 9 to 264 times.
                let extra = u8::try_from(self.below(256)).unwrap();
                self.bytes.push(0xc3);
                self.length(5);
                self.length(10 + u64::from(extra));
                self.bytes.extend([0, b'z', 7 << 5, extra, 0]);
                vec![b'z'; 10 + usize::from(extra)]
            }
            _ => {
                let length = match self.below(10) {
                    0 => self.below(20_000),
                    1 => 0,
                    _ => self.below(100),
                };
                self.length(length);
                let start = self.bytes.len();
                self.filler(length);
                self.bytes[start..].to_vec()
            }
        }
    }

    fn filler(&mut self, length: u64) {
        let mut byte = self.next();
        for _ in 0..length {
            self.bytes.push(byte.to_le_bytes()[0]);
            byte = byte.wrapping_mul(31).wrapping_add(7);
        }
    }

    fn any_length(&mut self) {
        let bits = self.below(64);
        let length = self.below(1 << bits);
        self.length(length);
    }

    /// A length in the shortest form, or now and then in a longer one.
    fn length(&mut self, length: u64) {
        let form = self.below(8);
        if let Some(short) = u8::try_from(length)
            .ok()
            .filter(|length| *length < 64 && form < 5)
        {
            self.bytes.push(short);
        } else if let Some(short) = u16::try_from(length)
            .ok()
            .filter(|length| *length < 1 << 14 && form < 6)
        {
            self.bytes.extend((short | 0x4000).to_be_bytes());
        } else if let Some(middle) = u32::try_from(length).ok().filter(|_| form < 7) {
            self.bytes.push(0x80);
            self.bytes.extend(middle.to_be_bytes());
        } else {
            self.bytes.push(0x81);
            self.bytes.extend(length.to_be_bytes());
        }
    }

    fn at(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
