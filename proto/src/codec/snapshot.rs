//! A snapshot file: every row of the state, written and read as a stream.
//!
//! The file is a sequence of records. Each is its length as a varint, a `SnapshotRecord`, and a
//! little-endian CRC-32 of the lengths and records of the file up to there; so a record that is
//! damaged, left out, repeated or from another file is found at its own place. The first record
//! is the header and the last is the end mark with the count of those before it.

use std::io::{self, Read, Write};
use std::sync::Arc;

use hawser_core::catalog::Row;
use hawser_core::clock::{Index, UnixTime};
use hawser_core::state::{Cluster, Dump, RestorePart, Staged};
use prost::Message;

use crate::field::{Invalid, parsed, required};
use crate::store;
use crate::v1;
use crate::v1::snapshot_record::Kind;

/// The most octets that one record may have. A row of the state has a few kilobytes.
pub const RECORD_OCTETS_MAX: usize = 16 * 1024 * 1024;

/// Why a file is no snapshot. Offsets are those of the record that is wrong.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It could not be read.
    #[error("reading at octet {offset}: {source}")]
    Io {
        /// Where the record begins.
        offset: u64,
        /// What went wrong.
        source: io::Error,
    },
    /// It ends before its end mark.
    #[error("it is cut short: the record at octet {offset} is not whole")]
    Truncated {
        /// Where the record begins, or should.
        offset: u64,
    },
    /// A record says that it is longer than any may be, or says its length in a wrong way.
    #[error("the record at octet {offset} has no length that a record may have")]
    Oversized {
        /// Where the record begins.
        offset: u64,
    },
    /// A record, or one before it, is not what was written.
    #[error("the checksum at the record at octet {offset} is wrong: the file was damaged")]
    Checksum {
        /// Where the record begins.
        offset: u64,
    },
    /// A record is whole, but says what no state may say.
    #[error("the record at octet {offset}: {source}")]
    Invalid {
        /// Where the record begins.
        offset: u64,
        /// What is wrong with it.
        source: Invalid,
    },
    /// A record stands where it may not: no header first, a second header, a second authority.
    #[error("the record at octet {offset} may not stand there")]
    Misplaced {
        /// Where the record begins.
        offset: u64,
    },
    /// The end mark counts other records than there are.
    #[error("the end mark at octet {offset} counts {expected} records, but there are {actual}")]
    Count {
        /// Where the end mark begins.
        offset: u64,
        /// What it says.
        expected: u64,
        /// How many there are.
        actual: u64,
    },
    /// Something follows the end mark.
    #[error("there is more after the end mark, from octet {offset}")]
    Trailing {
        /// Where the file should end.
        offset: u64,
    },
}

/// Writes `dump` to `out` in small pieces, so `out` should be buffered; neither flushes nor syncs.
///
/// # Errors
/// Those of `out`, and a row of more than [`RECORD_OCTETS_MAX`]: a snapshot that could not be
/// read is not written.
pub fn write(dump: &Dump, out: &mut impl Write) -> io::Result<()> {
    let mut records = Writer { out, sum: crc32fast::Hasher::new(), count: 0 };
    records.put(Kind::Header(header(dump)))?;
    for Row { value, created, modified } in &dump.nodes {
        let (created, modified) = (created.0, modified.0);
        records.put(Kind::Node(v1::NodeRow {
            node: Some((&**value).into()),
            created,
            modified,
        }))?;
    }
    for (node, Row { value, created, modified }) in &dump.instances {
        records.put(Kind::Instance(v1::InstanceRow {
            node: node.to_string(),
            instance: Some((&**value).into()),
            created: created.0,
            modified: modified.0,
        }))?;
    }
    for (node, Row { value, created, modified }) in &dump.checks {
        records.put(Kind::Check(v1::CheckRow {
            node: node.to_string(),
            check: Some((&**value).into()),
            created: created.0,
            modified: modified.0,
        }))?;
    }
    for (service, index) in &dump.indexes.services {
        let service = service.to_string();
        records.put(Kind::ServiceIndex(v1::ServiceIndex { service, index: index.0 }))?;
    }
    for (node, since) in &dump.down_since {
        let (node, since_ms) = (node.to_string(), since.as_millis());
        records.put(Kind::DownSince(v1::DownSince { node, since_ms }))?;
    }
    rules(dump, &mut records)?;
    trust(dump, &mut records)?;
    for row in &dump.peerings {
        records.put(Kind::Peering(row.into()))?;
    }
    for (peer, row) in &dump.imports {
        records.put(Kind::Import((peer, row).into()))?;
    }
    for row in crate::acl::rows(&dump.acl) {
        records.put(Kind::Acl(row))?;
    }
    for kind in store::rows(dump) {
        records.put(kind)?;
    }
    if !dump.operation.is_default() {
        records.put(Kind::Operation((&dump.operation).into()))?;
    }
    records.put(Kind::End(v1::SnapshotEnd { records: records.count }))
}

