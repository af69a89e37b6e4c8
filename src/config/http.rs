//! Where the HTTP API listens, and with which certificates: Consul's keys.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use hawser_agent::{Https, Listeners, Shown, UnixSocket};
use serde::{Deserialize, Serialize};

use super::{Raw, listener};

/// `addresses`: where single listeners stand, over `client_addr`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAddresses {
    /// An IP address, or `unix:///a/path`.
    http: Option<String>,
    https: Option<IpAddr>,
    pub(super) dns: Option<IpAddr>,
}

/// `unix_sockets`: who may use those that there are.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawUnixSockets {
    user: Option<String>,
    group: Option<String>,
    /// Octal, as text.
    mode: Option<String>,
}

/// `tls`: what clients of the API are shown. Between hosts there is always TLS, with certificates
/// of the cluster's own.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTls {
    defaults: Option<RawTlsOf>,
    https: Option<RawTlsOf>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawTlsOf {
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    verify_incoming: Option<bool>,
}

impl Raw {
    /// Where the API listens: at `client_addr` unless an address of its own is said.
    pub(super) fn api(&self) -> Result<Listeners> {
        let (client, ports) = (self.client(), self.ports.clone().unwrap_or_default());
        let addresses = self.addresses.clone().unwrap_or_default();
        let plain = |address| listener("ports.http", ports.http, HTTP_PORT, address);
        let (plain, unix) = match addresses.http.as_deref() {
            None | Some("") => (plain(client)?, None),
            Some(text) => match text.strip_prefix("unix://") {
                Some(path) => {
                    ensure!(!path.is_empty(), "addresses.http: write unix:///a/path");
                    (None, Some(self.unix_sockets.clone().unwrap_or_default().resolve(path)?))
                }
                None => {
                    let address = text.parse().with_context(|| {
                        format!("addresses.http: {text:?} is no IP address and no unix:///a/path")
                    })?;
                    (plain(address)?, None)
                }
            },
        };
        // Off unless it is asked for.
        let https = ports.https.or(Some(-1));
        let https = listener("ports.https", https, HTTPS_PORT, addresses.https.unwrap_or(client))?;
        let tls = self.tls.clone().unwrap_or_default();
        Ok(Listeners { plain, tls: https.map(|listen| tls.resolve(listen)).transpose()?, unix })
    }
}

impl RawTls {
    fn resolve(&self, listen: SocketAddr) -> Result<Https> {
        let (own, defaults) = (self.https.as_ref(), self.defaults.as_ref());
        let file = |pick: fn(&RawTlsOf) -> Option<&PathBuf>| {
            own.and_then(pick).or_else(|| defaults.and_then(pick))
        };
        let needed = |key: &str, path: Option<&PathBuf>| -> Result<Vec<u8>> {
            let path = path.with_context(|| {
                format!("tls.https.{key}: ports.https needs a certificate and its key, in PEM")
            })?;
            read(key, path)
        };
        let verifies = own.and_then(|own| own.verify_incoming);
        let verifies = verifies.or_else(|| defaults?.verify_incoming).unwrap_or(false);
        let certificate = needed("cert_file", file(|of| of.cert_file.as_ref()))?;
        let key = needed("key_file", file(|of| of.key_file.as_ref()))?;
        let clients = match (verifies, file(|of| of.ca_file.as_ref())) {
            (false, _) => None,
            (true, Some(path)) => Some(read("ca_file", path)?),
            (true, None) => anyhow::bail!(
                "tls.https.ca_file: verify_incoming needs the authorities of clients, in PEM"
            ),
        };
        let shown = Shown { certificate, key: key.into(), clients };
        Ok(Https { listen, shown })
    }
}

fn read(key: &str, path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("tls.https.{key}: reading {}", path.display()))
}

impl RawUnixSockets {
    fn resolve(&self, path: &str) -> Result<UnixSocket> {
        let mode = match &self.mode {
            None => MODE,
            Some(text) => u32::from_str_radix(text, 8)
                .ok()
                .filter(|mode| *mode <= 0o777)
                .with_context(|| format!("unix_sockets.mode: {text:?} is no mode such as 0660"))?,
        };
        let user = id("unix_sockets.user", self.user.as_deref(), "/etc/passwd")?;
        let group = id("unix_sockets.group", self.group.as_deref(), "/etc/group")?;
        Ok(UnixSocket { path: path.into(), mode, user, group })
    }
}

/// A number, or the number that the host's `file` gives a name.
fn id(key: &str, text: Option<&str>, file: &str) -> Result<Option<u32>> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    if let Ok(number) = text.parse() {
        return Ok(Some(number));
    }
    let known = std::fs::read_to_string(file).with_context(|| format!("{key}: reading {file}"))?;
    let mut rows = known.lines().map(|line| line.split(':'));
    let found = rows.find_map(|mut row| match row.next() {
        Some(name) if name == text => row.nth(1)?.parse().ok(),
        _ => None,
    });
    found.map(Some).with_context(|| format!("{key}: {file} has no {text:?}"))
}

const HTTP_PORT: u16 = 8500;
const HTTPS_PORT: u16 = 8501;
/// Its owner and group.
const MODE: u32 = 0o660;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn listeners(file: serde_json::Value) -> Result<Listeners> {
        let raw: Raw = serde_json::from_value(file)?;
        raw.api()
    }

    #[test]
    fn the_api_listens_where_it_is_told_to() {
        let own = listeners(json!({})).expect("defaults");
        assert_eq!(own.plain, Some(SocketAddr::from(([127, 0, 0, 1], 8500))));
        assert!(own.tls.is_none() && own.unix.is_none(), "off unless asked for");

        let other = listeners(json!({"addresses": {"http": "10.0.0.1"}})).expect("an address");
        assert_eq!(other.plain, Some(SocketAddr::from(([10, 0, 0, 1], 8500))));

        let socket = listeners(json!({"addresses": {"http": "unix:///run/h.sock"},
                                      "unix_sockets": {"mode": "0600", "user": "0",
                                                       "group": "root"}}));
        let socket = socket.expect("a socket");
        assert_eq!(socket.plain, None, "it takes the port's place");
        let expected =
            UnixSocket { path: "/run/h.sock".into(), mode: 0o600, user: Some(0), group: Some(0) };
        assert_eq!(socket.unix, Some(expected));
    }

    #[test]
    fn tls_needs_its_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("a.pem");
        std::fs::write(&file, "pem").expect("written");
        let ports = json!({"https": 8501});
        let good = json!({"ports": ports, "tls": {"defaults": {"cert_file": file},
                          "https": {"key_file": file}}});
        let https = listeners(good).expect("files").tls.expect("on");
        assert_eq!((https.listen.port(), &https.shown.key[..]), (8501, &b"pem"[..]));
        assert!(https.shown.clients.is_none());
        for (tls, key) in [
            (json!({}), "tls.https.cert_file"),
            (json!({"https": {"cert_file": file}}), "tls.https.key_file"),
            (
                json!({"https": {"cert_file": file, "key_file": file, "verify_incoming": true}}),
                "tls.https.ca_file",
            ),
            (json!({"https": {"cert_file": "/no/such", "key_file": file}}), "tls.https.cert_file"),
        ] {
            let Err(why) = listeners(json!({"ports": ports, "tls": tls})) else { panic!("{key}") };
            assert!(format!("{why:#}").contains(key), "{why:#}");
        }
    }
}
