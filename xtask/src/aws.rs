//! `cargo xtask aws`: tests/aws against moto, an AWS of its own on loopback that checks signatures.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::hosts::target;
use crate::step::{cargo, run as shown, timed};

/// Makes a virtual environment with moto where there is none, starts it, and runs the tests.
///
/// # Errors
/// moto cannot be had or does not start, or a test fails.
pub(crate) fn run(root: &Path) -> Result<()> {
    let venv = target(root).join("aws").join(format!("venv-{MOTO}"));
    timed("moto", || install(&venv))?;
    let address = free()?;
    let moto = Moto::start(&venv, address)?;
    let ended = timed("aws", || test(root, &venv, address));
    drop(moto);
    ended
}

fn install(venv: &Path) -> Result<()> {
    if venv.join("bin/moto_server").is_file() {
        return Ok(());
    }
    shown(Command::new("python3").args(["-m", "venv"]).arg(venv))?;
    let pip = ["-m", "pip", "install", "-q", "--disable-pip-version-check"];
    let wanted = format!("moto[server]=={MOTO}");
    shown(Command::new(venv.join("bin/python")).args(pip).arg(wanted))
}

/// A port that nobody has at this moment.
fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A running moto; ended when it goes out of scope.
struct Moto(Child);

impl Moto {
    fn start(venv: &Path, address: SocketAddr) -> Result<Self> {
        let log = std::fs::File::create(venv.join("moto.log")).context("moto's log")?;
        let child = Command::new(venv.join("bin/moto_server"))
            .args(["-H", "127.0.0.1", "-p", &address.port().to_string()])
            // Turned on by the tests' own set-up, once it has made who signs.
            .env("INITIAL_NO_AUTH_ACTION_COUNT", "1000000")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting moto_server")?;
        let moto = Self(child);
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            ensure!(Instant::now() < deadline, "moto does not listen on {address}");
            std::thread::sleep(PROBE_INTERVAL);
        }
        Ok(moto)
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        // One that has ended already cannot be killed again, which is as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn test(root: &Path, venv: &Path, address: SocketAddr) -> Result<()> {
    // One moto is filled anew by each test, so they go one after the other.
    let arguments = ["test", "--test", "aws", "--", "--test-threads=1"];
    let python: PathBuf = venv.join("bin/python");
    let mut child = cargo(root, &arguments)
        .env("HAWSER_MOTO", format!("http://{address}"))
        .env("HAWSER_MOTO_PYTHON", python)
        .stdout(Stdio::piped())
        .spawn()
        .context("starting cargo")?;
    let out = child.stdout.take().context("cargo's output")?;
    let (mut passed, mut failed) = (0, 0);
    for line in BufReader::new(out).lines() {
        let line = line?;
        println!("{line}");
        passed += u32::from(line.starts_with("test ") && line.ends_with(" ... ok"));
        failed += u32::from(line.starts_with("test ") && line.ends_with(" ... FAILED"));
    }
    let status = child.wait()?;
    println!("{passed} passed, {failed} failed");
    if !status.success() || passed == 0 {
        bail!("the tests against moto did not all pass");
    }
    Ok(())
}

const MOTO: &str = "5.2.5";
const PATIENCE: Duration = Duration::from_secs(60);
const PROBE_INTERVAL: Duration = Duration::from_millis(100);
