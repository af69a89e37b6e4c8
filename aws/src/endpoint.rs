//! Where AWS answers: a region, and the host that stands for a service in it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A region's name, such as `eu-west-1`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Region(String);

/// A text that is no region.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is no region: it looks like eu-west-1")]
pub struct InvalidRegion(String);

impl FromStr for Region {
    type Err = InvalidRegion;

    fn from_str(text: &str) -> Result<Self, InvalidRegion> {
        let fits =
            |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit() || octet == b'-';
        let is_good = (1..=REGION_OCTETS_MAX).contains(&text.len()) && text.bytes().all(fits);
        if is_good { Ok(Self(text.to_owned())) } else { Err(InvalidRegion(text.to_owned())) }
    }
}

impl Region {
    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A host that is asked, over TLS; in the clear only where no network lies between.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    is_secure: bool,
    host: String,
    port: u16,
}

/// A text that is no endpoint.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidEndpoint {
    /// It is not `https://host[:port]`.
    #[error("{0:?} is no endpoint: write https://host or https://host:port")]
    Form(String),
    /// It would be asked in the clear, over a network.
    #[error("{0:?} would be asked in the clear: use https")]
    Clear(String),
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    /// Parses `https://host[:port]`, or `http://` for a host on this one's loopback.
    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        let form = || InvalidEndpoint::Form(text.to_owned());
        let (scheme, rest) = text.split_once("://").ok_or_else(form)?;
        let is_secure = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(form()),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let after_address = rest.rfind(']').map_or(0, |at| at + 1);
        let (host, port) = match rest.get(after_address..).and_then(|tail| tail.find(':')) {
            None => (rest, None),
            Some(at) => {
                let (host, port) = rest.split_at(after_address + at);
                (host, Some(port.get(1..).and_then(|port| port.parse().ok()).ok_or_else(form)?))
            }
        };
        let host = host.to_ascii_lowercase();
        let fits = |octet: u8| octet.is_ascii_alphanumeric() || b"-.".contains(&octet);
        let is_name = !host.is_empty() && host.len() <= HOST_OCTETS_MAX && host.bytes().all(fits);
        let port = port.unwrap_or(if is_secure { 443 } else { 80 });
        let endpoint = Self { is_secure, host, port };
        if port == 0 || (!is_name && endpoint.ip().is_none()) {
            return Err(form());
        }
        if !is_secure && !endpoint.is_near() {
            return Err(InvalidEndpoint::Clear(text.to_owned()));
        }
        Ok(endpoint)
    }
}

impl Endpoint {
    /// The regional host of `service`.
    pub(crate) fn of(service: &str, region: &Region) -> Self {
        let domain =
            if region.as_str().starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        let host = format!("{service}.{}.{domain}", region.as_str());
        Self { is_secure: true, host, port: 443 }
    }

    /// The region's STS.
    pub fn sts(region: &Region) -> Self {
        Self::of("sts", region)
    }

    pub(crate) fn is_secure(&self) -> bool {
        self.is_secure
    }

    /// The host's name, or its address without brackets.
    pub(crate) fn host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn ip(&self) -> Option<IpAddr> {
        self.host().parse().ok()
    }

    /// What the `Host` header says: the port only where it is not the scheme's.
    pub fn authority(&self) -> String {
        match (self.is_secure, self.port) {
            (true, 443) | (false, 80) => self.host.clone(),
            (_, port) => format!("{}:{port}", self.host),
        }
    }

    /// Whether it is this host, or answered by what carries this host: no network lies between.
    fn is_near(&self) -> bool {
        match self.ip() {
            Some(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_link_local(),
            Some(IpAddr::V6(ip)) => ip.is_loopback() || ip.segments()[..2] == AWS_LINK_LOCAL_V6,
            None => self.host == "localhost",
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_secure { "https" } else { "http" };
        write!(out, "{scheme}://{}", self.authority())
    }
}

const REGION_OCTETS_MAX: usize = 32;
const HOST_OCTETS_MAX: usize = 253;
/// `fd00:ec2::/32`: where hosts on IPv6 find the metadata service.
const AWS_LINK_LOCAL_V6: [u16; 2] = [0xfd00, 0x0ec2];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_secure_or_near() {
        let cases = [
            // text, authority, where it is good
            ("https://sts.eu-west-1.amazonaws.com", Some("sts.eu-west-1.amazonaws.com")),
            ("https://STS.example:8443/", Some("sts.example:8443")),
            ("http://127.0.0.1:5000", Some("127.0.0.1:5000")),
            ("http://[::1]:5000", Some("[::1]:5000")),
            ("http://169.254.169.254", Some("169.254.169.254")),
            ("http://localhost", Some("localhost")),
            ("http://10.0.0.1", None),
            ("http://sts.amazonaws.com", None),
            ("ftp://127.0.0.1", None),
            ("https://a/b", None),
            ("https://a@b", None),
            ("https://a:0", None),
            ("https://a:99999", None),
            ("https://", None),
            ("sts.amazonaws.com", None),
            ("https://a\r\nHost: b", None),
        ];
        for (text, authority) in cases {
            let parsed = text.parse::<Endpoint>().ok().map(|endpoint| endpoint.authority());
            assert_eq!(parsed.as_deref(), authority, "{text:?}");
        }
    }

    #[test]
    fn a_service_has_a_host_in_each_region() {
        for (region, host) in [
            ("eu-west-1", "sts.eu-west-1.amazonaws.com"),
            ("cn-north-1", "sts.cn-north-1.amazonaws.com.cn"),
        ] {
            let region = region.parse().expect("a region");
            assert_eq!(Endpoint::sts(&region).authority(), host);
        }
        assert!("eu-west-1.evil.example".parse::<Region>().is_err());
        assert!(String::new().parse::<Region>().is_err());
    }
}
