//! What an agent needs to know before it starts: nothing here is optional that has a default.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use hawser_api::definition::{CheckDefinition, ServiceDefinition};
use hawser_aws::{InvalidQuery, Query, is_provider};
use hawser_core::catalog::{Instance, Locality, Meta};
use hawser_core::name::{Datacenter, NodeName};
use hawser_proxy::AccessLog;
use zeroize::Zeroizing;

use crate::hand_over::Sockets;
use crate::otlp::Otlp;
use crate::{ecs, resolve};

/// One agent.
pub struct Config {
    /// The host's name in the catalog.
    pub node: NodeName,
    /// The datacenter of its cluster.
    pub datacenter: Datacenter,
    /// Where identity, view and declarations are kept: a folder of its own, mode 0700.
    pub data_dir: PathBuf,
    /// The address that other hosts reach this one at.
    pub advertise: IpAddr,
    /// Where inbound mTLS listeners bind.
    pub bind: IpAddr,
    /// Where the HTTP API listens.
    pub http: Listeners,
    /// Where DNS listens and how it answers; none turns it off.
    pub dns: Option<(SocketAddr, hawser_dns::Config)>,
    /// Servers to try first: `host`, `host:port` or `provider=aws ...`.
    pub servers: Vec<String>,
    /// How the host becomes a member.
    pub join: Join,
    /// Services that files declare.
    pub services: Vec<ServiceDefinition>,
    /// What the process itself is in the catalog, such as a server's `consul`: nobody declares
    /// or removes it.
    pub own_service: Option<Instance>,
    /// Checks that files declare.
    pub checks: Vec<CheckDefinition>,
    /// Who may declare script checks.
    pub script_checks: ScriptChecks,
    /// Where the host stands.
    pub locality: Locality,
    /// Free pairs about the host.
    pub meta: Meta,
    /// The host's proxy, but for what it logs and traces.
    pub proxy: hawser_proxy::Config,
    /// What the proxy logs and traces.
    pub telemetry: Telemetry,
    /// The mesh gateway that this host is; none where it is none.
    pub gateway: Option<Gateway>,
    /// The ports that inbound mTLS listeners are given: 21000–21255.
    pub mesh_ports: RangeInclusive<u16>,
    /// How long connections may finish when the agent stops.
    pub drain: Duration,
    /// The ECS task that the agent is a sidecar in; none outside of tasks.
    pub ecs: Option<ecs::Config>,
    /// Whether a server runs in the same process.
    pub is_server: bool,
    /// Who may ask what of the agent.
    pub acl: crate::acl::Settings,
    /// What the process logs, for those who watch it over the API.
    pub logs: Option<crate::monitor::Logs>,
    /// How it takes over from another process, and gives way to the next.
    pub succession: Succession,
    /// The release.
    pub version: &'static str,
}

/// Where the HTTP API listens: anything from nowhere to everywhere.
#[derive(Clone, Debug, Default)]
pub struct Listeners {
    /// Without TLS.
    pub plain: Option<SocketAddr>,
    /// With TLS.
    pub tls: Option<Https>,
    /// On a Unix socket.
    pub unix: Option<UnixSocket>,
}

/// The HTTP API over TLS.
#[derive(Clone, Debug)]
pub struct Https {
    /// Where it listens.
    pub listen: SocketAddr,
    /// With what.
    pub shown: Shown,
}

/// What clients of the HTTP API are shown over TLS, and what they must show; all in PEM.
#[derive(Clone)]
pub struct Shown {
    /// Its certificate, and those between that and the root.
    pub certificate: Vec<u8>,
    /// The certificate's key.
    pub key: Zeroizing<Vec<u8>>,
    /// The authorities that a client's certificate must come from; none lets clients have none.
    pub clients: Option<Vec<u8>>,
}

impl fmt::Debug for Shown {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shown").finish_non_exhaustive()
    }
}

/// A Unix socket and who may use it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UnixSocket {
    /// Where it stands.
    pub path: PathBuf,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner; none is who the process runs as.
    pub user: Option<u32>,
    /// Its group; none is the process's.
    pub group: Option<u32>,
}

/// How an agent takes over from another process, and gives way to the next.
pub struct Succession {
    /// Whether to replace the agent that runs in the same folder, should one run.
    pub take_over: bool,
    /// Listening sockets that the service manager kept.
    pub sockets: Sockets,
    /// Told of the process that replaced this one, before this one ends.
    pub on_replaced: fn(u32),
}

impl Default for Succession {
    fn default() -> Self {
        Self { take_over: false, sockets: Sockets::default(), on_replaced: |_| {} }
    }
}

