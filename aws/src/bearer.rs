//! A signed `GetCallerIdentity` as Consul's clients send it to log in.
//!
//! Of what they send only the signed headers count, and of these only names and forms that such a
//! request needs; URL and body are the receiver's own. What was signed for another host, another
//! body or another server id does not verify.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use crate::call::call;
use crate::caller::Caller;
use crate::date::AmzDate;
use crate::identity::{IdentifyError, Sts, answered};

/// The parts of a signed request that count.
pub struct SignedCall {
    authorization: String,
    headers: Vec<(String, String)>,
    date: AmzDate,
}

/// Why a bearer token is no signed request.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidCall {
    /// It is not what `consul login -aws-auto-bearer-token` makes.
    #[error("the bearer token is no signed request: {0}")]
    Form(String),
    /// It asks for something else.
    #[error("the signed request is not POST with the body {BODY}")]
    Request,
    /// One of its headers is not signed, is signed and not there, or is none that belongs to it.
    #[error("the header {0:?} of the signed request is missing, unsigned or does not belong there")]
    Header(String),
}

#[derive(Deserialize)]
struct Raw {
    iam_http_request_method: String,
    iam_request_body: String,
    iam_request_headers: String,
}

impl SignedCall {
    /// Reads a bearer token.
    ///
    /// # Errors
    /// [`InvalidCall`]
    pub fn parse(bearer: &str) -> Result<Self, InvalidCall> {
        if bearer.len() > BEARER_OCTETS_MAX {
            return Err(InvalidCall::Form("it is too long".to_owned()));
        }
        let form = |why: &dyn std::fmt::Display| InvalidCall::Form(why.to_string());
        let raw: Raw = serde_json::from_str(bearer).map_err(|why| form(&why))?;
        let decoded = |text: &str| STANDARD.decode(text).map_err(|why| form(&why));
        if raw.iam_http_request_method != "POST"
            || decoded(&raw.iam_request_body)? != BODY.as_bytes()
        {
            return Err(InvalidCall::Request);
        }
        let headers = decoded(&raw.iam_request_headers)?;
        let headers: Value = serde_json::from_slice(&headers).map_err(|why| form(&why))?;
        let authorization = value(&headers, "authorization")?;
        let signed = authorization
            .split_once("SignedHeaders=")
            .and_then(|(_, rest)| Some(rest.split_once(',')?.0.trim()))
            .ok_or_else(|| InvalidCall::Header("authorization".to_owned()))?;
        if !authorization.starts_with("AWS4-HMAC-SHA256 ") || !fits(&authorization) {
            return Err(InvalidCall::Header("authorization".to_owned()));
        }
        let mut kept = Vec::new();
        for name in signed.split(';').filter(|name| *name != "host") {
            if !ALLOWED.contains(&name) {
                return Err(InvalidCall::Header(name.to_owned()));
            }
            kept.push((name.to_owned(), value(&headers, name)?));
        }
        let date = kept.iter().find(|(name, _)| name == "x-amz-date");
        let date = date.and_then(|(_, date)| AmzDate::parse(date));
        let date = date.ok_or_else(|| InvalidCall::Header("x-amz-date".to_owned()))?;
        if !signed.split(';').any(|name| name == "host") {
            return Err(InvalidCall::Header("host".to_owned()));
        }
        Ok(Self { authorization, headers: kept, date })
    }

    /// When it was signed.
    pub fn date(&self) -> &AmzDate {
        &self.date
    }

    /// Which server it was signed for, as its signer says.
    pub fn server_id(&self) -> Option<&str> {
        let found = self.headers.iter().find(|(name, _)| name == "x-consul-iam-serverid");
        found.map(|(_, id)| id.as_str())
    }
}

/// The one value of the header `name`, which may be a text or a list of one.
fn value(headers: &Value, name: &str) -> Result<String, InvalidCall> {
    let missing = || InvalidCall::Header(name.to_owned());
    let all = headers.as_object().ok_or_else(missing)?;
    let mut own = all.iter().filter(|(held, _)| held.eq_ignore_ascii_case(name));
    let (Some((_, value)), None) = (own.next(), own.next()) else { return Err(missing()) };
    let text = match value {
        Value::String(text) => text,
        Value::Array(list) => match list.as_slice() {
            [Value::String(text)] => text,
            _ => return Err(missing()),
        },
        _ => return Err(missing()),
    };
    if fits(text) { Ok(text.clone()) } else { Err(missing()) }
}

fn fits(text: &str) -> bool {
    text.len() <= VALUE_OCTETS_MAX && text.bytes().all(|octet| (b' '..=b'~').contains(&octet))
}

impl Sts {
    /// Whom the signature of `signed` belongs to, by asking this STS with it.
    ///
    /// # Errors
    /// [`IdentifyError`]
    pub async fn identify_call(&self, signed: &SignedCall) -> Result<Caller, IdentifyError> {
        let mut request = http::Request::post("/")
            .header("host", self.host())
            .header("authorization", &signed.authorization)
            .header("accept", "text/xml");
        for (name, value) in signed.headers.iter().filter(|(name, _)| name != "content-length") {
            request = request.header(name, value);
        }
        if !signed.headers.iter().any(|(name, _)| name == "content-type") {
            request = request.header("content-type", FORM);
        }
        let request = request
            .body(Bytes::from_static(BODY.as_bytes()))
            .expect("every header was parsed down to octets that one may hold");
        answered(&call(self.endpoint(), request).await?)
    }
}

