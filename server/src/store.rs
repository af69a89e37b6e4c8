//! What must outlive a power cut: the Raft log, the vote and who this server is, in redb.
//!
//! One blocking thread owns every write. It takes all that waits, puts it into one durable commit
//! and then completes the callbacks in order: that is the group commit. After the first error it
//! stops for good, because a failed fsync says nothing about what reached the disk.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use prometheus::Histogram;
use redb::{Database, DatabaseError, ReadableDatabase, TableDefinition};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use crate::planted::Planted;
use crate::snapshot::{self, sync_folder};

/// Who a data folder belongs to. A wiped folder gets a new id, and so can never vote twice.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Owner {
    /// The server's Raft id: random, never zero, drawn when the folder was made.
    pub server_id: u64,
    /// The cluster's UUID.
    pub cluster_id: String,
    /// The server's node name.
    pub node: String,
}

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{path}: another process uses this data folder: stop it first")]
    InUse {
        /// The file that is locked.
        path: PathBuf,
    },
    /// The file does not hold what was written to it.
    #[error(
        "{path} is damaged: {why}. Starting would lose acknowledged writes, so this server does \
         not start. To rebuild it from the other servers, move the folder {folder} away and start \
         again: the server joins as a new one under its old name"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The folder to move away.
        folder: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The folder was made for another cluster, by another operator key.
    #[error("{path} belongs to cluster {found}, and the operator key to {expected}")]
    OtherCluster {
        /// The file.
        path: PathBuf,
        /// The cluster that the folder belongs to.
        found: String,
        /// The cluster that the operator key belongs to.
        expected: String,
    },
    /// The folder was made by a server of another name.
    #[error("{path} belongs to node {found}, and this one is called {expected}")]
    OtherNode {
        /// The file.
        path: PathBuf,
        /// The node that the folder belongs to.
        found: String,
        /// This node's name.
        expected: String,
    },
    /// The disk refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// One entry of the log as it is stored: its index and its bytes.
pub type Record = (u64, Arc<[u8]>);

/// What is called once a write is on the disk, or never will be.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// A value that stands beside the log.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Slot {
    /// The vote.
    Vote,
    /// The last entry known to be committed.
    Committed,
    /// The last entry that was purged.
    Purged,
}

/// The log, the vote and the owner on disk.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    owner: Owner,
    database: Arc<Database>,
    shared: Arc<Mutex<Shared>>,
    jobs: Option<mpsc::Sender<Job>>,
    room: Arc<Semaphore>,
    failed: watch::Receiver<Option<Arc<str>>>,
    began: Began,
    planted: Arc<OnceLock<Planted>>,
    writer: Option<JoinHandle<()>>,
}

/// When the commit that is under way began.
type Began = Arc<Mutex<Option<Instant>>>;

/// What readers see beyond the last commit.
#[derive(Debug, Default)]
struct Shared {
    /// Entries that are appended and not yet durable.
    pending: BTreeMap<u64, Arc<[u8]>>,
    slots: BTreeMap<Slot, Vec<u8>>,
    last: Option<u64>,
    /// What was appended since the last purge, and at the start all that there was.
    bytes: u64,
}

struct Job {
    write: Write,
    done: Option<Done>,
    _room: OwnedSemaphorePermit,
}

enum Write {
    Append(Vec<Record>),
    Put(Slot, Vec<u8>),
    /// As `Put`, and it may wait for the next commit.
    PutLazily(Slot, Vec<u8>),
    TruncateAfter(Option<u64>),
    Purge {
        upto: u64,
        id: Vec<u8>,
    },
    Recover {
        server_id: u64,
        upto: u64,
        id: Vec<u8>,
    },
}

