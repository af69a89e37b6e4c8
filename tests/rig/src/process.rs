//! One program that runs until it is told to end, with its output in a file.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait::wait_for;

/// A running program. Dropping it ends it.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    farewell: Signal,
}

impl Process {
    /// Starts `command` with no input and both outputs appended to `log`.
    ///
    /// # Errors
    /// The log cannot be written or the program cannot be started.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let out = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).process_group(0);
        let child = command.spawn().with_context(|| format!("starting {name}: {command:?}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned(), farewell: Signal::KILL })
    }

    /// The signal that a drop sends first; a program that ignores it is killed after 5 s.
    #[must_use]
    pub fn ended_by(mut self, farewell: Signal) -> Self {
        self.farewell = farewell;
        self
    }

    /// What it was called when it was started.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has printed so far.
    #[must_use]
    pub fn printed(&self) -> String {
        fs::read(&self.log)
            .map(|text| String::from_utf8_lossy(&text).into_owned())
            .unwrap_or_default()
    }

    /// Prints the last lines that it printed, for a run that failed.
    #[allow(clippy::print_stderr, reason = "it is read by whoever sees the test fail")]
    pub fn tell(&self) {
        let printed = self.printed();
        let lines: Vec<&str> = printed.lines().collect();
        eprintln!("---- {} (pid {}), last of {} lines", self.name, self.id(), lines.len());
        for line in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
            eprintln!("{line}");
        }
    }

    /// Whether it still runs; a stopped one does.
    ///
    /// # Errors
    /// The operating system will not say.
    pub fn alive(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// `kill -9`, and returns once it is gone.
    ///
    /// # Errors
    /// It was gone already and cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// `SIGSTOP`: it keeps its sockets and answers nothing.
    ///
    /// # Errors
    /// It is gone.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// `SIGCONT`.
    ///
    /// # Errors
    /// It is gone.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Sends `signal`.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("a process id of zero")?, signal)
            .with_context(|| format!("signalling {}", self.name))
    }

    /// Waits until it has ended by itself, and says how and how long that took.
    ///
    /// # Errors
    /// It still runs at the deadline.
    pub fn ended(&mut self, deadline: Duration) -> Result<(ExitStatus, Duration)> {
        let (name, child) = (&self.name, &mut self.child);
        wait_for(format_args!("{name} to end"), deadline, || {
            child.try_wait()?.context("it still runs")
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.farewell != Signal::KILL
            && self.signal(self.farewell).is_ok()
            && self.ended(FAREWELL).is_ok()
        {
            return;
        }
        // Nobody is left to tell, and the namespaces are emptied by `Net` in any case.
        let _ = self.kill();
    }
}

/// Runs `command` to its end with `input` on its standard input.
///
/// # Errors
/// It cannot be started, or it has not ended by the deadline and was killed.
pub fn finish(mut command: Command, input: &[u8], deadline: Duration) -> Result<Output> {
    let shown = format!("{command:?}");
    let mut out = tempfile::tempfile()?;
    let mut err = tempfile::tempfile()?;
    command.stdin(Stdio::piped()).stdout(out.try_clone()?).stderr(err.try_clone()?);
    let mut child = command.spawn().with_context(|| format!("starting {shown}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input to the end is no failure.
        let _ = stdin.write_all(input);
    }
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if began.elapsed() >= deadline {
            child.kill()?;
            child.wait()?;
            bail!("{shown} did not end within {deadline:?}");
        }
        thread::sleep(PAUSE);
    };
    Ok(Output { status, stdout: whole(&mut out)?, stderr: whole(&mut err)? })
}

/// Runs `command` to its end and returns what it printed.
///
/// # Errors
/// As [`finish`], and an exit code other than 0, with what it printed to standard error.
pub fn told(command: Command, deadline: Duration) -> Result<String> {
    let shown = format!("{command:?}");
    let output = finish(command, b"", deadline)?;
    if !output.status.success() {
        bail!("{shown}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn whole(file: &mut File) -> Result<Vec<u8>> {
    use std::io::{Read, Seek};
    file.rewind()?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(text)
}

const SHOWN_LINES: usize = 40;

/// How long a program may take to end when asked nicely.
const FAREWELL: Duration = Duration::from_secs(5);

/// Between two looks at a child that is about to end.
const PAUSE: Duration = Duration::from_millis(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finished_program_tells_what_it_printed() {
        let mut command = Command::new("sh");
        command.args(["-c", "cat; echo two >&2; exit 3"]);
        let output = finish(command, b"one", Duration::from_secs(10)).expect("sh runs");
        let printed = (output.stdout, output.stderr, output.status.code());
        assert_eq!(printed, (b"one".to_vec(), b"two\n".to_vec(), Some(3)));
    }

    #[test]
    fn a_program_that_does_not_end_is_ended() {
        let mut command = Command::new("sleep");
        command.arg("600");
        let why = told(command, Duration::from_millis(50)).expect_err("it sleeps longer");
        assert!(why.to_string().contains("did not end within"), "{why}");
    }

    #[test]
    fn a_stopped_process_is_alive_and_a_killed_one_is_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut command = Command::new("sleep");
        command.arg("600");
        let log = folder.path().join("log");
        let mut process = Process::spawn("sleeper", command, &log).expect("sleep runs");
        process.stop().expect("it is there");
        assert!(process.alive().expect("known"), "a stopped process is still there");
        process.kill().expect("it is there");
        assert!(!process.alive().expect("known"), "a killed process is gone");
    }
}
