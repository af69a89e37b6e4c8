//! What became of a command: applied at an index, or refused by the state.

use hawser_core::clock::Index;
use hawser_core::discovery::Misfit;
use hawser_core::state::{PeerConflict, Rejection};

use crate::field::{Invalid, parsed, required};
use crate::v1;
use crate::v1::rejection::Kind;

impl From<&Rejection> for v1::Rejection {
    fn from(rejection: &Rejection) -> Self {
        let kind = match rejection {
            Rejection::AlreadyFounded => Kind::AlreadyFounded(v1::Nothing {}),
            Rejection::UnknownNode { node } => Kind::UnknownNode(node.to_string()),
            Rejection::NodeNameTaken { node } => Kind::NodeNameTaken(node.to_string()),
            Rejection::UnknownInstance { node, check, instance } => {
                Kind::UnknownInstance(v1::UnknownInstance {
                    node: node.to_string(),
                    check: check.to_string(),
                    instance: instance.to_string(),
                })
            }
            Rejection::UnknownIntention { pair } => Kind::UnknownIntention(pair.into()),
            Rejection::IndexMismatch { expected, actual } => {
                Kind::IndexMismatch(v1::IndexMismatch { expected: expected.0, actual: actual.0 })
            }
            Rejection::NotStaged => Kind::NotStaged(v1::Nothing {}),
            Rejection::NotRevoked { subject } => Kind::NotRevoked(subject.into()),
            Rejection::JoinToken { node } => Kind::JoinToken(node.to_string()),
            Rejection::Locked { key } => Kind::Locked(key.to_string()),
            Rejection::NotHolder { key } => Kind::NotHolder(key.to_string()),
            Rejection::UnknownSession { session } => Kind::UnknownSession(session.to_string()),
            Rejection::QueryNameTaken { name } => Kind::QueryNameTaken(name.to_string()),
            Rejection::UnknownCheck { check } => Kind::UnknownCheck(check.to_string()),
            Rejection::CriticalCheck { check } => Kind::CriticalCheck(check.to_string()),
            Rejection::Txn { failures } => {
                let failures = failures.iter().map(v1::TxnFailure::from).collect();
                Kind::Txn(v1::TxnFailures { failures })
            }
            Rejection::Full { what, max } => {
                let max = u64::try_from(*max).unwrap_or(u64::MAX);
                Kind::Full(v1::Full { what: (*what).to_owned(), max })
            }
            Rejection::Misfit(misfit) => Kind::Misfit(misfit.into()),
            Rejection::IntentionMisfit { pair, field, why } => {
                let (field, why) = (field.clone(), why.clone());
                Kind::IntentionMisfit(v1::IntentionMisfit { pair: Some(pair.into()), field, why })
            }
            Rejection::EntriesChanged { checked, actual } => {
                Kind::EntriesChanged(v1::IndexMismatch { expected: checked.0, actual: actual.0 })
            }
            Rejection::Acl(refusal) => Kind::Acl(refusal.into()),
            Rejection::PeeringToken => Kind::PeeringToken(v1::Nothing {}),
            Rejection::UnknownPeering { name } => Kind::UnknownPeering(name.to_string()),
            Rejection::PeerTaken { name, trust_domain, why } => Kind::PeerTaken(v1::PeerTaken {
                name: name.to_string(),
                trust_domain: trust_domain.to_string(),
                why: v1::PeerConflict::from(*why).into(),
            }),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<v1::Rejection> for Rejection {
    type Error = Invalid;

    fn try_from(rejection: v1::Rejection) -> Result<Self, Invalid> {
        let kind = rejection.kind.ok_or_else(|| {
            Invalid::new("rejection.kind", "it is missing, or none that this release knows")
        })?;
        Ok(match kind {
            Kind::AlreadyFounded(v1::Nothing {}) => Self::AlreadyFounded,
            Kind::UnknownNode(node) => {
                Self::UnknownNode { node: parsed("rejection.unknown_node", &node)? }
            }
            Kind::NodeNameTaken(node) => {
                Self::NodeNameTaken { node: parsed("rejection.node_name_taken", &node)? }
            }
            Kind::UnknownInstance(unknown) => unknown.try_into()?,
            Kind::UnknownIntention(pair) => Self::UnknownIntention { pair: pair.try_into()? },
            Kind::IndexMismatch(mismatch) => Self::IndexMismatch {
                expected: Index(mismatch.expected),
                actual: Index(mismatch.actual),
            },
            Kind::NotStaged(v1::Nothing {}) => Self::NotStaged,
            Kind::NotRevoked(subject) => Self::NotRevoked { subject: subject.try_into()? },
            Kind::JoinToken(node) => {
                Self::JoinToken { node: parsed("rejection.join_token", &node)? }
            }
            Kind::Locked(key) => Self::Locked { key: parsed("rejection.locked", &key)? },
            Kind::NotHolder(key) => Self::NotHolder { key: parsed("rejection.not_holder", &key)? },
            Kind::QueryNameTaken(name) => Self::QueryNameTaken { name: name.into() },
            Kind::UnknownSession(session) => {
                Self::UnknownSession { session: parsed("rejection.unknown_session", &session)? }
            }
            Kind::UnknownCheck(check) => {
                Self::UnknownCheck { check: parsed("rejection.unknown_check", &check)? }
            }
            Kind::CriticalCheck(check) => {
                Self::CriticalCheck { check: parsed("rejection.critical_check", &check)? }
            }
            Kind::Txn(failed) => {
                Self::Txn { failures: failed.failures.into_iter().map(Into::into).collect() }
            }
            Kind::Full(full) => Self::Full {
                what: table(&full.what)?,
                max: usize::try_from(full.max).unwrap_or(usize::MAX),
            },
            Kind::Misfit(misfit) => Self::Misfit(misfit.try_into()?),
            Kind::IntentionMisfit(misfit) => misfit.try_into()?,
            Kind::EntriesChanged(changed) => Self::EntriesChanged {
                checked: Index(changed.expected),
                actual: Index(changed.actual),
            },
            Kind::Acl(refusal) => Self::Acl(refusal.try_into()?),
            Kind::PeeringToken(v1::Nothing {}) => Self::PeeringToken,
            Kind::UnknownPeering(name) => {
                Self::UnknownPeering { name: parsed("rejection.unknown_peering", &name)? }
            }
            Kind::PeerTaken(taken) => Self::PeerTaken {
                name: parsed("peer_taken.name", &taken.name)?,
                trust_domain: parsed("peer_taken.trust_domain", &taken.trust_domain)?,
                why: conflict(taken.why)?,
            },
        })
    }
}

/// The table called `name`.
fn table(name: &str) -> Result<&'static str, Invalid> {
    let found = TABLES.into_iter().find(|table| *table == name);
    found.ok_or_else(|| Invalid::new("full.what", "it is no table that this release knows"))
}

impl TryFrom<v1::UnknownInstance> for Rejection {
    type Error = Invalid;

    fn try_from(unknown: v1::UnknownInstance) -> Result<Self, Invalid> {
        Ok(Self::UnknownInstance {
            node: parsed("unknown_instance.node", &unknown.node)?,
            check: parsed("unknown_instance.check", &unknown.check)?,
            instance: parsed("unknown_instance.instance", &unknown.instance)?,
        })
    }
}

impl TryFrom<v1::IntentionMisfit> for Rejection {
    type Error = Invalid;

    fn try_from(misfit: v1::IntentionMisfit) -> Result<Self, Invalid> {
        let pair = required("intention_misfit.pair", misfit.pair)?;
        Ok(Self::IntentionMisfit { pair, field: misfit.field, why: misfit.why })
    }
}

impl From<&Misfit> for v1::Misfit {
    fn from(misfit: &Misfit) -> Self {
        let (field, why) = (misfit.field.clone(), misfit.why.clone());
        Self { key: Some((&misfit.key).into()), field, why }
    }
}

impl TryFrom<v1::Misfit> for Misfit {
    type Error = Invalid;

    fn try_from(misfit: v1::Misfit) -> Result<Self, Invalid> {
        let key = required("misfit.key", misfit.key)?;
        Ok(Self { key, field: misfit.field, why: misfit.why })
    }
}

impl From<PeerConflict> for v1::PeerConflict {
    fn from(why: PeerConflict) -> Self {
        match why {
            PeerConflict::Own => Self::Own,
            PeerConflict::OtherName => Self::OtherName,
            PeerConflict::OtherCluster => Self::OtherCluster,
        }
    }
}

fn conflict(word: i32) -> Result<PeerConflict, Invalid> {
    match v1::PeerConflict::try_from(word) {
        Ok(v1::PeerConflict::Own) => Ok(PeerConflict::Own),
        Ok(v1::PeerConflict::OtherName) => Ok(PeerConflict::OtherName),
        Ok(v1::PeerConflict::OtherCluster) => Ok(PeerConflict::OtherCluster),
        Ok(v1::PeerConflict::Unspecified) | Err(_) => {
            Err(Invalid::new("peer_taken.why", "it is none that this release knows"))
        }
    }
}

impl From<&Result<Index, Rejection>> for v1::Outcome {
    /// What the leader answers a server that forwarded a command.
    fn from(outcome: &Result<Index, Rejection>) -> Self {
        match outcome {
            Ok(index) => Self { index: index.0, rejection: None },
            Err(rejection) => Self { index: 0, rejection: Some(rejection.into()) },
        }
    }
}

impl TryFrom<v1::Outcome> for Result<Index, Rejection> {
    type Error = Invalid;

    fn try_from(outcome: v1::Outcome) -> Result<Self, Invalid> {
        match outcome.rejection {
            Some(rejection) => Ok(Err(rejection.try_into()?)),
            None if outcome.index == 0 => Err(Invalid::new("outcome.index", "it is missing")),
            None => Ok(Ok(Index(outcome.index))),
        }
    }
}

/// What `core::state` may find full. Words are never taken away: older servers still say them.
pub(crate) const TABLES: [&str; 16] = [
    "nodes",
    "instances on this node",
    "checks on this node",
    "intentions",
    "config entries",
    "unused join tokens",
    "peerings",
    "imported services",
    "imported instances",
    "keys",
    "octets of keys and values",
    "sessions",
    "operations",
    "revocations",
    "parts of a snapshot",
    "prepared queries",
];