impl Store {
    /// Opens the store in `folder`, or makes one for `cluster_id` and `node`.
    ///
    /// Every record is read once and its checksum compared, so that a damaged file is found
    /// before the server votes. `fsync` observes how long each durable commit takes, in seconds.
    ///
    /// # Errors
    /// [`OpenError`], which names the file and what to do.
    pub fn open(
        folder: &Path,
        cluster_id: &str,
        node: &str,
        fsync: Histogram,
    ) -> Result<Self, OpenError> {
        let path = folder.join(FILE);
        let io = |source| OpenError::Io { path: path.clone(), source };
        std::fs::create_dir_all(folder).map_err(io)?;
        if !path.try_exists().map_err(io)? {
            if snapshot::exist(folder) {
                let why = "it is missing, and its snapshots are there".to_owned();
                return Err(OpenError::Damaged { path, folder: folder.to_owned(), why });
            }
            let owner = Owner {
                server_id: rand::random_range(1..=u64::MAX),
                cluster_id: cluster_id.to_owned(),
                node: node.to_owned(),
            };
            create(folder, &path, &owner).map_err(io)?;
        }
        let opened = Self::open_any(folder, fsync)?;
        let owner = opened.owner();
        if owner.cluster_id != cluster_id {
            let (found, expected) = (owner.cluster_id.clone(), cluster_id.to_owned());
            return Err(OpenError::OtherCluster { path, found, expected });
        }
        if owner.node != node {
            return Err(OpenError::OtherNode {
                path,
                found: owner.node.clone(),
                expected: node.to_owned(),
            });
        }

        Ok(opened)
    }

    /// Whether `folder` holds a store.
    pub fn exists(folder: &Path) -> bool {
        folder.join(FILE).is_file()
    }

    /// Opens the store that is in `folder`, whosever it is; otherwise as [`Self::open`].
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn open_any(folder: &Path, fsync: Histogram) -> Result<Self, OpenError> {
        let path = folder.join(FILE);
        let io = |source| OpenError::Io { path: path.clone(), source };
        let damaged =
            |why: String| OpenError::Damaged { path: path.clone(), folder: folder.to_owned(), why };
        let opened = catch_unwind(AssertUnwindSafe(|| load(&path)))
            .map_err(|_| damaged("its pages contradict each other".to_owned()))?;
        let Loaded { database, owner, slots, last, bytes } =
            opened.map_err(|failure| match failure {
                LoadError::InUse => OpenError::InUse { path: path.clone() },
                LoadError::Io(source) => io(source),
                LoadError::Damaged(why) => damaged(why),
            })?;
        let database = Arc::new(database);
        let shared = Shared { pending: BTreeMap::new(), slots, last, bytes };
        let shared = Arc::new(Mutex::new(shared));
        let (jobs, queue) = mpsc::channel();
        let (failing, failed) = watch::channel(None);
        let began = Began::default();
        let planted = Arc::<OnceLock<Planted>>::default();
        let writer = Writer {
            planted: Arc::clone(&planted),
            began: Arc::clone(&began),
            database: Arc::clone(&database),
            shared: Arc::clone(&shared),
            queue,
            failing,
            fsync,
        };
        let writer = std::thread::Builder::new()
            .name("raft-log".into())
            .spawn(|| writer.run())
            .map_err(io)?;
        let room = Arc::new(Semaphore::new(JOBS_MAX));
        let (jobs, writer) = (Some(jobs), Some(writer));
        Ok(Self { path, owner, database, shared, jobs, room, failed, began, planted, writer })
    }

    /// Gives it the bugs of `planted`, for a test.
    pub fn plant(&self, planted: Planted) {
        self.planted.get_or_init(|| planted);
    }

    /// Whose folder it is.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Becomes `Some` with the reason when a write fails: the process must end.
    pub fn failed(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.failed.clone()
    }

    /// For how long the disk has not finished the commit that is under way; zero when none is.
    pub fn busy(&self) -> Duration {
        let began = *self.began.lock().unwrap_or_else(PoisonError::into_inner);
        began.map_or(Duration::ZERO, |began| began.elapsed())
    }

    /// The index of the last entry, durable or not; `None` when there is none.
    pub fn last(&self) -> Option<u64> {
        self.shared().last
    }

    /// About how many bytes the log holds: all that was appended since it was purged last.
    pub fn log_bytes(&self) -> u64 {
        self.shared().bytes
    }

    /// The value in `slot`.
    pub fn slot(&self, slot: Slot) -> Option<Vec<u8>> {
        self.shared().slots.get(&slot).cloned()
    }

    /// Appends entries, whose indexes must follow each other; `done` is called once they are on
    /// the disk. They can be read as soon as this returns.
    ///
    /// # Errors
    /// The store failed before.
    pub async fn append(&self, records: Vec<Record>, done: Done) -> io::Result<()> {
        let room = self.room().await?;
        {
            let mut shared = self.shared();
            if let Some((index, _)) = records.last() {
                shared.last = Some(*index);
            }
            shared.bytes += records.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
            shared.pending.extend(records.iter().cloned());
        }
        self.send(Job { write: Write::Append(records), done: Some(done), _room: room })
    }

