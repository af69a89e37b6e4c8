//! Reasons: the one closed set of words for why traffic went or did not go.

use std::fmt;
use std::str::FromStr;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $code:literal $word:literal,)+) => {
        /// Why a connection or request ended as it did. Access logs, metrics, `explain` and the
        /// `x-hawser-reason` header use no other words.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word for it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// What it means, in a sentence.
            pub const fn doc(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+)),+ }
            }

            /// Its number between proxies. Numbers are never used again for something else.
            pub const fn code(self) -> u8 {
                match self { $(Self::$variant => $code),+ }
            }

            /// The reason that a peer's `code` stands for; none when it is newer than this build.
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

reasons! {
    /// It went as it should.
    Ok = 0 "ok",
    /// An intention, or the default where none covers the pair, denies the caller.
    IntentionDenied = 1 "intention_denied",
    /// The peer offered no certificate.
    NoClientCertificate = 2 "no_client_certificate",
    /// The peer's certificate chains to no root that the cluster trusts, or is malformed.
    UntrustedCertificate = 3 "untrusted_certificate",
    /// The peer's certificate has run out, or does not hold yet: look at the clocks.
    CertificateExpired = 4 "certificate_expired",
    /// The peer's identity is of another trust domain.
    WrongTrustDomain = 5 "wrong_trust_domain",
    /// The peer's certificate does not carry exactly one well-formed SPIFFE identity.
    MalformedIdentity = 6 "malformed_identity",
    /// The peer's identity is no service's, and only services speak on mesh ports.
    WrongRole = 7 "wrong_role",
    /// The peer proved an identity, but not the one that was called.
    UnexpectedPeer = 8 "unexpected_peer",
    /// The peer's certificate breaks a rule of the mesh: its lifetime, key or usages.
    UnfitCertificate = 9 "unfit_certificate",
    /// The TLS handshake took too long.
    HandshakeTimeout = 10 "handshake_timeout",
    /// The TLS handshake failed for another cause.
    HandshakeFailed = 11 "handshake_failed",
    /// The peer did not speak TLS on a port that takes nothing else.
    Plaintext = 12 "plaintext",
    /// The service has no instance that may be sent traffic.
    NoEndpoint = 13 "no_endpoint",
    /// This proxy holds no valid certificate for its service.
    NoIdentity = 14 "no_identity",
    /// This host has no view of the service yet.
    ViewMissing = 15 "view_missing",
    /// No connection to the instance could be made.
    ConnectFailed = 16 "connect_failed",
    /// The instance did not answer in time to a connection.
    ConnectTimeout = 17 "connect_timeout",
    /// The instance's proxy answers, but its application does not.
    ApplicationUnreachable = 18 "application_unreachable",
    /// The answer took longer than the request's timeout.
    RequestTimeout = 19 "request_timeout",
    /// The upstream side broke off.
    UpstreamReset = 20 "upstream_reset",
    /// The downstream side broke off.
    DownstreamReset = 21 "downstream_reset",
    /// The request is malformed or ambiguous, and is not passed on.
    BadRequest = 22 "bad_request",
    /// A limit of connections or requests is reached.
    Overloaded = 23 "overloaded",
    /// A new policy, a removed root or an expired certificate cut an open connection.
    PolicyCut = 24 "policy_cut",
    /// The proxy is stopping.
    Draining = 25 "draining",
    /// Another try was due, but the retry budget is used up.
    RetryBudget = 26 "retry_budget",
    /// Nothing moved for too long.
    IdleTimeout = 27 "idle_timeout",
    /// The upstream's answer breaks HTTP, or is of a version that was not agreed on.
    UpstreamProtocol = 28 "upstream_protocol",
    /// The peer's identity is of another datacenter.
    WrongDatacenter = 29 "wrong_datacenter",
    /// The caller's cluster is a peer, but the service is not exported to it.
    NotExported = 30 "not_exported",
    /// The name that a connection to the gateway asks for is no name that a gateway serves.
    UnknownName = 31 "unknown_name",
    /// The name that a connection to the gateway asks for may be asked for within its own cluster only.
    LocalName = 32 "local_name",
    /// No gateway of the peer could be reached.
    GatewayUnavailable = 33 "gateway_unavailable",
    /// The instance has no port of the name that was asked for.
    PortUnknown = 140 "port_unknown",
    /// The peer's identity, its node or its certificate was revoked.
    IdentityRevoked = 50 "identity_revoked",
    /// An intention decides about each request, and its permissions, or the default where none applies, deny this one.
    PermissionDenied = 60 "permission_denied",
    /// The request must bring a token, and brings none.
    TokenMissing = 61 "token_missing",
    /// The request's token is malformed, of another issuer or audience, run out or not signed by its provider, or there are two.
    TokenInvalid = 62 "token_invalid",
    /// The callee's host has no keys yet to check tokens by: look at the jwt-provider entry and at the agent's log.
    TokenKeysMissing = 63 "token_keys_missing",
    /// An intention decides about each request, but the service carries no requests: give it an HTTP protocol in service-defaults, or the intention an action.
    PermissionsNeedHttp = 64 "permissions_need_http",
    /// As many connections to the service are open as `UpstreamConfig` allows its caller.
    ConnectionLimit = 70 "connection_limit",
    /// As many requests wait for a connection to the service as `UpstreamConfig` allows its caller.
    PendingLimit = 71 "pending_limit",
    /// As many requests to the service are under way as `UpstreamConfig` allows its caller.
    RequestLimit = 72 "request_limit",
    /// As many requests to the instance are under way as `InboundLimits` allow.
    ConcurrencyLimit = 73 "concurrency_limit",
    /// The instance takes so long to answer that it must be overloaded, and takes no more for a
    /// moment.
    LoadShed = 74 "load_shed",
    /// More requests came to the instance, or to a route of it, than `RateLimits` allow.
    RateLimited = 75 "rate_limited",
    /// More requests came from this caller than `RateLimits` allow it.
    CallerRateLimited = 76 "caller_rate_limited",
    /// More requests came to all instances of the service together than `RateLimits.Global` allow.
    GlobalRateLimited = 150 "global_rate_limited",
    /// The time that the caller had was over before the application answered.
    DeadlineExceeded = 77 "deadline_exceeded",
    /// A fault that `FaultInjection` of the route makes on purpose.
    FaultInjected = 82 "fault_injected",
    /// The connection lived for as long as `Connections` of its service allow.
    DurationLimit = 80 "duration_limit",
    /// The request's body is larger than `InboundLimits.MaxRequestBytes` of the callee allow.
    RequestTooLarge = 110 "request_too_large",
    /// Nothing more came of the request's body for longer than `InboundLimits.RequestIdleTimeout` of the callee allow.
    RequestStalled = 111 "request_stalled",
    /// A new connection might go to another instance, and `Connections` of the service ask that this
    /// one moves.
    ConnectionMoved = 81 "connection_moved",
}

