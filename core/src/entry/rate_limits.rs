//! `RateLimits` of `service-defaults`: how many requests a second an instance takes, and all of them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::fault::Fault;
use crate::name::ServiceName;

/// How many requests a second an instance takes.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct RateLimits {
    /// For each instance by itself, over all its callers.
    #[serde(alias = "instance_level", skip_serializing_if = "Option::is_none")]
    pub instance_level: Option<InstanceRateLimits>,
    /// Ours: for each caller of an instance by itself. The caller's own row counts, else the one
    /// named `*`, of which each caller then has one of its own.
    #[serde(alias = "callers", skip_serializing_if = "Vec::is_empty")]
    pub callers: Vec<CallerRateLimit>,
    /// Ours: for all instances of the service together, which the servers lease shares of it to.
    #[serde(alias = "global", skip_serializing_if = "Option::is_none")]
    pub global: Option<GlobalRateLimits>,
}

/// What all instances of a service together take.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct GlobalRateLimits {
    /// Requests a second; zero limits only what `callers` name.
    #[serde(alias = "requests_per_second")]
    pub requests_per_second: u32,
    /// How many may come at once; zero is as many as in a second.
    #[serde(alias = "requests_max_burst")]
    pub requests_max_burst: u32,
    /// Of each caller, over all instances. The caller's own row counts, else the one named `*`, of
    /// which each caller then has one of its own.
    #[serde(alias = "callers", skip_serializing_if = "Vec::is_empty")]
    pub callers: Vec<CallerRateLimit>,
}

/// What each instance takes over all its callers.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct InstanceRateLimits {
    /// Requests a second; zero limits only what `routes` name.
    #[serde(alias = "requests_per_second")]
    pub requests_per_second: u32,
    /// How many may come at once; zero is as many as in a second.
    #[serde(alias = "requests_max_burst")]
    pub requests_max_burst: u32,
    /// Routes with a limit of their own, in place of the instance's. The first that matches counts.
    #[serde(alias = "routes", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<RouteRateLimit>,
}

/// A route with a limit of its own.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct RouteRateLimit {
    /// This path.
    #[serde(alias = "path_exact", skip_serializing_if = "String::is_empty")]
    pub path_exact: String,
    /// A path that begins so.
    #[serde(alias = "path_prefix", skip_serializing_if = "String::is_empty")]
    pub path_prefix: String,
    /// Requests a second.
    #[serde(alias = "requests_per_second")]
    pub requests_per_second: u32,
    /// How many may come at once; zero is as many as in a second.
    #[serde(alias = "requests_max_burst")]
    pub requests_max_burst: u32,
}

/// What an instance takes of one caller.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct CallerRateLimit {
    /// The calling service, or `*` for each that has no row.
    #[serde(alias = "name")]
    pub name: String,
    /// Requests a second.
    #[serde(alias = "requests_per_second")]
    pub requests_per_second: u32,
    /// How many may come at once; zero is as many as in a second.
    #[serde(alias = "requests_max_burst")]
    pub requests_max_burst: u32,
}

impl RateLimits {
    pub(super) fn check(&self) -> Result<(), Fault> {
        if let Some(instance) = &self.instance_level {
            instance.check()?;
        }
        check_callers("RateLimits.Callers", &self.callers)?;
        self.global.as_ref().map_or(Ok(()), GlobalRateLimits::check)
    }

    /// What each instance counts by itself; none where only all together are limited.
    pub fn of_instance(&self) -> Option<Self> {
        let own = Self { global: None, ..self.clone() };
        (own != Self::default()).then_some(own)
    }
}

impl GlobalRateLimits {
    fn check(&self) -> Result<(), Fault> {
        let unlimited = self.callers.is_empty() || self.requests_max_burst > 0;
        if self.requests_per_second == 0 && unlimited {
            return Err(Fault::new("RateLimits.Global.RequestsPerSecond", RATE_RULE));
        }
        check_callers("RateLimits.Global.Callers", &self.callers)
    }
}

