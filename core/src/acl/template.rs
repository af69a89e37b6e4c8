//! Policies that are made for a name: identities of services and nodes, and Consul's templates.

use super::rule::{Access, Resource, Rules, Segment};

/// A built-in templated policy.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Template {
    /// A service with its sidecar.
    Service,
    /// A node's agent.
    Node,
    /// What DNS needs to answer.
    Dns,
    /// A server of Nomad.
    NomadServer,
    /// A client of Nomad.
    NomadClient,
    /// What a workload of Nomad may do.
    WorkloadIdentity,
    /// An API gateway.
    ApiGateway,
}

/// Why there is no such policy.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidTemplate {
    /// No template has the name.
    #[error("no such ACL templated policy with Name {0:?}")]
    Unknown(String),
    /// It is made for a name, and none is given.
    #[error("{0} needs a name: set TemplateVariables.Name")]
    NameMissing(&'static str),
    /// It is made for no name, and one is given.
    #[error("{0} takes no name: leave TemplateVariables out")]
    NameGiven(&'static str),
}

impl Template {
    /// Every template, by its name.
    pub const ALL: [Self; 7] = [
        Self::ApiGateway,
        Self::Dns,
        Self::Node,
        Self::NomadClient,
        Self::NomadServer,
        Self::Service,
        Self::WorkloadIdentity,
    ];

    /// The name that clients know it by.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "builtin/service",
            Self::Node => "builtin/node",
            Self::Dns => "builtin/dns",
            Self::NomadServer => "builtin/nomad-server",
            Self::NomadClient => "builtin/nomad-client",
            Self::WorkloadIdentity => "builtin/workload-identity",
            Self::ApiGateway => "builtin/api-gateway",
        }
    }

    /// What it is for, in one sentence.
    pub const fn description(self) -> &'static str {
        match self {
            Self::Service => {
                "Gives the token or role permissions to register a service and \
                              discover services in the Consul catalog. It also gives the \
                              specified service's sidecar proxy the permission to discover and \
                              route traffic to other services."
            }
            Self::Node => {
                "Gives the token or role permissions for a register an agent/node into \
                           the catalog. A node is typically a consul agent but can also be a \
                           physical server, cloud instance or a container."
            }
            Self::Dns => {
                "Gives the token or role permissions for the Consul DNS to query \
                          services in the network."
            }
            Self::NomadServer => {
                "Gives the token or role permissions required for integration \
                                  with a nomad server."
            }
            Self::NomadClient => {
                "Gives the token or role permissions required for integration \
                                  with a nomad client."
            }
            Self::WorkloadIdentity => {
                "Gives the token or role permissions for a specific \
                                       workload identity."
            }
            Self::ApiGateway => "Gives the token or role permissions for a Consul api gateway",
        }
    }

    /// Whether it is made for a name.
    pub const fn takes_name(self) -> bool {
        matches!(self, Self::Service | Self::Node | Self::WorkloadIdentity | Self::ApiGateway)
    }

    /// The template called `name`, once it is sure that `variable` suits it.
    ///
    /// # Errors
    /// [`InvalidTemplate`]
    pub fn find(name: &str, variable: Option<&str>) -> Result<Self, InvalidTemplate> {
        let found = Self::ALL.into_iter().find(|template| template.as_str() == name);
        let found = found.ok_or_else(|| InvalidTemplate::Unknown(name.to_owned()))?;
        match (found.takes_name(), variable) {
            (true, None) => Err(InvalidTemplate::NameMissing(found.as_str())),
            (false, Some(_)) => Err(InvalidTemplate::NameGiven(found.as_str())),
            _ => Ok(found),
        }
    }

    /// Its rules for `name`, which those that take none do not look at.
    pub fn rules(self, name: &str) -> Rules {
        let none = Rules::default();
        let exact = |name: &str| Segment::Exact(name.into());
        let every = || Segment::Prefix("".into());
        let reads = |rules: Rules, resource| rules.prefix(resource, "", Access::Read);
        let discovers = |rules: Rules| reads(rules.service(every(), Access::Read), Resource::Node);
        match self {
            Self::Service => discovers(
                none.service(exact(name), Access::Write)
                    .service(exact(&format!("{name}-sidecar-proxy")), Access::Write),
            ),
            Self::Node => {
                none.exact(Resource::Node, name, Access::Write).service(every(), Access::Read)
            }
            Self::Dns => reads(discovers(none), Resource::Query),
            Self::NomadServer => reads(
                reads(none.whole(Resource::Acl, Access::Write), Resource::Agent),
                Resource::Node,
            )
            .service(every(), Access::Write),
            Self::NomadClient => reads(
                reads(reads(none, Resource::Agent), Resource::Node).service(every(), Access::Write),
                Resource::Key,
            ),
            Self::WorkloadIdentity => none.exact(Resource::Identity, name, Access::Write),
            Self::ApiGateway => discovers(
                none.whole(Resource::Mesh, Access::Read).service(exact(name), Access::Write),
            ),
        }
    }
}
