//! The reader against streams made up from a model, whole and in pieces, sound and damaged.

use std::ops::ControlFlow;

use proptest::prelude::*;

use super::error::RdbError;
use super::event::Event;
use super::reader::{RecordReader, Resume};
use super::synthetic::{KINDS, Seen, Writer, read_in_pieces};
use super::value_type::{Flavour, Header, ValueType};

fn flavour() -> impl Strategy<Value = Flavour> {
    prop_oneof![Just(Flavour::Redis), Just(Flavour::Valkey)]
}

fn stream() -> impl Strategy<Value = (Vec<u8>, Vec<Seen>)> {
    let records = prop::collection::vec((any::<u8>(), prop::sample::select(KINDS)), 0..40);
    (flavour(), any::<u64>(), records).prop_map(|(flavour, seed, records)| {
        let mut writer = Writer::new(flavour, seed);
        for (which, kind) in records {
            if which < 40 {
                writer.other(which);
            } else {
                writer.key(kind);
            }
        }
        writer.finish()
    })
}

proptest! {
    #[test]
    fn every_record_is_found_however_the_stream_is_cut(
        (bytes, expected) in stream(),
        sizes in prop::collection::vec(prop_oneof![1usize..10, 1usize..500, Just(1 << 20)], 1..20),
    ) {
        let mut reader = RecordReader::new();
        let (seen, fed) = read_in_pieces(&mut reader, &bytes, &sizes);
        prop_assert_eq!(fed, Ok(bytes.len()));
        prop_assert!(reader.is_finished());
        prop_assert_eq!(reader.offset(), bytes.len() as u64);
        prop_assert_eq!(seen, expected);
    }

    #[test]
    fn reading_resumes_at_any_record((bytes, expected) in stream(), pick in any::<prop::sample::Index>()) {
        let Seen::Header(header) = expected[0].clone() else { unreachable!() };
        let keys: Vec<_> =
            expected.iter().enumerate().filter_map(|(index, seen)| Some((index, seen.as_key()?))).collect();
        prop_assume!(!keys.is_empty());
        let (index, key) = keys[pick.index(keys.len())];
        let at = Resume { header, db: key.db, offset: key.record_start };
        let rest = &bytes[usize::try_from(key.record_start).unwrap()..];
        let (seen, fed) = read_in_pieces(&mut RecordReader::resume(at), rest, &[97]);
        prop_assert_eq!(fed, Ok(rest.len()));
        prop_assert_eq!(seen, &expected[index..]);
    }

    #[test]
    fn a_callback_may_break_off_after_any_event((bytes, expected) in stream()) {
        let mut reader = RecordReader::new();
        let mut seen = Vec::new();
        let mut rest = bytes.as_slice();
        while !reader.is_finished() {
            let before = seen.len();
            let taken = reader.feed(rest, &mut |event| {
                seen.push(Seen::from(event));
                ControlFlow::Break(())
            }).unwrap();
            prop_assert_eq!(seen.len(), before + 1);
            rest = &rest[taken..];
        }
        prop_assert!(rest.is_empty());
        prop_assert_eq!(seen, expected);
    }

    #[test]
    fn a_position_never_lies_behind_a_record_still_to_come(
        (bytes, expected) in stream(),
        size in 1usize..300,
    ) {
        let mut reader = RecordReader::new();
        let mut position = 0;
        let mut keys = expected.iter().filter_map(Seen::as_key);
        for piece in bytes.chunks(size) {
            let mut starts = Vec::new();
            reader.feed(piece, &mut |event| {
                if let Event::Key(key) = event { starts.push(key.record_start); }
                ControlFlow::Continue(())
            }).unwrap();
            for start in starts {
                prop_assert_eq!(keys.next().unwrap().record_start, start);
                prop_assert!(position <= start);
            }
            if let Some(resume) = reader.position() {
                prop_assert!(resume.offset >= position && resume.offset <= reader.offset());
                position = resume.offset;
            }
        }
    }

    #[test]
    fn damaged_bytes_never_panic_the_reader(
        (mut bytes, _) in stream(),
        damage in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 1..8),
        size in 1usize..200,
    ) {
        for (index, byte) in damage {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        let mut reader = RecordReader::new();
        let (_, fed) = read_in_pieces(&mut reader, &bytes, &[size]);
        if let Err(error) = fed {
            prop_assert_eq!(reader.feed(b"more", &mut |_| ControlFlow::Continue(())), Err(error));
        }
    }

    #[test]
    fn noise_after_a_header_never_panics(noise in prop::collection::vec(any::<u8>(), 0..400), size in 1usize..50) {
        let bytes = [b"REDIS0012".as_slice(), &noise].concat();
        let _ = read_in_pieces(&mut RecordReader::new(), &bytes, &[size]);
    }
}