/// What the proxies of the host log and trace: can be changed while they run.
#[derive(Clone, Debug, Default)]
pub struct Telemetry {
    /// Which requests are logged, and where to.
    pub access_log: AccessLog,
    /// Where spans go; none while there are no traces.
    pub otlp: Option<Otlp>,
}

/// What is read anew while the agent runs.
#[derive(Debug)]
pub struct Reload {
    /// Services that files declare now.
    pub services: Vec<ServiceDefinition>,
    /// Checks that files declare now.
    pub checks: Vec<CheckDefinition>,
    /// What the HTTP API shows over TLS from now on.
    pub https: Option<Shown>,
    /// What the proxies log and trace from now on.
    pub telemetry: Telemetry,
}

/// A mesh gateway, as the host that is one knows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Gateway {
    /// Where it listens.
    pub listen: SocketAddr,
    /// What other clusters dial, `host:port`.
    pub advertise: Arc<str>,
}

impl Gateway {
    /// Checks `advertise`: an address or DNS name that can be dialled, and a port.
    ///
    /// # Errors
    /// [`InvalidAdvertise`]
    pub fn new(listen: SocketAddr, advertise: &str) -> Result<Self, InvalidAdvertise> {
        let (host, port) = resolve::split(advertise).ok_or(InvalidAdvertise)?;
        let is_label = |label: &str| {
            let allowed = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_');
            (1..=63).contains(&label.len()) && label.bytes().all(allowed)
        };
        let is_host = match host.parse::<IpAddr>() {
            Ok(address) => !address.is_unspecified(),
            Err(_) => host.len() <= DNS_NAME_OCTETS_MAX && host.split('.').all(is_label),
        };
        if port == 0 || !is_host {
            return Err(InvalidAdvertise);
        }
        Ok(Self { listen, advertise: advertise.into() })
    }
}

/// A text that no cluster could dial a gateway by.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("use host:port, as other clusters reach the gateway: an IP address or a DNS name")]
pub struct InvalidAdvertise;

/// Who may declare checks that run programs, with the agent's rights.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ScriptChecks {
    /// Nobody.
    #[default]
    Off,
    /// Configuration files, never the API.
    Files,
    /// Whoever reaches the API, too.
    FilesAndApi,
}

/// SHA-256 of the public key of the root that vouches for servers: how a host knows them that has
/// no join token. It is no secret.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pin(pub(crate) [u8; 32]);

/// A text that is no pin.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("it is no pin: it has 43 characters, as `hawser pin` prints it on a server")]
pub struct InvalidPin;

impl FromStr for Pin {
    type Err = InvalidPin;

    fn from_str(text: &str) -> Result<Self, InvalidPin> {
        let octets = URL_SAFE_NO_PAD.decode(text.trim()).map_err(|_| InvalidPin)?;
        octets.try_into().map(Self).map_err(|_| InvalidPin)
    }
}

/// Checks an entry of [`Config::servers`] that says who is to be asked for servers.
///
/// # Errors
/// [`InvalidQuery`]
pub fn check_server(text: &str) -> Result<(), InvalidQuery> {
    if is_provider(text) { Query::parse(text).map(drop) } else { Ok(()) }
}

/// Makes a join token: how the agent inside a server joins.
pub type Mint = Arc<dyn Fn() -> BoxFuture<'static, Result<String, String>> + Send + Sync>;

/// How a host becomes a member.
pub enum Join {
    /// With this token, which works once; afterwards it is not looked at again.
    Token(String),
    /// By the role that AWS knows its task or instance by; servers are known by the pin.
    AwsIam(Pin),
    /// Not at all: it must have joined before.
    None,
    /// As with [`Join::None`]: this file was to hold a token, and is not there.
    Missing(PathBuf),
    /// With tokens made as needed.
    Mint(Mint),
}

const DNS_NAME_OCTETS_MAX: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_advertises_what_can_be_dialled() {
        let listen = SocketAddr::from(([0, 0, 0, 0], 8443));
        for (text, is_good) in [
            ("198.51.100.7:8443", true),
            ("[2001:db8::7]:8443", true),
            ("gateway.example.com:443", true),
            ("nlb-1_a.eu:443", true),
            ("gateway.example.com", false),
            ("gateway.example.com:0", false),
            ("gateway.example.com:70000", false),
            ("0.0.0.0:8443", false),
            ("[::]:8443", false),
            (":8443", false),
            ("a..b:1", false),
            ("https://a:1", false),
            ("a b:1", false),
        ] {
            assert_eq!(Gateway::new(listen, text).is_ok(), is_good, "{text:?}");
        }
    }
}
