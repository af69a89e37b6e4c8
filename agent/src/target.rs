//! Where a check may ask: never link-local or metadata addresses, and by the API only this host.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use hawser_api::definition::CheckKind;
use http::Method;
use http::uri::Authority;

use crate::resolve;

/// Why a target is not asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    /// It has no port.
    #[error("{0:?} has no port")]
    NoPort(String),
    /// It does not resolve.
    #[error("{host} does not resolve: {source}")]
    Resolve {
        /// The name.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// It is an address that checks never ask.
    #[error("{0} is link-local, a metadata service, or nowhere: checks do not ask there")]
    Forbidden(IpAddr),
}

/// A host and a port as a definition names them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Target {
    /// The host, without brackets.
    pub(crate) host: String,
    /// The port.
    pub(crate) port: u16,
}

/// The target that `kind` asks; none for one that asks nobody.
pub(crate) fn of(kind: &CheckKind) -> Option<Result<Target, TargetError>> {
    match kind {
        CheckKind::Http { url, .. } => {
            let default = if url.scheme_str() == Some("https") { 443 } else { 80 };
            let host = url.host().unwrap_or_default();
            Some(Ok(Target { host: bare(host), port: url.port_u16().unwrap_or(default) }))
        }
        CheckKind::Tcp { address } | CheckKind::Grpc { address, .. } => Some(parse(address)),
        CheckKind::Socket { .. }
        | CheckKind::Ttl(_)
        | CheckKind::Script { .. }
        | CheckKind::Alias { .. } => None,
    }
}

/// Whether `kind` asks nobody but this host, whose addresses are `own`.
///
/// Names other than `localhost` are not this host: what they resolve to is somebody else's choice.
pub(crate) fn is_local(kind: &CheckKind, own: &[Option<IpAddr>]) -> bool {
    match of(kind) {
        None => true,
        Some(Err(_)) => false,
        Some(Ok(target)) => match target.host.parse::<IpAddr>() {
            Ok(address) => {
                let address = address.to_canonical();
                address.is_loopback() || (own.contains(&Some(address)) && !address.is_unspecified())
            }
            Err(_) => target.host.eq_ignore_ascii_case("localhost"),
        },
    }
}

/// Whether this host has `address`, so that a socket here can have it.
pub(crate) fn is_here(address: IpAddr) -> bool {
    std::net::UdpSocket::bind((address, 0)).is_ok()
}

/// Whether `kind` only learns that somebody is there: it says nothing that whoever declared it chose.
pub(crate) fn is_harmless(kind: &CheckKind) -> bool {
    match kind {
        CheckKind::Http { method, headers, body, .. } => {
            method == Method::GET && headers.is_empty() && body.is_empty()
        }
        CheckKind::Tcp { .. } | CheckKind::Socket { .. } | CheckKind::Grpc { .. } => true,
        CheckKind::Ttl(_) | CheckKind::Script { .. } | CheckKind::Alias { .. } => true,
    }
}

/// The address to dial. Who dials it dials exactly this, so that a name cannot answer twice.
pub(crate) async fn resolve(target: &Target) -> Result<SocketAddr, TargetError> {
    let failed = |source| TargetError::Resolve { host: target.host.clone(), source };
    let found = match target.host.parse::<IpAddr>() {
        Ok(address) => SocketAddr::new(address, target.port),
        Err(_) => resolve::look_up(&target.host, target.port)
            .await
            .map_err(failed)?
            .into_iter()
            .next()
            .ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?,
    };
    match is_forbidden(found.ip()) {
        true => Err(TargetError::Forbidden(found.ip())),
        false => Ok(found),
    }
}

fn is_forbidden(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            v4.is_link_local() || v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast()
        }
        IpAddr::V6(v6) => {
            let is_compatible_link_local = v6.to_ipv4().is_some_and(|v4| v4.is_link_local());
            v6.is_unicast_link_local()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6 == EC2_METADATA
                || is_compatible_link_local
        }
    }
}

fn parse(address: &str) -> Result<Target, TargetError> {
    let missing = || TargetError::NoPort(address.to_owned());
    let authority: Authority = address.parse().map_err(|_| missing())?;
    let port = authority.port_u16().ok_or_else(missing)?;
    Ok(Target { host: bare(authority.host()), port })
}

fn bare(host: &str) -> String {
    host.trim_start_matches('[').trim_end_matches(']').to_owned()
}

/// The instance metadata service of EC2 over IPv6.
const EC2_METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(address: &str) -> CheckKind {
        CheckKind::Tcp { address: address.into() }
    }

    #[tokio::test]
    async fn metadata_and_link_local_addresses_are_never_asked() {
        for (address, is_refused) in [
            ("169.254.169.254:80", true),
            ("169.254.170.2:80", true),
            ("[fe80::1]:80", true),
            ("[::ffff:169.254.169.254]:80", true),
            ("[::169.254.169.254]:80", true),
            ("[fd00:ec2::254]:80", true),
            ("0.0.0.0:80", true),
            ("[::]:80", true),
            ("224.0.0.1:80", true),
            ("127.0.0.1:80", false),
            ("10.0.0.1:80", false),
            ("[::1]:80", false),
        ] {
            let target = parse(address).expect("well formed");
            let resolved = resolve(&target).await;
            assert_eq!(resolved.is_err(), is_refused, "{address}: {resolved:?}");
        }
    }

    #[test]
    fn only_this_host_is_local() {
        let own = [Some(IpAddr::from([10, 0, 0, 5])), None];
        for (address, expected) in [
            ("127.0.0.1:1", true),
            ("127.9.9.9:1", true),
            ("localhost:1", true),
            ("10.0.0.5:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("10.0.0.6:1", false),
            ("2130706433:1", false),
            ("evil.example:1", false),
            ("noport", false),
        ] {
            assert_eq!(is_local(&tcp(address), &own), expected, "{address}");
        }
    }
}
