//! Clients that read, write, swap and watch a few keys for as long as a history lasts.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::model::{Done, Event};

/// What the clients of one history share.
pub(super) struct Play {
    /// What its keys begin with.
    name: String,
    /// Where the servers answer.
    servers: Vec<SocketAddr>,
    next_value: AtomicU64,
    written: AtomicUsize,
    is_over: AtomicBool,
    /// The index of the watched key's last change, once no more come.
    last: AtomicU64,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    events: Vec<Event>,
    /// Which value was shown as of which index, of each key.
    shown: BTreeMap<(usize, u64), u64>,
    faults: Vec<String>,
}

/// What a server answered.
struct Answer {
    status: u16,
    index: u64,
    body: String,
}

/// Why there is no answer.
enum Silence {
    /// Nobody was asked.
    Unreached,
    /// The outcome is unknown.
    Unknown,
}

impl Play {
    pub(super) fn new(name: String, servers: Vec<SocketAddr>) -> Self {
        Self {
            name,
            servers,
            next_value: AtomicU64::new(1),
            written: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
            last: AtomicU64::new(0),
            told: Mutex::default(),
        }
    }

    /// Waits until `count` more writes were acknowledged, or for `most`: whether they were.
    pub(super) fn advances(&self, count: usize, most: Duration) -> bool {
        let (began, goal) = (Instant::now(), self.written.load(Ordering::Relaxed) + count);
        while self.written.load(Ordering::Relaxed) < goal {
            if began.elapsed() > most {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Runs clients and watchers while `faults` runs; what happened, and what was shown that
    /// should not have been.
    pub(super) fn run(&self, faults: impl FnOnce(&Self)) -> (Vec<Event>, Vec<String>) {
        std::thread::scope(|scope| {
            for seed in 0..CLIENTS {
                scope.spawn(move || self.client(seed));
            }
            for first in 0..WATCHERS {
                scope.spawn(move || self.watch(first));
            }
            faults(self);
            self.is_over.store(true, Ordering::Relaxed);
            self.settle();
        });
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let Told { events, shown: _, faults } = std::mem::take(&mut *told);
        (events, faults)
    }

    /// Finds out what the watchers must see before they may end.
    fn settle(&self) {
        let deadline = Instant::now() + SETTLED_WITHIN;
        let mut turn = 0;
        while Instant::now() < deadline {
            turn += 1;
            // What was under way when the clients ended may still be written.
            if let Some((_, index)) = self.read(turn % self.servers.len(), WATCHED) {
                self.last.store(index.max(1), Ordering::Relaxed);
                return;
            }
        }
        self.fault("nothing could be read after all was healed".to_owned());
        self.last.store(1, Ordering::Relaxed);
    }

    fn client(&self, seed: u64) {
        let mut draw = Draw(seed * 7_919 + self.servers.len() as u64);
        while !self.is_over.load(Ordering::Relaxed) {
            let server = draw.below(self.servers.len());
            let key = draw.below(KEYS);
            match draw.below(10) {
                0..4 => drop(self.read(server, key)),
                4..7 => self.write(server, key, None),
                _ => {
                    if let Some(held) = self.read(server, key) {
                        let server = draw.below(self.servers.len());
                        self.write(server, key, Some(held));
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(10 + draw.below(30) as u64));
        }
    }

    /// Reads by a quorum's word: the value and the index of the write that stored it.
    fn read(&self, server: usize, key: usize) -> Option<(u64, u64)> {
        let called = Instant::now();
        let target = format!("{}?consistent", self.path(key));
        let answer = ask(self.servers[server], "GET", &target, "", PATIENCE).ok()?;
        let read = parse(&answer)?;
        self.note(Event { key, called, told: Some(Instant::now()), done: Done::Read(read.0) });
        self.shows(key, read);
        Some(read)
    }

    fn write(&self, server: usize, key: usize, held: Option<(u64, u64)>) {
        let to = self.next_value.fetch_add(1, Ordering::Relaxed);
        let mut target = self.path(key);
        if let Some((_, index)) = held {
            target.push_str(&format!("?cas={index}"));
        }
        let called = Instant::now();
        let answer = ask(self.servers[server], "PUT", &target, &to.to_string(), PATIENCE);
        let (told, is_done) = match answer {
            Err(Silence::Unreached) => return,
            Ok(Answer { status: 200, body, .. }) => (Some(Instant::now()), body.trim() == "true"),
            // Whether it happened is for the history to say.
            Ok(_) | Err(Silence::Unknown) => (None, true),
        };
        let done = match held {
            None => Done::Wrote(to),
            Some((from, _)) if told.is_none() => Done::MaySwap { from, to },
            Some((from, _)) => Done::Swapped { from, to, is_done },
        };
        self.note(Event { key, called, told, done });
        if told.is_some() {
            self.written.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Watches one key: it never goes back, shows no change twice and does not miss the last one.
    fn watch(&self, first: usize) {
        let (mut server, mut asked, mut seen) = (first, 0, 0);
        let mut deadline = None;
        loop {
            let last = self.last.load(Ordering::Relaxed);
            if last > 0 && seen >= last {
                return;
            }
            if last > 0 && *deadline.get_or_insert(Instant::now() + SETTLED_WITHIN) < Instant::now()
            {
                self.fault(format!("a watch saw {seen} and never {last}, the last change"));
                return;
            }
            let target = format!("{}?index={asked}&wait=300ms", self.path(WATCHED));
            let answer = ask(self.servers[server], "GET", &target, "", WATCH_PATIENCE);
            let read = answer.ok().and_then(|answer| Some((answer.index, parse(&answer)?)));
            let Some((index, (value, modified))) = read else {
                server = (server + 1) % self.servers.len();
                std::thread::sleep(Duration::from_millis(20));
                continue;
            };
            self.shows(WATCHED, (value, modified));
            if modified < seen || index < asked {
                self.fault(format!("a watch went back: {seen} to {modified}, {asked} to {index}"));
            }
            if index > asked && asked > 0 && modified == seen && seen > 0 {
                self.fault(format!("a watch showed the change {seen} twice: {asked} to {index}"));
            }
            (asked, seen) = (index, modified);
        }
    }

    /// One index is of one write, whoever reads it.
    fn shows(&self, key: usize, (value, index): (u64, u64)) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let held = *told.shown.entry((key, index)).or_insert(value);
        if held != value && index > 0 {
            told.faults.push(format!("index {index} of key {key} showed {held}, and {value}"));
        }
    }

    fn path(&self, key: usize) -> String {
        format!("/v1/kv/{}/{key}", self.name)
    }

    fn note(&self, event: Event) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).events.push(event);
    }

    fn fault(&self, what: String) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).faults.push(what);
    }
}

/// The value of a key and the index of its last change; zeros while it is not there.
fn parse(answer: &Answer) -> Option<(u64, u64)> {
    match answer.status {
        404 => Some((0, 0)),
        200 => {
            let rows: Value = serde_json::from_str(&answer.body).ok()?;
            let value = STANDARD.decode(rows[0]["Value"].as_str()?).ok()?;
            let value = std::str::from_utf8(&value).ok()?.parse().ok()?;
            Some((value, rows[0]["ModifyIndex"].as_u64()?))
        }
        _ => None,
    }
}

fn ask(
    to: SocketAddr,
    method: &str,
    target: &str,
    body: &str,
    patience: Duration,
) -> Result<Answer, Silence> {
    let socket = TcpStream::connect_timeout(&to, patience).map_err(|_| Silence::Unreached)?;
    answer(socket, to, method, target, body, patience).ok_or(Silence::Unknown)
}

fn answer(
    mut socket: TcpStream,
    to: SocketAddr,
    method: &str,
    target: &str,
    body: &str,
    patience: Duration,
) -> Option<Answer> {
    socket.set_read_timeout(Some(patience)).ok()?;
    write!(
        socket,
        "{method} {target} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .ok()?;
    let mut whole = String::new();
    socket.read_to_string(&mut whole).ok()?;
    let (head, body) = whole.split_once("\r\n\r\n")?;
    let index = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("x-consul-index").then(|| value.trim().parse().ok())?
    });
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, index: index.unwrap_or(0), body: body.to_owned() })
}

/// Numbers that look random, the same for the same seed (SplitMix64).
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}

const CLIENTS: u64 = 5;
const WATCHERS: usize = 2;
const KEYS: usize = 4;
/// The key that is watched.
const WATCHED: usize = 0;
/// How long a client waits for an answer before it goes on without.
const PATIENCE: Duration = Duration::from_secs(1);
const WATCH_PATIENCE: Duration = Duration::from_secs(3);
/// How long a loaded machine may need to come back once nothing is cut any more.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);