    /// Stores `value`; it is on the disk when this returns.
    ///
    /// # Errors
    /// The disk's, which is final.
    pub async fn put(&self, slot: Slot, value: Vec<u8>) -> io::Result<()> {
        self.finish(Write::Put(slot, value.clone())).await?;
        self.shared().slots.insert(slot, value);
        Ok(())
    }

    /// Stores `value` with the next commit, or within 50 ms.
    ///
    /// # Errors
    /// The store failed before.
    pub async fn put_lazily(&self, slot: Slot, value: Vec<u8>) -> io::Result<()> {
        let room = self.room().await?;
        self.shared().slots.insert(slot, value.clone());
        self.send(Job { write: Write::PutLazily(slot, value), done: None, _room: room })
    }

    /// Removes every entry after `after`; all of them when it is `None`. Durable on return.
    ///
    /// # Errors
    /// The disk's, which is final.
    pub async fn truncate_after(&self, after: Option<u64>) -> io::Result<()> {
        {
            let mut shared = self.shared();
            shared.pending.split_off(&after.map_or(0, |index| index.saturating_add(1)));
            shared.last = shared.last.min(after);
        }
        self.finish(Write::TruncateAfter(after)).await
    }

    /// Removes every entry up to and with `upto`, and remembers `id` as the last purged.
    ///
    /// # Errors
    /// The disk's, which is final.
    pub async fn purge(&self, upto: u64, id: Vec<u8>) -> io::Result<()> {
        self.finish(Write::Purge { upto, id: id.clone() }).await?;
        let mut shared = self.shared();
        shared.slots.insert(Slot::Purged, id);
        shared.bytes = 0;
        if shared.last.is_some_and(|last| last <= upto) {
            shared.last = None;
        }
        Ok(())
    }

    /// Gives the folder a new server's id and removes the log, which is in a snapshot up to `upto`,
    /// in one commit: durable on return. For a recovery alone; what is open still knows the old id.
    ///
    /// # Errors
    /// The disk's, which is final.
    pub async fn recover(&self, server_id: u64, upto: u64, id: Vec<u8>) -> io::Result<()> {
        self.finish(Write::Recover { server_id, upto, id }).await
    }

    /// The entries of `from..to` that are there, in order, as of one moment.
    ///
    /// At least one is returned when there is one; beyond that no more than `bytes_max` bytes.
    ///
    /// # Errors
    /// The disk's, a wrong checksum, or a hole.
    pub fn read(&self, from: u64, to: u64, bytes_max: usize) -> io::Result<Vec<Record>> {
        if from >= to {
            return Ok(Vec::new());
        }
        let (mut pending, view) = {
            let shared = self.shared();
            let pending: Vec<Record> = shared
                .pending
                .range(from..to)
                .map(|(index, bytes)| (*index, Arc::clone(bytes)))
                .collect();
            (pending, self.database.begin_read().map_err(other)?)
        };
        let durable_to = pending.first().map_or(to, |(index, _)| *index);
        let mut records: Vec<Record> = Vec::new();
        let mut bytes_read = 0_usize;
        let table = view.open_table(LOG).map_err(other)?;
        for row in table.range(from..durable_to).map_err(other)? {
            let (key, value) = row.map_err(other)?;
            let index = key.value();
            let payload = unseal(&index.to_le_bytes(), value.value())
                .ok_or_else(|| broken(format!("entry {index} has a wrong checksum")))?;
            expect_next(records.last(), index)?;
            bytes_read = bytes_read.saturating_add(payload.len());
            if bytes_read > bytes_max && !records.is_empty() {
                return Ok(records);
            }
            records.push((index, payload.into()));
        }
        for (index, bytes) in pending.drain(..) {
            expect_next(records.last(), index)?;
            bytes_read = bytes_read.saturating_add(bytes.len());
            if bytes_read > bytes_max && !records.is_empty() {
                return Ok(records);
            }
            records.push((index, bytes));
        }
        Ok(records)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn room(&self) -> io::Result<OwnedSemaphorePermit> {
        Arc::clone(&self.room).acquire_owned().await.map_err(other)
    }

    fn send(&self, job: Job) -> io::Result<()> {
        let stopped = || broken("a write failed before, or the store is closed".to_owned());
        self.jobs.as_ref().ok_or_else(stopped)?.send(job).map_err(|_| stopped())
    }

    async fn finish(&self, write: Write) -> io::Result<()> {
        let room = self.room().await?;
        let (tell, told) = oneshot::channel();
        let done: Done = Box::new(move |outcome| drop(tell.send(outcome)));
        self.send(Job { write, done: Some(done), _room: room })?;
        told.await.map_err(|_| broken("the writer ended".to_owned()))?
    }
}

impl Drop for Store {
    /// Waits for what was handed over, so that the file is closed when the store is gone.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            drop(writer.join());
        }
    }
}

