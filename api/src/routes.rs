//! The endpoints that agents answer themselves, as data; everything else is the servers'.

/// One endpoint of an agent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AgentRoute {
    /// The method.
    pub method: &'static str,
    /// Below `/v1/agent/`; `:` stands for one part.
    pub pattern: &'static str,
    /// Whether it does something; else it says what is missing.
    pub is_answered: bool,
}

/// The methods that the path below `/v1/agent/` has; none for a path that there is not.
///
/// The first pattern that matches is the path's own.
pub fn agent_methods(path: &[&str]) -> Vec<&'static str> {
    let own = AGENT.iter().find(|route| matches(route.pattern, path));
    let own = own.into_iter().flat_map(|own| AGENT.iter().filter(|it| it.pattern == own.pattern));
    own.map(|route| route.method).collect()
}

fn matches(pattern: &str, path: &[&str]) -> bool {
    let parts: Vec<&str> = pattern.split('/').collect();
    let fits = |(have, part): (&&str, &&str)| have == part || (*have == ":" && !part.is_empty());
    parts.len() == path.len() && parts.iter().zip(path).all(fits)
}

const fn route(method: &'static str, pattern: &'static str) -> AgentRoute {
    AgentRoute { method, pattern, is_answered: true }
}

const fn missing(method: &'static str, pattern: &'static str) -> AgentRoute {
    AgentRoute { method, pattern, is_answered: false }
}

/// The endpoints, the more specific of two that match first.
pub const AGENT: [AgentRoute; 31] = [
    route("GET", "self"),
    route("GET", "services"),
    route("GET", "checks"),
    route("GET", "members"),
    route("GET", "metrics"),
    route("GET", "monitor"),
    route("GET", "host"),
    route("GET", "version"),
    route("GET", "health/service/id/:"),
    route("GET", "health/service/name/:"),
    route("PUT", "service/register"),
    route("PUT", "service/deregister/:"),
    route("PUT", "service/maintenance/:"),
    route("GET", "service/:"),
    route("PUT", "maintenance"),
    route("PUT", "check/register"),
    route("PUT", "check/deregister/:"),
    route("PUT", "check/pass/:"),
    route("PUT", "check/warn/:"),
    route("PUT", "check/fail/:"),
    route("PUT", "check/update/:"),
    route("PUT", "leave"),
    route("PUT", "force-leave/:"),
    route("PUT", "reload"),
    route("POST", "connect/authorize"),
    // As py-consul sends it.
    route("PUT", "connect/authorize"),
    route("GET", "connect/ca/roots"),
    route("GET", "connect/ca/leaf/:"),
    missing("PUT", "join/:"),
    missing("GET", "metrics/stream"),
    missing("PUT", "token/:"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_the_methods_of_its_own_pattern() {
        for (path, expected) in [
            ("self", &["GET"][..]),
            ("connect/authorize", &["POST", "PUT"]),
            ("service/register", &["PUT"]),
            ("service/web", &["GET"]),
            ("service/", &[]),
            ("check/pass/a", &["PUT"]),
            ("check/other/a", &[]),
            ("self/more", &[]),
            ("", &[]),
        ] {
            let parts: Vec<&str> = path.split('/').collect();
            assert_eq!(agent_methods(&parts), expected, "{path:?}");
        }
    }
}
