//! One run of a script check: without a shell, in a process group of its own, its output bounded.

use std::io;
use std::process::Stdio;

use hawser_core::health::Status;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::probe::Found;

/// Runs the program: exit status 0 passes, 1 warns, anything else is critical.
///
/// Whoever drops the future ends the program and all that it started.
pub(crate) async fn run(args: &[String]) -> io::Result<Found> {
    let (program, rest) = args.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut child = Command::new(program)
        .args(rest)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let _group = Group(child.id());
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (first, second, exited) =
        tokio::join!(drain(stdout, &mut out), drain(stderr, &mut err), child.wait());
    first?;
    second?;
    let status = match exited?.code() {
        Some(0) => Status::Passing,
        Some(1) => Status::Warning,
        _ => Status::Critical,
    };
    out.extend_from_slice(&err);
    out.truncate(OUTPUT_OCTETS_MAX);
    Ok(Found { status, output: String::from_utf8_lossy(&out).into_owned() })
}

/// Keeps the first octets and reads the rest away, so that the program is never held up.
async fn drain(from: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) -> io::Result<()> {
    let Some(mut from) = from else { return Ok(()) };
    let mut buffer = [0; 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        let room = OUTPUT_OCTETS_MAX.saturating_sub(into.len());
        into.extend_from_slice(&buffer[..read.min(room)]);
    }
}

/// The program's process group, ended with the run.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let leader = self.0.and_then(|id| i32::try_from(id).ok());
        if let Some(leader) = leader.and_then(rustix::process::Pid::from_raw) {
            // Gone already is what it should be.
            let _ = rustix::process::kill_process_group(leader, rustix::process::Signal::KILL);
        }
    }
}

const OUTPUT_OCTETS_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_exit_status_is_the_finding() {
        for (script, status, output) in [
            ("echo fine", Status::Passing, "fine\n"),
            ("echo hm; exit 1", Status::Warning, "hm\n"),
            ("echo no >&2; exit 2", Status::Critical, "no\n"),
        ] {
            let args = ["/bin/sh", "-c", script].map(str::to_owned);
            let found = run(&args).await.expect("it runs");
            assert_eq!(found, Found { status, output: output.into() }, "{script}");
        }
    }

    #[tokio::test]
    async fn a_chatty_program_is_read_to_its_end_and_cut() {
        let args = ["/bin/sh", "-c", "yes | head -c 100000"].map(str::to_owned);
        let found = run(&args).await.expect("it runs");
        assert_eq!((found.status, found.output.len()), (Status::Passing, OUTPUT_OCTETS_MAX));
    }
}
