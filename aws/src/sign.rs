//! Signature Version 4, computed by hand. Source: AWS, "Create a signed AWS API request".

use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;

use crate::credentials::Credentials;
use crate::date::AmzDate;
use crate::endpoint::Region;

/// One request to `POST /` of a service: what of it is signed.
///
/// `headers` are all that are sent and signed, in lower case and sorted by name.
pub(crate) struct Signable<'a> {
    pub(crate) service: &'static str,
    pub(crate) region: &'a Region,
    pub(crate) date: &'a AmzDate,
    pub(crate) headers: &'a [(&'static str, String)],
    pub(crate) body: &'a [u8],
}

impl Signable<'_> {
    /// The signature of `credentials`, 64 hexadecimal digits.
    pub(crate) fn signature(&self, credentials: &Credentials) -> String {
        let to_sign = format!(
            "{ALGORITHM}\n{}\n{}\n{}",
            self.date.as_str(),
            self.scope(),
            hex_digest(self.canonical().as_bytes())
        );
        let seed = zeroize::Zeroizing::new(format!("AWS4{}", credentials.secret.as_str()));
        let parts = [self.date.day(), self.region.as_str(), self.service, "aws4_request", &to_sign];
        let mut tag = seed.as_bytes().to_vec();
        for part in parts {
            let key = hmac::Key::new(hmac::HMAC_SHA256, &tag);
            tag = hmac::sign(&key, part.as_bytes()).as_ref().to_vec();
        }
        hex(&tag)
    }

    /// The `Authorization` header that presents `signature` as that of `access_key_id`.
    pub(crate) fn authorization(&self, access_key_id: &str, signature: &str) -> String {
        let (scope, names) = (self.scope(), self.signed_headers());
        format!(
            "{ALGORITHM} Credential={access_key_id}/{scope}, SignedHeaders={names}, \
             Signature={signature}"
        )
    }

    fn canonical(&self) -> String {
        let mut text = String::from("POST\n/\n\n");
        for (name, value) in self.headers {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name}:{value}");
        }
        let _ = write!(text, "\n{}\n{}", self.signed_headers(), hex_digest(self.body));
        text
    }

    fn scope(&self) -> String {
        format!("{}/{}/{}/aws4_request", self.date.day(), self.region.as_str(), self.service)
    }

    fn signed_headers(&self) -> String {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| *name).collect();
        names.join(";")
    }
}

fn hex_digest(octets: &[u8]) -> String {
    hex(digest(&SHA256, octets).as_ref())
}

/// Octets as lower-case hexadecimal digits.
pub(crate) fn hex(octets: &[u8]) -> String {
    octets.iter().fold(String::with_capacity(octets.len() * 2), |mut text, octet| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{octet:02x}");
        text
    })
}

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

#[cfg(test)]
mod tests {
    use super::*;

    /// The `post-vanilla`, `post-x-www-form-urlencoded` and `post-header-key-sort` cases of AWS's
    /// own Signature Version 4 test suite.
    #[test]
    fn signatures_are_those_of_the_test_suite() {
        let credentials = Credentials::new(
            "AKIDEXAMPLE".into(),
            "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into(),
            None,
        );
        let date = AmzDate::parse("20150830T123600Z").expect("a date");
        let region: Region = "us-east-1".parse().expect("a region");
        let host = ("host", "example.amazonaws.com".to_owned());
        let at = ("x-amz-date", "20150830T123600Z".to_owned());
        let form = ("content-type", "application/x-www-form-urlencoded".to_owned());
        type Case<'a> = (&'a [(&'static str, String)], &'a [u8], &'a str);
        let cases: [Case<'_>; 3] = [
            (
                &[host.clone(), at.clone()],
                b"",
                "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
            ),
            (
                &[form, host.clone(), at.clone()],
                b"Param1=value1",
                "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
            ),
            (
                &[host, ("my-header1", "value1".to_owned()), at],
                b"",
                "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c",
            ),
        ];
        for (headers, body, expected) in cases {
            let signable =
                Signable { service: "service", region: &region, date: &date, headers, body };
            assert_eq!(signable.signature(&credentials), expected, "{headers:?}");
        }
    }
}