/// Writes who is believed, and the parts of a snapshot that is being restored.
fn trust<W: Write>(dump: &Dump, records: &mut Writer<'_, W>) -> io::Result<()> {
    if let Some(authority) = &dump.authority {
        records.put(Kind::Authority(authority.into()))?;
    }
    for row in &dump.revocations {
        records.put(Kind::Revocation(row.into()))?;
    }
    for part in staged(dump) {
        records.put(Kind::Staged((&part).into()))?;
    }
    for token in &dump.join_tokens {
        records.put(Kind::JoinToken(token.into()))?;
    }
    Ok(())
}

/// Writes what operators wrote: intentions and config entries.
fn rules<W: Write>(dump: &Dump, records: &mut Writer<'_, W>) -> io::Result<()> {
    for Row { value, created, modified } in &dump.intentions {
        records.put(Kind::Intention(v1::IntentionRow {
            intention: Some((&**value).into()),
            created: created.0,
            modified: modified.0,
        }))?;
    }
    for Row { value, created, modified } in &dump.entries {
        let (created, modified) = (created.0, modified.0);
        let entry = Some((&**value).into());
        records.put(Kind::Entry(v1::EntryRow { entry, created, modified }))?;
    }
    Ok(())
}

/// Reads a snapshot to its very end: whole, or not at all.
///
/// Reads in small pieces, so `from` should be buffered. Memory is bounded by
/// [`RECORD_OCTETS_MAX`] and the rows themselves.
///
/// # Errors
/// [`ReadError`], which says where; nothing of a damaged file is ever used.
pub fn read(from: &mut impl Read) -> Result<Dump, ReadError> {
    let mut records =
        Reader { from, sum: crc32fast::Hasher::new(), record: Vec::new(), offset: 0, begin: 0 };
    let mut dump = match records.next()? {
        Kind::Header(header) => from_header(header).map_err(|source| records.refuse(source))?,
        _ => return Err(ReadError::Misplaced { offset: records.begin }),
    };
    let mut count: u64 = 1;
    loop {
        match records.next()? {
            Kind::End(v1::SnapshotEnd { records: expected }) => {
                if expected != count {
                    let offset = records.begin;
                    return Err(ReadError::Count { offset, expected, actual: count });
                }
                records.expect_end()?;
                return Ok(dump);
            }
            kind => match add(&mut dump, kind) {
                Ok(true) => count += 1,
                Ok(false) => return Err(ReadError::Misplaced { offset: records.begin }),
                Err(source) => return Err(records.refuse(source)),
            },
        }
    }
}

fn header(dump: &Dump) -> v1::SnapshotHeader {
    v1::SnapshotHeader {
        applied: dump.applied.0,
        cluster: dump.cluster.as_ref().map(Into::into),
        nodes_index: dump.indexes.nodes.0,
        checks_index: dump.indexes.checks.0,
        names_index: dump.indexes.names.0,
        emptied_index: dump.indexes.emptied.0,
        intentions_index: dump.intentions_index.0,
        entries_index: dump.entries_index.0,
        peerings_index: dump.peerings_index.0,
        imports_index: dump.imports_index.0,
        revocations_index: dump.revocations_index.0,
    }
}

fn from_header(header: v1::SnapshotHeader) -> Result<Dump, Invalid> {
    let mut dump = Dump {
        applied: Index(header.applied),
        cluster: header.cluster.map(Cluster::try_from).transpose()?,
        intentions_index: Index(header.intentions_index),
        entries_index: Index(header.entries_index),
        peerings_index: Index(header.peerings_index),
        imports_index: Index(header.imports_index),
        revocations_index: Index(header.revocations_index),
        ..Dump::default()
    };
    dump.indexes.nodes = Index(header.nodes_index);
    dump.indexes.checks = Index(header.checks_index);
    dump.indexes.names = Index(header.names_index);
    dump.indexes.emptied = Index(header.emptied_index);
    Ok(dump)
}

