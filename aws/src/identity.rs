//! Proof of an IAM identity: a signed `GetCallerIdentity` that its receiver builds anew.
//!
//! The prover sends the parts of a signature and nothing else; the verifier puts them into a request
//! of its own making and sends that to its own STS. So there is no URL, header or body of a stranger
//! to be misled by (CVE-2020-16250), and what was signed holds for one nonce, one key and one cluster.

use bytes::Bytes;

use crate::call::{Answer, CallError, call};
use crate::caller::{Caller, InvalidCaller};
use crate::credentials::Credentials;
use crate::date::AmzDate;
use crate::endpoint::{Endpoint, Region};
use crate::sign::{Signable, hex};
use crate::xml;

/// What a proof holds for: the signature covers all three.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Challenge {
    nonce: String,
    csr_key_sha256: String,
    server_id: String,
}

impl Challenge {
    /// A challenge by `nonce`, for the key whose SPKI hashes to `csr_key_sha256`, at `server_id`.
    pub fn new(nonce: &[u8], csr_key_sha256: [u8; 32], server_id: &str) -> Self {
        Self {
            nonce: hex(nonce),
            csr_key_sha256: hex(&csr_key_sha256),
            server_id: server_id.to_owned(),
        }
    }
}

/// The parts of a signature: all that a prover sends. Not printable, for the session token's sake.
#[derive(Clone)]
pub struct Proof {
    access_key_id: String,
    date: AmzDate,
    session_token: Option<String>,
    signature: String,
}

/// A part of a proof that has not the form that AWS gives it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{field}: it is not what AWS's signatures have there")]
pub struct InvalidProof {
    /// The part.
    pub field: &'static str,
}

impl Proof {
    /// A proof from its parts.
    ///
    /// # Errors
    /// [`InvalidProof`] for a part that could be anything else in a header than what it should be.
    pub fn parse(
        access_key_id: &str,
        date: &str,
        session_token: &str,
        signature: &str,
    ) -> Result<Self, InvalidProof> {
        let wrong = |field| InvalidProof { field };
        let is_id = (16..=128).contains(&access_key_id.len())
            && access_key_id.bytes().all(|octet| octet.is_ascii_alphanumeric());
        let is_token = session_token.len() <= TOKEN_OCTETS_MAX
            && session_token
                .bytes()
                .all(|octet| octet.is_ascii_alphanumeric() || b"+/=_-".contains(&octet));
        let is_hex = |octet: u8| octet.is_ascii_digit() || (b'a'..=b'f').contains(&octet);
        let is_signature = signature.len() == 64 && signature.bytes().all(is_hex);
        if !is_id {
            return Err(wrong("access_key_id"));
        }
        if !is_token {
            return Err(wrong("session_token"));
        }
        if !is_signature {
            return Err(wrong("signature"));
        }
        Ok(Self {
            access_key_id: access_key_id.to_owned(),
            date: AmzDate::parse(date).ok_or(wrong("date"))?,
            session_token: (!session_token.is_empty()).then(|| session_token.to_owned()),
            signature: signature.to_owned(),
        })
    }

    /// Whose key signed, as its owner says.
    pub fn access_key_id(&self) -> &str {
        &self.access_key_id
    }

    /// When it was signed, as its owner says.
    pub fn date(&self) -> &AmzDate {
        &self.date
    }

    /// What a session's key needs beside it; empty for none.
    pub fn session_token(&self) -> &str {
        self.session_token.as_deref().unwrap_or_default()
    }

    /// 64 hexadecimal digits.
    pub fn signature(&self) -> &str {
        &self.signature
    }
}

/// The STS of one region: the only one that proofs are made for and checked by.
#[derive(Clone, Debug)]
pub struct Sts {
    region: Region,
    endpoint: Endpoint,
}

