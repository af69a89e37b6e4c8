//! `cargo xtask powercut`: cuts the power under the server's store and counts what was lost.
//!
//! The store lies on a file system in a loop-mounted image. `xfs_io -x -c shutdown` stops that file
//! system without writing out its log: what nobody synced is gone, as after a power cut. Then the
//! writer is killed, the image mounted again (its journal is replayed), and the store must hold
//! every write that was acknowledged. Two controls show that the cut cuts, and only what it should.
//!
//! Half of the cuts fall into the midst of the writer's work, and half on a writer that was stopped
//! first. The kernel may answer an `fdatasync` under way with success although the shutdown overtook
//! it (in 3 of 150 cuts under a bare loop of `pwrite` and `fdatasync`, the last one was gone), which
//! no power cut does. So in the midst of the work only what was acknowledged before the cut counts;
//! of a stopped writer, everything.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hawser_rig::process::told;
use hawser_rig::wait_for;
use rustix::process::{Pid, Signal, kill_process};

use crate::hosts::target;
use crate::step::{cargo, run as shown};

/// Cuts `cuts` times and prints the figure last.
///
/// # Errors
/// Not root, a control fails, a write is lost, or the store does not open.
pub(crate) fn run(root: &Path, cuts: u32) -> Result<()> {
    shown(&mut cargo(root, &["build", "--package", "hawser-server", "--example", "powercut"]))?;
    let writer = target(root).join("debug/examples/powercut");
    let folder = std::env::temp_dir().join(format!("hawser-powercut-{}", std::process::id()));
    let disk = Disk::make(&folder)?;
    control_synced(&disk)?;
    control_unsynced(&disk)?;
    let store = disk.mounted.join("store");
    let mut acknowledged = 0;
    for cut in 1..=cuts {
        let before = acknowledged;
        acknowledged = write_until_cut(&disk, &writer, &store, before, u64::from(cut))?;
        ensure!(
            acknowledged > before,
            "cut {cut}: the writer acknowledged nothing new after {before}"
        );
        disk.restore()?;
        let mut verify = Command::new(&writer);
        verify.arg(&store).arg("--verify").arg(acknowledged.to_string());
        shown(&mut verify).with_context(|| {
            format!("cut {cut} LOST some of {acknowledged} acknowledged writes, or the store")
        })?;
        println!("cut {cut}: {} writes acknowledged, all there", acknowledged - before);
    }
    println!("{cuts} cuts, {acknowledged} acknowledged writes, 0 lost");
    Ok(())
}

