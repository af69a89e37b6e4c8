//! How access control is set up on one host.

use std::time::Duration;

/// How access control is set up on one host.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Whether it is on.
    pub is_enabled: bool,
    /// What holds for tokens that no server can be asked about.
    pub down: DownPolicy,
    /// For how long a server's answer is taken for the present one.
    pub token_ttl: Duration,
    /// The token of those who show none; [`None`] leaves them anonymous.
    pub default: Option<String>,
    /// The token that DNS asks with; [`None`] makes it the default one.
    pub dns: Option<String>,
}

/// What holds for tokens while no server can be asked.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum DownPolicy {
    /// What a server said last, however long ago; nothing where none did.
    #[default]
    ExtendCache,
    /// Everything is allowed.
    Allow,
    /// Nothing is.
    Deny,
}

/// The default of [`Settings::token_ttl`].
pub const TOKEN_TTL: Duration = Duration::from_secs(30);
