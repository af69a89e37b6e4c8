//! Joining by AWS IAM: whose signature it is, and which nodes that role may be.
//!
//! A nonce is a tag of this process over a random number and a deadline, so that giving one out
//! costs no memory; only those that were used are remembered, until they run out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use hawser_aws::{
    AmzDate, Caller, Challenge, Endpoint, IdentifyError, InvalidEndpoint, InvalidRegion, Proof,
    Region, Sts,
};
use hawser_core::clock::UnixTime;
use hawser_core::name::NodeName;
use tokio::sync::Semaphore;

/// How AWS's identities become nodes.
#[derive(Clone, Debug)]
pub struct AwsIam {
    /// The STS that checks signatures; no other is ever asked.
    pub sts: Sts,
    /// Who may join.
    pub policy: Policy,
}

/// Which accounts and roles may join, and under which names.
#[derive(Clone, Debug)]
pub struct Policy {
    accounts: BTreeSet<String>,
    /// A role's ARN and the nodes that it may be.
    rules: Vec<(Pattern, Pattern)>,
}

/// An exact text, or all that begin with one: a `*` stands at the end or nowhere.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Pattern {
    text: String,
    is_prefix: bool,
}

/// A policy that would let in nobody, or more than it says.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidPolicy {
    /// Nobody is allowed.
    #[error("{0}: name at least one")]
    Empty(&'static str),
    /// No account's number.
    #[error("allowed_accounts: {0:?} is no account: it has twelve digits")]
    Account(String),
    /// No role's ARN.
    #[error(
        "allowed_roles: {0:?} is no role: write arn:aws:iam::<account>:role/<name>, without the \
         role's path; a * may stand at its end, after the /"
    )]
    Role(String),
    /// The role's account is not allowed.
    #[error("allowed_roles: {0:?} is of an account that allowed_accounts does not name")]
    Stranger(String),
    /// No pattern of node names.
    #[error("allowed_roles: {0:?} is no pattern of node names: a * may stand at its end only")]
    Nodes(String),
}

/// Why a signature does not make its sender a node.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the nonce is not of this server: ask it for one, and join at the same server")]
    ForeignNonce,
    #[error("the nonce ran out: ask for another")]
    LateNonce,
    #[error("the nonce was used before: ask for another")]
    UsedNonce,
    #[error("the signature's date is {0} s from this server's clock: set the clocks right")]
    Skewed(u64),
    #[error("too many join at this moment: try again")]
    Busy,
    #[error(transparent)]
    Identify(#[from] IdentifyError),
    #[error("account {0} may not join: aws_iam.allowed_accounts does not name it")]
    Account(String),
    #[error("{0} is no role's session: only roles may join")]
    NoRole(String),
    #[error("{0} may not join: aws_iam.allowed_roles does not name it")]
    Role(String),
    #[error("{role} may not be node {node}: aws_iam.allowed_roles gives it other names")]
    Node { role: String, node: NodeName },
}

