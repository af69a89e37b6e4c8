//! Snapshot files: the state as of one log entry, checksummed, written aside and renamed.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hawser_core::state::State;
use hawser_proto::{codec, v1};
use prost::Message;

/// A server's snapshot files.
#[derive(Clone, Debug)]
pub(crate) struct Snapshots {
    folder: Arc<Path>,
}

/// One snapshot file, held open: it stays readable when a newer one replaces it.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    path: PathBuf,
    file: Arc<File>,
    length: u64,
    /// While it has no name of its own yet.
    unfinished: Option<Arc<Unfinished>>,
}

/// A snapshot that is being received, under a temporary name until it is complete. Dropped before,
/// it leaves nothing.
#[derive(Debug)]
pub(crate) struct Incoming {
    file: BufWriter<File>,
    length: u64,
    unfinished: Unfinished,
}

/// A file under a temporary name: removed with the last who holds it, unless it was renamed.
#[derive(Debug)]
struct Unfinished {
    path: PathBuf,
    is_renamed: AtomicBool,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.is_renamed.load(Ordering::Relaxed) {
            drop(std::fs::remove_file(&self.path));
        }
    }
}

/// A snapshot that does not hold what was written to it.
#[derive(Debug, thiserror::Error)]
#[error("{path} is damaged: {why}")]
pub(crate) struct Damaged {
    path: PathBuf,
    why: String,
}

/// Whether `data` holds snapshots.
pub(crate) fn exist(data: &Path) -> bool {
    std::fs::read_dir(data.join(FOLDER))
        .is_ok_and(|files| files.flatten().any(|file| is_snapshot(&file.path())))
}

