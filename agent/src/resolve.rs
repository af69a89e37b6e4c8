//! Names to addresses without the C library's resolver, which a static binary cannot load.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_resolver::TokioResolver;

/// The addresses that `host`, a name or an address, stands for: by `/etc/hosts`, then by DNS.
///
/// # Errors
/// The system has no resolver configured, or the name does not resolve.
pub(crate) async fn look_up(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    if host.eq_ignore_ascii_case("localhost") {
        let both = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        return Ok(both.map(|address| SocketAddr::new(address, port)).into());
    }
    // Made anew each time: the system's configuration may have changed.
    let resolver = TokioResolver::builder_tokio()
        .and_then(|builder| builder.build())
        .map_err(io::Error::other)?;
    let found = resolver.lookup_ip(host).await.map_err(io::Error::other)?;
    Ok(found.iter().map(|address| SocketAddr::new(address, port)).collect())
}

/// The parts of `host:port`, `address:port` or `[address]:port`.
pub(crate) fn split(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (!bare.is_empty()).then_some((bare, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports_are_told_apart() {
        let cases = [
            ("10.0.0.1:8300", Some(("10.0.0.1", 8300))),
            ("[2001:db8::1]:8300", Some(("2001:db8::1", 8300))),
            ("server.example:1", Some(("server.example", 1))),
            ("server.example", None),
            ("server.example:many", None),
            (":8300", None),
            ("[]:8300", None),
        ];
        for (text, expected) in cases {
            assert_eq!(split(text), expected, "{text}");
        }
    }

    #[tokio::test]
    async fn what_needs_no_question_asks_none() {
        for (host, first) in
            [("127.0.0.9", "127.0.0.9:7"), ("::1", "[::1]:7"), ("LocalHost", "127.0.0.1:7")]
        {
            let found = look_up(host, 7).await.expect("no resolver is needed");
            assert_eq!(found[0].to_string(), first);
        }
    }
}
