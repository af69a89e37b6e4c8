//! Writes to a store until the power is cut, and says afterwards whether it kept its word.
//!
//! `powercut FOLDER` appends batches of entries and prints the index of each as soon as it is on
//! the disk. `powercut FOLDER --verify N` opens the store again: exit 0 when the entries `1..=N`
//! are there and intact, 1 with the reason otherwise. `--purge` while writing also purges, as
//! snapshots do, keeping the newest 2,000 entries; then `--verify N` asks for those that are left.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use hawser_server::store::{Record, Slot, Store};
use prometheus::{Histogram, HistogramOpts};
use tokio::sync::mpsc;

#[tokio::main]
async fn main() -> ExitCode {
    let mut folder: Option<PathBuf> = None;
    let (mut verify, mut purge) = (None, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--verify" => match arguments.next().and_then(|number| number.parse::<u64>().ok()) {
                Some(number) => verify = Some(number),
                None => return usage(),
            },
            "--purge" => purge = true,
            _ if folder.is_none() => folder = Some(argument.into()),
            _ => return usage(),
        }
    }
    let Some(folder) = folder else { return usage() };
    let outcome = match verify {
        Some(upto) => check(&folder, upto),
        None => write(&folder, purge).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => say(&mut std::io::stderr(), &why, ExitCode::FAILURE),
    }
}

fn usage() -> ExitCode {
    let text = "usage: powercut FOLDER [--purge | --verify N]";
    say(&mut std::io::stderr(), text, ExitCode::from(2))
}

fn say(to: &mut impl Write, text: &str, code: ExitCode) -> ExitCode {
    match writeln!(to, "{text}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

fn open(folder: &std::path::Path) -> Result<Store, String> {
    let options = HistogramOpts::new("fsync", "How long a commit takes.");
    let fsync = Histogram::with_opts(options).map_err(|failure| failure.to_string())?;
    Store::open(folder, "powercut", "powercut", fsync).map_err(|failure| failure.to_string())
}

async fn write(folder: &std::path::Path, purge: bool) -> Result<(), String> {
    let store = Arc::new(open(folder)?);
    let mut failed = store.failed();
    // Several batches are on their way at once, as from a busy leader.
    let (acked, mut acks) = mpsc::channel::<Result<u64, String>>(IN_FLIGHT);
    let printer = tokio::task::spawn_blocking(move || {
        let mut out = std::io::stdout().lock();
        while let Some(ack) = acks.blocking_recv() {
            let line = format!("{}\n", ack?);
            out.write_all(line.as_bytes()).map_err(|failure| failure.to_string())?;
            out.flush().map_err(|failure| failure.to_string())?;
        }
        Ok(())
    });
    let mut next = store.last().map_or(1, |last| last + 1);
    let mut since_vote = 0;
    while !printer.is_finished() && failed.borrow_and_update().is_none() {
        let count = 1 + hash(next) % 8;
        let records: Vec<Record> =
            (next..next + count).map(|index| (index, payload(index).into())).collect();
        let last = next + count - 1;
        // The printer ends at the first write that failed, and says why below.
        let Ok(permit) = acked.clone().reserve_owned().await else { break };
        let done = Box::new(move |outcome: std::io::Result<()>| {
            permit.send(outcome.map(|()| last).map_err(|failure| failure.to_string()));
        });
        if store.append(records, done).await.is_err() {
            break;
        }
        since_vote += 1;
        if since_vote == 50 {
            since_vote = 0;
            let vote = store.put(Slot::Vote, last.to_le_bytes().to_vec()).await;
            vote.map_err(|failure| failure.to_string())?;
            if purge && last > KEPT {
                let upto = last - KEPT;
                let purged = store.purge(upto, upto.to_le_bytes().to_vec()).await;
                purged.map_err(|failure| failure.to_string())?;
            }
        }
        next += count;
    }
    drop(acked);
    printer.await.map_err(|failure| failure.to_string())?
}

fn check(folder: &std::path::Path, upto: u64) -> Result<(), String> {
    let store = open(folder)?;
    let purged = match store.slot(Slot::Purged) {
        Some(bytes) => bytes.try_into().map(u64::from_le_bytes).map_err(|_| "a bad slot")?,
        None => 0,
    };
    if store.last().unwrap_or(purged) < upto {
        return Err(format!("lost: entry {upto} was acknowledged, the last is {:?}", store.last()));
    }
    for from in (purged + 1..=upto).step_by(64) {
        let to = (from + 64).min(upto + 1);
        let records = store.read(from, to, usize::MAX).map_err(|failure| failure.to_string())?;
        if records.len() as u64 != to - from {
            return Err(format!("lost: entries {from}..{to} are {} only", records.len()));
        }
        for (index, bytes) in records {
            if *bytes != *payload(index) {
                return Err(format!("entry {index} is not what was written"));
            }
        }
    }
    Ok(())
}

/// What entry `index` holds: mostly small, now and then up to 100 kB.
fn payload(index: u64) -> Vec<u8> {
    let drawn = hash(index);
    let length = match drawn % 20 {
        0 => 10 + drawn / 20 % 100_000,
        1..=4 => 10 + drawn / 20 % 10_000,
        _ => 10 + drawn / 20 % 500,
    };
    (0..length).map(|at| hash(index ^ (at / 8) << 32).to_le_bytes()[(at % 8) as usize]).collect()
}

/// `SplitMix64`: the same on every run.
fn hash(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

const IN_FLIGHT: usize = 32;
const KEPT: u64 = 2_000;
