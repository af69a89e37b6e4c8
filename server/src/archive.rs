//! Snapshot archives as operators keep them: gzip of a tar with `meta.json`, `state.bin` and
//! `SHA256SUMS`, as Consul's are.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use hawser_core::state::Dump;
use hawser_proto::codec;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What an archive says of itself.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Meta {
    /// The format of the archive.
    pub version: u32,
    /// The cluster that it is of.
    pub cluster: String,
    /// The release that wrote it.
    pub release: String,
    /// The last entry of the log that is in it.
    pub index: u64,
    /// The term of the leader then.
    pub term: u64,
    /// The length of `state.bin` in bytes.
    pub size: u64,
    /// Whether the keys of the certificate authority are in it, sealed.
    pub has_authority: bool,
}

/// Why octets are no archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It is no gzip, or cut short.
    #[error("it is no snapshot archive, or cut short: {0}")]
    Gzip(#[from] std::io::Error),
    /// It unpacks to more than any snapshot may.
    #[error("it holds more than {ARCHIVE_OCTETS_MAX} bytes")]
    TooLarge,
    /// It is no tar, or one of its members is not whole.
    #[error("its tar is damaged")]
    Tar,
    /// A member is missing.
    #[error("it has no {0}")]
    Missing(&'static str),
    /// A member is not what was written.
    #[error("the checksum of {0} is wrong: the archive was damaged")]
    Checksum(&'static str),
    /// `meta.json` is not as it must be.
    #[error("meta.json: {0}")]
    Meta(#[from] serde_json::Error),
    /// A format of another release.
    #[error("it is of version {0}, and this release reads version {VERSION}")]
    Version(u32),
    /// `state.bin` is not as it must be.
    #[error("state.bin: {0}")]
    State(#[from] codec::snapshot::ReadError),
}

/// Packs `dump` as `meta` says; its version and size are set here.
///
/// # Errors
/// A row that is too long to be read back.
pub fn pack(mut meta: Meta, dump: &Dump) -> std::io::Result<Vec<u8>> {
    let mut state = Vec::new();
    codec::snapshot::write(dump, &mut state)?;
    (meta.version, meta.size) = (VERSION, state.len() as u64);
    let described = serde_json::to_vec_pretty(&meta).map_err(std::io::Error::other)?;
    let sums = format!("{}  {META}\n{}  {STATE}\n", sum(&described), sum(&state));
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    for (name, content) in [(META, &described[..]), (STATE, &state), (SUMS, sums.as_bytes())] {
        out.write_all(&header(name, content.len()))?;
        out.write_all(content)?;
        out.write_all(&[0; BLOCK][..padding(content.len())])?;
    }
    out.write_all(&[0; 2 * BLOCK])?;
    out.finish()
}

/// What an archive says of itself and what it holds, once every checksum was compared.
///
/// # Errors
/// [`ArchiveError`]; nothing of a damaged archive is ever used.
pub fn unpack(archive: &[u8]) -> Result<(Meta, Vec<u8>), ArchiveError> {
    let mut tar = Vec::new();
    let mut from = GzDecoder::new(archive).take(ARCHIVE_OCTETS_MAX + 1);
    from.read_to_end(&mut tar)?;
    if tar.len() as u64 > ARCHIVE_OCTETS_MAX {
        return Err(ArchiveError::TooLarge);
    }
    let (mut meta, mut state, mut sums) = (None, None, None);
    let mut left = &tar[..];
    while let Some((head, rest)) = left.split_first_chunk::<BLOCK>() {
        if head.iter().all(|octet| *octet == 0) {
            break;
        }
        let length = length_of(head).ok_or(ArchiveError::Tar)?;
        let content = rest.get(..length).ok_or(ArchiveError::Tar)?;
        let slot = match name_of(head) {
            name if name == META.as_bytes() => &mut meta,
            name if name == STATE.as_bytes() => &mut state,
            name if name == SUMS.as_bytes() => &mut sums,
            _ => return Err(ArchiveError::Tar),
        };
        if slot.replace(content).is_some() {
            return Err(ArchiveError::Tar);
        }
        left = rest.get(length + padding(length)..).ok_or(ArchiveError::Tar)?;
    }
    let sums = String::from_utf8_lossy(sums.ok_or(ArchiveError::Missing(SUMS))?);
    for (name, content) in [(META, meta), (STATE, state)] {
        let content = content.ok_or(ArchiveError::Missing(name))?;
        let line = format!("{}  {name}", sum(content));
        if !sums.lines().any(|said| said == line) {
            return Err(ArchiveError::Checksum(name));
        }
    }
    let meta: Meta = serde_json::from_slice(meta.unwrap_or_default())?;
    if meta.version != VERSION {
        return Err(ArchiveError::Version(meta.version));
    }
    Ok((meta, state.unwrap_or_default().to_vec()))
}

/// The state that an archive holds, in parts that each fit into one entry of the log.
///
/// # Errors
/// [`ArchiveError`]
pub fn parts(state: &[u8]) -> Result<Vec<Dump>, ArchiveError> {
    Ok(codec::snapshot::split(state, PART_OCTETS)?)
}

fn sum(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|octet| format!("{octet:02x}")).collect()
}

/// The header of one file (POSIX.1-2001, ustar).
fn header(name: &str, length: usize) -> [u8; BLOCK] {
    let mut head = [0; BLOCK];
    let mut put = |at: usize, text: &[u8]| head[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(LENGTH_AT, format!("{length:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(SUM_AT, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = head.iter().map(|octet| u32::from(*octet)).sum();
    head[SUM_AT..SUM_AT + 8].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    head
}

fn name_of(head: &[u8; BLOCK]) -> &[u8] {
    let end = head[..100].iter().position(|octet| *octet == 0).unwrap_or(100);
    &head[..end]
}

/// A file's length, if its header is whole.
fn length_of(head: &[u8; BLOCK]) -> Option<usize> {
    let number = |at: usize, digits: usize| {
        let text = std::str::from_utf8(&head[at..at + digits]).ok()?;
        let text = text.trim_matches(|character| character == '\0' || character == ' ');
        u64::from_str_radix(text, 8).ok()
    };
    let stated = number(SUM_AT, 8)?;
    let blank = |(at, octet): (usize, &u8)| match (SUM_AT..SUM_AT + 8).contains(&at) {
        true => u64::from(b' '),
        false => u64::from(*octet),
    };
    let is_whole = head.iter().enumerate().map(blank).sum::<u64>() == stated;
    let length = number(LENGTH_AT, 12)?;
    is_whole.then_some(length).and_then(|length| usize::try_from(length).ok())
}

const fn padding(length: usize) -> usize {
    (BLOCK - length % BLOCK) % BLOCK
}

const META: &str = "meta.json";
const STATE: &str = "state.bin";
const SUMS: &str = "SHA256SUMS";
const VERSION: u32 = 1;
const BLOCK: usize = 512;
const LENGTH_AT: usize = 124;
const SUM_AT: usize = 148;
/// Unpacked: a state of this size is far above any bound of its tables in practice.
const ARCHIVE_OCTETS_MAX: u64 = 1 << 30;
/// Half of what one entry of the log may hold.
const PART_OCTETS: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use hawser_core::clock::Index;
    use hawser_fuzz::Target;

    use super::*;

    fn archive() -> (Meta, Vec<u8>) {
        let dump = Dump { applied: Index(7), ..Dump::default() };
        let meta = Meta { cluster: "c".into(), index: 7, ..Meta::default() };
        let packed = pack(meta.clone(), &dump).expect("packed");
        (meta, packed)
    }

    #[test]
    fn what_is_packed_comes_back() {
        let (meta, packed) = archive();
        let (said, state) = unpack(&packed).expect("whole");
        assert_eq!((said.index, said.cluster), (meta.index, meta.cluster));
        assert_eq!((said.version, said.size), (VERSION, state.len() as u64));
        let parts = parts(&state).expect("a state");
        assert_eq!(parts.len(), 1);
        assert_eq!(parts[0].applied, Index(7));
    }

    #[test]
    fn what_is_damaged_or_cut_is_refused() {
        let (_, packed) = archive();
        for at in 0..packed.len() {
            assert!(unpack(&packed[..at]).is_err(), "cut at {at}");
        }
        let mut tar = Vec::new();
        GzDecoder::new(&packed[..]).read_to_end(&mut tar).expect("gzip");
        let unpacked = |tar: &[u8]| {
            let mut out = GzEncoder::new(Vec::new(), Compression::fast());
            out.write_all(tar).expect("memory takes all");
            unpack(&out.finish().expect("finished")).map(drop)
        };
        assert!(unpacked(&tar).is_ok());
        let meta = length_of(tar.first_chunk().expect("a header")).expect("whole");
        let state = BLOCK + meta + padding(meta);
        for at in [0, LENGTH_AT + 5, BLOCK, state, state + BLOCK] {
            let mut bad = tar.clone();
            bad[at] ^= 1;
            assert!(unpacked(&bad).is_err(), "octet {at}");
        }
    }

    /// Both what is packed is changed, and the pack.
    #[test]
    fn an_archive_is_refused_or_holds_what_it_says() {
        let (_, packed) = archive();
        let mut tar = Vec::new();
        GzDecoder::new(&packed[..]).read_to_end(&mut tar).expect("gzip");
        Target::new("archive").also([tar]).octets_max(8 * 1024).cases(3_000).run(|input| {
            let mut out = GzEncoder::new(Vec::new(), Compression::none());
            out.write_all(input).expect("memory takes all");
            let Ok((meta, state)) = unpack(&out.finish().expect("finished")) else { return false };
            assert_eq!(meta.version, VERSION);
            let _ = parts(&state);
            true
        });
        Target::new("archive_gzip").also([packed]).cases(3_000).run(|input| unpack(input).is_ok());
    }
}
