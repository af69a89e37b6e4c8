//! Who AWS says has signed: an account, and the role behind the session.

use crate::xml::{self, Unexpected};

/// Whom a signature belongs to, as STS told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Caller {
    account: String,
    arn: String,
    role: Option<String>,
    user: Option<String>,
    id: Option<String>,
}

/// An answer of STS that tells nobody.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidCaller {
    /// It is not the XML that STS answers with.
    #[error("{0}")]
    Xml(String),
    /// The account is not twelve digits.
    #[error("the account is not twelve digits")]
    Account,
    /// The ARN is none, or of another account.
    #[error("the ARN is none of that account's")]
    Arn,
}

impl From<Unexpected> for InvalidCaller {
    fn from(why: Unexpected) -> Self {
        Self::Xml(why.to_string())
    }
}

impl Caller {
    /// Twelve digits.
    pub fn account(&self) -> &str {
        &self.account
    }

    /// As STS told it: for people to read, never to decide by.
    pub fn arn(&self) -> &str {
        &self.arn
    }

    /// `arn:aws:iam::<account>:role/<name>`; none for users, the root and federated sessions.
    ///
    /// The session's name is left out: whoever assumes a role chooses it.
    pub fn role(&self) -> Option<&str> {
        self.role.as_deref()
    }

    /// The role as [`Self::role`] says it, or `arn:aws:iam::<account>:user/<name>` without its path.
    pub fn principal(&self) -> Option<&str> {
        self.role().or(self.user.as_deref())
    }

    /// What the role or user is called.
    pub fn name(&self) -> Option<&str> {
        self.principal()?.rsplit_once('/').map(|(_, name)| name)
    }

    /// The unique id of the role or user, without the session's name.
    pub fn entity_id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// Parses the answer to `GetCallerIdentity`.
    pub(crate) fn parse(body: &str) -> Result<Self, InvalidCaller> {
        let document = xml::parse(body)?;
        let root = document.root_element();
        let name = root.tag_name();
        if (name.name(), name.namespace()) != ("GetCallerIdentityResponse", Some(NAMESPACE)) {
            return Err(InvalidCaller::Xml("it answers something else".to_owned()));
        }
        let result = xml::only(root, "GetCallerIdentityResult")?;
        let account = xml::text(xml::only(result, "Account")?)?;
        let arn = xml::text(xml::only(result, "Arn")?)?;
        let id = match xml::children(result, "UserId").next() {
            None => None,
            Some(node) => xml::text(node)?.split(':').next(),
        };
        let is_id = |id: &&str| id.len() <= 128 && id.bytes().all(|it| it.is_ascii_alphanumeric());
        let id = id.filter(is_id).map(str::to_owned);
        Ok(Self { id, ..Self::new(account, arn)? })
    }

    fn new(account: &str, arn: &str) -> Result<Self, InvalidCaller> {
        if account.len() != 12 || !account.bytes().all(|octet| octet.is_ascii_digit()) {
            return Err(InvalidCaller::Account);
        }
        let fits = |octet: u8| octet.is_ascii_alphanumeric() || b":/+=,.@_-".contains(&octet);
        if arn.len() > ARN_OCTETS_MAX || !arn.bytes().all(fits) {
            return Err(InvalidCaller::Arn);
        }
        let parts: Vec<&str> = arn.splitn(6, ':').collect();
        let &["arn", partition, service, "", owner, resource] = parts.as_slice() else {
            return Err(InvalidCaller::Arn);
        };
        let is_partition = matches!(partition, "aws" | "aws-cn" | "aws-us-gov");
        if owner != account || !is_partition || !matches!(service, "sts" | "iam") {
            return Err(InvalidCaller::Arn);
        }
        let session: Vec<&str> = resource.split('/').collect();
        let role = match (service, session.as_slice()) {
            ("sts", ["assumed-role", role, session]) if !role.is_empty() && !session.is_empty() => {
                Some(format!("arn:{partition}:iam::{account}:role/{role}"))
            }
            _ => None,
        };
        let user = match (service, session.as_slice()) {
            ("iam", ["user", .., name]) if !name.is_empty() => {
                Some(format!("arn:{partition}:iam::{account}:user/{name}"))
            }
            _ => None,
        };
        Ok(Self { account: account.to_owned(), arn: arn.to_owned(), role, user, id: None })
    }
}

