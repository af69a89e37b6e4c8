//! Changes of access control that the servers agree on.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::method::{AuthMethod, BindingRule};
use super::model::{Policy, Role, Token};
use super::table::{Refusal, Tables};
use crate::clock::Index;

/// One change of the tables.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// Stores the first token.
    Bootstrap {
        /// The token.
        token: Token,
        /// Allows it once more: the entry that made the first token, as the reset file says it.
        reset: Option<Index>,
    },
    /// Stores a token.
    PutToken(Token),
    /// Removes tokens, by accessor; those that are not there are no matter.
    DropTokens(BTreeSet<Arc<str>>),
    /// Stores a policy.
    PutPolicy(Policy),
    /// Removes a policy, by id.
    DropPolicy(Arc<str>),
    /// Stores a role.
    PutRole(Role),
    /// Removes a role, by id.
    DropRole(Arc<str>),
    /// Stores an auth method.
    PutMethod(AuthMethod),
    /// Removes an auth method by name, with its binding rules and the tokens that it gave.
    DropMethod(Arc<str>),
    /// Stores a binding rule.
    PutBinding(BindingRule),
    /// Removes a binding rule, by id.
    DropBinding(Arc<str>),
    /// Stores a token, policy or role in the place of the one that is there, while that is as of
    /// `expected`: what was deleted meanwhile does not come back.
    Replace {
        /// The entry that last changed what is there.
        expected: Index,
        /// What stores it.
        change: Box<Change>,
    },
}

impl Change {
    /// The level that a cluster must have reached for it: see [`crate::operation::LEVEL`].
    pub fn level(&self) -> u32 {
        match self {
            Self::PutMethod(_) | Self::DropMethod(_) => 2,
            Self::PutBinding(_) | Self::DropBinding(_) => 2,
            Self::PutToken(token) if token.method.is_some() => 2,
            Self::Replace { change, .. } => change.level(),
            _ => 0,
        }
    }
}

impl Tables {
    /// Applies one change, as the entry `at`.
    pub(crate) fn apply(&mut self, change: Change, at: Index) -> Result<(), Refusal> {
        match change {
            Change::Bootstrap { token, reset } => self.bootstrap(token, reset, at),
            Change::PutToken(token) => self.put_token(token, at),
            Change::DropTokens(accessors) => self.drop_tokens(&accessors, at),
            Change::PutPolicy(policy) => self.put_policy(policy, at),
            Change::DropPolicy(id) => self.drop_policy(&id, at),
            Change::PutRole(role) => self.put_role(role, at),
            Change::DropRole(id) => {
                self.drop_role(&id, at);
                Ok(())
            }
            Change::PutMethod(method) => self.put_method(method, at),
            Change::DropMethod(name) => {
                self.drop_method(&name, at);
                Ok(())
            }
            Change::PutBinding(rule) => self.put_binding(rule, at),
            Change::DropBinding(id) => {
                self.drop_binding(&id, at);
                Ok(())
            }
            Change::Replace { expected, change } => {
                let modified = match &*change {
                    Change::PutToken(token) => self.token(&token.accessor).map(|row| row.modified),
                    Change::PutPolicy(policy) => self.policy(&policy.id).map(|row| row.modified),
                    Change::PutRole(role) => self.role(&role.id).map(|row| row.modified),
                    Change::PutMethod(method) => self.method(&method.name).map(|row| row.modified),
                    Change::PutBinding(rule) => self.binding(&rule.id).map(|row| row.modified),
                    _ => None,
                };
                if modified != Some(expected) {
                    return Err(Refusal::Changed);
                }
                self.apply(*change, at)
            }
        }
    }
}
