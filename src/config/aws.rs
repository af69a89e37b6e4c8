//! What the configuration says of AWS: who joins by role, and how a host knows its servers then.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use hawser_agent::{Join, Pin};
use hawser_server::aws_iam::AwsIam;
use serde::{Deserialize, Serialize};

/// `aws_iam`, on servers.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAwsIam {
    region: Option<String>,
    sts_endpoint: Option<String>,
    allowed_accounts: Option<Vec<String>>,
    /// A role's ARN → the nodes that it may be.
    allowed_roles: Option<BTreeMap<String, String>>,
}

impl RawAwsIam {
    /// Fills in the defaults and checks each part.
    ///
    /// # Errors
    /// A value that cannot be, named by its key.
    pub(super) fn resolve(&self) -> Result<AwsIam> {
        let region = self.region.as_deref();
        let region = region.context("aws_iam.region: say which region's STS checks signatures")?;
        let accounts = self.allowed_accounts.iter().flatten().map(String::as_str);
        let roles = self.allowed_roles.iter().flatten();
        let roles = roles.map(|(role, nodes)| (role.as_str(), nodes.as_str()));
        AwsIam::parse(region, self.sts_endpoint.as_deref(), accounts, roles).context("aws_iam")
    }
}

/// The pin that the environment tells whoever joins by role: it suits a task, whose configuration is
/// written before the servers have a key.
pub(super) fn ambient_pin(method: Option<&str>) -> Option<String> {
    let pin = std::env::var(SERVER_PIN).ok().filter(|_| method == Some(AWS_IAM))?;
    Some(pin.trim().to_owned())
}

/// How a host joins whose `join_method` says so; none for joining by token.
///
/// # Errors
/// A method that is none, or no pin to know the servers by.
pub(super) fn join(method: Option<&str>, pin: Option<&str>, token: bool) -> Result<Option<Join>> {
    match method {
        None | Some("token") => {
            ensure!(pin.is_none(), "server_pin: only join_method = \"aws-iam\" needs it");
            Ok(None)
        }
        Some(AWS_IAM) => {
            ensure!(!token, "join_token_file: leave it out, or set join_method = \"token\"");
            let pin = pin.context(
                "server_pin: join_method = \"aws-iam\" needs it, or HAWSER_SERVER_PIN, to know the \
                 servers; `hawser pin` prints it from the operator key",
            )?;
            Ok(Some(Join::AwsIam(pin.parse::<Pin>().context("server_pin")?)))
        }
        Some(other) => bail!("join_method: {other:?} is none; use \"token\" or \"aws-iam\""),
    }
}

const AWS_IAM: &str = "aws-iam";
const SERVER_PIN: &str = "HAWSER_SERVER_PIN";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_wrong_is_said_by_its_key() {
        let (web, all) = ("arn:aws:iam::123456789012:role/web", "*");
        let cases = [
            // aws_iam, what the error must say
            (json!({}), "aws_iam.region"),
            (json!({ "region": "EU" }), "is no region"),
            (json!({ "region": "eu-west-1" }), "allowed_accounts"),
            (json!({ "region": "eu-west-1", "allowed_accounts": ["1"] }), "twelve digits"),
            (
                json!({ "region": "eu-west-1", "allowed_accounts": ["123456789012"] }),
                "allowed_roles",
            ),
            (
                json!({ "region": "eu-west-1", "allowed_accounts": ["123456789012"],
                        "allowed_roles": { web: all }, "sts_endpoint": "http://10.0.0.1" }),
                "in the clear",
            ),
        ];
        for (raw, says) in cases {
            let parsed: RawAwsIam = serde_json::from_value(raw.clone()).expect("its shape");
            let Err(why) = parsed.resolve() else { panic!("{raw} was taken") };
            let why = format!("{why:#}");
            assert!(why.contains(says), "{raw}: {why}");
        }
        let good = json!({ "region": "eu-west-1", "allowed_accounts": ["123456789012"],
                           "allowed_roles": { web: all } });
        let parsed: RawAwsIam = serde_json::from_value(good).expect("its shape");
        assert_eq!(parsed.resolve().expect("good").sts.host(), "sts.eu-west-1.amazonaws.com");
    }

    #[test]
    fn a_role_joins_only_servers_that_it_knows() {
        let pin = "A".repeat(43);
        let cases = [
            // method, pin, whether there is a token, what the error must say
            (None, None, true, None),
            (Some("token"), None, true, None),
            (Some("aws-iam"), Some(pin.as_str()), false, None),
            (Some("aws-iam"), None, false, Some("hawser pin")),
            (Some("aws-iam"), Some("x"), false, Some("43 characters")),
            (Some("aws-iam"), Some(pin.as_str()), true, Some("join_token_file")),
            (None, Some(pin.as_str()), false, Some("server_pin")),
            (Some("iam"), None, false, Some("join_method")),
        ];
        for (method, pin, token, says) in cases {
            let why = join(method, pin, token).err().map(|why| format!("{why:#}"));
            assert_eq!(why.is_some(), says.is_some(), "{method:?} {pin:?}: {why:?}");
            assert!(why.unwrap_or_default().contains(says.unwrap_or_default()), "{method:?}");
        }
    }
}