struct Writer {
    planted: Arc<OnceLock<Planted>>,
    database: Arc<Database>,
    shared: Arc<Mutex<Shared>>,
    queue: mpsc::Receiver<Job>,
    failing: watch::Sender<Option<Arc<str>>>,
    began: Began,
    fsync: Histogram,
}

impl Writer {
    fn run(self) {
        let mut lazy: BTreeMap<Slot, Vec<u8>> = BTreeMap::new();
        loop {
            let first = if lazy.is_empty() {
                match self.queue.recv() {
                    Ok(job) => Some(job),
                    Err(mpsc::RecvError) => return,
                }
            } else {
                self.queue.recv_timeout(LAZY_MAX).ok()
            };
            // No job means that those that wait for company waited long enough.
            let is_late = first.is_none();
            let mut batch: Vec<Job> = first.into_iter().collect();
            batch.extend(self.queue.try_iter().take(BATCH_MAX));
            batch.retain_mut(|job| match &mut job.write {
                Write::PutLazily(slot, value) => {
                    lazy.insert(*slot, std::mem::take(value));
                    false
                }
                _ => true,
            });
            if batch.is_empty() && !is_late {
                continue;
            }
            self.err_as_planted(&mut batch);
            let began = Instant::now();
            self.mark(Some(began));
            let outcome = self.commit(&batch, &lazy);
            self.mark(None);
            self.fsync.observe(began.elapsed().as_secs_f64());
            lazy.clear();
            match outcome {
                Ok(()) => self.complete(batch),
                Err(failure) => return self.fail(batch, &failure),
            }
        }
    }

    /// Acknowledges entries that are not on the disk, and dawdles, where that bug is planted.
    fn err_as_planted(&self, batch: &mut [Job]) {
        if !self.planted.get().is_some_and(|planted| planted.acks_early()) {
            return;
        }
        let appends = batch.iter_mut().filter(|job| matches!(job.write, Write::Append(_)));
        let early: Vec<Done> = appends.filter_map(|job| job.done.take()).collect();
        let is_any = !early.is_empty();
        early.into_iter().for_each(|done| done(Ok(())));
        if is_any {
            std::thread::sleep(PLANTED_DELAY);
        }
    }

    fn mark(&self, began: Option<Instant>) {
        *self.began.lock().unwrap_or_else(PoisonError::into_inner) = began;
    }