impl Snapshots {
    /// The snapshots inside the data folder `data`; what was left unfinished there is removed.
    pub(crate) fn open(data: &Path) -> io::Result<Self> {
        let folder = data.join(FOLDER);
        std::fs::create_dir_all(&folder)?;
        for file in std::fs::read_dir(&folder)? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == UNFINISHED) {
                std::fs::remove_file(path)?;
            }
        }
        sync_folder(data)?;
        Ok(Self { folder: folder.into() })
    }

    /// Every complete file, newest first.
    pub(crate) fn list(&self) -> io::Result<Vec<Snapshot>> {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(&self.folder)?
            .map(|file| file.map(|file| file.path()))
            .collect::<io::Result<_>>()?;
        paths.retain(|path| is_snapshot(path));
        // Names begin with the index in twenty digits, so their order is the log's.
        paths.sort();
        let mut found = Vec::with_capacity(paths.len());
        for path in paths.into_iter().rev() {
            match Snapshot::open(path) {
                Ok(snapshot) => found.push(snapshot),
                // Another has removed it meanwhile, for newer ones.
                Err(failure) if failure.kind() == io::ErrorKind::NotFound => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(found)
    }

    /// Writes `state` as of `meta`; on return it survives a power cut and older ones are gone,
    /// but for one.
    pub(crate) fn write(&self, meta: &v1::SnapshotMeta, state: &State) -> io::Result<Snapshot> {
        let mut incoming = self.receive()?;
        let meta_bytes = meta.encode_to_vec();
        let length = u32::try_from(meta_bytes.len()).map_err(io::Error::other)?;
        let out = &mut incoming.file;
        out.write_all(MAGIC)?;
        out.write_all(&length.to_le_bytes())?;
        out.write_all(&crc32fast::hash(&meta_bytes).to_le_bytes())?;
        out.write_all(&meta_bytes)?;
        codec::snapshot::write(&state.dump(), out)?;
        let unfinished = incoming.finish()?;
        self.keep(unfinished, meta)
    }

    /// Opens a file to receive a snapshot into.
    pub(crate) fn receive(&self) -> io::Result<Incoming> {
        let path = self.folder.join(format!("{:016x}.{UNFINISHED}", rand::random::<u64>()));
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        let unfinished = Unfinished { path, is_renamed: AtomicBool::new(false) };
        let file = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(Incoming { file, length: 0, unfinished })
    }

    /// Gives a complete snapshot its name and removes all but the newest two.
    pub(crate) fn keep(&self, snapshot: Snapshot, meta: &v1::SnapshotMeta) -> io::Result<Snapshot> {
        let last = meta.last.unwrap_or_default();
        let name = format!("{:020}-{}-{:016x}.{EXTENSION}", last.index, last.term, last.leader);
        let path = self.folder.join(name);
        if snapshot.path != path {
            std::fs::rename(&snapshot.path, &path)?;
            if let Some(unfinished) = &snapshot.unfinished {
                unfinished.is_renamed.store(true, Ordering::Relaxed);
            }
            sync_folder(&self.folder)?;
        }
        for old in self.list()?.into_iter().skip(KEPT) {
            match std::fs::remove_file(old.path) {
                Err(failure) if failure.kind() != io::ErrorKind::NotFound => return Err(failure),
                _ => {}
            }
        }
        Ok(Snapshot { path, unfinished: None, ..snapshot })
    }
}

impl Snapshot {
    fn open(path: PathBuf) -> io::Result<Self> {
        let file = File::open(&path)?;
        let length = file.metadata()?.len();
        Ok(Self { path, file: file.into(), length, unfinished: None })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Up to `bytes_max` bytes from `offset` on; empty at the end.
    pub(crate) fn chunk(&self, offset: u64, bytes_max: usize) -> io::Result<Vec<u8>> {
        let left = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; left.min(bytes_max)];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Reads the file as a whole; every checksum is compared.
    pub(crate) fn read(&self) -> Result<(v1::SnapshotMeta, State), Damaged> {
        let mut reader = self.reader();
        let meta = self.read_meta(&mut reader)?;
        let dump = codec::snapshot::read(&mut reader).map_err(|failure| self.damaged(&failure))?;
        Ok((meta, State::restore(dump)))
    }

    fn read_meta(&self, reader: &mut impl Read) -> Result<v1::SnapshotMeta, Damaged> {
        let mut head = [0; MAGIC.len() + 8];
        reader.read_exact(&mut head).map_err(|failure| self.damaged(&failure))?;
        let (magic, numbers) = head.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(self.damaged(&"it does not begin as a snapshot does"));
        }
        let (length, stated) = numbers.split_at(4);
        let length = length.try_into().map_or(0, u32::from_le_bytes) as usize;
        let stated = stated.try_into().map_or(0, u32::from_le_bytes);
        if length > META_BYTES_MAX {
            return Err(self.damaged(&"its head is too long"));
        }
        let mut bytes = vec![0; length];
        reader.read_exact(&mut bytes).map_err(|failure| self.damaged(&failure))?;
        if crc32fast::hash(&bytes) != stated {
            return Err(self.damaged(&"its head has a wrong checksum"));
        }
        v1::SnapshotMeta::decode(bytes.as_slice()).map_err(|failure| self.damaged(&failure))
    }

    fn reader(&self) -> BufReader<At> {
        BufReader::with_capacity(BUFFER_BYTES, At { file: Arc::clone(&self.file), offset: 0 })
    }

    fn damaged(&self, why: &dyn std::fmt::Display) -> Damaged {
        Damaged { path: self.path.clone(), why: why.to_string() }
    }
}

impl Incoming {
    /// Adds bytes at the end.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// How many bytes have come so far.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Brings it to the disk, still under its temporary name.
    pub(crate) fn finish(mut self) -> io::Result<Snapshot> {
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        let snapshot = Snapshot::open(self.unfinished.path.clone())?;
        Ok(Snapshot { unfinished: Some(Arc::new(self.unfinished)), ..snapshot })
    }
}

/// Reads a shared file from an offset of its own.
struct At {
    file: Arc<File>,
    offset: u64,
}

impl Read for At {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

impl From<Damaged> for io::Error {
    fn from(failure: Damaged) -> Self {
        Self::new(io::ErrorKind::InvalidData, failure)
    }
}

/// Makes the names in `folder` survive a power cut.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder)?.sync_all()
}

fn is_snapshot(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == EXTENSION)
}