/// Runs the writer until it has acknowledged some writes, cuts, and returns the last acknowledged.
fn write_until_cut(disk: &Disk, writer: &Path, store: &Path, before: u64, cut: u64) -> Result<u64> {
    let mut command = Command::new(writer);
    command.arg(store);
    // A log that only grows, and one that is cut at its tail too, as after a snapshot.
    if cut.is_multiple_of(2) {
        command.arg("--purge");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = Ended(command.spawn().context("starting the writer")?);
    let stdout = child.0.stdout.take().context("the writer's output")?;
    let newest = Arc::new(AtomicU64::new(before));
    let reader = thread::spawn({
        let newest = Arc::clone(&newest);
        move || {
            // A line without its end was cut off, and acknowledges nothing.
            let mut lines = BufReader::new(stdout);
            let mut line = String::new();
            while lines.read_line(&mut line).is_ok_and(|read| read > 0) && line.ends_with('\n') {
                if let Ok(index) = line.trim().parse() {
                    newest.fetch_max(index, Ordering::SeqCst);
                }
                line.clear();
            }
        }
    });
    // Each cut falls at another place of the store's own rhythm.
    let wanted = before + WRITES_MIN + cut * 37 % WRITES_SPREAD;
    let reached = wait_for(format_args!("{wanted} acknowledged writes"), WRITING, || {
        let index = newest.load(Ordering::SeqCst);
        let ended = child.0.try_wait()?;
        if ended.is_some() || index >= wanted { Ok(ended) } else { bail!("the newest is {index}") }
    });
    let is_stopped = (cut / 2).is_multiple_of(2);
    if is_stopped {
        stop(&child.0)?;
    }
    let before_cut = newest.load(Ordering::SeqCst);
    disk.cut()?;
    child.0.kill()?;
    child.0.wait()?;
    let _ = reader.join();
    match reached? {
        (Some(status), _) => bail!("the writer ended by itself before the cut: {status}"),
        (None, _) if is_stopped => Ok(newest.load(Ordering::SeqCst)),
        (None, _) => Ok(before_cut),
    }
}

/// Stops the writer, and returns once each of its threads has left the kernel.
fn stop(writer: &Child) -> Result<()> {
    let pid = i32::try_from(writer.id()).ok().and_then(Pid::from_raw).context("no process id")?;
    kill_process(pid, Signal::STOP)?;
    let tasks = format!("/proc/{}/task", writer.id());
    wait_for("every thread of the writer to stop", STOPPING, || {
        for task in fs::read_dir(&tasks)? {
            let stat = fs::read_to_string(task?.path().join("stat"))?;
            // The state stands behind the name, which is in brackets and may hold any others.
            let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
            ensure!(
                state.starts_with('T'),
                "one is not: {}",
                state.split(' ').next().unwrap_or("?")
            );
        }
        Ok(())
    })?;
    Ok(())
}

/// What was synced before the cut must be there after it: the rig itself loses nothing.
fn control_synced(disk: &Disk) -> Result<()> {
    let path = disk.mounted.join("synced");
    fill(&path)?.sync_all()?;
    File::open(&disk.mounted)?.sync_all()?;
    disk.cut()?;
    disk.restore()?;
    ensure!(fs::read(&path)? == content(), "control: the rig lost what was synced");
    println!("control: what was synced is there after the cut");
    Ok(())
}

/// What was not synced must be gone: a cut that cuts nothing proves nothing.
fn control_unsynced(disk: &Disk) -> Result<()> {
    let path = disk.mounted.join("unsynced");
    drop(fill(&path)?);
    disk.cut()?;
    disk.restore()?;
    let kept = fs::read(&path).unwrap_or_default();
    ensure!(kept != content(), "control: the cut lost nothing that was not synced");
    println!("control: what was not synced is gone after the cut");
    Ok(())
}

fn fill(path: &Path) -> Result<File> {
    let mut file = File::create(path)?;
    file.write_all(&content())?;
    Ok(file)
}

fn content() -> Vec<u8> {
    (0..CONTROL_BYTES).map(|at| u8::try_from(at % 251).unwrap_or_default()).collect()
}

/// A child that does not outlive a failed step.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Gone already when all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An ext4 file system in a file, mounted. Dropping it unmounts and removes it.
struct Disk {
    folder: PathBuf,
    device: String,
    mounted: PathBuf,
}

impl Disk {
    fn make(folder: &Path) -> Result<Self> {
        let (image, mounted) = (folder.join("image"), folder.join("mounted"));
        fs::create_dir_all(&mounted)?;
        File::create(&image)?.set_len(IMAGE_BYTES)?;
        shown(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
        let mut attach = Command::new("losetup");
        attach.args(["--find", "--show"]).arg(&image);
        let device = told(attach, COMMAND)?.trim().to_owned();
        let disk = Self { folder: folder.to_owned(), device, mounted };
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&self) -> Result<()> {
        shown(Command::new("mount").args(["-t", "ext4"]).arg(&self.device).arg(&self.mounted))
    }

    /// From here on nothing reaches the image, and all that was not synced is lost.
    fn cut(&self) -> Result<()> {
        shown(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(&self.mounted))
    }

    /// Power is back: the journal is replayed.
    fn restore(&self) -> Result<()> {
        shown(Command::new("umount").arg(&self.mounted))?;
        // Whoever made a mount namespace meanwhile keeps the file system, still shut down, and
        // mounting it again would show just that one.
        let name = self.device.rsplit('/').next().unwrap_or_default();
        let held = Path::new("/sys/fs/ext4").join(name);
        wait_for("the file system to be let go of", COMMAND, || {
            ensure!(!held.exists(), "{} is there", held.display());
            Ok(())
        })?;
        self.mount()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, as the writer of a failed step may just be ending; nobody is left to tell.
        let _ = Command::new("umount").arg("--lazy").arg(&self.mounted).status();
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

const IMAGE_BYTES: u64 = 400 << 20;
const CONTROL_BYTES: usize = 1 << 20;
const WRITES_MIN: u64 = 50;
const WRITES_SPREAD: u64 = 400;
const COMMAND: Duration = Duration::from_secs(20);
const STOPPING: Duration = Duration::from_secs(10);
const WRITING: Duration = Duration::from_secs(60);
