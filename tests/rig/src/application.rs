//! The real applications that the mesh carries: nginx, PostgreSQL and a Python HTTP service.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::net::Host;
use crate::process::{Process, told};
use crate::wait::wait_for;

/// nginx on 127.0.0.1:`port` of `host`, answering every path with `name` and what it was asked.
///
/// It is one process, so that a signal reaches all of it.
///
/// # Errors
/// It does not start or does not answer within 10 s.
pub fn nginx(host: Host, name: &str, port: u16, folder: &Path) -> Result<Process> {
    fs::create_dir_all(folder)?;
    let shown = folder.display();
    let configuration = format!(
        r#"daemon off;
master_process off;
error_log {shown}/error.log;
pid {shown}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {shown}/body;
  proxy_temp_path {shown}/proxy;
  fastcgi_temp_path {shown}/fastcgi;
  uwsgi_temp_path {shown}/uwsgi;
  scgi_temp_path {shown}/scgi;
  keepalive_requests 100000;
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    default_type text/plain;
    location / {{ return 200 "{name} $request_uri\n"; }}
  }}
}}
"#
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, configuration)?;
    let mut command = host.command("nginx");
    command.arg("-p").arg(folder).arg("-c").arg(&file).arg("-e").arg(folder.join("error.log"));
    let process = Process::spawn(name, command, &folder.join("nginx.log"))?;
    answers(host, name, port, &process)?;
    Ok(process)
}

/// A Python HTTP service on 127.0.0.1:`port` of `host` that answers every GET with `name`.
///
/// # Errors
/// It does not start or does not answer within 10 s.
pub fn python(host: Host, name: &str, port: u16, folder: &Path) -> Result<Process> {
    fs::create_dir_all(folder)?;
    let file = folder.join("service.py");
    fs::write(&file, PYTHON)?;
    let mut command = host.command("python3");
    command.arg("-u").arg(&file).arg(name).arg(port.to_string());
    let process = Process::spawn(name, command, &folder.join("python.log"))?;
    answers(host, name, port, &process)?;
    Ok(process)
}

/// PostgreSQL on 127.0.0.1:`port` of `host`, with a data folder of its own, trusting loopback.
///
/// # Errors
/// It is not installed, or not ready within 30 s.
pub fn postgres(host: Host, port: u16, folder: &Path) -> Result<Process> {
    let programs = postgres_programs()?;
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    let data = folder.join("data");
    fs::create_dir_all(&data)?;
    let (user, group) = postgres_ids()?;
    chown(&data, Some(user), Some(group))?;
    let mut make = as_postgres(Command::new("setpriv"), &programs.join("initdb"));
    make.args(["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"]).arg(&data);
    told(make, STARTED).context("making PostgreSQL's data folder")?;

    let mut command = as_postgres(host.command("setpriv"), &programs.join("postgres"));
    command.arg("-D").arg(&data).args(["-h", "127.0.0.1", "-p", &port.to_string()]);
    command.args([
        "-c",
        "unix_socket_directories=",
        "-c",
        "fsync=off",
        "-c",
        "shared_buffers=16MB",
    ]);
    let process =
        Process::spawn("postgres", command, &folder.join("postgres.log"))?.ended_by(Signal::INT);
    wait_for("PostgreSQL to be ready", STARTED, || psql(host, port, "select 1"))
        .with_context(|| process.printed())?;
    Ok(process)
}

/// Runs one statement by `psql` on `host` against 127.0.0.1:`port` and returns what it printed.
///
/// # Errors
/// It is refused, fails, or takes longer than 20 s.
pub fn psql(host: Host, port: u16, statement: &str) -> Result<String> {
    let mut command = psql_command(host, port);
    command.args(["-c", statement]);
    Ok(told(command, Duration::from_secs(20))?.trim().to_owned())
}

/// A `psql` on `host` against 127.0.0.1:`port` that prints bare values and gives up connecting
/// after 5 s.
#[must_use]
pub fn psql_command(host: Host, port: u16) -> Command {
    let mut command = host.command("psql");
    command.env("PGCONNECT_TIMEOUT", "5").env("PGSSLMODE", "disable");
    command.args(["-X", "-At", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", "postgres"]);
    command.args(["-d", "postgres", "-p", &port.to_string()]);
    command
}

fn answers(host: Host, name: &str, port: u16, process: &Process) -> Result<()> {
    let url = format!("http://127.0.0.1:{port}/");
    wait_for(format_args!("{name} to answer"), Duration::from_secs(10), || {
        host.run("curl", &["-sSf", "--max-time", "2", &url])
    })
    .with_context(|| process.printed())?;
    Ok(())
}

fn as_postgres(mut command: Command, program: &Path) -> Command {
    command.args(["--reuid", "postgres", "--regid", "postgres", "--init-groups", "--"]);
    command.arg(program).current_dir("/");
    command
}

fn postgres_ids() -> Result<(u32, u32)> {
    let id = |which: &str| -> Result<u32> {
        let mut command = Command::new("id");
        command.args([which, "postgres"]);
        Ok(told(command, Duration::from_secs(5))?.trim().parse()?)
    };
    Ok((id("-u")?, id("-g")?))
}

/// Debian keeps each version's programs in a folder of its own, outside the path.
fn postgres_programs() -> Result<PathBuf> {
    let home = Path::new("/usr/lib/postgresql");
    let mut versions: Vec<PathBuf> = fs::read_dir(home)
        .with_context(|| format!("PostgreSQL is not installed: {}", home.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path().join("bin")))
        .filter(|programs| programs.join("initdb").exists())
        .collect();
    versions.sort();
    ensure!(!versions.is_empty(), "no initdb below {}", home.display());
    Ok(versions.swap_remove(versions.len() - 1))
}

const STARTED: Duration = Duration::from_secs(30);

const PYTHON: &str = r#"import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Service(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = f"{sys.argv[1]} {self.path}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Service).serve_forever()
"#;