impl Reason {
    /// Whether it stands for success.
    pub const fn is_ok(self) -> bool {
        matches!(self, Self::Ok)
    }

    /// The HTTP status of an answer that the proxy gives for it.
    pub const fn http_status(self) -> u16 {
        match self {
            Self::Ok => 200,
            Self::BadRequest => 400,
            Self::TokenMissing | Self::TokenInvalid => 401,
            Self::RequestStalled => 408,
            Self::RequestTooLarge => 413,
            Self::IntentionDenied
            | Self::PolicyCut
            | Self::NotExported
            | Self::PermissionDenied
            | Self::PermissionsNeedHttp => 403,
            Self::RateLimited | Self::CallerRateLimited | Self::GlobalRateLimited => 429,
            Self::RequestTimeout | Self::DeadlineExceeded => 504,
            Self::UpstreamReset | Self::UpstreamProtocol => 502,
            _ => 503,
        }
    }

    /// The gRPC status of an answer that the proxy gives for it.
    pub const fn grpc_status(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::BadRequest => 13,
            // Not RESOURCE_EXHAUSTED: it would be as large the next time.
            Self::RequestTooLarge => 3,
            Self::RequestStalled => 4,
            Self::TokenMissing | Self::TokenInvalid => 16,
            Self::IntentionDenied
            | Self::PolicyCut
            | Self::NotExported
            | Self::PermissionDenied
            | Self::PermissionsNeedHttp => 7,
            Self::RequestTimeout | Self::DeadlineExceeded => 4,
            Self::Overloaded
            | Self::ConnectionLimit
            | Self::PendingLimit
            | Self::RequestLimit
            | Self::ConcurrencyLimit
            | Self::LoadShed
            | Self::RateLimited
            | Self::CallerRateLimited
            | Self::GlobalRateLimited => 8,
            _ => 14,
        }
    }

    /// Whether it says that an instance takes no more for the moment, and nothing against it.
    pub const fn is_busy(self) -> bool {
        matches!(self, Self::Overloaded | Self::ConcurrencyLimit | Self::LoadShed)
    }

    /// Whether it is for a proxy that an open connection ends by it.
    pub const fn ends_connections(self) -> bool {
        matches!(
            self,
            Self::PolicyCut
                | Self::IdleTimeout
                | Self::Draining
                | Self::DurationLimit
                | Self::ConnectionMoved
        )
    }

    /// Whether no byte of the request can have reached an application, so that any method may be
    /// tried again elsewhere.
    pub const fn is_before_request(self) -> bool {
        matches!(
            self,
            Self::ConnectFailed
                | Self::ConnectTimeout
                | Self::ApplicationUnreachable
                | Self::HandshakeTimeout
                | Self::HandshakeFailed
                | Self::NoIdentity
                | Self::ViewMissing
                | Self::Overloaded
                | Self::ConcurrencyLimit
                | Self::LoadShed
                | Self::Draining
                | Self::UntrustedCertificate
                | Self::CertificateExpired
                | Self::UnexpectedPeer
                | Self::WrongTrustDomain
                | Self::WrongDatacenter
                | Self::MalformedIdentity
                | Self::WrongRole
                | Self::UnfitCertificate
                | Self::IdentityRevoked
                | Self::GatewayUnavailable
                | Self::TokenKeysMissing
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is no reason.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("it is no reason that this version knows")]
pub struct UnknownReason;

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(word: &str) -> Result<Self, UnknownReason> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == word).ok_or(UnknownReason)
    }
}