const BODY: &str = "Action=GetCallerIdentity&Version=2011-06-15";
const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";
/// What may be signed beside the host.
const ALLOWED: [&str; 6] = [
    "content-length",
    "content-type",
    "x-amz-content-sha256",
    "x-amz-date",
    "x-amz-security-token",
    "x-consul-iam-serverid",
];
const BEARER_OCTETS_MAX: usize = 16 * 1024;
const VALUE_OCTETS_MAX: usize = 4_096;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::endpoint::Region;
    use crate::fake::Fake;

    fn bearer(method: &str, body: &str, headers: &Value) -> String {
        let coded = |text: &str| STANDARD.encode(text);
        json!({
            "iam_http_request_method": method,
            "iam_request_url": coded("https://sts.evil.example/"),
            "iam_request_body": coded(body),
            "iam_request_headers": coded(&headers.to_string()),
        })
        .to_string()
    }

    fn headers(signed: &str) -> Value {
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential=ASIA/20261121/us-east-1/sts/aws4_request, \
             SignedHeaders={signed}, Signature=00"
        );
        json!({
            "Authorization": [authorization],
            "Content-Length": ["43"],
            "Host": ["sts.evil.example"],
            "X-Amz-Date": ["20261121T120000Z"],
            "X-Consul-Iam-Serverid": ["mesh"],
            "X-Forwarded-For": ["1.2.3.4"],
        })
    }

    const SIGNED: &str = "content-length;host;x-amz-date;x-consul-iam-serverid";

    #[test]
    fn only_what_belongs_to_the_request_is_taken() {
        let cases = [
            // method, body, signed headers, what is wrong
            ("POST", BODY, SIGNED, ""),
            ("GET", BODY, SIGNED, "not POST"),
            ("POST", "Action=AssumeRole&Version=2011-06-15", SIGNED, "not POST"),
            ("POST", BODY, "host;x-consul-iam-serverid", "x-amz-date"),
            ("POST", BODY, "x-amz-date", "host"),
            ("POST", BODY, "host;x-amz-date;x-forwarded-for", "x-forwarded-for"),
            ("POST", BODY, "host;x-amz-date;x-amz-security-token", "x-amz-security-token"),
        ];
        for (method, body, signed, expected) in cases {
            let said = SignedCall::parse(&bearer(method, body, &headers(signed))).err();
            let said = said.map(|why| why.to_string()).unwrap_or_default();
            assert_eq!(said.is_empty(), expected.is_empty(), "{signed}: {said}");
            assert!(said.contains(expected), "{signed}: {said}");
        }
        let mut twice = headers(SIGNED);
        twice["x-amz-date"] = json!("20261121T120000Z");
        assert!(SignedCall::parse(&bearer("POST", BODY, &twice)).is_err(), "which one was signed?");
        let mut broken = headers(SIGNED);
        broken["X-Consul-Iam-Serverid"] = json!("a\r\nHost: b");
        assert!(SignedCall::parse(&bearer("POST", BODY, &broken)).is_err());
        assert!(SignedCall::parse("{}").is_err());
        assert!(SignedCall::parse(&"x".repeat(BEARER_OCTETS_MAX + 1)).is_err());
        let unsigned = SignedCall::parse(&bearer("POST", BODY, &headers("host;x-amz-date")));
        assert_eq!(unsigned.expect("good").server_id(), None, "what is not signed was not said");
    }

    #[tokio::test]
    async fn the_own_sts_is_asked_whatever_the_token_names() {
        let arn = "arn:aws:sts::123456789012:assumed-role/web/s";
        let answer = format!(
            "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
             <GetCallerIdentityResult><Arn>{arn}</Arn><UserId>AROAX:s</UserId>\
             <Account>123456789012</Account></GetCallerIdentityResult></GetCallerIdentityResponse>"
        );
        let fake = Fake::answering(move |_| (200, answer.clone())).await;
        let region: Region = "us-east-1".parse().expect("a region");
        let sts = Sts::new(region, fake.endpoint.clone());
        let signed = SignedCall::parse(&bearer("POST", BODY, &headers(SIGNED))).expect("good");
        let caller = sts.identify_call(&signed).await.expect("answered");
        assert_eq!(caller.principal(), Some("arn:aws:iam::123456789012:role/web"));
        assert_eq!((caller.name(), caller.entity_id()), (Some("web"), Some("AROAX")));
        let asked = fake.asked().pop().expect("it was asked");
        assert_eq!(asked.headers()["host"], sts.host().as_str());
        assert_eq!(asked.headers()["x-consul-iam-serverid"], "mesh");
        assert!(!asked.headers().contains_key("x-forwarded-for"));
        assert_eq!(asked.body(), BODY);
    }
}
