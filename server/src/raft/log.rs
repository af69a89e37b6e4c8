//! openraft's log storage on the [`Store`].

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use prost::Message;

use super::types::{
    Entry, LogId, Types, Vote, entry_from, entry_to, log_id_from, log_id_to, vote_from, vote_to,
};
use crate::store::{Record, Slot, Store};
use hawser_proto::v1;

/// The log as openraft sees it. Clones share one store.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    store: Arc<Store>,
}

impl Log {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    fn purged(&self) -> io::Result<Option<LogId>> {
        self.log_id_in(Slot::Purged)
    }

    fn log_id_in(&self, slot: Slot) -> io::Result<Option<LogId>> {
        let Some(bytes) = self.store.slot(slot) else { return Ok(None) };
        Ok(Some(log_id_from(v1::LogId::decode(bytes.as_slice())?)))
    }

    fn entries(&self, from: u64, to: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        self.store.read(from, to, bytes_max)?.iter().map(decode).collect()
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let from = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(index) => index.saturating_add(1),
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        self.entries(from, to, usize::MAX)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        let Some(bytes) = self.store.slot(Slot::Vote) else { return Ok(None) };
        let vote = v1::Vote::decode(bytes.as_slice())?;
        vote_from(Some(vote)).map(Some).map_err(io::Error::other)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.entries(start, end, APPEND_BYTES_MAX)
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let last_purged_log_id = self.purged()?;
        let last = match self.store.last() {
            Some(last) => self.entries(last, last.saturating_add(1), usize::MAX)?.pop(),
            None => None,
        };
        let last_log_id = last.map(|entry| entry.log_id).or(last_purged_log_id);
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.store.put(Slot::Vote, vote_to(vote).encode_to_vec()).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let Some(committed) = committed else { return Ok(()) };
        self.store.put_lazily(Slot::Committed, log_id_to(&committed).encode_to_vec()).await
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        self.log_id_in(Slot::Committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let records: Vec<Record> = entries.into_iter().map(|entry| encode(&entry)).collect();
        let done = Box::new(move |outcome| callback.io_completed(outcome));
        self.store.append(records, done).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.store.truncate_after(last.map(|id| id.index)).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.store.purge(upto.index, log_id_to(&upto).encode_to_vec()).await
    }
}

fn encode(entry: &Entry) -> Record {
    (entry.log_id.index, entry_to(entry).encode_to_vec().into())
}

fn decode((index, bytes): &Record) -> io::Result<Entry> {
    let refused = |why: &dyn std::fmt::Display| {
        let text = format!("log entry {index} cannot be read by this release: {why}");
        io::Error::new(io::ErrorKind::InvalidData, text)
    };
    let entry = v1::LogEntry::decode(&**bytes).map_err(|why| refused(&why))?;
    entry_from(entry).map_err(|why| refused(&why))
}

/// The most that one message to a follower carries, unless one entry alone is larger.
const APPEND_BYTES_MAX: usize = 1 << 20;