const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";
const ARN_OCTETS_MAX: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(inner: &str) -> String {
        format!(
            "<GetCallerIdentityResponse xmlns=\"{NAMESPACE}\"><GetCallerIdentityResult>{inner}\
             </GetCallerIdentityResult><ResponseMetadata><RequestId>r</RequestId>\
             </ResponseMetadata></GetCallerIdentityResponse>"
        )
    }

    #[test]
    fn a_session_is_its_role_whatever_it_calls_itself() {
        let cases = [
            // ARN, role
            ("arn:aws:sts::123456789012:assumed-role/web/i-1", Some("role/web")),
            ("arn:aws:sts::123456789012:assumed-role/web/role", Some("role/web")),
            ("arn:aws:sts::123456789012:assumed-role/web/a/b", None),
            ("arn:aws:sts::123456789012:assumed-role//a", None),
            ("arn:aws:sts::123456789012:assumed-role/web", None),
            ("arn:aws:sts::123456789012:federated-user/web", None),
            ("arn:aws:iam::123456789012:user/web", None),
            ("arn:aws:iam::123456789012:role/web", None),
            ("arn:aws:iam::123456789012:root", None),
        ];
        for (arn, role) in cases {
            let body = answer(&format!("<Arn>{arn}</Arn><Account>123456789012</Account>"));
            let caller = Caller::parse(&body).expect(arn);
            let expected = role.map(|role| format!("arn:aws:iam::123456789012:{role}"));
            assert_eq!(caller.role(), expected.as_deref(), "{arn}");
            assert_eq!((caller.account(), caller.arn()), ("123456789012", arn));
        }
    }

    #[test]
    fn anything_but_one_whole_answer_is_refused() {
        let good = "<Arn>arn:aws:sts::123456789012:assumed-role/web/s</Arn>\
                    <Account>123456789012</Account>";
        assert!(Caller::parse(&answer(good)).is_ok());
        let twice = answer(&format!("{good}{good}"));
        let cases = [
            // body, why
            (String::new(), "nothing"),
            ("{\"Account\":\"123456789012\"}".to_owned(), "JSON"),
            (answer("<Account>123456789012</Account>"), "no ARN"),
            (twice, "two of each"),
            (answer(&good.replace("<Account>", "<Account>9")), "thirteen digits"),
            (answer(&good.replace("::123456789012", "::999999999999")), "another account's ARN"),
            (answer(&good.replace("web/s", "web/<b/>s")), "an element inside the text"),
            (answer(&good.replace("web/s", "web/<!-- -->s")), "a comment inside the text"),
            (answer(&good.replace("web/s", "web/&#10;s")), "a line break in the ARN"),
            (answer(&good.replace("arn:aws:", "arn:evil:")), "no partition"),
            (answer(good).replace(NAMESPACE, "https://evil.example/"), "another namespace"),
            (answer(good).replace("GetCallerIdentityResponse", "Other"), "another answer"),
            (format!("<!DOCTYPE a>{}", answer(good)), "a document type"),
            (format!("{}{}", answer(good), answer(good)), "two documents"),
            (
                format!("<Wrap xmlns=\"{NAMESPACE}\">{}</Wrap>", answer(good)),
                "the answer inside another",
            ),
            (answer(&format!("<X>{good}</X>")), "the fields one level too deep"),
            (answer(&good.replace("<Arn>", "<Arn xmlns=\"x\">")), "a field of another namespace"),
        ];
        for (body, why) in cases {
            assert!(Caller::parse(&body).is_err(), "{why}: {body}");
        }
    }
}
