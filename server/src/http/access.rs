//! What each endpoint needs before it is looked at: a row for every route, and no default.

use hawser_core::acl::{Access as Level, Resource};
use http::Method;

/// How an endpoint is guarded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Access {
    /// By nothing: what it says is no secret, or it brings proof of its own.
    Open,
    /// By what the token may see: the reply holds that and no more, or is a refusal.
    Sight,
    /// Each command that it leads to is authorised by itself.
    Commands,
    /// By one permission.
    Needs(Resource, Level),
    /// By all of these permissions.
    NeedsAll(&'static [(Resource, Level)]),
}

/// What guards the route `method` and `pattern`; none for a route without a row, which then
/// nobody but a manager may use.
pub(crate) fn of(method: &Method, pattern: &str) -> Option<Access> {
    let row = ACCESS.iter().find(|(verb, path, _)| *verb == method.as_str() && *path == pattern);
    row.map(|(_, _, access)| *access)
}

use Access::{Commands, Needs, NeedsAll, Open, Sight};
use Level::{Read, Write};
use Resource::{Acl, Operator, Peering};

pub(crate) const ACCESS: &[(&str, &str, Access)] = &[
    ("GET", "catalog/datacenters", Open),
    ("GET", "catalog/nodes", Sight),
    ("GET", "catalog/services", Sight),
    ("GET", "catalog/service/:", Sight),
    ("GET", "catalog/connect/:", Sight),
    ("GET", "catalog/node/:", Sight),
    ("GET", "catalog/node-services/:", Sight),
    ("PUT", "catalog/register", Commands),
    ("PUT", "catalog/deregister", Commands),
    ("GET", "health/service/:", Sight),
    ("GET", "health/connect/:", Sight),
    ("GET", "health/node/:", Sight),
    ("GET", "health/checks/:", Sight),
    ("GET", "health/state/:", Sight),
    // Certificates without keys: every handshake shows them.
    ("GET", "connect/ca/roots", Open),
    ("GET", "connect/ca/configuration", Needs(Operator, Read)),
    ("PUT", "connect/ca/configuration", Needs(Operator, Write)),
    ("PUT", "hawser/connect/ca/rotate", Needs(Operator, Write)),
    ("GET", "hawser/connect/revocations", Needs(Operator, Read)),
    ("PUT", "hawser/connect/revocation", Needs(Operator, Write)),
    ("DELETE", "hawser/connect/revocation/:/:", Needs(Operator, Write)),
    ("GET", "connect/intentions", Sight),
    ("POST", "connect/intentions", Commands),
    ("GET", "connect/intentions/match", Sight),
    ("GET", "connect/intentions/check", Sight),
    ("GET", "connect/intentions/exact", Sight),
    ("PUT", "connect/intentions/exact", Commands),
    ("DELETE", "connect/intentions/exact", Commands),
    ("GET", "connect/intentions/:", Sight),
    ("PUT", "connect/intentions/:", Commands),
    ("DELETE", "connect/intentions/:", Commands),
    ("GET", "discovery-chain/:", Sight),
    ("POST", "discovery-chain/:", Sight),
    ("PUT", "config", Commands),
    ("GET", "config/:", Sight),
    ("GET", "config/:/:", Sight),
    ("DELETE", "config/:/:", Commands),
    ("GET", "kv/*", Sight),
    ("PUT", "kv/*", Commands),
    ("DELETE", "kv/*", Commands),
    ("PUT", "session/create", Commands),
    ("PUT", "session/destroy/:", Commands),
    // Their handlers ask for each session, and for each operation.
    ("PUT", "session/renew/:", Sight),
    ("GET", "session/info/:", Sight),
    ("GET", "session/list", Sight),
    ("GET", "session/node/:", Sight),
    ("PUT", "txn", Sight),
    // The reply holds a secret that makes its bearer a peer.
    ("POST", "peering/token", Needs(Peering, Write)),
    ("POST", "peering/establish", Needs(Peering, Write)),
    ("GET", "peering/:", Needs(Peering, Read)),
    ("DELETE", "peering/:", Needs(Peering, Write)),
    ("GET", "peerings", Needs(Peering, Read)),
    ("PUT", "event/fire/:", Commands),
    ("GET", "event/list", Sight),
    ("GET", "query", Sight),
    ("POST", "query", Commands),
    ("GET", "query/:", Sight),
    ("PUT", "query/:", Commands),
    ("DELETE", "query/:", Commands),
    // Whoever knows its name may ask: what it finds is what the client may see.
    ("GET", "query/:/execute", Sight),
    ("GET", "query/:/explain", Sight),
    // Always empty.
    ("GET", "coordinate/datacenters", Open),
    ("GET", "coordinate/nodes", Open),
    ("GET", "coordinate/node/:", Open),
    ("GET", "exported-services", Sight),
    ("GET", "imported-services", Sight),
    // Probes and load balancers ask these, and have no token.
    ("GET", "status/leader", Open),
    ("GET", "status/peers", Open),
    ("GET", "operator/raft/configuration", Needs(Operator, Read)),
    ("DELETE", "operator/raft/peer", Needs(Operator, Write)),
    ("POST", "operator/raft/transfer-leader", Needs(Operator, Write)),
    ("PUT", "operator/raft/transfer-leader", Needs(Operator, Write)),
    ("GET", "operator/autopilot/configuration", Needs(Operator, Read)),
    ("PUT", "operator/autopilot/configuration", Needs(Operator, Write)),
    ("GET", "operator/autopilot/health", Needs(Operator, Read)),
    ("GET", "operator/autopilot/state", Needs(Operator, Read)),
    // It holds every token.
    ("GET", "snapshot", Needs(Acl, Write)),
    // It brings tokens, and all that operators decided.
    ("PUT", "snapshot", NeedsAll(&[(Acl, Write), (Operator, Write)])),
    // A join token makes a node of its bearer.
    ("PUT", "hawser/join-token", Needs(Acl, Write)),
    // Who calls whom, of all services at once.
    ("GET", "hawser/edges", Needs(Operator, Read)),
    // It stands in the repository.
    ("GET", "hawser/openapi", Open),
    // Once, while there is no token that could be shown.
    ("PUT", "acl/bootstrap", Open),
    ("GET", "acl/replication", Needs(Acl, Read)),
    ("GET", "acl/tokens", Needs(Acl, Read)),
    ("PUT", "acl/token", Needs(Acl, Write)),
    // One's own token and no other.
    ("GET", "acl/token/self", Sight),
    ("GET", "acl/token/:", Needs(Acl, Read)),
    ("PUT", "acl/token/:", Needs(Acl, Write)),
    ("DELETE", "acl/token/:", Needs(Acl, Write)),
    ("PUT", "acl/token/:/clone", Needs(Acl, Write)),
    ("GET", "acl/policies", Needs(Acl, Read)),
    ("PUT", "acl/policy", Needs(Acl, Write)),
    ("GET", "acl/policy/name/:", Needs(Acl, Read)),
    ("GET", "acl/policy/:", Needs(Acl, Read)),
    ("PUT", "acl/policy/:", Needs(Acl, Write)),
    ("DELETE", "acl/policy/:", Needs(Acl, Write)),
    ("GET", "acl/roles", Needs(Acl, Read)),
    ("PUT", "acl/role", Needs(Acl, Write)),
    ("GET", "acl/role/name/:", Needs(Acl, Read)),
    ("GET", "acl/role/:", Needs(Acl, Read)),
    ("PUT", "acl/role/:", Needs(Acl, Write)),
    ("DELETE", "acl/role/:", Needs(Acl, Write)),
    // It brings a proof of its own.
    ("POST", "acl/login", Open),
    // One's own token and no other.
    ("POST", "acl/logout", Sight),
    ("GET", "acl/auth-methods", Needs(Acl, Read)),
    ("PUT", "acl/auth-method", Needs(Acl, Write)),
    ("GET", "acl/auth-method/:", Needs(Acl, Read)),
    ("PUT", "acl/auth-method/:", Needs(Acl, Write)),
    ("DELETE", "acl/auth-method/:", Needs(Acl, Write)),
    ("GET", "acl/binding-rules", Needs(Acl, Read)),
    ("PUT", "acl/binding-rule", Needs(Acl, Write)),
    ("GET", "acl/binding-rule/:", Needs(Acl, Read)),
    ("PUT", "acl/binding-rule/:", Needs(Acl, Write)),
    ("DELETE", "acl/binding-rule/:", Needs(Acl, Write)),
    ("GET", "acl/templated-policies", Needs(Acl, Read)),
    ("GET", "acl/templated-policy/name/:", Needs(Acl, Read)),
    ("GET", "acl/templated-policy/name/:/:", Needs(Acl, Read)),
    ("POST", "acl/templated-policy/preview/:", Needs(Acl, Read)),
    ("POST", "acl/templated-policy/preview/:/:", Needs(Acl, Read)),
];
