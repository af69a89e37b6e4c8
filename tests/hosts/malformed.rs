//! Item 7: bad files, bodies, packets and handshakes get clear errors, and the process serves on.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_rig::process::finish;
use hawser_rig::{Cluster, Host};

use crate::scene::on_hosts;

#[test]
fn malformed_input_gets_its_error_and_the_agent_serves_on() {
    on_hosts("malformed", false, |cluster| {
        let before = cluster.process("a1")?.id();
        files(cluster)?;
        bodies(cluster)?;
        still_serves(cluster)?;
        packets()?;
        still_serves(cluster)?;
        handshakes(cluster)?;
        still_serves(cluster)?;
        for name in ["s1", "s2", "s3", "a1", "a2", "a3"] {
            ensure!(cluster.process(name)?.alive()?, "{name} died");
            let printed = cluster.process(name)?.printed();
            ensure!(!printed.contains("panicked at"), "{name} panicked");
        }
        ensure!(cluster.process("a1")?.id() == before, "a1 was restarted");
        Ok(())
    });
}

/// Each is refused at start, with the file and what is wrong with it, and nothing runs.
fn files(cluster: &Cluster) -> Result<()> {
    let cases: [(&str, &str, &[&str]); 8] = [
        // file, text, what the error must name
        ("cut.hcl", "node_name = \"x\nports {", &["cut.hcl"]),
        ("cut.json", "{\"node_name\": \"x\",", &["cut.json"]),
        ("unknown.hcl", "node_nam = \"x\"\n", &["unknown.hcl", "node_nam"]),
        ("type.json", "{\"ports\": {\"http\": \"many\"}}", &["type.json", "http"]),
        // What follows is well formed, so it is found when all files are put together.
        (
            "port.json",
            "{\"data_dir\": \"x\", \"retry_join\": [\"a\"], \"ports\": {\"http\": 99999}}",
            &["http"],
        ),
        ("name.hcl", "data_dir = \"x\"\nnode_name = \"no spaces, please\"\n", &["node"]),
        ("service.json", "{\"data_dir\": \"x\", \"service\": {\"port\": 1}}", &["Name"]),
        (
            "upstream.json",
            "{\"data_dir\": \"x\", \"service\": {\"name\": \"x\", \"port\": 1, \"connect\": {\"sidecar_service\": \
             {\"proxy\": {\"upstreams\": [{\"destination_name\": \"y\", \"local_bind_port\": 1, \"local_bind_prt\": 1}]}}}}}",
            &["local_bind_prt"],
        ),
    ];
    let folder = cluster.folder("malformed");
    fs::create_dir_all(&folder)?;
    for (name, text, named) in cases {
        let file = folder.join(name);
        fs::write(&file, text)?;
        let mut command = Command::new(PathBuf::from(env!("CARGO_BIN_EXE_hawser")));
        command
            .env_remove("RUST_BACKTRACE")
            .current_dir(&folder)
            .arg("agent")
            .arg("--config-file")
            .arg(&file);
        let output = finish(command, b"", Duration::from_secs(10)).context(name)?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "{name} was taken");
        ensure!(!told.contains("panicked at"), "{name}: {told}");
        for word in named {
            ensure!(told.contains(word), "{name}: the error does not name {word:?}: {told}");
        }
    }
    Ok(())
}

/// Each is answered with a 4xx that says why.
fn bodies(cluster: &Cluster) -> Result<()> {
    let huge = vec![b'x'; 3 << 20];
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    let register = "/v1/agent/service/register";
    let intention = "/v1/connect/intentions/exact?source=web&destination=api";
    let cases: [(&str, &str, &[u8], &str); 12] = [
        // method, path, body, what the error must name
        ("PUT", register, b"", ""),
        ("PUT", register, b"{", ""),
        ("PUT", register, b"\xff\xfe", ""),
        ("PUT", register, b"{\"Name\": 5}", "Name"),
        ("PUT", register, b"{\"Name\": \"x\", \"Port\": 99999}", "Port"),
        ("PUT", register, b"{\"Name\": \"\", \"Port\": 1}", "ame"),
        ("PUT", register, &huge, ""),
        ("PUT", register, deep.as_bytes(), ""),
        ("PUT", intention, b"{\"Action\": \"perhaps\"}", "perhaps"),
        ("PUT", "/v1/connect/intentions/exact", b"{\"Action\": \"allow\"}", "source"),
        ("PUT", "/v1/config", b"{\"Kind\": \"no-such-kind\", \"Name\": \"x\"}", "no-such-kind"),
        ("GET", "/v1/health/service/api?index=minus", b"", "index"),
    ];
    for (method, path, body, named) in cases {
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        let reply = cluster.ask("a1", method, path, body, Duration::from_secs(5));
        let reply = reply.with_context(|| format!("{method} {path} {shown}"))?;
        let told = format!("{method} {path} {shown}: {} {}", reply.status, reply.body);
        ensure!((400..500).contains(&reply.status), "{told}");
        ensure!(!reply.body.trim().is_empty(), "no reason given: {told}");
        ensure!(
            reply.body.to_lowercase().contains(&named.to_lowercase()),
            "{named:?} not named: {told}"
        );
    }
    Ok(())
}

