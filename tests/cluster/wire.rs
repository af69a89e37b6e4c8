//! How the API is reached, and how it answers: packed, cached, filtered, and refused by the same rules everywhere.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;

use crate::harness::{Net, eventually, hawser};

/// An authority's certificate, and a certificate of its own with its key, in files.
struct Files {
    authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

fn files(folder: &Path, name: &str, address: &str) -> Files {
    let mut params = CertificateParams::new(Vec::new()).expect("good");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let issuer = CertifiedIssuer::self_signed(params, key).expect("a root");
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec![address.to_owned()]).expect("good");
    let leaf = params.signed_by(&key, &issuer).expect("signed");
    let write = |part: &str, pem: String| {
        let path = folder.join(format!("{name}.{part}.pem"));
        std::fs::write(&path, pem).expect("written");
        path
    };
    Files {
        authority: write("ca", issuer.pem()),
        certificate: write("cert", leaf.pem()),
        key: write("key", key.serialize_pem()),
    }
}

/// What the API answers to a request with `headers`: head, and body as it came.
fn ask(api: SocketAddr, target: &str, headers: &str) -> Option<(String, Vec<u8>)> {
    let mut stream = TcpStream::connect(api).ok()?;
    let request =
        format!("GET {target} HTTP/1.1\r\nHost: {api}\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).ok()?;
    let end = reply.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&reply[..end]).to_lowercase();
    Some((head, reply[end + 4..].to_vec()))
}

#[test]
fn replies_are_packed_and_cached_for_those_who_ask() {
    let net = Net::new();
    let socket = net.http(1);
    let _server = net.server(1, 1, json!({}));
    eventually("the server's own service", || {
        let (_, body) = ask(socket, "/v1/catalog/services", "")?;
        body.starts_with(br#"{"consul""#).then_some(())
    });

    let (head, plain) = ask(socket, "/v1/agent/metrics", "").expect("an answer");
    assert!(!head.contains("content-encoding"), "{head}");
    let (head, packed) =
        ask(socket, "/v1/agent/metrics", "Accept-Encoding: gzip\r\n").expect("an answer");
    assert!(head.contains("content-encoding: gzip"), "{head}");
    assert!(head.contains("vary: accept-encoding"), "{head}");
    assert!(packed.starts_with(&[0x1f, 0x8b]) && packed.len() < plain.len() / 2);

    let cached = |headers| ask(socket, "/v1/catalog/nodes?cached", headers).expect("an answer").0;
    let held = cached("Cache-Control: max-age=60\r\n");
    assert!(held.contains("x-cache: hit") && held.contains("age: 0"), "{held}");
    let fresh = cached("Cache-Control: must-revalidate\r\n");
    assert!(fresh.contains("x-cache: miss"), "{fresh}");
    let refused = cached("Cache-Control: max-age=soon\r\n");
    assert!(refused.starts_with("http/1.1 400"), "{refused}");
    for (target, expected) in [
        ("/v1/agent/self?dc=elsewhere", "http/1.1 500"),
        ("/v1/agent/services?ns=team", "http/1.1 400"),
        ("/v1/catalog/services?filter=ServiceName+matches+%60%5Econ%60", "http/1.1 200"),
        ("/v1/catalog/services?filter=ServiceName+matches+%60(%60", "http/1.1 400"),
        ("/v1/catalog/nodes?near=_agent", "http/1.1 200"),
    ] {
        let (head, _) = ask(socket, target, "").expect("an answer");
        assert!(head.starts_with(expected), "{target}: {head}");
        assert!(head.contains("x-consul-default-acl-policy: allow"), "{target}: {head}");
    }
}

#[test]
fn the_api_is_reached_by_tls_and_by_a_socket() {
    let net = Net::new();
    let ours = files(net.folder(), "ours", &net.address(1));
    let strange = files(net.folder(), "strange", &net.address(1));
    let socket = net.folder().join("api.sock");
    let _server = net.server(
        1,
        1,
        json!({
            "addresses": { "http": format!("unix://{}", socket.display()) },
            "unix_sockets": { "mode": "0600" },
            "ports": { "https": 8501 },
            "tls": { "https": {
                "cert_file": ours.certificate, "key_file": ours.key, "ca_file": ours.authority,
                "verify_incoming": true,
            } },
        }),
    );
    let by_socket = format!("unix://{}", socket.display());
    eventually("an answer on the socket", || {
        let said = hawser(&["kv", "put", "-http-addr", &by_socket, "greeting", "hello"]);
        said.status.success().then_some(())
    });

    let by_tls = format!("https://{}:8501", net.address(1));
    let get = |shown: &Files, trusted: &Files| {
        let [ca, cert, key] = [&trusted.authority, &shown.certificate, &shown.key];
        let mut line = vec!["kv", "get", "-http-addr", &by_tls];
        for (option, path) in [("-ca-file", ca), ("-client-cert", cert), ("-client-key", key)] {
            line.extend([option, path.to_str().expect("UTF-8")]);
        }
        line.push("greeting");
        hawser(&line)
    };
    let said = get(&ours, &ours);
    assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), "hello", "{said:?}");
    assert!(!get(&ours, &strange).status.success(), "a server of another authority is believed");
    assert!(!get(&strange, &ours).status.success(), "a client of another authority is let in");

    std::fs::copy(&strange.certificate, &ours.certificate).expect("copied");
    std::fs::copy(&strange.key, &ours.key).expect("copied");
    let known = files(net.folder(), "known", &net.address(1));
    std::fs::copy(&known.authority, &ours.authority).expect("copied");
    assert!(hawser(&["reload", "-http-addr", &by_socket]).status.success());
    eventually("the new certificate, and the new authority of clients", || {
        get(&known, &strange).status.success().then_some(())
    });
}
