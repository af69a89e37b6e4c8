//! Access control: who a token is, and what it may do.
//!
//! Consul's model: a token links policies, roles, identities and templated policies; together
//! they make one [`Authorizer`], which answers every question that an operation raises.

mod rule;
mod template;
mod authorizer;
mod model;
mod method;
mod table;
mod change;

pub use authorizer::{Authorizer, DefaultPolicy, Denied};
pub use change::Change;
pub use method::{
    AuthMethod, AwsConfig, BindKind, BindingRule, Identity, InvalidBindKind, InvalidBinding,
    InvalidConfig, InvalidKind, JwtConfig, KeySource, MethodKind,
};
pub use model::{
    ANONYMOUS_ACCESSOR, ANONYMOUS_SECRET, Grants, MANAGEMENT_ID, NodeIdentity, Policy,
    READ_ONLY_ID, Role, Secret, ServiceIdentity, Templated, Token,
};
pub use rule::{Access, InvalidAccess, Resource, Rule, Rules, Segment};
pub use table::{BindError, BindFault, Dump, Refusal, Resolved, Tables};
pub use template::{InvalidTemplate, Template};
