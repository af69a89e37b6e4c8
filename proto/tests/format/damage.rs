//! A damaged file is refused, at the place where it is damaged; it is never a wrong state.

use std::io;

use hawser_core::catalog::Check;
use hawser_core::state::Dump;
use hawser_proto::codec::snapshot::{self, RECORD_OCTETS_MAX, ReadError};
use hawser_proto::codec::view;
use hawser_proto::v1;
use hawser_proto::v1::snapshot_record::Kind;
use prost::Message;

use crate::samples;

fn read(file: &[u8]) -> Result<Dump, ReadError> {
    let mut rest = file;
    snapshot::read(&mut rest)
}

/// Where each record begins.
fn beginnings(file: &[u8]) -> Vec<u64> {
    let (mut begins, mut rest) = (Vec::new(), file);
    while !rest.is_empty() {
        begins.push((file.len() - rest.len()) as u64);
        let length = prost::decode_length_delimiter(&mut rest).expect("a length");
        rest = &rest[length + 4..];
    }
    begins
}

/// A file of these records, with good checksums.
fn file_of(kinds: Vec<Kind>) -> Vec<u8> {
    let (mut file, mut sum) = (Vec::new(), crc32fast::Hasher::new());
    for kind in kinds {
        let record = v1::SnapshotRecord { kind: Some(kind) }.encode_length_delimited_to_vec();
        sum.update(&record);
        file.extend(record);
        file.extend(sum.clone().finalize().to_le_bytes());
    }
    file
}

#[test]
fn a_snapshot_cut_at_any_octet_is_refused_at_the_record_that_is_cut() {
    let file = samples::snapshot(&samples::dump());
    let begins = beginnings(&file);
    for length in 0..file.len() {
        let cut = begins.iter().rev().find(|begin| **begin <= length as u64).expect("0 begins");
        match read(&file[..length]) {
            Err(ReadError::Truncated { offset }) => assert_eq!(offset, *cut, "cut at {length}"),
            other => panic!("cut at {length}: {other:?}"),
        }
    }
    assert!(read(&file).is_ok());
}

#[test]
fn a_snapshot_with_any_bit_flipped_is_refused() {
    let file = samples::snapshot(&samples::dump());
    let mut damaged = file.clone();
    for bit in 0..file.len() * 8 {
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(read(&damaged).is_err(), "bit {bit}");
        damaged[bit / 8] = file[bit / 8];
    }
}

#[test]
fn records_left_out_repeated_or_exchanged_are_noticed() {
    let file = samples::snapshot(&samples::dump());
    let mut ends: Vec<usize> = beginnings(&file).iter().map(|begin| *begin as usize).collect();
    ends.push(file.len());
    let records: Vec<&[u8]> = ends.windows(2).map(|span| &file[span[0]..span[1]]).collect();
    for at in 1..records.len() - 1 {
        let without = [&records[..at], &records[at + 1..]].concat().concat();
        assert!(read(&without).is_err(), "without record {at}");
        let twice = [&records[..at], &[records[at]], &records[at..]].concat().concat();
        assert!(read(&twice).is_err(), "record {at} twice");
        let mut swapped = records.clone();
        swapped.swap(at, at + 1);
        assert!(read(&swapped.concat()).is_err(), "record {at} after the next");
    }
}

#[test]
fn records_stand_where_they_may() {
    let header = || Kind::Header(v1::SnapshotHeader { applied: 5, ..Default::default() });
    let authority = || {
        let dump = samples::dump();
        Kind::Authority(dump.authority.as_ref().expect("the sample has one").into())
    };
    let end = |records| Kind::End(v1::SnapshotEnd { records });
    assert_eq!(read(&file_of(vec![header(), end(1)])).expect("the least file").applied.0, 5);
    let cases = [
        (vec![end(0)], "no header"),
        (vec![authority(), header(), end(2)], "the header is not first"),
        (vec![header(), header(), end(2)], "two headers"),
        (vec![header(), authority(), authority(), end(3)], "two authorities"),
    ];
    for (kinds, why) in cases {
        assert!(matches!(read(&file_of(kinds)), Err(ReadError::Misplaced { .. })), "{why}");
    }
    for wrong in [0, 2, u64::MAX] {
        match read(&file_of(vec![header(), end(wrong)])) {
            Err(ReadError::Count { expected, actual: 1, .. }) => assert_eq!(expected, wrong),
            other => panic!("{other:?}"),
        }
    }
    let more = [file_of(vec![header(), end(1)]), vec![0]].concat();
    let length = more.len() as u64 - 1;
    assert!(matches!(read(&more), Err(ReadError::Trailing { offset }) if offset == length));
}

#[test]
fn a_bad_row_is_refused_by_its_place_and_field() {
    let header = Kind::Header(v1::SnapshotHeader::default());
    let begin = file_of(vec![header.clone()]).len() as u64;
    let row = v1::NodeRow { node: None, created: 1, modified: 1 };
    match read(&file_of(vec![header, Kind::Node(row)])) {
        Err(ReadError::Invalid { offset, source }) => {
            assert_eq!((offset, source.field), (begin, "node_row.node"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_length_above_the_bound_is_refused_before_anything_is_reserved() {
    let mut above = Vec::new();
    prost::encode_length_delimiter(RECORD_OCTETS_MAX + 1, &mut above).expect("memory");
    let padded = vec![0x80, 0x00];
    let endless = vec![0xff; 64];
    for file in [above, padded, endless] {
        let refused = read(&file);
        assert!(matches!(refused, Err(ReadError::Oversized { offset: 0 })), "{refused:?}");
    }
}

#[test]
fn a_snapshot_that_could_not_be_read_is_not_written() {
    let mut dump = samples::dump();
    let long = Check { output: "a".repeat(RECORD_OCTETS_MAX).into(), ..samples::check() };
    dump.checks[0].1.value = long.into();
    let refused = snapshot::write(&dump, &mut io::sink()).expect_err("too long a row");
    assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn an_error_of_the_disk_is_not_taken_for_the_end() {
    struct Broken;
    impl io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("no disk"))
        }
    }
    assert!(matches!(snapshot::read(&mut Broken), Err(ReadError::Io { offset: 0, .. })));
    struct Full;
    impl io::Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let refused = snapshot::write(&samples::dump(), &mut Full).expect_err("no room");
    assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
}

#[test]
fn a_view_that_is_cut_grown_or_damaged_is_refused() {
    let file = view::encode(&samples::view());
    for length in 0..file.len() {
        assert!(view::decode(&file[..length]).is_err(), "cut at {length}");
    }
    assert!(view::decode(&[&file[..], &[0]].concat()).is_err(), "one octet more");
    let mut damaged = file.clone();
    for bit in 0..file.len() * 8 {
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(view::decode(&damaged).is_err(), "bit {bit}");
        damaged[bit / 8] = file[bit / 8];
    }
}

#[test]
fn a_view_of_a_later_release_is_named_as_such() {
    let mut file = view::encode(&samples::view());
    file[8] = 2;
    let body = file[24..].to_vec();
    let mut sum = crc32fast::Hasher::new();
    sum.update(&file[8..20]);
    sum.update(&body);
    file[20..24].copy_from_slice(&sum.finalize().to_le_bytes());
    assert!(matches!(view::decode(&file), Err(view::DecodeError::Version(2))));
}
