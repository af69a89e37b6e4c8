//! One's own certificate with its key.

use std::sync::Arc;

use hawser_core::ca::Validity;
use hawser_core::spiffe::SpiffeId;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::provider::provider;

/// A certificate and its key. It cannot be printed.
pub struct Leaf {
    /// Who it says its holder is.
    pub id: SpiffeId,
    /// The leaf, then intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
    /// When it holds.
    pub validity: Validity,
}

/// Why a leaf cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LeafError {
    /// The key is of a kind that rustls does not sign with, or malformed.
    #[error("the leaf's key cannot be used")]
    Key(#[source] rustls::Error),
    /// Key and certificate do not belong together, or TLS refuses the configuration.
    #[error("the leaf's certificate cannot be used")]
    Certificate(#[source] rustls::Error),
}

impl Leaf {
    /// It as TLS shows it.
    ///
    /// # Errors
    /// [`LeafError`] when key and certificate cannot be used, or not together.
    pub fn certified(&self) -> Result<Arc<CertifiedKey>, LeafError> {
        let keys = provider().key_provider;
        let key = keys.load_private_key(self.key.clone_key()).map_err(LeafError::Key)?;
        let certified = CertifiedKey::new(self.chain.clone(), key);
        certified.keys_match().map_err(LeafError::Certificate)?;
        Ok(Arc::new(certified))
    }
}