/// Packets that are no DNS question, over UDP and TCP.
fn packets() -> Result<()> {
    let header = |flags: u16, questions: u16| {
        let mut packet = vec![0x12, 0x34];
        packet.extend(flags.to_be_bytes());
        packet.extend(questions.to_be_bytes());
        packet.extend([0; 6]);
        packet
    };
    let with = |mut packet: Vec<u8>, more: &[u8]| {
        packet.extend_from_slice(more);
        packet
    };
    let cases = [
        Vec::new(),
        vec![0],
        vec![0xff; 11],
        vec![0xff; 512],
        header(0x0100, 1),
        header(0x0100, 65_535),
        header(0x8000, 0),
        header(0x7800, 1),
        // A name that points at itself, and one that runs past the end.
        with(header(0x0100, 1), &[0xc0, 0x0c, 0, 1, 0, 1]),
        with(header(0x0100, 1), &[63, b'a', b'b']),
        with(header(0x0100, 1), &[0x40, 0, 0, 1, 0, 1]),
    ];
    on_host("a1", move || {
        let dns = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8600);
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        for packet in &cases {
            udp.send_to(packet, dns)?;
            let mut tcp = TcpStream::connect(dns)?;
            tcp.set_read_timeout(Some(Duration::from_millis(200)))?;
            let length = u16::try_from(packet.len())?.to_be_bytes();
            // The server may hang up in the midst of it.
            let _ = tcp.write_all(&[&length[..], packet].concat());
            let _ = tcp.read(&mut [0; 512]);
        }
        Ok(())
    })
}

/// Bytes that are no TLS, to a mesh listener and to a server's port.
fn handshakes(cluster: &Cluster) -> Result<()> {
    let mesh = cluster.mesh_port("api", "a2")?;
    let targets = [
        SocketAddr::new(Host::named("a2")?.ip(), mesh),
        SocketAddr::new(Host::named("s1")?.ip(), 8300),
    ];
    let cases: [Vec<u8>; 5] = [
        Vec::new(),
        b"GET / HTTP/1.1\r\nHost: api\r\n\r\n".to_vec(),
        vec![0x16, 0x03, 0x01, 0xff, 0xff],
        vec![0x16, 0x03, 0x01, 0x00, 0x04, 0x01, 0xff, 0xff, 0xff],
        vec![0; 20_000],
    ];
    on_host("r", move || {
        for target in targets {
            for octets in &cases {
                let mut stream = TcpStream::connect(target)?;
                stream.set_read_timeout(Some(Duration::from_millis(200)))?;
                // The server may hang up in the midst of it.
                let _ = stream.write_all(octets);
                let mut answer = Vec::new();
                let _ = stream.read_to_end(&mut answer);
                let text = String::from_utf8_lossy(&answer);
                ensure!(!text.contains("api-1"), "{target} carried plain text");
            }
        }
        Ok(())
    })
}

fn still_serves(cluster: &Cluster) -> Result<()> {
    cluster.through("a1", hawser_rig::cluster::API_UPSTREAM, "/")?;
    let found = cluster.dig("a1", "api.service.consul")?;
    ensure!(found.len() == 2, "dig finds {found:?}");
    let healthy = cluster.get("a1", "/v1/health/service/api?passing")?;
    ensure!(healthy.as_array().map_or(0, Vec::len) == 3, "the API says {healthy}");
    Ok(())
}

fn on_host(host: &str, inside: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    let host = Host::named(host)?;
    let thread = thread::spawn(move || {
        host.enter()?;
        inside()
    });
    thread.join().ok().context("the thread panicked")?
}