/// Why a signature identifies nobody.
#[derive(Debug, thiserror::Error)]
pub enum IdentifyError {
    /// STS says no.
    #[error("AWS refuses the signature ({0})")]
    Refused(String),
    /// STS has trouble of its own, or too much to do.
    #[error("AWS STS answered {0}: try again later")]
    Busy(u16),
    /// It could not be asked.
    #[error("AWS STS could not be asked: {0}")]
    Call(#[from] CallError),
    /// It said something else than who signed.
    #[error("AWS STS did not tell who signed: {0}")]
    Answer(#[from] InvalidCaller),
}

impl Sts {
    /// The one at `endpoint`, which takes signatures for `region`.
    pub fn new(region: Region, endpoint: Endpoint) -> Self {
        Self { region, endpoint }
    }

    /// Its region.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// What the signed `Host` header says.
    pub fn host(&self) -> String {
        self.endpoint.authority()
    }

    /// Whom the signature belongs to, by asking STS with the request that must have been signed.
    ///
    /// # Errors
    /// [`IdentifyError`]
    pub async fn identify(
        &self,
        proof: &Proof,
        challenge: &Challenge,
    ) -> Result<Caller, IdentifyError> {
        let request = self.rebuild(proof, challenge);
        answered(&call(&self.endpoint, request).await?)
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn rebuild(&self, proof: &Proof, challenge: &Challenge) -> http::Request<Bytes> {
        let token = proof.session_token.as_deref();
        let headers = template(&self.host(), &proof.date, token, challenge);
        let signable = signable(&self.region, &proof.date, &headers);
        let authorization = signable.authorization(&proof.access_key_id, &proof.signature);
        let request = headers
            .iter()
            .fold(http::Request::post("/"), |request, (name, value)| request.header(*name, value));
        request
            .header("authorization", authorization)
            .header("accept", "text/xml")
            .body(Bytes::from_static(BODY))
            .expect("every part was parsed down to octets that a header may hold")
    }
}

/// Whom STS names in `answer`.
pub(crate) fn answered(answer: &Answer) -> Result<Caller, IdentifyError> {
    let body = std::str::from_utf8(&answer.body).unwrap_or_default();
    match answer.status {
        200 if body.len() <= ANSWER_OCTETS_MAX => Ok(Caller::parse(body)?),
        200 => Err(InvalidCaller::Xml("it is too long".to_owned()).into()),
        400..=403 => {
            let code = xml::error_code(body).unwrap_or_else(|| answer.status.to_string());
            let is_busy = code.starts_with("Throttl");
            Err(if is_busy { IdentifyError::Busy(429) } else { IdentifyError::Refused(code) })
        }
        status => Err(IdentifyError::Busy(status)),
    }
}

impl Credentials {
    /// Proves, at `date`, whose these are to one who will ask the STS at `host` in `region`.
    pub fn prove(
        &self,
        region: &Region,
        host: &str,
        challenge: &Challenge,
        date: AmzDate,
    ) -> Proof {
        let token = self.session_token.as_ref().map(|token| token.as_str());
        let headers = template(host, &date, token, challenge);
        let signature = signable(region, &date, &headers).signature(self);
        Proof {
            access_key_id: self.access_key_id.clone(),
            session_token: token.map(str::to_owned),
            signature,
            date,
        }
    }
}

/// All headers that are sent and signed, sorted: prover and verifier have them from here alone.
fn template(
    host: &str,
    date: &AmzDate,
    session_token: Option<&str>,
    challenge: &Challenge,
) -> Vec<(&'static str, String)> {
    let mut headers = vec![
        ("content-type", FORM.to_owned()),
        ("host", host.to_owned()),
        ("x-amz-date", date.as_str().to_owned()),
    ];
    if let Some(token) = session_token {
        headers.push(("x-amz-security-token", token.to_owned()));
    }
    headers.push(("x-hawser-csr-key-sha256", challenge.csr_key_sha256.clone()));
    headers.push(("x-hawser-nonce", challenge.nonce.clone()));
    headers.push(("x-hawser-server-id", challenge.server_id.clone()));
    headers
}

fn signable<'a>(
    region: &'a Region,
    date: &'a AmzDate,
    headers: &'a [(&'static str, String)],
) -> Signable<'a> {
    Signable { service: "sts", region, date, headers, body: BODY }
}

