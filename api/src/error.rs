//! What a request is refused with: Consul's status and, where clients look for it, its exact text.

use std::fmt;

use http::StatusCode;

use crate::fields::{InvalidField, InvalidJson};

/// Why a request is not answered as asked.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ApiError {
    /// The request itself is wrong; the text says where.
    #[error("{0}")]
    BadRequest(String),
    /// The endpoint needs access control, which is off.
    #[error("ACL support disabled")]
    AclDisabled,
    /// The token does not allow it, or is none; the text is what clients look for.
    #[error("{0}")]
    Forbidden(String),
    /// There is no such object; the text is what clients look for.
    #[error("{0}")]
    NotFound(String),
    /// No endpoint has this path.
    #[error("Invalid URL path: not a recognized HTTP API endpoint")]
    UnknownPath,
    /// The endpoint has other methods.
    #[error("method {method} not allowed")]
    MethodNotAllowed {
        /// What was tried.
        method: String,
        /// What may be tried, comma-separated.
        allow: String,
    },
    /// The body is longer than any endpoint takes.
    #[error("Request body too large, max size: {max} bytes")]
    TooLarge {
        /// The bound.
        max: usize,
    },
    /// Consul has it and Hawser does not.
    #[error("{0}")]
    NotImplemented(String),
    /// Nobody leads, so nothing can be written or read consistently: try again, or read `?stale`.
    #[error("No cluster leader")]
    NoLeader,
    /// The datacenter is not this one.
    #[error("No path to datacenter")]
    UnknownDatacenter,
    /// A write timed out: it may or may not have happened.
    #[error("the write timed out and may or may not have happened: read before you repeat it")]
    Unknown,
    /// The server is stopping, or has too much to do: another may answer.
    #[error("{0}")]
    Unavailable(String),
    /// A `control-plane-request-limit` does not allow as much; the text is what clients look for.
    #[error(
        "rate limit exceeded, try again later or against a different server: \
         control-plane-request-limit/{by} allows no more in the next {} s",
        after.as_millis().div_ceil(1_000)
    )]
    Limited {
        /// The entry.
        by: String,
        /// When more is allowed.
        after: std::time::Duration,
    },
    /// A write that the state of the cluster refuses.
    #[error("{0}")]
    Refused(String),
}

impl ApiError {
    /// A [`ApiError::BadRequest`] that says `why`.
    pub fn bad_request(why: impl fmt::Display) -> Self {
        Self::BadRequest(why.to_string())
    }

    /// The status that clients of Consul expect.
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::AclDisabled => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::NotFound(_) | Self::UnknownPath => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NotImplemented(_) => StatusCode::NOT_IMPLEMENTED,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Limited { .. } => StatusCode::TOO_MANY_REQUESTS,
            // Go's client takes a 500, and nothing else, for worth trying again.
            Self::NoLeader | Self::UnknownDatacenter | Self::Unknown | Self::Refused(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }
}

impl From<InvalidField> for ApiError {
    fn from(invalid: InvalidField) -> Self {
        Self::bad_request(format_args!("Request decode failed: {invalid}"))
    }
}

impl From<InvalidJson> for ApiError {
    fn from(invalid: InvalidJson) -> Self {
        Self::bad_request(format_args!("Request decode failed: {invalid}"))
    }
}