/// Who decided how a connection or request ended.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum DecidedBy {
    /// The caller's proxy.
    ClientProxy,
    /// The callee's proxy.
    ServerProxy,
    /// The application itself.
    Application,
}

impl DecidedBy {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClientProxy => "client_proxy",
            Self::ServerProxy => "server_proxy",
            Self::Application => "application",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_is_found_again_by_its_word_and_its_number() {
        let mut codes = BTreeSet::new();
        for reason in Reason::ALL {
            assert_eq!(reason.as_str().parse(), Ok(*reason));
            assert_eq!(Reason::from_code(reason.code()), Some(*reason));
            assert!(codes.insert(reason.code()), "{reason} shares its number");
            assert!(reason.doc().trim().ends_with('.'), "{reason} is not explained");
        }
        assert_eq!(Reason::from_code(u8::MAX), None);
        assert_eq!("nonsense".parse::<Reason>(), Err(UnknownReason));
    }

    #[test]
    fn only_what_reached_no_application_is_safe_to_repeat() {
        for (reason, expected) in [
            (Reason::ConnectFailed, true),
            (Reason::ApplicationUnreachable, true),
            (Reason::UpstreamReset, false),
            (Reason::RequestTimeout, false),
            (Reason::IntentionDenied, false),
        ] {
            assert_eq!(reason.is_before_request(), expected, "{reason}");
        }
    }

    #[test]
    fn every_reason_has_its_page_for_operators() {
        let page = include_str!("../../docs/reasons.md");
        for reason in Reason::ALL {
            let section = format!("## `{reason}`\n\n{}\n", reason.doc().trim());
            let (_, told) = page.split_once(&section).unwrap_or_else(|| {
                panic!("docs/reasons.md lacks: {section}");
            });
            let told = told.split("\n## ").next().unwrap_or(told);
            for part in ["*Decided by:* ", "*Look at:* ", "*What to do:* "] {
                assert!(told.contains(part), "docs/reasons.md, {reason}: no {part}");
            }
        }
    }
}