    fn commit(&self, batch: &[Job], lazy: &BTreeMap<Slot, Vec<u8>>) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut log = transaction.open_table(LOG)?;
            let mut slots = transaction.open_table(SLOTS)?;
            for (slot, value) in lazy {
                let key = slot.key();
                slots.insert(key, seal(key.as_bytes(), value).as_slice())?;
            }
            for job in batch {
                match &job.write {
                    Write::Append(records) => {
                        for (index, payload) in records {
                            log.insert(*index, seal(&index.to_le_bytes(), payload).as_slice())?;
                        }
                    }
                    Write::Put(slot, value) | Write::PutLazily(slot, value) => {
                        let key = slot.key();
                        slots.insert(key, seal(key.as_bytes(), value).as_slice())?;
                    }
                    Write::TruncateAfter(after) => {
                        let first = after.map_or(0, |index| index.saturating_add(1));
                        log.retain_in(first.., |_, _| false)?;
                    }
                    Write::Purge { upto, id } => {
                        log.retain_in(..=*upto, |_, _| false)?;
                        let key = Slot::Purged.key();
                        slots.insert(key, seal(key.as_bytes(), id).as_slice())?;
                    }
                    Write::Recover { server_id, upto, id } => {
                        log.retain_in(..=*upto, |_, _| false)?;
                        for slot in [Slot::Purged, Slot::Committed] {
                            let key = slot.key();
                            slots.insert(key, seal(key.as_bytes(), id).as_slice())?;
                        }
                        let (key, id) = ("server_id", server_id.to_string());
                        let sealed = seal(key.as_bytes(), id.as_bytes());
                        transaction.open_table(OWNER)?.insert(key, sealed.as_slice())?;
                    }
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }

    fn complete(&self, batch: Vec<Job>) {
        {
            let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            for job in &batch {
                let Write::Append(records) = &job.write else { continue };
                for (index, bytes) in records {
                    // A truncation may have made room for another entry at this index meanwhile.
                    if shared.pending.get(index).is_some_and(|held| Arc::ptr_eq(held, bytes)) {
                        shared.pending.remove(index);
                    }
                }
            }
        }
        for job in batch {
            if let Some(done) = job.done {
                done(Ok(()));
            }
        }
    }

    fn fail(self, batch: Vec<Job>, failure: &redb::Error) {
        let why: Arc<str> = failure.to_string().into();
        tracing::error!(error = %why, "the Raft log cannot be written: this server must stop");
        self.failing.send_replace(Some(Arc::clone(&why)));
        for job in batch.into_iter().chain(self.queue.try_iter()) {
            if let Some(done) = job.done {
                done(Err(broken(why.to_string())));
            }
        }
    }
}

impl Slot {
    const fn key(self) -> &'static str {
        match self {
            Self::Vote => "vote",
            Self::Committed => "committed",
            Self::Purged => "purged",
        }
    }
}

/// Makes the file under another name first, so that there is never half a store.
fn create(folder: &Path, path: &Path, owner: &Owner) -> io::Result<()> {
    let unfinished = folder.join(format!("{FILE}.tmp"));
    match std::fs::remove_file(&unfinished) {
        Err(failure) if failure.kind() != io::ErrorKind::NotFound => return Err(failure),
        _ => {}
    }
    {
        let database = Database::create(&unfinished).map_err(other)?;
        let transaction = database.begin_write().map_err(other)?;
        {
            transaction.open_table(LOG).map_err(other)?;
            transaction.open_table(SLOTS).map_err(other)?;
            let mut table = transaction.open_table(OWNER).map_err(other)?;
            let id = owner.server_id.to_string();
            let rows =
                [("server_id", &id), ("cluster_id", &owner.cluster_id), ("node", &owner.node)];
            for (key, value) in rows {
                let sealed = seal(key.as_bytes(), value.as_bytes());
                table.insert(key, sealed.as_slice()).map_err(other)?;
            }
        }
        transaction.commit().map_err(other)?;
    }
    OpenOptions::new().write(true).open(&unfinished)?.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    sync_folder(folder)?;
    folder.parent().map_or(Ok(()), sync_folder)
}

struct Loaded {
    database: Database,
    owner: Owner,
    slots: BTreeMap<Slot, Vec<u8>>,
    last: Option<u64>,
    bytes: u64,
}

enum LoadError {
    InUse,
    Io(io::Error),
    Damaged(String),
}

impl<E: Into<redb::Error>> From<E> for LoadError {
    fn from(failure: E) -> Self {
        match failure.into() {
            redb::Error::DatabaseAlreadyOpen => Self::InUse,
            // Bytes that are no database and files cut short are reported as these two.
            redb::Error::Io(source)
                if !matches!(
                    source.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ) =>
            {
                Self::Io(source)
            }
            failure => Self::Damaged(failure.to_string()),
        }
    }
}

fn load(path: &Path) -> Result<Loaded, LoadError> {
    let mut database = Database::builder().set_cache_size(CACHE_BYTES).open(path)?;
    let Scanned { owner, slots, last, bytes } = scan(&database)?;
    let intact = match database.check_integrity() {
        Ok(intact) => intact,
        Err(DatabaseError::Storage(redb::StorageError::Io(source))) => {
            return Err(LoadError::Io(source));
        }
        Err(failure) => return Err(LoadError::Damaged(failure.to_string())),
    };
    if !intact {
        // What broke was bookkeeping, now made anew; it must not have cost a record.
        tracing::warn!(path = %path.display(), "free-space records were damaged and are rebuilt");
        let again = scan(&database)?;
        if (again.owner, again.slots, again.last) != (owner.clone(), slots.clone(), last) {
            return Err(LoadError::Damaged("records vanished when it was repaired".to_owned()));
        }
    }
    Ok(Loaded { database, owner, slots, last, bytes })
}