/// Why there is no [`AwsIam`].
#[derive(Debug, thiserror::Error)]
pub enum InvalidAwsIam {
    /// The region is none.
    #[error("region: {0}")]
    Region(#[from] InvalidRegion),
    /// The endpoint is none.
    #[error("sts_endpoint: {0}")]
    Endpoint(#[from] InvalidEndpoint),
    /// The policy is none.
    #[error(transparent)]
    Policy(#[from] InvalidPolicy),
}

impl AwsIam {
    /// Takes signatures for `region`, checked by its STS or by the one at `sts_endpoint`; accounts
    /// and roles are those of [`Policy::new`].
    ///
    /// # Errors
    /// [`InvalidAwsIam`]
    pub fn parse<'a>(
        region: &str,
        sts_endpoint: Option<&str>,
        accounts: impl IntoIterator<Item = &'a str>,
        rules: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, InvalidAwsIam> {
        let region: Region = region.parse()?;
        let endpoint = match sts_endpoint {
            None => Endpoint::sts(&region),
            Some(text) => text.parse()?,
        };
        Ok(Self { sts: Sts::new(region, endpoint), policy: Policy::new(accounts, rules)? })
    }
}

impl Pattern {
    /// Parses one whose fixed part `fits`; a `*` elsewhere than at the end never does.
    fn parse(text: &str, fits: impl Fn(&str, bool) -> bool) -> Option<Self> {
        let (fixed, is_prefix) = text.strip_suffix('*').map_or((text, false), |text| (text, true));
        let is_good = !fixed.contains('*') && fits(fixed, is_prefix);
        is_good.then(|| Self { text: fixed.to_owned(), is_prefix })
    }

    fn matches(&self, text: &str) -> bool {
        if self.is_prefix { text.starts_with(&self.text) } else { text == self.text }
    }
}

impl Policy {
    /// Lets roles of `accounts` in: `rules` pairs a role's ARN with the nodes that it may be.
    ///
    /// # Errors
    /// [`InvalidPolicy`]
    pub fn new<'a>(
        accounts: impl IntoIterator<Item = &'a str>,
        rules: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, InvalidPolicy> {
        let mut held = BTreeSet::new();
        for account in accounts {
            if account.len() != 12 || !account.bytes().all(|octet| octet.is_ascii_digit()) {
                return Err(InvalidPolicy::Account(account.to_owned()));
            }
            held.insert(account.to_owned());
        }
        let mut parsed = Vec::new();
        for (role, nodes) in rules {
            let pattern = Pattern::parse(role, |fixed, is_prefix| {
                role_of(fixed).is_some_and(|(_, name)| {
                    (is_prefix || !name.is_empty()) && !name.contains(['/', ':'])
                })
            });
            let pattern = pattern.ok_or_else(|| InvalidPolicy::Role(role.to_owned()))?;
            if !role_of(&pattern.text).is_some_and(|(account, _)| held.contains(account)) {
                return Err(InvalidPolicy::Stranger(role.to_owned()));
            }
            let is_name = |text: &str| NodeName::of_agent(text).is_ok();
            let nodes = Pattern::parse(nodes, |fixed, is_prefix| {
                // A prefix may end where no name may.
                if is_prefix { is_name(&format!("{fixed}x")) } else { is_name(fixed) }
            })
            .ok_or_else(|| InvalidPolicy::Nodes(nodes.to_owned()))?;
            parsed.push((pattern, nodes));
        }
        if held.is_empty() {
            return Err(InvalidPolicy::Empty("allowed_accounts"));
        }
        if parsed.is_empty() {
            return Err(InvalidPolicy::Empty("allowed_roles"));
        }
        Ok(Self { accounts: held, rules: parsed })
    }

    fn check(&self, caller: &Caller, node: &NodeName) -> Result<(), Refusal> {
        if !self.accounts.contains(caller.account()) {
            return Err(Refusal::Account(caller.account().to_owned()));
        }
        let role = caller.role().ok_or_else(|| Refusal::NoRole(caller.arn().to_owned()))?;
        let mut of_role = self.rules.iter().filter(|(pattern, _)| pattern.matches(role)).peekable();
        if of_role.peek().is_none() {
            return Err(Refusal::Role(role.to_owned()));
        }
        if !of_role.any(|(_, nodes)| nodes.matches(node.as_str())) {
            return Err(Refusal::Node { role: role.to_owned(), node: node.clone() });
        }
        Ok(())
    }
}

/// The account and the name in a role's ARN.
fn role_of(arn: &str) -> Option<(&str, &str)> {
    let rest = ["arn:aws:iam::", "arn:aws-cn:iam::", "arn:aws-us-gov:iam::"]
        .iter()
        .find_map(|start| arn.strip_prefix(start))?;
    rest.split_once(":role/")
}

/// Tells who signed, once for each nonce.
pub(crate) struct Verifier {
    config: AwsIam,
    /// What else a signature holds for: the cluster, by its trust domain.
    server_id: String,
    nonces: Nonces,
    asking: Semaphore,
}

impl Verifier {
    pub(crate) fn new(config: AwsIam, server_id: String) -> Result<Self, NoRandomness> {
        let (nonces, asking) = (Nonces::new()?, Semaphore::new(ASKED_TOGETHER));
        Ok(Self { config, server_id, nonces, asking })
    }

    /// A nonce that holds for a minute, at this server, once.
    pub(crate) fn nonce(&self) -> Result<Vec<u8>, NoRandomness> {
        self.nonces.give(Instant::now())
    }

    /// The STS that signatures are for.
    pub(crate) fn sts(&self) -> &Sts {
        &self.config.sts
    }

    /// Who signed `proof` for `node` and the key that hashes to `key`; allowed to be that node.
    ///
    /// The nonce is spent, whatever comes of it.
    pub(crate) async fn identify(
        &self,
        node: &NodeName,
        nonce: &[u8],
        key: [u8; 32],
        proof: &Proof,
        now: UnixTime,
    ) -> Result<Caller, Refusal> {
        let _asking = self.asking.try_acquire().map_err(|_| Refusal::Busy)?;
        self.nonces.spend(nonce, Instant::now())?;
        let skew = proof.date().apart(&AmzDate::at(now.as_secs()));
        if skew > SKEW_MAX {
            return Err(Refusal::Skewed(skew.as_secs()));
        }
        let challenge = Challenge::new(nonce, key, &self.server_id);
        let caller = self.config.sts.identify(proof, &challenge).await?;
        self.config.policy.check(&caller, node)?;
        Ok(caller)
    }
}

/// The system has no random numbers to give.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("this system gives no random numbers")]
pub struct NoRandomness;

/// Nonces of this process: deadline, random number, tag over both.
struct Nonces {
    key: hmac::Key,
    began: Instant,
    /// Those used, with their deadlines.
    used: Mutex<BTreeMap<Vec<u8>, u64>>,
}

impl Nonces {
    fn new() -> Result<Self, NoRandomness> {
        let mut key = zeroize::Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(&mut *key).map_err(|_| NoRandomness)?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &*key);
        Ok(Self { key, began: Instant::now(), used: Mutex::default() })
    }

    /// Milliseconds of this process: no clock that is set moves a deadline.
    fn millis(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.began);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn give(&self, now: Instant) -> Result<Vec<u8>, NoRandomness> {
        let deadline = self.millis(now + NONCE_LIFETIME);
        let mut nonce = [0; UNTAGGED_OCTETS];
        let (first, random) = nonce.split_at_mut(DEADLINE_OCTETS);
        first.copy_from_slice(&deadline.to_be_bytes());
        aws_lc_rs::rand::fill(random).map_err(|_| NoRandomness)?;
        let tag = hmac::sign(&self.key, &nonce);
        Ok([&nonce, tag.as_ref()].concat())
    }

    fn spend(&self, nonce: &[u8], now: Instant) -> Result<(), Refusal> {
        let (body, tag) = nonce.split_at_checked(UNTAGGED_OCTETS).ok_or(Refusal::ForeignNonce)?;
        hmac::verify(&self.key, body, tag).map_err(|_| Refusal::ForeignNonce)?;
        let deadline = body.first_chunk().ok_or(Refusal::ForeignNonce)?;
        let (deadline, now) = (u64::from_be_bytes(*deadline), self.millis(now));
        if deadline <= now {
            return Err(Refusal::LateNonce);
        }
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.contains_key(body) {
            return Err(Refusal::UsedNonce);
        }
        if used.len() >= USED_MAX {
            used.retain(|_, deadline| *deadline > now);
        }
        if used.len() >= USED_MAX {
            return Err(Refusal::Busy);
        }
        used.insert(body.to_vec(), deadline);
        Ok(())
    }
}

const NONCE_LIFETIME: Duration = Duration::from_secs(60);
const DEADLINE_OCTETS: usize = 8;
const UNTAGGED_OCTETS: usize = DEADLINE_OCTETS + 16;
/// Within one minute; each costs its sender a question at STS.
const USED_MAX: usize = 16_384;
const ASKED_TOGETHER: usize = 32;
const SKEW_MAX: Duration = Duration::from_secs(300);

#[cfg(test)]
pub(crate) mod tests {
    use hawser_aws::Credentials;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    const REGION: &str = "eu-west-1";
    const SERVER: &str = "mesh.consul";

    /// Answers each HTTP request on `listener` as `answer` says.
    pub(crate) async fn answering(listener: TcpListener, answer: impl Fn(&str) -> (u16, String)) {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut asked = Vec::new();
            while !asked.ends_with(b"Action=GetCallerIdentity&Version=2011-06-15") {
                if socket.read_buf(&mut asked).await.expect("read") == 0 {
                    break;
                }
            }
            let (status, body) = answer(&String::from_utf8(asked).expect("text"));
            let length = body.len();
            let reply = format!("HTTP/1.1 {status} S\r\nContent-Length: {length}\r\n\r\n{body}");
            socket.write_all(reply.as_bytes()).await.expect("written");
        }
    }

    /// What STS answers about `arn`.
    pub(crate) fn identity(arn: &str, account: &str) -> String {
        format!(
            "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
             <GetCallerIdentityResult><Arn>{arn}</Arn><Account>{account}</Account>\
             </GetCallerIdentityResult></GetCallerIdentityResponse>"
        )
    }

    fn keys(access_key_id: &str) -> Credentials {
        Credentials::new(access_key_id.into(), "secret".into(), Some("token".into()))
    }

    /// Checks signatures as STS does, over the headers that it is sent, and knows some keys.
    fn answer(asked: &str) -> (u16, String) {
        let header = |name: &str| {
            let start = format!("\r\n{name}: ");
            let lower = asked.to_ascii_lowercase();
            let at = lower.find(&start).map(|at| at + start.len());
            let rest = at.and_then(|at| asked.get(at..)).unwrap_or_default();
            assert_eq!(lower.matches(&start).count(), 1, "{name} in {asked}");
            rest.split("\r\n").next().unwrap_or_default().to_owned()
        };
        let octets = |hex: String| -> Vec<u8> {
            let pairs = (0..hex.len()).step_by(2);
            pairs.map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
        };
        let authorization = header("authorization");
        let key = authorization.split(['=', '/']).nth(1).expect("a key").to_owned();
        let challenge = Challenge::new(
            &octets(header("x-hawser-nonce")),
            octets(header("x-hawser-csr-key-sha256")).try_into().expect("a hash"),
            &header("x-hawser-server-id"),
        );
        let date = AmzDate::parse(&header("x-amz-date")).expect("a date");
        let region = REGION.parse().expect("a region");
        let proof = keys(&key).prove(&region, &header("host"), &challenge, date);
        if !authorization.ends_with(&format!("Signature={}", proof.signature())) {
            let refused = "<E><Error><Code>SignatureDoesNotMatch</Code></Error></E>";
            return (403, refused.to_owned());
        }
        let own = |rest: &str| identity(&format!("arn:aws:{rest}"), "123456789012");
        match key.as_str() {
            "ASIAWEBWEBWEBWEB" => (200, own("sts::123456789012:assumed-role/web/i-1")),
            "ASIANAMENAMENAME" => (200, own("sts::123456789012:assumed-role/other/web")),
            "AKIAUSERUSERUSER" => (200, own("iam::123456789012:user/web")),
            "ASIAFOREIGNACCNT" => {
                (200, identity("arn:aws:sts::999999999999:assumed-role/web/i", "999999999999"))
            }
            "ASIAJUNKJUNKJUNK" => (200, "{\"Account\":\"123456789012\"}".to_owned()),
            _ => (503, String::new()),
        }
    }

    #[tokio::test]
    async fn a_signature_lets_in_who_may_be_what_it_was_made_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let host = listener.local_addr().expect("bound").to_string();
        tokio::spawn(answering(listener, answer));
        let endpoint = format!("http://{host}").parse().expect("an endpoint");
        let rules = [("arn:aws:iam::123456789012:role/web", "web-*")];
        let config = AwsIam {
            sts: Sts::new(REGION.parse().expect("a region"), endpoint),
            policy: Policy::new(["123456789012"], rules).expect("a policy"),
        };
        let verifier = Verifier::new(config, SERVER.to_owned()).expect("random");
        let (own_key, now) = ([7; 32], crate::identity::now());
        let web = "ASIAWEBWEBWEBWEB";
        type Signed<'a> = (&'a str, &'a str, &'a str, [u8; 32], &'a str, i64);
        let good: Signed<'_> = (web, REGION, &host, own_key, SERVER, 0);
        let as_key = |key| (key, good.1, good.2, good.3, good.4, good.5);
        let cases: [(Signed<'_>, &str, Option<&str>); 16] = [
            // signed: key, region, host, CSR key, cluster, seconds from now; the node; the refusal
            (good, "web-1", None),
            (good, "db-1", Some("may not be node db-1")),
            (good, "web", Some("may not be node web")),
            ((web, "us-east-1", &host, own_key, SERVER, 0), "web-1", Some("SignatureDoesNotMatch")),
            ((web, REGION, "evil.example", own_key, SERVER, 0), "web-1", Some("DoesNotMatch")),
            ((web, REGION, &host, [8; 32], SERVER, 0), "web-1", Some("SignatureDoesNotMatch")),
            ((web, REGION, &host, own_key, "other.consul", 0), "web-1", Some("DoesNotMatch")),
            ((web, REGION, &host, own_key, SERVER, -290), "web-1", None),
            ((web, REGION, &host, own_key, SERVER, -310), "web-1", Some("from this server's")),
            ((web, REGION, &host, own_key, SERVER, 310), "web-1", Some("set the clocks right")),
            (as_key("ASIANAMENAMENAME"), "web-1", Some("role/other may not join")),
            (as_key("AKIAUSERUSERUSER"), "web-1", Some("no role's session")),
            (as_key("ASIAFOREIGNACCNT"), "web-1", Some("account 999999999999 may not join")),
            (as_key("ASIAJUNKJUNKJUNK"), "web-1", Some("did not tell who signed")),
            (as_key("ASIABUSYBUSYBUSY"), "web-1", Some("503")),
            (good, "web-2", None),
        ];
        for ((key, region, host, csr_key, server, seconds), node, refusal) in cases {
            let nonce = verifier.nonce().expect("random");
            let date = AmzDate::at(now.as_secs().saturating_add_signed(seconds));
            let challenge = Challenge::new(&nonce, csr_key, server);
            let region = region.parse().expect("a region");
            let proof = keys(key).prove(&region, host, &challenge, date);
            let node: NodeName = node.parse().expect("a name");
            let told = verifier.identify(&node, &nonce, own_key, &proof, now).await;
            match (told, refusal) {
                (Ok(caller), None) => assert_eq!(caller.account(), "123456789012"),
                (Err(why), Some(says)) => assert!(why.to_string().contains(says), "{says}: {why}"),
                (told, refusal) => panic!("{:?} instead of {refusal:?}", told.map(|_| node)),
            }
            let replayed = verifier.identify(&node, &nonce, own_key, &proof, now).await;
            assert!(matches!(replayed, Err(Refusal::UsedNonce)), "{node} {refusal:?}");
            let other = verifier.nonce().expect("random");
            let moved = verifier.identify(&node, &other, own_key, &proof, now).await;
            assert!(moved.is_err(), "a signature over one nonce does for another");
        }
    }

    #[test]
    fn a_nonce_holds_once_for_a_minute_at_its_own_server() {
        let (own, other) = (Nonces::new().expect("random"), Nonces::new().expect("random"));
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let nonce = own.give(began).expect("random");
        assert!(matches!(other.spend(&nonce, began), Err(Refusal::ForeignNonce)));
        for at in 0..nonce.len() {
            let mut changed = nonce.clone();
            changed[at] ^= 1;
            assert!(matches!(own.spend(&changed, began), Err(Refusal::ForeignNonce)), "{at}");
        }
        assert!(matches!(own.spend(&nonce[1..], began), Err(Refusal::ForeignNonce)));
        assert!(matches!(own.spend(&[], began), Err(Refusal::ForeignNonce)));
        assert!(own.spend(&nonce, after(59)).is_ok());
        assert!(matches!(own.spend(&nonce, after(59)), Err(Refusal::UsedNonce)));
        let late = own.give(began).expect("random");
        assert!(matches!(own.spend(&late, after(61)), Err(Refusal::LateNonce)));
    }

    #[test]
    fn used_nonces_are_a_bounded_table_that_empties_with_time() {
        let nonces = Nonces::new().expect("random");
        let began = Instant::now();
        for _ in 0..USED_MAX {
            let nonce = nonces.give(began).expect("random");
            nonces.spend(&nonce, began).expect("the table has room");
        }
        let later = began + Duration::from_secs(30);
        let nonce = nonces.give(later).expect("random");
        assert!(matches!(nonces.spend(&nonce, later), Err(Refusal::Busy)));
        assert!(nonces.spend(&nonce, began + Duration::from_secs(70)).is_ok());
    }

    #[test]
    fn a_policy_says_what_it_means_or_nothing() {
        const WEB: &str = "arn:aws:iam::123456789012:role/web";
        let own = "123456789012";
        type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], Option<&'a str>);
        let cases: &[Case<'_>] = &[
            // accounts, rules, what the error must say
            (&[own], &[(WEB, "web-*")], None),
            (&[own], &[("arn:aws:iam::123456789012:role/*", "*")], None),
            (&[own], &[("arn:aws-us-gov:iam::123456789012:role/web*", "web")], None),
            (&[], &[(WEB, "*")], Some("does not name")),
            (&[], &[], Some("allowed_accounts")),
            (&[own], &[], Some("allowed_roles: name")),
            (&["12345678901"], &[(WEB, "*")], Some("twelve digits")),
            (&["*"], &[(WEB, "*")], Some("twelve digits")),
            (&[own], &[("*", "*")], Some("is no role")),
            (&[own], &[("arn:aws:iam::*", "*")], Some("is no role")),
            (&[own], &[("arn:aws:iam::*:role/web", "*")], Some("is no role")),
            (&[own], &[("arn:aws:iam::123456789012:role/", "*")], Some("is no role")),
            (&[own], &[("arn:aws:iam::123456789012:role/p/web", "*")], Some("path")),
            (&[own], &[("arn:aws:iam::123456789012:user/web", "*")], Some("is no role")),
            (&[own], &[("arn:aws:sts::123456789012:assumed-role/web/*", "*")], Some("no role")),
            (&[own], &[("arn:aws:iam::999999999999:role/web", "*")], Some("does not name")),
            (&[own], &[(WEB, "we*b")], Some("no pattern of node names")),
            (&[own], &[(WEB, "**")], Some("no pattern of node names")),
            (&[own], &[(WEB, "a/b")], Some("no pattern of node names")),
            (&[own], &[(WEB, "")], Some("no pattern of node names")),
        ];
        for (accounts, rules, says) in cases {
            let made = Policy::new(accounts.iter().copied(), rules.iter().copied());
            let error = made.err().map(|why| why.to_string());
            assert_eq!(error.is_some(), says.is_some(), "{accounts:?} {rules:?}: {error:?}");
            let error = error.unwrap_or_default();
            assert!(error.contains(says.unwrap_or_default()), "{rules:?}: {error}");
        }
    }
}