/// Adds one row to `dump`; whether it may stand there.
fn add(dump: &mut Dump, kind: Kind) -> Result<bool, Invalid> {
    match kind {
        Kind::Header(_) | Kind::End(_) => return Ok(false),
        Kind::Node(row) => {
            let node = required("node_row.node", row.node)?;
            dump.nodes.push(stored(node, row.created, row.modified));
        }
        Kind::Instance(row) => {
            let node = parsed("instance_row.node", &row.node)?;
            let instance = required("instance_row.instance", row.instance)?;
            dump.instances.push((node, stored(instance, row.created, row.modified)));
        }
        Kind::Check(row) => {
            let node = parsed("check_row.node", &row.node)?;
            let check = required("check_row.check", row.check)?;
            dump.checks.push((node, stored(check, row.created, row.modified)));
        }
        Kind::Intention(row) => {
            let intention = required("intention_row.intention", row.intention)?;
            dump.intentions.push(stored(intention, row.created, row.modified));
        }
        Kind::Entry(row) => {
            let entry = required("entry_row.entry", row.entry)?;
            dump.entries.push(stored(entry, row.created, row.modified));
        }
        Kind::Authority(authority) => {
            return Ok(dump.authority.replace(authority.try_into()?).is_none());
        }
        Kind::Staged(part) => return stage(dump, part.try_into()?),
        Kind::Operation(row) => {
            let is_first = dump.operation.is_default();
            dump.operation = row.into();
            return Ok(is_first);
        }
        Kind::Revocation(row) => dump.revocations.push(row.try_into()?),
        Kind::JoinToken(token) => dump.join_tokens.push(token.try_into()?),
        Kind::Acl(row) => crate::acl::add(&mut dump.acl, row)?,
        Kind::Peering(row) => dump.peerings.push(row.try_into()?),
        Kind::Import(row) => dump.imports.push(row.try_into()?),
        Kind::DownSince(row) => {
            let node = parsed("down_since.node", &row.node)?;
            let since = UnixTime::from_millis(row.since_ms);
            return Ok(dump.down_since.insert(node, since).is_none());
        }
        Kind::ServiceIndex(row) => {
            let service = parsed("service_index.service", &row.service)?;
            return Ok(dump.indexes.services.insert(service, Index(row.index)).is_none());
        }
        Kind::KvIndexes(indexes) => store::add_indexes(dump, &indexes),
        Kind::Kv(row) => dump.kv.items.push(row.try_into()?),
        Kind::KvTombstone(row) => dump.kv.tombstones.push(row.try_into()?),
        Kind::KvDelay(row) => dump.kv.delays.push(row.try_into()?),
        Kind::Event(row) => dump.events.push(row.try_into()?),
        Kind::Query(row) => dump.queries.push(row.try_into()?),
        Kind::Session(row) => dump.sessions.push(row.try_into()?),
    }
    Ok(true)
}

/// The parts of a snapshot that is being restored.
fn staged(dump: &Dump) -> impl Iterator<Item = RestorePart> {
    dump.staged.iter().flat_map(|staged| {
        let part = |(number, rows): (u32, &Arc<Dump>)| RestorePart {
            id: staged.id.clone(),
            number,
            rows: Box::new(Dump::clone(rows)),
        };
        (0..).zip(&staged.parts).map(part)
    })
}

fn stage(dump: &mut Dump, part: RestorePart) -> Result<bool, Invalid> {
    let RestorePart { id, number, rows } = part;
    let staged = dump.staged.get_or_insert_with(|| Staged { id, parts: Vec::new() });
    let is_next = staged.parts.len() == number as usize;
    staged.parts.push(Arc::new(*rows));
    Ok(is_next)
}

impl From<&RestorePart> for v1::RestorePart {
    fn from(part: &RestorePart) -> Self {
        let mut rows = Vec::new();
        let written = write(&part.rows, &mut rows);
        debug_assert!(written.is_ok(), "memory takes all, and each row was in a snapshot before");
        Self { id: part.id.to_string(), number: part.number, rows }
    }
}

impl TryFrom<v1::RestorePart> for RestorePart {
    type Error = Invalid;

    fn try_from(part: v1::RestorePart) -> Result<Self, Invalid> {
        let rows = read(&mut part.rows.as_slice())
            .map_err(|why| Invalid::new("restore_part.rows", why))?;
        // One within another would have no end.
        if rows.staged.is_some() {
            return Err(Invalid::new("restore_part.rows", "it holds parts itself"));
        }
        Ok(Self { id: part.id.into(), number: part.number, rows: Box::new(rows) })
    }
}

