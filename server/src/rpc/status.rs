//! The one map from what went wrong to a gRPC status: what the caller can do decides the code.

use hawser_aws::IdentifyError;
use hawser_core::state::Rejection;
use hawser_proto::Invalid;
use tonic::Status;

use crate::aws_iam::Refusal;
use crate::ca::SignError;
use crate::propose::ProposeError;
use crate::raft::{ChangeError, MessageError};
use crate::read::ReadError;

/// A message that was refused for one of its fields.
pub(crate) fn invalid(invalid: &Invalid) -> Status {
    Status::invalid_argument(invalid.to_string())
}

impl From<ProposeError> for Status {
    fn from(error: ProposeError) -> Self {
        let text = error.to_string();
        match error {
            ProposeError::Rejected(rejection) => match rejection {
                Rejection::JoinToken { .. } => Self::permission_denied(text),
                Rejection::NodeNameTaken { .. } => Self::already_exists(text),
                Rejection::UnknownNode { .. } | Rejection::UnknownIntention { .. } => {
                    Self::not_found(text)
                }
                Rejection::Full { .. } => Self::resource_exhausted(text),
                Rejection::IndexMismatch { .. }
                | Rejection::Locked { .. }
                | Rejection::NotHolder { .. }
                | Rejection::Txn { .. } => Self::aborted(text),
                _ => Self::failed_precondition(text),
            },
            ProposeError::TooLarge { .. } | ProposeError::Unreadable { .. } => {
                Self::invalid_argument(text)
            }
            ProposeError::Level { .. } => Self::failed_precondition(text),
            ProposeError::DiskFull => Self::resource_exhausted(text),
            ProposeError::NoLeader | ProposeError::ShuttingDown => Self::unavailable(text),
            // Not `unavailable`: nobody may take it for a call that had no effect.
            ProposeError::Unknown => Self::unknown(text),
        }
    }
}

impl From<ReadError> for Status {
    fn from(error: ReadError) -> Self {
        let text = error.to_string();
        match error {
            ReadError::NoLeader | ReadError::Behind | ReadError::ShuttingDown => {
                Self::unavailable(text)
            }
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::Busy => Self::resource_exhausted(text),
            Refusal::Identify(
                IdentifyError::Busy(_) | IdentifyError::Call(_) | IdentifyError::Answer(_),
            ) => Self::unavailable(text),
            Refusal::ForeignNonce
            | Refusal::LateNonce
            | Refusal::UsedNonce
            | Refusal::Skewed(_)
            | Refusal::Identify(IdentifyError::Refused(_))
            | Refusal::Account(_)
            | Refusal::NoRole(_)
            | Refusal::Role(_)
            | Refusal::Node { .. } => Self::permission_denied(text),
        }
    }
}

impl From<SignError> for Status {
    fn from(error: SignError) -> Self {
        let text = error.to_string();
        match error {
            SignError::NoAuthority | SignError::RanOut => Self::unavailable(text),
            SignError::TooLong
            | SignError::Malformed
            | SignError::NoProof
            | SignError::Name
            | SignError::Key => Self::invalid_argument(text),
            SignError::TooMany { .. } => Self::resource_exhausted(text),
            SignError::Revoked(_) => Self::permission_denied(text),
            SignError::Rotating | SignError::Known | SignError::Subject => {
                Self::failed_precondition(text)
            }
            SignError::Sealed(_) | SignError::Make(_) => {
                tracing::error!(%error, "cannot sign");
                Self::internal(text)
            }
        }
    }
}

impl From<MessageError> for Status {
    fn from(error: MessageError) -> Self {
        let text = error.to_string();
        match error {
            MessageError::Invalid(_) => Self::invalid_argument(text),
            MessageError::Stopped => Self::unavailable(text),
        }
    }
}

impl From<ChangeError> for Status {
    fn from(error: ChangeError) -> Self {
        let text = error.to_string();
        match error {
            ChangeError::NotNow(_) => Self::aborted(text),
        }
    }
}