fn check_callers(list: &str, callers: &[CallerRateLimit]) -> Result<(), Fault> {
    if callers.len() > CALLERS_MAX {
        return Err(Fault::new(list, "1024 are the most"));
    }
    let mut seen = BTreeSet::new();
    for (n, caller) in callers.iter().enumerate() {
        let at = |field: &str| format!("{list}[{n}].{field}");
        if caller.name != ANY_CALLER && ServiceName::in_mesh(&caller.name).is_err() {
            return Err(Fault::new(at("Name"), "use a service's name, or * for all others"));
        }
        if !seen.insert(&caller.name) {
            return Err(Fault::new(at("Name"), "it is listed before: merge the two"));
        }
        if caller.requests_per_second == 0 {
            return Err(Fault::new(at("RequestsPerSecond"), RATE_RULE));
        }
    }
    Ok(())
}

impl InstanceRateLimits {
    fn check(&self) -> Result<(), Fault> {
        let at = |field: &str| format!("RateLimits.InstanceLevel.{field}");
        if self.requests_per_second == 0 && self.requests_max_burst > 0 {
            return Err(Fault::new(at("RequestsPerSecond"), RATE_RULE));
        }
        if self.requests_per_second == 0 && self.routes.is_empty() {
            return Err(Fault::new(at("RequestsPerSecond"), RATE_RULE));
        }
        if self.routes.len() > ROUTES_MAX {
            return Err(Fault::new(at("Routes"), "256 are the most"));
        }
        for (n, route) in self.routes.iter().enumerate() {
            let at = |field: &str| at(&format!("Routes[{n}]{field}"));
            let given = [&route.path_exact, &route.path_prefix];
            if given.iter().filter(|path| !path.is_empty()).count() != 1 {
                return Err(Fault::new(at(""), "name one of PathExact and PathPrefix"));
            }
            if given.iter().any(|path| !path.is_empty() && !path.starts_with('/')) {
                return Err(Fault::new(at(""), "a path begins with /"));
            }
            if route.requests_per_second == 0 {
                return Err(Fault::new(at(".RequestsPerSecond"), RATE_RULE));
            }
        }
        Ok(())
    }
}

/// Stands for every caller that has no row of its own.
pub const ANY_CALLER: &str = "*";
const CALLERS_MAX: usize = 1024;
const ROUTES_MAX: usize = 256;
const RATE_RULE: &str = "it must be more than 0";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_refused_with_its_field() {
        let instance = |rest: &str| format!(r#"{{"InstanceLevel":{{{rest}}}}}"#);
        let cases = [
            (instance(r#""RequestsMaxBurst":1"#), "RateLimits.InstanceLevel.RequestsPerSecond"),
            (instance(""), "RateLimits.InstanceLevel.RequestsPerSecond"),
            (
                instance(r#""Routes":[{"RequestsPerSecond":1}]"#),
                "RateLimits.InstanceLevel.Routes[0]",
            ),
            (
                instance(
                    r#""Routes":[{"PathExact":"/a","PathPrefix":"/b","RequestsPerSecond":1}]"#,
                ),
                "RateLimits.InstanceLevel.Routes[0]",
            ),
            (
                instance(r#""Routes":[{"PathExact":"/a"}]"#),
                "RateLimits.InstanceLevel.Routes[0].RequestsPerSecond",
            ),
            (r#"{"Callers":[{"Name":"a b"}]}"#.to_owned(), "RateLimits.Callers[0].Name"),
            (r#"{"Callers":[{"Name":"*"}]}"#.to_owned(), "RateLimits.Callers[0].RequestsPerSecond"),
            (r#"{"Global":{}}"#.to_owned(), "RateLimits.Global.RequestsPerSecond"),
            (
                r#"{"Global":{"RequestsMaxBurst":9,"Callers":[{"Name":"*","RequestsPerSecond":1}]}}"#
                    .to_owned(),
                "RateLimits.Global.RequestsPerSecond",
            ),
            (
                r#"{"Global":{"RequestsPerSecond":9,"Callers":[{"Name":"web"}]}}"#.to_owned(),
                "RateLimits.Global.Callers[0].RequestsPerSecond",
            ),
        ];
        for (json, expected) in cases {
            let parsed: RateLimits = serde_json::from_str(&json).expect(&json);
            assert_eq!(parsed.check().expect_err(&json).field, expected);
        }
    }
}
