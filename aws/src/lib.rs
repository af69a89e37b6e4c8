//! What Hawser asks of AWS: who signed a request, and which addresses carry a tag.
//!
//! Requests are signed by hand (Signature Version 4), each goes over a connection of its own within
//! bounds of time and size, and nothing secret is printable or outlives the call that needs it.

#![forbid(unsafe_code)]

mod date;
mod endpoint;
mod call;
mod get;
mod ambient;
mod credentials;
mod sign;
mod xml;
mod caller;
mod identity;
mod bearer;
mod query;
mod ec2;
mod ecs;
mod find;
#[cfg(test)]
mod fake;

pub use ambient::Ambient;
pub use bearer::{InvalidCall, SignedCall};
pub use call::CallError;
pub use caller::{Caller, InvalidCaller};
pub use credentials::{Credentials, CredentialsError};
pub use date::AmzDate;
pub use endpoint::{Endpoint, InvalidEndpoint, InvalidRegion, Region};
pub use find::{FindError, Finder};
pub use get::{GetError, get, get_trusting};
pub use identity::{Challenge, IdentifyError, InvalidProof, Proof, Sts};
pub use query::{InvalidQuery, Query, is_provider};