fn read(bytes: &[u8]) -> Result<Vec<Seen>, RdbError> {
    let (seen, fed) = read_in_pieces(&mut RecordReader::new(), bytes, &[bytes.len()]);
    fed.map(|_| seen)
}

#[test]
fn an_unknown_type_is_reported_with_its_offset() {
    assert_eq!(
        read(b"REDIS0014\x1c"),
        Err(RdbError::UnknownType {
            code: 28,
            offset: 9
        })
    );
    assert_eq!(
        read(b"REDIS0016\xf2"),
        Err(RdbError::UnknownType {
            code: 242,
            offset: 9
        })
    );
    assert_eq!(
        read(b"VALKEY081\xfe\x00\x17"),
        Err(RdbError::UnknownType {
            code: 23,
            offset: 11
        })
    );
    assert_eq!(
        read(b"REDIS0003\x06"),
        Err(RdbError::UnknownType { code: 6, offset: 9 })
    );
}

#[test]
fn the_magic_decides_what_a_number_means() {
    let kind = |bytes: &[u8]| match read(bytes).unwrap().pop() {
        Some(Seen::Key(key)) => key.kind,
        other => panic!("no key but {other:?}"),
    };
    assert_eq!(
        kind(b"REDIS0012\x16\x01k\x01\x05\x01f\x01v"),
        ValueType::HashMetadataCandidate
    );
    assert_eq!(
        kind(b"VALKEY080\x16\x01k\x01\x01f\x01v12345678"),
        ValueType::ValkeyHash2
    );
}

#[test]
fn what_is_no_rdb_is_refused() {
    assert_eq!(
        read(b"VCS\x01\x00\x00\x00\x00\x00"),
        Err(RdbError::NotRdb(b"VCS\x01\x00\x00\x00\x00\x00".to_vec()))
    );
    assert!(matches!(read(b"REDIS00x1"), Err(RdbError::NotRdb(_))));
    assert_eq!(
        Header::parse(*b"REDIS0010"),
        Some(Header {
            flavour: Flavour::Redis,
            version: 10
        })
    );
}

#[test]
fn bytes_after_the_end_are_left_alone() {
    let mut reader = RecordReader::new();
    let taken = reader
        .feed(b"REDIS0010\xff12345678and more", &mut |_| {
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((taken, reader.is_finished()), (18, true));
    assert_eq!(
        reader.feed(b"and more", &mut |_| ControlFlow::Continue(())),
        Ok(0)
    );
}

#[test]
fn a_huge_announced_length_costs_no_memory() {
    // A key of 2^63 bytes: kept bytes grow with what comes, so nothing is reserved for it.
    let bytes = [
        b"REDIS0010\x00\x81".as_slice(),
        &(1u64 << 63).to_be_bytes(),
        b"abc",
    ]
    .concat();
    let mut reader = RecordReader::new();
    let (seen, fed) = read_in_pieces(&mut reader, &bytes, &[4]);
    assert_eq!((seen.len(), fed), (1, Ok(bytes.len())));
    // A list of 2^64 - 1 elements and a compressed string that claims to be that long.
    let list = [
        b"REDIS0010\x01\x01k\x81".as_slice(),
        &u64::MAX.to_be_bytes(),
        b"\x01a\x01b",
    ]
    .concat();
    assert_eq!(read(&list).unwrap().len(), 1);
    let compressed = [
        b"REDIS0010\x00\xc3\x01\x81".as_slice(),
        &u64::MAX.to_be_bytes(),
        b"\x00",
    ]
    .concat();
    assert!(matches!(read(&compressed), Err(RdbError::Malformed { .. })));
}