struct Scanned {
    owner: Owner,
    slots: BTreeMap<Slot, Vec<u8>>,
    last: Option<u64>,
    bytes: u64,
}

/// Reads every record: checksums must fit, and indexes follow each other.
fn scan(database: &Database) -> Result<Scanned, LoadError> {
    let view = database.begin_read()?;
    let mut texts = Vec::new();
    {
        let table = view.open_table(OWNER)?;
        for key in ["server_id", "cluster_id", "node"] {
            let sealed =
                table.get(key)?.ok_or_else(|| LoadError::Damaged(format!("{key} is missing")))?;
            let text = unseal(key.as_bytes(), sealed.value())
                .and_then(|bytes| String::from_utf8(bytes.to_vec()).ok())
                .ok_or_else(|| LoadError::Damaged(format!("{key} has a wrong checksum")))?;
            texts.push(text);
        }
    }
    let Ok([server_id, cluster_id, node]) = <[String; 3]>::try_from(texts) else {
        return Err(LoadError::Damaged("the owner is incomplete".to_owned()));
    };
    let server_id = server_id
        .parse()
        .map_err(|_| LoadError::Damaged(format!("server id {server_id:?} is no number")))?;

    let mut slots = BTreeMap::new();
    let table = view.open_table(SLOTS)?;
    for slot in [Slot::Vote, Slot::Committed, Slot::Purged] {
        let key = slot.key();
        let Some(sealed) = table.get(key)? else { continue };
        let value = unseal(key.as_bytes(), sealed.value())
            .ok_or_else(|| LoadError::Damaged(format!("{key} has a wrong checksum")))?;
        slots.insert(slot, value.to_vec());
    }

    let (mut last, mut bytes) = (None::<u64>, 0);
    for row in view.open_table(LOG)?.range::<u64>(..)? {
        let (key, value) = row?;
        let index = key.value();
        if unseal(&index.to_le_bytes(), value.value()).is_none() {
            return Err(LoadError::Damaged(format!("log entry {index} has a wrong checksum")));
        }
        if let Some(before) = last
            && before.checked_add(1) != Some(index)
        {
            let why = format!("log entries between {before} and {index} are missing");
            return Err(LoadError::Damaged(why));
        }
        last = Some(index);
        bytes += value.value().len() as u64;
    }
    Ok(Scanned { owner: Owner { server_id, cluster_id, node }, slots, last, bytes })
}

/// `payload` behind a checksum over it and its key, so that a value in another's place is found.
fn seal(key: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(CHECKSUM_BYTES + payload.len());
    sealed.extend_from_slice(&checksum(key, payload).to_le_bytes());
    sealed.extend_from_slice(payload);
    sealed
}

fn unseal<'a>(key: &[u8], sealed: &'a [u8]) -> Option<&'a [u8]> {
    let (stated, payload) = sealed.split_first_chunk::<CHECKSUM_BYTES>()?;
    (u32::from_le_bytes(*stated) == checksum(key, payload)).then_some(payload)
}

fn checksum(key: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(payload);
    hasher.finalize()
}

fn expect_next(before: Option<&Record>, index: u64) -> io::Result<()> {
    match before {
        Some((before, _)) if before.checked_add(1) != Some(index) => {
            Err(broken(format!("the log has a hole between {before} and {index}")))
        }
        _ => Ok(()),
    }
}

fn broken(why: String) -> io::Error {
    io::Error::other(why)
}

fn other(failure: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::other(failure)
}

