//! Programs that the mesh carries requests to, each with a log of exactly the requests that it saw.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::net::Host;
use crate::process::{Process, told};
use crate::wait::wait_for;

/// A program with an HTTP parser of its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// nginx.
    Nginx,
    /// HAProxy.
    Haproxy,
    /// Node.js's `http`.
    Node,
    /// lighttpd.
    Lighttpd,
    /// Python's h11.
    H11,
}

/// A running one.
#[derive(Debug)]
pub struct Backend {
    /// Which.
    pub kind: Kind,
    /// Where it listens on loopback.
    pub port: u16,
    log: PathBuf,
}

/// All of them.
pub const KINDS: [Kind; 5] = [Kind::Nginx, Kind::Haproxy, Kind::Node, Kind::Lighttpd, Kind::H11];

impl Kind {
    /// Its name, also as a service.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Node => "node",
            Self::Lighttpd => "lighttpd",
            Self::H11 => "h11",
        }
    }

    /// Whether its answers repeat the target that it was asked for.
    #[must_use]
    pub fn is_echo(self) -> bool {
        self != Self::Lighttpd
    }

    /// Starts it on 127.0.0.1:`port`, with its files in `folder`.
    ///
    /// # Errors
    /// It is not installed, or does not listen within 10 s.
    pub fn start(self, port: u16, folder: &Path) -> Result<(Process, Backend)> {
        self.start_by(&|program| Command::new(program), port, folder)
    }

    /// The same on `host`.
    ///
    /// # Errors
    /// As [`Kind::start`].
    pub fn start_on(self, host: Host, port: u16, folder: &Path) -> Result<(Process, Backend)> {
        self.start_by(&|program| host.command(program), port, folder)
    }

    /// The same, by programs that `command` makes commands of.
    fn start_by(
        self,
        command_of: &dyn Fn(&str) -> Command,
        port: u16,
        folder: &Path,
    ) -> Result<(Process, Backend)> {
        fs::create_dir_all(folder)?;
        let log = folder.join("requests.log");
        fs::write(&log, "")?;
        let file = folder.join("configuration");
        fs::write(&file, self.configuration(port, folder, &log))?;
        let mut command = match self {
            Self::Nginx => command_of("nginx"),
            Self::Haproxy => command_of("haproxy"),
            Self::Node => command_of("node"),
            Self::Lighttpd => command_of("lighttpd"),
            // Debian has h11 for its own Python.
            Self::H11 => command_of("/usr/bin/python3"),
        };
        match self {
            Self::Nginx => {
                command.arg("-p").arg(folder).arg("-c").arg(&file);
                command.arg("-e").arg(folder.join("error.log"));
            }
            Self::Haproxy => drop(command.arg("-db").arg("-f").arg(&file)),
            Self::Lighttpd => drop(command.arg("-D").arg("-f").arg(&file)),
            Self::Node => drop(command.arg(&file).arg(port.to_string()).arg(&log)),
            Self::H11 => drop(command.arg("-u").arg(&file).arg(port.to_string()).arg(&log)),
        }
        let printed = match self {
            // It logs requests to its standard output.
            Self::Haproxy => log.clone(),
            _ => folder.join("printed.log"),
        };
        let process = Process::spawn(self.name(), command, &printed)?;
        wait_for(format_args!("{} to listen", self.name()), Duration::from_secs(10), || {
            let mut look = command_of("bash");
            look.args(["-c", &format!("exec 3<>/dev/tcp/127.0.0.1/{port}")]);
            told(look, Duration::from_secs(2))
        })
        .with_context(|| process.printed())?;
        Ok((process, Backend { kind: self, port, log }))
    }

    fn configuration(self, port: u16, folder: &Path, log: &Path) -> String {
        let (folder, log) = (folder.display(), log.display());
        match self {
            Self::Nginx => format!(
                r#"daemon off;
master_process off;
error_log {folder}/error.log;
pid {folder}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
  log_format seen '$request_method $request_uri';
  access_log {log} seen;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    default_type text/plain;
    location / {{ return 200 "saw $request_uri\n"; }}
  }}
}}
"#
            ),
            Self::Haproxy => format!(
                r#"global
  log stdout format raw local0
defaults
  mode http
  log global
  option dontlognull
  timeout client 30s
  timeout http-keep-alive 30s
frontend seen
  bind 127.0.0.1:{port}
  log-format "%HM %HU"
  http-request return status 200 content-type text/plain lf-string "saw %[pathq]\n"
"#
            ),
            Self::Lighttpd => format!(
                r#"server.modules = ("mod_accesslog")
server.document-root = "{folder}"
server.bind = "127.0.0.1"
server.port = {port}
server.errorlog = "{folder}/error.log"
accesslog.filename = "{log}"
accesslog.format = "%r"
"#
            ),
            Self::Node => NODE.to_owned(),
            Self::H11 => H11.to_owned(),
        }
    }
}

