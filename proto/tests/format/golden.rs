//! Files that releases wrote: they decode for ever, to the values that stand beside them.
//!
//! `UPDATE_GOLDEN=1` writes what is missing and the texts, and never a `.bin` that is there: that
//! is what a release wrote.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use hawser_core::clock::{Index, UnixTime};
use hawser_core::edge::{EdgeKey, Tally};
use hawser_core::state::{Dump, Rejection};
use hawser_core::view::Delta;
use hawser_proto::{codec, v1};
use prost::Message;

use crate::{samples, store};

#[test]
fn what_releases_wrote_decodes_for_ever() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let is_update = std::env::var_os("UPDATE_GOLDEN").is_some();
    for (name, octets) in written_today() {
        let path = folder.join(name).with_extension("bin");
        if is_update && !path.exists() {
            fs::create_dir_all(&folder).expect("a folder");
            fs::write(path, octets).expect("a file");
        }
    }
    let found = files(&folder);
    let names: BTreeSet<String> = found.iter().map(|path| stem(path)).collect();
    for (name, _) in written_today() {
        assert!(names.contains(&name), "{name}.bin is missing: run with UPDATE_GOLDEN=1");
    }
    for path in found {
        let octets = fs::read(&path).expect("a file");
        let text = decoded(&stem(&path), &octets);
        let beside = path.with_extension("txt");
        if is_update {
            fs::write(&beside, &text).expect("a file");
        }
        let expected = fs::read_to_string(&beside).unwrap_or_default();
        assert_eq!(text, expected, "{}", path.display());
    }
}

/// What the samples are as octets of this release, by the names of their files.
fn written_today() -> Vec<(String, Vec<u8>)> {
    let time = UnixTime::from_millis(1_790_000_000_123);
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    for (name, command) in samples::commands() {
        all.push((format!("command-{name}"), codec::command::encode(time, &command)));
    }
    let mut seen = BTreeSet::new();
    for (name, rejection) in samples::rejections() {
        if seen.insert(name) {
            let outcome = v1::Outcome::from(&Err(rejection));
            all.push((format!("outcome-{name}"), outcome.encode_to_vec()));
        }
    }
    let (key, tally) = samples::edge();
    all.push(("edge".into(), v1::Edge::from((&key, &tally)).encode_to_vec()));
    all.push(("delta".into(), v1::Delta::from(&samples::delta(false)).encode_to_vec()));
    all.push(("view".into(), codec::view::encode(&samples::view())));
    all.push(("snapshot".into(), samples::snapshot(&samples::dump())));
    let acl = Dump { acl: crate::acl::dump(), ..Dump::default() };
    all.push(("snapshot-acl".into(), samples::snapshot(&acl)));
    let logins = Dump { acl: crate::acl::logins(), ..Dump::default() };
    all.push(("snapshot-login".into(), samples::snapshot(&logins)));
    let operated = Dump { operation: samples::operation(), ..Dump::default() };
    all.push(("snapshot-operation".into(), samples::snapshot(&operated)));
    all.push(("snapshot-store".into(), samples::snapshot(&store::dump())));
    all
}

/// The value in a file, as text: which format it has is the first word of its name.
fn decoded(name: &str, octets: &[u8]) -> String {
    fn text(value: &impl Debug) -> String {
        format!("{value:#?}\n")
    }
    match name.split('-').next() {
        Some("command") => text(&codec::command::decode(octets).expect(name)),
        Some("outcome") => {
            let outcome = v1::Outcome::decode(octets).expect(name);
            text(&Result::<Index, Rejection>::try_from(outcome).expect(name))
        }
        Some("edge") => {
            let edge = v1::Edge::decode(octets).expect(name);
            text(&<(EdgeKey, Tally)>::try_from(edge).expect(name))
        }
        Some("delta") => {
            let delta = v1::Delta::decode(octets).expect(name);
            text(&Delta::try_from(delta).expect(name))
        }
        Some("view") => text(&codec::view::decode(octets).expect(name)),
        Some("snapshot") => {
            let mut rest = octets;
            text(&codec::snapshot::read(&mut rest).expect(name))
        }
        _ => panic!("{name}: no format has this name"),
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .expect("the folder of goldens")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "bin"))
        .collect();
    found.sort();
    found
}

fn stem(path: &Path) -> String {
    path.file_stem().expect("a name").to_string_lossy().into_owned()
}