const FILE: &str = "raft.redb";
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const SLOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("slots");
const OWNER: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("owner");
const CHECKSUM_BYTES: usize = 4;
const CACHE_BYTES: usize = 32 << 20;
/// Writes that wait at once, and those of them that go into one commit.
const JOBS_MAX: usize = 1_024;
const BATCH_MAX: usize = 1_023;
/// How long the committed position may be older on disk than in memory.
const LAZY_MAX: Duration = Duration::from_millis(50);
/// How long what was acknowledged too early is in memory alone, where that bug is planted.
const PLANTED_DELAY: Duration = Duration::from_millis(400);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn fsync() -> Histogram {
        Histogram::with_opts(prometheus::HistogramOpts::new("t", "t")).expect("a valid name")
    }

    fn open(folder: &Path) -> Result<Store, OpenError> {
        Store::open(folder, "c1", "s1", fsync())
    }

    async fn append(store: &Store, records: Vec<Record>) {
        let (tell, told) = oneshot::channel();
        let done: Done = Box::new(move |outcome| drop(tell.send(outcome)));
        store.append(records, done).await.expect("room");
        told.await.expect("an answer").expect("durable");
    }

    fn entry(index: u64, byte: u8, length: usize) -> Record {
        (index, vec![byte; length].into())
    }

    #[tokio::test]
    async fn what_was_written_is_there_after_opening_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open(folder.path()).expect("a new store");
        let owner = store.owner().clone();
        append(&store, (0..10).map(|index| entry(index, 7, 100)).collect()).await;
        store.put(Slot::Vote, b"v".to_vec()).await.expect("stored");
        store.put_lazily(Slot::Committed, b"c".to_vec()).await.expect("queued");
        store.truncate_after(Some(7)).await.expect("cut");
        append(&store, vec![entry(8, 9, 3)]).await;
        store.purge(2, b"p".to_vec()).await.expect("purged");
        drop(store);

        let store = open(folder.path()).expect("the same store");
        assert_eq!(store.owner(), &owner);
        assert_eq!(store.last(), Some(8));
        assert_eq!(store.slot(Slot::Vote).as_deref(), Some(&b"v"[..]));
        assert_eq!(store.slot(Slot::Committed).as_deref(), Some(&b"c"[..]));
        assert_eq!(store.slot(Slot::Purged).as_deref(), Some(&b"p"[..]));
        let records = store.read(0, 100, usize::MAX).expect("readable");
        let indexes: Vec<u64> = records.iter().map(|(index, _)| *index).collect();
        assert_eq!(indexes, [3, 4, 5, 6, 7, 8]);
        assert_eq!(records.last(), Some(&entry(8, 9, 3)));
        assert_eq!(store.read(3, 9, 150).expect("readable").len(), 1, "a bound holds");
    }

    #[tokio::test]
    async fn a_folder_of_another_owner_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        drop(open(folder.path()).expect("a new store"));
        let other_cluster = Store::open(folder.path(), "c2", "s1", fsync());
        assert!(matches!(other_cluster, Err(OpenError::OtherCluster { .. })));
        let other_node = Store::open(folder.path(), "c1", "s2", fsync());
        assert!(matches!(other_node, Err(OpenError::OtherNode { .. })));
        let _held = open(folder.path()).expect("its own");
        assert!(matches!(open(folder.path()), Err(OpenError::InUse { .. })));
    }

    #[tokio::test]
    async fn damage_is_refused_or_harmless_but_never_loses_an_entry() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open(folder.path()).expect("a new store");
        let expected: Vec<Record> =
            (0..64).map(|index| entry(index, (index % 251) as u8, 3_000)).collect();
        append(&store, expected.clone()).await;
        drop(store);
        let path = folder.path().join(FILE);
        let good = std::fs::read(&path).expect("the file");
        let mut refused = 0;
        for at in (0..good.len()).step_by(16_411) {
            let file = OpenOptions::new().write(true).open(&path).expect("the file");
            file.write_all_at(&[good[at] ^ 0x40], at as u64).expect("a flipped bit");
            match open(folder.path()) {
                Ok(store) => {
                    assert_eq!(store.read(0, 64, usize::MAX).expect("readable"), expected, "{at}");
                }
                Err(OpenError::Damaged { .. }) => refused += 1,
                Err(failure) => panic!("byte {at}: {failure}"),
            }
            std::fs::write(&path, &good).expect("the file as it was");
        }
        assert!(refused > 0, "no flip hit a record");
        for length in [0, 100, 4_096, good.len() / 2, good.len() - 4_096] {
            std::fs::write(&path, &good[..length]).expect("a file cut short");
            let failure = open(folder.path()).map(|_| ()).expect_err("a cut file").to_string();
            assert!(failure.contains("raft.redb is damaged"), "{length}: {failure}");
        }
    }
}
