//! What the configuration says of a mesh gateway: where it listens and what others dial.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use hawser_agent::Gateway;
use serde::{Deserialize, Serialize};

/// `mesh_gateway`: to say it at all makes the host a gateway.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawGateway {
    bind: Option<String>,
    advertise: Option<String>,
}

impl RawGateway {
    /// Fills in the defaults from where the host binds and what it advertises.
    ///
    /// # Errors
    /// A value that cannot be, named by its key.
    pub(super) fn resolve(&self, bind: IpAddr, advertise: IpAddr) -> Result<Gateway> {
        let listen: SocketAddr = match &self.bind {
            None => SocketAddr::new(bind, PORT),
            Some(text) => text.parse().with_context(|| {
                format!("mesh_gateway.bind: {text:?} is no IP:port, such as \"0.0.0.0:{PORT}\"")
            })?,
        };
        ensure!(
            listen.port() > 0,
            "mesh_gateway.bind: other clusters must know the port: use 1 to 65535"
        );
        let own = SocketAddr::new(advertise, listen.port()).to_string();
        let advertise = self.advertise.as_deref().unwrap_or(&own);
        Gateway::new(listen, advertise)
            .with_context(|| format!("mesh_gateway.advertise: {advertise:?}"))
    }
}

const PORT: u16 = 8443;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_follows_from_the_host() {
        let (any, own) = (IpAddr::from([0, 0, 0, 0]), IpAddr::from([10, 0, 0, 7]));
        let cases = [
            // bind, advertise, listen, dialled
            (None, None, "0.0.0.0:8443", "10.0.0.7:8443"),
            (Some("10.0.0.7:443"), None, "10.0.0.7:443", "10.0.0.7:443"),
            (None, Some("nlb.example.com:443"), "0.0.0.0:8443", "nlb.example.com:443"),
            (Some("[::]:8443"), Some("[2001:db8::7]:8443"), "[::]:8443", "[2001:db8::7]:8443"),
        ];
        for (bind, advertise, listen, dialled) in cases {
            let text = |text: Option<&str>| text.map(ToOwned::to_owned);
            let raw = RawGateway { bind: text(bind), advertise: text(advertise) };
            let gateway = raw.resolve(any, own).expect("good");
            assert_eq!(
                (gateway.listen.to_string().as_str(), &*gateway.advertise),
                (listen, dialled)
            );
        }
    }
}