const FOLDER: &str = "snapshots";
const EXTENSION: &str = "snapshot";
const UNFINISHED: &str = "tmp";
/// Names the format and its version.
const MAGIC: &[u8; 8] = b"hawser\x00\x01";
const META_BYTES_MAX: usize = 1 << 20;
const BUFFER_BYTES: usize = 256 << 10;
/// The newest, and the one before it in case the newest turns out to be damaged.
const KEPT: usize = 2;

#[cfg(test)]
mod tests {
    use hawser_core::clock::{Index, Stamp, UnixTime};
    use hawser_core::state::{Command, JoinToken};

    use super::*;

    fn state(index: u64) -> State {
        let mut state = State::default();
        let token = JoinToken {
            hash: [7; 32],
            node: "n1".parse().expect("a name"),
            expires_at: UnixTime::from_secs(90),
            used_by: None,
        };
        let stamp = Stamp { index: Index(index), time: UnixTime::from_secs(1) };
        state.apply(stamp, Command::PutJoinToken(token)).expect("room");
        state
    }

    fn meta(index: u64) -> v1::SnapshotMeta {
        let last = Some(v1::LogId { term: 3, leader: 9, index });
        v1::SnapshotMeta { last, ..Default::default() }
    }

    #[test]
    fn the_newest_two_are_kept_and_read_back() {
        let data = tempfile::tempdir().expect("a folder");
        assert!(!exist(data.path()));
        let snapshots = Snapshots::open(data.path()).expect("a folder");
        for index in [5, 100, 20_000] {
            snapshots.write(&meta(index), &state(index)).expect("written");
        }
        snapshots.receive().expect("one that is never finished");
        let snapshots = Snapshots::open(data.path()).expect("the same folder");
        let indexes: Vec<u64> = snapshots
            .list()
            .expect("readable")
            .iter()
            .map(|snapshot| snapshot.read().expect("intact").1.applied().0)
            .collect();
        assert_eq!(indexes, [20_000, 100]);
        assert!(exist(data.path()));
        let files = std::fs::read_dir(data.path().join(FOLDER)).expect("a folder").count();
        assert_eq!(files, 2, "what was unfinished is gone");
    }

    #[test]
    fn what_is_not_kept_leaves_nothing() {
        let data = tempfile::tempdir().expect("a folder");
        let snapshots = Snapshots::open(data.path()).expect("a folder");
        let files = || std::fs::read_dir(data.path().join(FOLDER)).expect("a folder").count();
        let mut cut_off = snapshots.receive().expect("room");
        cut_off.write(b"half").expect("written");
        assert_eq!(files(), 1);
        drop(cut_off);
        assert_eq!(files(), 0, "a transfer that ends early");
        let refused = snapshots.receive().expect("room").finish().expect("complete");
        let read_by_another = refused.clone();
        drop(refused);
        assert_eq!(files(), 1, "while someone holds it");
        drop(read_by_another);
        assert_eq!(files(), 0, "one that is not installed");
        let kept = snapshots.write(&meta(7), &state(7)).expect("written");
        drop(kept);
        assert_eq!(files(), 1);
    }

    #[test]
    fn every_flipped_byte_is_found() {
        let data = tempfile::tempdir().expect("a folder");
        let snapshots = Snapshots::open(data.path()).expect("a folder");
        let snapshot = snapshots.write(&meta(4), &state(4)).expect("written");
        let good = std::fs::read(snapshot.path()).expect("the file");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(snapshot.path(), bad).expect("written");
            let read = Snapshot::open(snapshot.path().to_owned()).expect("a file").read();
            assert!(read.is_err(), "byte {at} of {}", good.len());
        }
        std::fs::write(snapshot.path(), &good[..good.len() - 1]).expect("written");
        assert!(Snapshot::open(snapshot.path().to_owned()).expect("a file").read().is_err());
    }
}
