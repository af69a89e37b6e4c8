//! `hawser dev`, as the README says.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::harness::{Net, eventually, get, get_json, hawser, request};

struct Dev(Child);

impl Drop for Dev {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has noticed then.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn dev_has_something_to_curl() {
    let net = Net::new();
    let ports = ["18500", "18600", "18300", "19191", "31000"];
    let child = Command::new(env!("CARGO_BIN_EXE_hawser"))
        .args(["dev", "--http-port", ports[0], "--dns-port", ports[1], "--server-port", ports[2]])
        .args(["--upstream-port", ports[3], "--mesh-port", ports[4], "--data-dir"])
        .arg(net.folder().join("dev"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let _dev = Dev(child);
    let at =
        |port: &str| -> SocketAddr { format!("127.0.0.1:{port}").parse().expect("an address") };
    let (http, upstream) = (at(ports[0]), at(ports[3]));
    eventually("the mesh to be ready", || get_json(http, "/v1/hawser/ready"));
    let reply =
        eventually("web to reach hello", || get(upstream, "/").filter(|reply| reply.status == 200));
    assert!(reply.body.starts_with("hello from instance "), "{reply:?}");
    let mut seen = std::collections::BTreeSet::new();
    eventually("all three instances to take part", || {
        seen.extend(get(upstream, "/").map(|reply| reply.body));
        (seen.len() == 3).then_some(())
    });

    let address = http.to_string();
    let denied = hawser(&["intention", "create", "-deny", "-http-addr", &address, "web", "hello"]);
    assert!(denied.status.success(), "{denied:?}");
    eventually("the call to be denied", || get(upstream, "/").filter(|reply| reply.status == 403));
    let path = "/v1/connect/intentions/exact?source=web&destination=hello";
    assert_eq!(request(http, "DELETE", path, Some(&json!({}))).expect("an answer").status, 200);
    eventually("the call to be allowed", || get(upstream, "/").filter(|reply| reply.status == 200));
    let map = eventually("the map to show the call", || {
        let map = hawser(&["map", "-http-addr", &address]);
        let text = String::from_utf8_lossy(&map.stdout).into_owned();
        (map.status.success() && text.contains("hello")).then_some(text)
    });
    assert!(map.contains("web"), "{map}");
}
