//! Octets that are almost a command, a delta or a snapshot: refused, or the same when written again.

use std::path::Path;

use hawser_core::state::State;
use hawser_core::view::{Delta, View};
use hawser_fuzz::Target;
use hawser_proto::v1::snapshot_record::Kind;
use hawser_proto::{codec, v1};
use prost::Message;

use crate::samples;

/// What releases wrote, by the first word of its name.
fn written(format: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("the folder of goldens")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "bin"))
        .filter(|path| path.file_name().is_some_and(|it| it.to_string_lossy().starts_with(format)))
        .collect();
    files.sort();
    files.into_iter().map(|file| std::fs::read(file).expect("readable")).collect()
}

#[test]
fn a_command_is_refused_or_the_same_again() {
    Target::new("command").also(written("command-")).cases(8_000).run(|input| {
        let Ok((time, command)) = codec::command::decode(input) else { return false };
        let again = codec::command::encode(time, &command);
        let same = codec::command::decode(&again).expect("what we wrote");
        assert_eq!(format!("{same:?}"), format!("{:?}", (time, &command)));
        assert_eq!(codec::command::encode(time, &same.1), again);
        true
    });
}

#[test]
fn a_delta_is_refused_or_makes_a_view_that_comes_back_from_disk() {
    Target::new("delta").also(written("delta")).cases(6_000).run(|input| {
        let Ok(message) = v1::Delta::decode(input) else { return false };
        let Ok(delta) = Delta::try_from(message) else { return false };
        let file = codec::view::encode(&View::default().advanced(delta));
        let back = codec::view::decode(&file).expect("what we wrote");
        assert_eq!(codec::view::encode(&back), file);
        true
    });
}

/// The records of a snapshot without their checksums, which would refuse nearly everything.
fn bare(file: &[u8]) -> Vec<u8> {
    let (mut bare, mut rest) = (Vec::new(), file);
    while !rest.is_empty() {
        bare.extend(taken(&mut rest).expect("a record"));
        rest = &rest[4..];
    }
    bare
}

/// The next record with its length; none where nothing whole follows.
fn taken<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let mut after = *rest;
    let length = prost::decode_length_delimiter(&mut after).ok()?;
    let whole = (rest.len() - after.len()).checked_add(length)?;
    let (record, left) = rest.split_at_checked(whole)?;
    *rest = left;
    Some(record)
}

/// The same records as a file, with good checksums and a right end.
fn file_of(mut records: &[u8]) -> Vec<u8> {
    let (mut file, mut sum, mut count) = (Vec::new(), crc32fast::Hasher::new(), 0);
    let mut put = |record: &[u8]| {
        sum.update(record);
        file.extend(record);
        file.extend(sum.clone().finalize().to_le_bytes());
    };
    while let Some(record) = taken(&mut records) {
        let decoded = v1::SnapshotRecord::decode_length_delimited(record);
        if decoded.is_ok_and(|it| matches!(it.kind, Some(Kind::End(_)))) {
            break;
        }
        count += 1;
        put(record);
    }
    let end = Kind::End(v1::SnapshotEnd { records: count });
    put(&v1::SnapshotRecord { kind: Some(end) }.encode_length_delimited_to_vec());
    file
}

#[test]
fn a_snapshot_is_refused_or_becomes_a_state() {
    let whole = samples::snapshot(&samples::dump());
    assert_eq!(file_of(&bare(&whole)), whole);
    let written = written("snapshot").into_iter().map(|file| bare(&file));
    Target::new("snapshot").also(written).octets_max(16 * 1024).cases(2_500).run(|input| {
        let file = file_of(input);
        let Ok(dump) = codec::snapshot::read(&mut &file[..]) else { return false };
        let again = samples::snapshot(&State::restore(dump).dump());
        let back = codec::snapshot::read(&mut &again[..]).expect("what we wrote");
        assert_eq!(samples::snapshot(&State::restore(back).dump()), again);
        let _ = codec::snapshot::split(&file, 64);
        true
    });
}