/// The rows of a snapshot in pieces of about `octets` each, in its order; what is there only once
/// is in the first. Reads to the very end, as [`read`] does.
///
/// # Errors
/// [`ReadError`]. Parts of a restoration that was under way are left out.
pub fn split(file: &[u8], octets: usize) -> Result<Vec<Dump>, ReadError> {
    read(&mut &file[..])?;
    let mut from = file;
    let mut records = Reader {
        from: &mut from,
        sum: crc32fast::Hasher::new(),
        record: Vec::new(),
        offset: 0,
        begin: 0,
    };
    let mut parts: Vec<Dump> = Vec::new();
    let mut part = Dump::default();
    let mut began = 0;
    loop {
        match records.next()? {
            Kind::End(_) => {
                parts.push(part);
                return Ok(parts);
            }
            Kind::Header(header) => {
                part = from_header(header).map_err(|source| records.refuse(source))?;
            }
            Kind::Staged(_) => {}
            kind => {
                add(&mut part, kind).map_err(|source| records.refuse(source))?;
            }
        }
        if records.offset - began >= octets as u64 {
            began = records.offset;
            parts.push(std::mem::take(&mut part));
        }
    }
}

fn stored<T>(value: T, created: u64, modified: u64) -> Row<T> {
    Row { value: Arc::new(value), created: Index(created), modified: Index(modified) }
}

/// Puts records into a file.
struct Writer<'a, W> {
    out: &'a mut W,
    /// Of lengths and records, never of the checksums themselves: a CRC taken over its own value
    /// is the same for all contents.
    sum: crc32fast::Hasher,
    count: u64,
}

impl<W: Write> Writer<'_, W> {
    fn put(&mut self, kind: Kind) -> io::Result<()> {
        let record = v1::SnapshotRecord { kind: Some(kind) };
        let length = record.encoded_len();
        if length > RECORD_OCTETS_MAX {
            let why = format!("a row of {length} octets is above the most, {RECORD_OCTETS_MAX}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let octets = record.encode_length_delimited_to_vec();
        self.sum.update(&octets);
        self.count += 1;
        self.out.write_all(&octets)?;
        self.out.write_all(&self.sum.clone().finalize().to_le_bytes())
    }
}

/// Takes records out of a file.
struct Reader<'a, R> {
    from: &'a mut R,
    sum: crc32fast::Hasher,
    record: Vec<u8>,
    /// Octets read so far.
    offset: u64,
    /// Where the present record begins.
    begin: u64,
}

impl<R: Read> Reader<'_, R> {
    /// The next record, once its checksum proves it.
    fn next(&mut self) -> Result<Kind, ReadError> {
        self.begin = self.offset;
        let length = self.length()?;
        let mut record = std::mem::take(&mut self.record);
        record.resize(length, 0);
        self.fill(&mut record)?;
        self.sum.update(&record);
        let mut sum = [0; 4];
        self.fill(&mut sum)?;
        let offset = self.begin;
        if self.sum.clone().finalize() != u32::from_le_bytes(sum) {
            return Err(ReadError::Checksum { offset });
        }
        let kind = v1::SnapshotRecord::decode(record.as_slice())
            .map_err(|why| self.refuse(Invalid::new("snapshot_record", why)))?
            .kind;
        self.record = record;
        kind.ok_or_else(|| {
            self.refuse(Invalid::new("snapshot_record.kind", "none that this release knows"))
        })
    }

    /// A record's length: a varint in its shortest form.
    fn length(&mut self) -> Result<usize, ReadError> {
        let mut length = 0;
        for place in 0..LENGTH_OCTETS_MAX {
            let mut octet = [0];
            self.fill(&mut octet)?;
            self.sum.update(&octet);
            length |= usize::from(octet[0] & 0x7f) << (7 * place);
            if octet[0] & 0x80 == 0 {
                let is_padded = place > 0 && octet[0] == 0;
                if is_padded || length > RECORD_OCTETS_MAX {
                    break;
                }
                return Ok(length);
            }
        }
        Err(ReadError::Oversized { offset: self.begin })
    }

    fn fill(&mut self, octets: &mut [u8]) -> Result<(), ReadError> {
        let offset = self.begin;
        self.from.read_exact(octets).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => ReadError::Truncated { offset },
            _ => ReadError::Io { offset, source },
        })?;
        self.offset += octets.len() as u64;
        Ok(())
    }

    fn expect_end(&mut self) -> Result<(), ReadError> {
        self.begin = self.offset;
        match self.fill(&mut [0]) {
            Err(ReadError::Truncated { .. }) => Ok(()),
            Err(other) => Err(other),
            Ok(()) => Err(ReadError::Trailing { offset: self.begin }),
        }
    }

    fn refuse(&self, source: Invalid) -> ReadError {
        ReadError::Invalid { offset: self.begin, source }
    }
}

/// What the length of the longest record takes as a varint.
const LENGTH_OCTETS_MAX: u32 = 4;
