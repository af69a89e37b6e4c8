//! TLS towards servers: only a server's certificate under the one server root is believed.

use std::sync::Arc;

use hawser_identity::{Anchors, Callee, Leaf, LeafError};
use rustls::ClientConfig;
use rustls::client::ResolvesClientCert;
use rustls::sign::SingleCertAndKey;

pub(crate) use hawser_identity::pin_of;

/// How those are dialled whom `anchors` trusts, as the holder of `shows` or as nobody.
///
/// # Errors
/// A certificate and key that rustls cannot use.
pub(crate) fn client(
    anchors: Anchors,
    shows: Option<&Leaf>,
) -> Result<ClientConfig, rustls::Error> {
    let shows = match shows.map(Leaf::certified).transpose() {
        Ok(certified) => certified,
        Err(LeafError::Key(why) | LeafError::Certificate(why)) => return Err(why),
    };
    let shows = shows.map(|certified| {
        Arc::new(SingleCertAndKey::from(certified)) as Arc<dyn ResolvesClientCert>
    });
    hawser_identity::dial(Callee::any(Arc::new(anchors)), shows, &[b"h2"])
}
