//! Finding servers by what AWS says of its instances and tasks, asked at most so often.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::ambient::Ambient;
use crate::call::{CallError, call};
use crate::credentials::{self, Credentials, CredentialsError};
use crate::date::AmzDate;
use crate::endpoint::{Endpoint, Region};
use crate::query::{Query, Service};
use crate::sign::Signable;
use crate::{ec2, ecs, xml};

/// Looks for the addresses that a [`Query`] asks for. Clones look apart.
pub struct Finder {
    query: Query,
    ambient: Ambient,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    addresses: Vec<IpAddr>,
    ask_again: Option<Instant>,
}

/// Why nothing was found.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// There is nothing to sign with.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// Nobody answered.
    #[error(transparent)]
    Call(#[from] CallError),
    /// AWS says no.
    #[error("{host} refuses {operation}: {status} {code}")]
    Refused {
        /// Who.
        host: String,
        /// What.
        operation: &'static str,
        /// How.
        status: u16,
        /// AWS's own word for why; empty when it gave none.
        code: String,
    },
    /// The answer cannot be read.
    #[error("{host} answered {operation} with something else: {why}")]
    Answer {
        /// Who.
        host: String,
        /// What.
        operation: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl Finder {
    /// Looks for what `query` asks for, with the credentials that `ambient` leads to.
    pub fn new(query: Query, ambient: Ambient) -> Self {
        Self { query, ambient, held: Mutex::default() }
    }

    /// The addresses found, from the last answer while that is fresh. A failure is logged, and what
    /// was known stays.
    pub async fn addresses(&self) -> Vec<IpAddr> {
        let mut held = self.held.lock().await;
        if held.ask_again.is_none_or(|at| at <= Instant::now()) {
            match self.find().await {
                Ok(found) => {
                    if found != held.addresses {
                        let (key, value) = (&self.query.tag_key, &self.query.tag_value);
                        tracing::info!(?key, ?value, ?found, "retry_join: found by tag");
                    }
                    held.addresses = found;
                }
                Err(why) => tracing::warn!(%why, "retry_join: AWS could not be asked"),
            }
            let wait = ASK_EVERY.mul_f64(rand::random_range(0.75..=1.25));
            held.ask_again = Some(Instant::now() + wait);
        }
        held.addresses.clone()
    }

    /// Asks AWS now.
    ///
    /// # Errors
    /// [`FindError`]
    pub async fn find(&self) -> Result<Vec<IpAddr>, FindError> {
        let credentials = Credentials::load(&self.ambient).await?;
        let region = match &self.query.region {
            Some(region) => region.clone(),
            None => credentials::region(&self.ambient).await?,
        };
        let service = match self.query.service {
            Service::Ec2 => "ec2",
            Service::Ecs { .. } => "ecs",
        };
        let endpoint =
            self.query.endpoint.clone().unwrap_or_else(|| Endpoint::of(service, &region));
        let client = Client { credentials, region, endpoint, service };
        let mut found = match &self.query.service {
            Service::Ec2 => client.instances(&self.query).await?,
            Service::Ecs { cluster, family } => {
                client.tasks(&self.query, cluster, family.as_deref()).await?
            }
        };
        found.sort();
        found.dedup();
        found.truncate(ADDRESSES_MAX);
        Ok(found)
    }
}

/// One service of one region, with a key to ask it.
struct Client {
    credentials: Credentials,
    region: Region,
    endpoint: Endpoint,
    service: &'static str,
}

impl Client {
    async fn instances(&self, query: &Query) -> Result<Vec<IpAddr>, FindError> {
        let (mut found, mut next) = (Vec::new(), None);
        for _ in 0..PAGES_MAX {
            let body = ec2::body(query, next.as_deref());
            let answer = self.ask(FORM, None, body, DESCRIBE_INSTANCES).await?;
            let wrong = |why: String| self.wrong(DESCRIBE_INSTANCES, why);
            let text = std::str::from_utf8(&answer).map_err(|why| wrong(why.to_string()))?;
            let page = ec2::page(text, query.address).map_err(|why| wrong(why.to_string()))?;
            found.extend(page.addresses);
            next = page.next;
            if next.is_none() {
                break;
            }
        }
        Ok(found)
    }

    async fn tasks(
        &self,
        query: &Query,
        cluster: &str,
        family: Option<&str>,
    ) -> Result<Vec<IpAddr>, FindError> {
        let (mut found, mut next) = (Vec::new(), None);
        for _ in 0..PAGES_MAX {
            let body = ecs::list(cluster, family, next.as_deref());
            let answer = self.ask(JSON, Some(ecs::LIST), body, LIST_TASKS).await?;
            let listed: ecs::Listed = serde_json::from_slice(&answer)
                .map_err(|why| self.wrong(LIST_TASKS, why.to_string()))?;
            if !listed.task_arns.is_empty() {
                let body = ecs::describe(cluster, &listed.task_arns);
                let answer = self.ask(JSON, Some(ecs::DESCRIBE), body, DESCRIBE_TASKS).await?;
                let addresses = ecs::addresses(&answer, query)
                    .map_err(|why| self.wrong(DESCRIBE_TASKS, why.to_string()))?;
                found.extend(addresses);
            }
            next = listed.next_token;
            if next.is_none() {
                break;
            }
        }
        Ok(found)
    }

    async fn ask(
        &self,
        content_type: &str,
        target: Option<&str>,
        body: String,
        operation: &'static str,
    ) -> Result<Bytes, FindError> {
        let date = AmzDate::now();
        let mut headers = vec![
            ("content-type", content_type.to_owned()),
            ("host", self.endpoint.authority()),
            ("x-amz-date", date.as_str().to_owned()),
        ];
        if let Some(token) = &self.credentials.session_token {
            headers.push(("x-amz-security-token", token.to_string()));
        }
        if let Some(target) = target {
            headers.push(("x-amz-target", target.to_owned()));
        }
        let signable = Signable {
            service: self.service,
            region: &self.region,
            date: &date,
            headers: &headers,
            body: body.as_bytes(),
        };
        let signature = signable.signature(&self.credentials);
        let authorization = signable.authorization(&self.credentials.access_key_id, &signature);
        let request = headers
            .iter()
            .fold(http::Request::post("/"), |request, (name, value)| request.header(*name, value))
            .header("authorization", authorization)
            .body(Bytes::from(body))
            .map_err(|why| self.wrong(operation, why.to_string()))?;
        let answer = call(&self.endpoint, request).await?;
        if answer.status == 200 {
            return Ok(answer.body);
        }
        let text = std::str::from_utf8(&answer.body).unwrap_or_default();
        let code = xml::error_code(text).or_else(|| json_code(text)).unwrap_or_default();
        let (host, status) = (self.endpoint.authority(), answer.status);
        Err(FindError::Refused { host, operation, status, code })
    }

    fn wrong(&self, operation: &'static str, why: String) -> FindError {
        FindError::Answer { host: self.endpoint.authority(), operation, why }
    }
}

/// The code of an error in AWS's JSON protocol: what stands behind the `#` of its type.
fn json_code(text: &str) -> Option<String> {
    let error: serde_json::Value = serde_json::from_str(text).ok()?;
    let code = error.get("__type")?.as_str()?.rsplit('#').next()?;
    let fits = code.len() <= 64 && code.bytes().all(|octet| octet.is_ascii_alphanumeric());
    fits.then(|| code.to_owned())
}

const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";
const JSON: &str = "application/x-amz-json-1.1";
const DESCRIBE_INSTANCES: &str = "ec2:DescribeInstances";
const LIST_TASKS: &str = "ecs:ListTasks";
const DESCRIBE_TASKS: &str = "ecs:DescribeTasks";
const ASK_EVERY: Duration = Duration::from_secs(10);
const PAGES_MAX: usize = 10;
const ADDRESSES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ambient::{ACCESS_KEY_ID, SECRET_ACCESS_KEY};
    use crate::fake::Fake;

    fn finder(fake: &Fake, rest: &str) -> Finder {
        let text = format!(
            "provider=aws tag_key=role tag_value=mesh region=eu-west-1 endpoint={} {rest}",
            fake.endpoint
        );
        let pairs = [(ACCESS_KEY_ID, "AKIAEXAMPLEEXAMPLE"), (SECRET_ACCESS_KEY, "secret")];
        let ambient = pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Finder::new(Query::parse(&text).expect("a query"), ambient)
    }

    fn instance(address: &str, next: &str) -> String {
        format!(
            "<DescribeInstancesResponse xmlns=\"e\"><reservationSet><item><instancesSet><item>\
             <privateIpAddress>{address}</privateIpAddress></item></instancesSet></item>\
             </reservationSet>{next}</DescribeInstancesResponse>"
        )
    }

    #[tokio::test]
    async fn instances_of_all_pages_are_found_and_kept_for_a_while() {
        let fake = Fake::answering(|asked| {
            let is_second = String::from_utf8_lossy(asked.body()).contains("NextToken=t");
            if is_second {
                (200, instance("10.0.0.1", ""))
            } else {
                (200, instance("10.0.0.2", "<nextToken>t</nextToken>"))
            }
        })
        .await;
        let finder = finder(&fake, "");
        let expected: Vec<IpAddr> =
            ["10.0.0.1", "10.0.0.2"].map(|text| text.parse().expect("an address")).to_vec();
        assert_eq!(finder.addresses().await, expected);
        assert_eq!(finder.addresses().await, expected);
        assert_eq!(fake.asked().len(), 2, "one question of two pages, and none while it is fresh");
        let authorization = fake.asked()[0].headers()["authorization"].clone();
        let scope = authorization.to_str().expect("text").contains("/eu-west-1/ec2/aws4_request");
        assert!(scope, "{authorization:?}");
    }

    #[tokio::test]
    async fn tasks_are_listed_and_then_described() {
        let fake = Fake::answering(|asked| match asked.headers()["x-amz-target"].to_str() {
            Ok(ecs::LIST) => (200, r#"{"taskArns":["t1"]}"#.to_owned()),
            _ => (
                200,
                r#"{"tasks":[{"tags":[{"key":"role","value":"mesh"}],"attachments":[{"details":[
                {"name":"privateIPv4Address","value":"10.0.0.7"}]}]}]}"#
                    .to_owned(),
            ),
        })
        .await;
        let found = finder(&fake, "service=ecs ecs_cluster=c").find().await.expect("found");
        assert_eq!(found, ["10.0.0.7".parse::<IpAddr>().expect("an address")]);
    }

    #[tokio::test]
    async fn a_refusal_is_told_by_operation_and_code() {
        let cases = [
            // status, body, rest of the query, what the error must say
            (
                403,
                "<R><Errors><Error><Code>UnauthorizedOperation</Code></Error></Errors></R>",
                "",
                "ec2:DescribeInstances: 403 UnauthorizedOperation",
            ),
            (
                400,
                r#"{"__type":"com.amazonaws#ClusterNotFoundException"}"#,
                "service=ecs ecs_cluster=c",
                "ecs:ListTasks: 400 ClusterNotFoundException",
            ),
            (200, "junk", "", "something else"),
            (200, "junk", "service=ecs ecs_cluster=c", "something else"),
        ];
        for (status, body, rest, says) in cases {
            let fake = Fake::answering(move |_| (status, body.to_owned())).await;
            let why = finder(&fake, rest).find().await.expect_err(says).to_string();
            assert!(why.contains(says), "{why}");
        }
    }
}
