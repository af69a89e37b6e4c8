//! Faults: each way in which a message breaks the rules, and what it is answered with.

use std::io;

use http::StatusCode;

/// A rule that a message breaks.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, thiserror::Error)]
pub enum Fault {
    /// The first byte begins no message.
    #[error("this is not HTTP")]
    NotHttp,
    /// A line that does not end with CR LF, or a CR elsewhere.
    #[error("a line ends with something else than CR LF")]
    LineEnd,
    /// A line that continues the one before it.
    #[error("a field is folded")]
    Folded,
    /// The request line or status line is malformed.
    #[error("the first line is malformed")]
    FirstLine,
    /// A version that is none, or one of HTTP/1 beyond 1.1.
    #[error("the version is malformed")]
    Version,
    /// A version of HTTP that is not spoken here.
    #[error("the version is not HTTP/1")]
    OtherVersion,
    /// A method longer than any.
    #[error("the method is too long")]
    MethodTooLong,
    /// A target that is malformed, or of a form that does not go with the method.
    #[error("the target is malformed")]
    Target,
    /// A target over its limit.
    #[error("the target is too long")]
    TargetTooLong,
    /// A field's name or value is malformed; a blank before the colon is.
    #[error("a field is malformed")]
    Field,
    /// More fields than allowed.
    #[error("there are too many fields")]
    TooManyFields,
    /// More bytes than allowed.
    #[error("the head is too long")]
    HeadTooLong,
    /// HTTP/1.1 without `Host`.
    #[error("there is no host")]
    NoHost,
    /// `Host` more than once.
    #[error("there is more than one host")]
    Hosts,
    /// `Content-Length` that is no number.
    #[error("the length is no number")]
    Length,
    /// `Content-Length` more than once, be they equal.
    #[error("there is more than one length")]
    Lengths,
    /// `Content-Length` and `Transfer-Encoding`.
    #[error("there is a length and a coding")]
    LengthAndCoding,
    /// `Transfer-Encoding` that is not exactly `chunked`, or in HTTP/1.0.
    #[error("the transfer coding is not chunked, once, in HTTP/1.1")]
    Coding,
    /// `Expect` for something else than `100-continue`.
    #[error("the expectation is unknown")]
    Expectation,
    /// A head that did not end in time.
    #[error("the head took too long")]
    HeadTimeout,
    /// A chunk whose size is malformed or too large.
    #[error("a chunk's size is malformed")]
    ChunkSize,
    /// Extensions of chunks that are malformed or too long.
    #[error("a chunk's extension is malformed or too long")]
    ChunkExtension,
    /// A chunk that goes on after its size.
    #[error("a chunk does not end where its size says")]
    ChunkEnd,
    /// Trailers that are malformed, too many, or that decide where a message ends or goes.
    #[error("a trailer is malformed or may not be one")]
    Trailer,
    /// A status that is none, or a switch of protocols that nobody asked for.
    #[error("the status is none that may come here")]
    Status,
    /// Too many interim answers.
    #[error("there are too many interim answers")]
    Interim,
}

impl Fault {
    /// The status that a request with this fault is answered with.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::TooManyFields | Self::HeadTooLong => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::MethodTooLong => StatusCode::NOT_IMPLEMENTED,
            Self::OtherVersion => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::Expectation => StatusCode::EXPECTATION_FAILED,
            Self::HeadTimeout => StatusCode::REQUEST_TIMEOUT,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// Why a connection, or a body in it, ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The peer breaks a rule.
    #[error("the peer breaks HTTP/1.1")]
    Fault(#[from] Fault),
    /// The stream failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The peer closed before its message had ended.
    #[error("the peer closed in the middle of a message")]
    Incomplete,
    /// The peer closed before it began to answer, or sent something that nobody asked for.
    #[error("the connection is closed")]
    Closed,
    /// What was to be sent ended before its end, or is longer or shorter than its length.
    #[error("the message to be sent broke off")]
    Message(#[source] Option<Box<dyn std::error::Error + Send + Sync>>),
}

impl Error {
    /// The rule that the peer broke, if it was that.
    pub const fn fault(&self) -> Option<Fault> {
        match self {
            Self::Fault(fault) => Some(*fault),
            _ => None,
        }
    }

    /// Whether what failed was the message that was to be sent, and not the connection.
    pub const fn is_message(&self) -> bool {
        matches!(self, Self::Message(_))
    }
}