impl Backend {
    /// Each request that it saw, as its method and target.
    ///
    /// # Errors
    /// Its log cannot be read.
    pub fn seen(&self) -> Result<Vec<(String, String)>> {
        let text = String::from_utf8_lossy(&fs::read(&self.log)?).into_owned();
        let mut seen = Vec::new();
        for line in text.lines() {
            // HAProxy tells of itself in brackets when it starts.
            if line.starts_with('[') || line.trim().is_empty() {
                continue;
            }
            let mut words = line.split(' ');
            let (method, target) = (words.next(), words.next());
            let (method, target) = method.zip(target).with_context(|| format!("{line:?}"))?;
            seen.push((method.to_owned(), target.to_owned()));
        }
        Ok(seen)
    }
}

/// redis on 127.0.0.1:`port` of `host`, which keeps nothing.
///
/// # Errors
/// It is not installed, or does not answer within 10 s.
pub fn redis(host: Host, port: u16, folder: &Path) -> Result<Process> {
    fs::create_dir_all(folder)?;
    let mut command = host.command("redis-server");
    let port_text = port.to_string();
    command.args(["--port", &port_text, "--bind", "127.0.0.1", "--save", "", "--dir"]).arg(folder);
    let process = Process::spawn("redis", command, &folder.join("redis.log"))?;
    wait_for("redis to answer", Duration::from_secs(10), || redis_cli(host, port, &["PING"], b""))
        .with_context(|| process.printed())?;
    Ok(process)
}

/// What `redis-cli` prints on `host` against 127.0.0.1:`port`.
///
/// # Errors
/// It fails or takes longer than 20 s.
pub fn redis_cli(host: Host, port: u16, arguments: &[&str], input: &[u8]) -> Result<String> {
    let mut command: Command = host.command("redis-cli");
    command.args(["-p", &port.to_string()]).args(arguments);
    let output = crate::process::finish(command, input, Duration::from_secs(20))?;
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success() && !out.contains("Error"), "redis-cli: {out}{err}");
    Ok(out.trim_end().to_owned())
}

/// Answers with what it was asked for; an upgrade becomes an echo of bytes.
const NODE: &str = r#"const fs = require("fs");
const http = require("http");
const [port, log] = process.argv.slice(2);
const note = (request) => fs.appendFileSync(log, `${request.method} ${request.url}\n`);
const server = http.createServer((request, response) => {
  note(request);
  request.resume();
  response.setHeader("content-type", "text/plain");
  response.end(`saw ${request.url}\n`);
});
server.on("upgrade", (request, socket, head) => {
  note(request);
  socket.write("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
  socket.write(head);
  socket.pipe(socket);
  socket.on("error", () => {});
});
server.listen(Number(port), "127.0.0.1");
"#;

const H11: &str = r#"import socketserver
import sys

import h11

PORT, LOG = int(sys.argv[1]), open(sys.argv[2], "a", buffering=1)


class Service(socketserver.BaseRequestHandler):
    def handle(self):
        connection = h11.Connection(h11.SERVER)
        request = None
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError:
                return
            if event is h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, headers=[])
                    self.request.sendall(connection.send(go_on))
                data = self.request.recv(65536)
                connection.receive_data(data)
            elif isinstance(event, h11.Request):
                request = event
                LOG.write(f"{event.method.decode()} {event.target.decode('latin1')}\n")
            elif isinstance(event, h11.EndOfMessage):
                body = b"saw " + request.target + b"\n"
                fields = [("content-type", "text/plain"), ("content-length", str(len(body)))]
                answer = h11.Response(status_code=200, headers=fields)
                out = connection.send(answer)
                if request.method != b"HEAD":
                    out += connection.send(h11.Data(data=body))
                self.request.sendall(out + connection.send(h11.EndOfMessage()))
                if connection.our_state is not h11.DONE:
                    return
                if connection.their_state is not h11.DONE:
                    return
                connection.start_next_cycle()
            elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
                return


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


Server(("127.0.0.1", PORT), Service).serve_forever()
"#;