const BODY: &[u8] = b"Action=GetCallerIdentity&Version=2011-06-15";
const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";
const TOKEN_OCTETS_MAX: usize = 4096;
const ANSWER_OCTETS_MAX: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Asked, Fake};

    fn keys() -> Credentials {
        Credentials::new("ASIAEXAMPLEEXAMPLE".into(), "secret".into(), Some("token".into()))
    }

    fn challenge() -> Challenge {
        Challenge::new(&[7; 32], [8; 32], "mesh.consul")
    }

    /// An STS that checks signatures over the headers that it is sent.
    async fn sts(region: &str) -> (Fake, Sts) {
        let region: Region = region.parse().expect("a region");
        let own = region.clone();
        let fake = Fake::answering(move |asked| verify(asked, &own)).await;
        let sts = Sts::new(region, fake.endpoint.clone());
        (fake, sts)
    }

    fn verify(asked: &Asked, region: &Region) -> (u16, String) {
        let header = |name: &str| {
            let value = asked.headers().get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let names = [
            "content-type",
            "host",
            "x-amz-date",
            "x-amz-security-token",
            "x-hawser-csr-key-sha256",
            "x-hawser-nonce",
            "x-hawser-server-id",
        ];
        let headers: Vec<_> = names.map(|name| (name, header(name))).to_vec();
        let date = AmzDate::parse(&header("x-amz-date")).expect("a date");
        let signable =
            Signable { service: "sts", region, date: &date, headers: &headers, body: asked.body() };
        let signature = signable.signature(&keys());
        if header("authorization") == signable.authorization("ASIAEXAMPLEEXAMPLE", &signature) {
            let arn = "arn:aws:sts::123456789012:assumed-role/web/s";
            let inner = format!("<Arn>{arn}</Arn><Account>123456789012</Account>");
            let body = format!(
                "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
                 <GetCallerIdentityResult>{inner}</GetCallerIdentityResult>\
                 </GetCallerIdentityResponse>"
            );
            (200, body)
        } else {
            (403, "<E><Error><Code>SignatureDoesNotMatch</Code></Error></E>".to_owned())
        }
    }

    #[tokio::test]
    async fn a_proof_identifies_only_as_it_was_signed() {
        let (fake, sts) = sts("eu-west-1").await;
        let date = || AmzDate::parse("20261120T160500Z").expect("a date");
        let host = sts.host();
        let here: Region = "eu-west-1".parse().expect("a region");
        let there: Region = "us-east-1".parse().expect("a region");
        let other_key = Challenge::new(&[7; 32], [9; 32], "mesh.consul");
        let other_nonce = Challenge::new(&[6; 32], [8; 32], "mesh.consul");
        let other_server = Challenge::new(&[7; 32], [8; 32], "other.consul");
        let wrong = Credentials { secret: "other".to_owned().into(), ..keys() };
        let unsigned = Credentials { session_token: None, ..keys() };
        let later = AmzDate::parse("20261120T160501Z").expect("a date");
        let good = keys().prove(&here, &host, &challenge(), date());
        let changed = |change: &dyn Fn(&mut Proof)| {
            let mut proof = good.clone();
            change(&mut proof);
            proof
        };
        let cases = [
            // proof, whether it identifies, why
            (good.clone(), true, "as it was signed"),
            (keys().prove(&there, &host, &challenge(), date()), false, "another region"),
            (keys().prove(&here, "sts.example", &challenge(), date()), false, "another host"),
            (keys().prove(&here, &host, &other_key, date()), false, "another CSR's key"),
            (keys().prove(&here, &host, &other_nonce, date()), false, "another nonce"),
            (keys().prove(&here, &host, &other_server, date()), false, "another cluster"),
            (wrong.prove(&here, &host, &challenge(), date()), false, "another secret"),
            (unsigned.prove(&here, &host, &challenge(), date()), false, "no session token"),
            (changed(&|proof| proof.date = later.clone()), false, "another date"),
            (changed(&|proof| proof.session_token = Some("x".into())), false, "another token"),
            (changed(&|proof| proof.access_key_id = "ASIAOTHEROTHEROTHER".into()), false, "a key"),
        ];
        for (proof, is_good, why) in cases {
            match sts.identify(&proof, &challenge()).await {
                Ok(caller) => {
                    assert!(is_good, "{why}");
                    assert_eq!(caller.role(), Some("arn:aws:iam::123456789012:role/web"));
                }
                Err(refused) => {
                    assert!(!is_good, "{why}");
                    assert!(refused.to_string().contains("SignatureDoesNotMatch"), "{refused}");
                }
            }
        }
        for asked in fake.asked() {
            assert_eq!((asked.method().as_str(), asked.uri().to_string()), ("POST", "/".into()));
            assert_eq!(asked.headers().get_all("host").iter().count(), 1);
            assert_eq!(asked.body().as_ref(), BODY);
        }
    }

    #[test]
    fn a_part_that_could_be_more_than_a_part_is_refused() {
        let (id, date, signature) = ("AKIAEXAMPLEEXAMPLE", "20261120T160500Z", "ab".repeat(32));
        assert!(Proof::parse(id, date, "", &signature).is_ok());
        assert!(Proof::parse(id, date, "IQoJ+/aA9==", &signature).is_ok());
        let long = "a".repeat(TOKEN_OCTETS_MAX + 1);
        let cases = [
            // parts, the one that is refused
            (["AKIA", date, "", &signature], "access_key_id"),
            (["AKIAEXAMPLE/../EXAMPLE", date, "", &signature], "access_key_id"),
            (["AKIAEXAMPLEEXAMPLE, SignedHeaders=host", date, "", &signature], "access_key_id"),
            ([id, "20261120T160500Z\r\nHost: evil", "", &signature], "date"),
            ([id, "2026-11-20", "", &signature], "date"),
            ([id, date, "a\r\nHost: evil.example", &signature], "session_token"),
            ([id, date, "a b", &signature], "session_token"),
            ([id, date, &long, &signature], "session_token"),
            ([id, date, "", "ab"], "signature"),
            ([id, date, "", &"AB".repeat(32)], "signature"),
            ([id, date, "", &format!("{}\r\n", &signature[2..])], "signature"),
        ];
        for ([id, date, token, signature], field) in cases {
            let refused = Proof::parse(id, date, token, signature).err();
            assert_eq!(refused, Some(InvalidProof { field }), "{id} {date} {token} {signature}");
        }
    }

    #[tokio::test]
    async fn trouble_at_sts_is_told_apart_from_a_refusal() {
        let cases = [
            // status, body, what it says
            (
                403,
                "<E><Error><Code>InvalidClientTokenId</Code></Error></E>",
                "InvalidClientTokenId",
            ),
            (403, "{}", "(403)"),
            (400, "<E><Error><Code>Throttling</Code></Error></E>", "try again"),
            (503, "", "503"),
            (302, "", "302"),
            (200, "<html/>", "did not tell"),
            (200, "", "did not tell"),
        ];
        for (status, body, says) in cases {
            let fake = Fake::answering(move |_| (status, body.to_owned())).await;
            let region: Region = "eu-west-1".parse().expect("a region");
            let sts = Sts::new(region.clone(), fake.endpoint.clone());
            let proof = keys().prove(&region, &sts.host(), &challenge(), AmzDate::at(0));
            let refused = sts.identify(&proof, &challenge()).await.expect_err(body);
            assert!(refused.to_string().contains(says), "{status} {body}: {refused}");
        }
    }
}
