//! Unix sockets: an application and an upstream at paths, through upgrades, crashes and a stop.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::{Net, Process, eventually, get_json};

/// Sends back what it is sent.
fn echo_application(path: &Path) {
    let listener = UnixListener::bind(path).expect("bound");
    std::thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut back = socket.try_clone().expect("a second handle");
                std::io::copy(&mut socket, &mut back)
            });
        }
    });
}

/// Says something, and hears the same.
fn ping(stream: &mut UnixStream) -> Option<()> {
    let mut echo = [0; 4];
    stream.write_all(b"ping").ok()?;
    stream.read_exact(&mut echo).ok()?;
    (&echo == b"ping").then_some(())
}

fn call(path: &Path) -> Option<()> {
    ping(&mut UnixStream::connect(path).ok()?)
}

struct Scene {
    net: Net,
    _server: Process,
    _callee: Process,
    caller: Process,
    application: PathBuf,
    upstream: PathBuf,
}

fn scene() -> Scene {
    let net = Net::new();
    let server = net.server(1, 1, json!({ "default_intention_policy": "allow" }));
    let (application, upstream) = (net.folder().join("db.sock"), net.folder().join("up.sock"));
    echo_application(&application);
    let callee = json!({ "service": {
        "name": "db",
        "socket_path": application,
        "check": { "tcp": format!("unix:{}", application.display()), "interval": "1s" },
        "connect": { "sidecar_service": {} },
    } });
    let caller = json!({ "proxy": { "workers": 2, "drain": "10s" }, "service": {
        "name": "web",
        "connect": { "sidecar_service": { "proxy": { "upstreams": [{
            "destination_name": "db",
            "local_bind_socket_path": upstream,
            "local_bind_socket_mode": "0600",
        }] } } },
    } });
    let (callee, caller) = (net.agent(2, 1, callee), net.agent(3, 1, caller));
    for n in [2, 3] {
        eventually("an agent to be ready", || get_json(net.http(n), "/v1/hawser/ready"));
    }
    eventually("a call", || call(&upstream));
    Scene { net, _server: server, _callee: callee, caller, application, upstream }
}

#[test]
fn a_call_from_socket_to_socket_outlives_an_upgrade_and_a_crash() {
    let Scene { net, _server, _callee, mut caller, application, upstream } = scene();
    let mode = std::fs::metadata(&upstream).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let shown = eventually("the catalog to have it", || {
        let services = get_json(net.http(1), "/v1/health/service/db?passing")?;
        services.get(0).cloned()
    });
    let path = Value::from(application.to_str().expect("printable"));
    assert_eq!((&shown["Service"]["SocketPath"], &shown["Service"]["Port"]), (&path, &json!(0)));
    let flat = get_json(net.http(1), "/v1/catalog/service/db").expect("an answer");
    assert_eq!(flat[0]["ServiceSocketPath"], path);
    let own = get_json(net.http(2), "/v1/agent/service/db-sidecar-proxy").expect("an answer");
    assert_eq!(own["Proxy"]["LocalServiceSocketPath"], path);

    let mut before = UnixStream::connect(&upstream).expect("listening");
    ping(&mut before).expect("open");
    let is_new = |caller: &Process| caller.log().contains("took the agent's sockets over");
    caller.replace();
    eventually("the successor", || is_new(&caller).then_some(()));
    eventually("an agent to be ready", || get_json(net.http(3), "/v1/hawser/ready"));
    // At every moment somebody listens: the file never went away.
    call(&upstream).expect("the successor serves the same socket");
    ping(&mut before).expect("the predecessor finishes what is open");
    drop(before);
    eventually("the predecessor to end", || (caller.finishing() == 0).then_some(()));
    call(&upstream).expect("it left the file to its successor");

    caller.kill();
    assert!(UnixStream::connect(&upstream).is_err(), "nobody listens");
    caller.restart();
    eventually("a call after the crash", || call(&upstream));
}

#[test]
fn an_upstream_that_is_deregistered_takes_its_socket_along() {
    let Scene { net: _net, _server, _callee, caller, upstream, .. } = scene();
    caller.reconfigure(|config| config["service"]["connect"] = Value::Null);
    caller.signal("-HUP");
    eventually("the socket to be gone", || {
        std::fs::symlink_metadata(&upstream).is_err().then_some(())
    });
}
