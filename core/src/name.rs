//! Names, parsed once and then trusted: holding one is the proof that it is well formed.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not a name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidName {
    /// Nothing was given.
    #[error("it is empty")]
    Empty,
    /// More octets than the name may have.
    #[error("it is longer than {max} octets")]
    TooLong {
        /// The greatest length allowed, in octets.
        max: usize,
    },
    /// A hyphen stands first or last.
    #[error("it begins or ends with a hyphen")]
    HyphenAtEdge,
    /// An octet that this kind of name may not have.
    #[error("it has a character that is not allowed: use {allowed}")]
    Forbidden {
        /// What is allowed, in words.
        allowed: &'static str,
    },
    /// `.` or `..`, which would be path steps in a SPIFFE ID.
    #[error("it is a dot segment")]
    DotSegment,
}

/// Declares a name: a shared string that only its parser can make.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $parse:path) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name's text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                $parse(text).map(|()| Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(|why| {
                    serde::de::Error::custom(format_args!(
                        "{text:?} is no {}: {why}",
                        stringify!($name)
                    ))
                })
            }
        }
    };
}

name! {
    /// A service's name in the catalog: any printable text but `*`, which means all.
    ///
    /// The catalog keeps what registrars write. Only names for which [`ServiceName::is_label`]
    /// holds are asked for in DNS and carried in SPIFFE IDs and server names.
    ServiceName, service
}
name! {
    /// A datacenter's name: one lower-case DNS label.
    Datacenter, label
}
name! {
    /// What a cluster calls a cluster that it is peered with: one lower-case DNS label.
    PeerName, label
}
name! {
    /// What a service calls one of its ports: one lower-case DNS label.
    PortName, label
}
name! {
    /// A host's name in the catalog: any printable text, such as an ARN.
    ///
    /// Hosts with an agent have names for which [`NodeName::is_segment`] holds.
    NodeName, visible
}
name! {
    /// An instance's id, unique on its node: any printable text.
    InstanceId, printable
}
name! {
    /// A check's id, unique on its node: any printable text.
    CheckId, printable
}
name! {
    /// A key of the key-value store: any printable text, folders told apart by slashes.
    Key, printable
}
name! {
    /// A user event's name: any printable text.
    EventName, printable
}
name! {
    /// A session's id: any printable text; ours are UUIDs.
    SessionId, printable
}

impl ServiceName {
    /// The name that `text` spells, if what is called so may be in the mesh.
    ///
    /// # Errors
    /// [`InvalidName`] for what is no lower-case DNS label.
    pub fn in_mesh(text: &str) -> Result<Self, InvalidName> {
        label(text).map(|()| Self(text.into()))
    }

    /// Whether it is one lower-case DNS label: then it has a name in DNS, and may be in the mesh.
    pub fn is_label(&self) -> bool {
        label(&self.0).is_ok()
    }
}

impl NodeName {
    /// The name that `text` spells, if an agent may have it.
    ///
    /// # Errors
    /// [`InvalidName`] for what can be no segment of a SPIFFE path.
    pub fn of_agent(text: &str) -> Result<Self, InvalidName> {
        segment(text).map(|()| Self(text.into()))
    }

    /// Whether it can be one segment of a SPIFFE path: then an agent may have it.
    pub fn is_segment(&self) -> bool {
        segment(&self.0).is_ok()
    }
}

fn service(text: &str) -> Result<(), InvalidName> {
    match text {
        "*" => Err(InvalidName::Forbidden { allowed: "something other than *, which means all" }),
        text => visible(text),
    }
}

/// Printable, and without characters that make a line read as another.
fn visible(text: &str) -> Result<(), InvalidName> {
    let misleads = |c: char| {
        matches!(c, '\u{ad}' | '\u{61c}' | '\u{feff}')
            || ('\u{200b}'..='\u{200f}').contains(&c)
            || ('\u{2028}'..='\u{202e}').contains(&c)
            || ('\u{2060}'..='\u{206f}').contains(&c)
    };
    match text {
        // No URL can say these.
        "." | ".." => Err(InvalidName::DotSegment),
        _ if text.chars().any(misleads) => {
            Err(InvalidName::Forbidden { allowed: "characters that can be seen" })
        }
        _ => printable(text),
    }
}

fn label(text: &str) -> Result<(), InvalidName> {
    let allowed = |octet: &u8| matches!(octet, b'a'..=b'z' | b'0'..=b'9' | b'-');
    match text.as_bytes() {
        [] => Err(InvalidName::Empty),
        octets if octets.len() > LABEL_OCTETS_MAX => {
            Err(InvalidName::TooLong { max: LABEL_OCTETS_MAX })
        }
        [b'-', ..] | [.., b'-'] => Err(InvalidName::HyphenAtEdge),
        octets if !octets.iter().all(allowed) => {
            Err(InvalidName::Forbidden { allowed: "a-z, 0-9 and -" })
        }
        _ => Ok(()),
    }
}

fn segment(text: &str) -> Result<(), InvalidName> {
    let allowed = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_' | b'.');
    match text {
        "" => Err(InvalidName::Empty),
        "." | ".." => Err(InvalidName::DotSegment),
        _ if text.len() > SEGMENT_OCTETS_MAX => {
            Err(InvalidName::TooLong { max: SEGMENT_OCTETS_MAX })
        }
        _ if !text.bytes().all(allowed) => {
            Err(InvalidName::Forbidden { allowed: "letters, digits, -, _ and ." })
        }
        _ => Ok(()),
    }
}

fn printable(text: &str) -> Result<(), InvalidName> {
    if text.is_empty() {
        return Err(InvalidName::Empty);
    }
    if text.len() > PRINTABLE_OCTETS_MAX {
        return Err(InvalidName::TooLong { max: PRINTABLE_OCTETS_MAX });
    }
    if text.chars().any(char::is_control) {
        return Err(InvalidName::Forbidden { allowed: "printable characters" });
    }
    Ok(())
}

const LABEL_OCTETS_MAX: usize = 63;
const SEGMENT_OCTETS_MAX: usize = 253;
const PRINTABLE_OCTETS_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lower_case_label_may_be_in_the_mesh() {
        let long = "a".repeat(64);
        let forbidden = Err(InvalidName::Forbidden { allowed: "a-z, 0-9 and -" });
        let cases = [
            ("web", Ok(())),
            ("web-2", Ok(())),
            ("", Err(InvalidName::Empty)),
            ("-web", Err(InvalidName::HyphenAtEdge)),
            ("web-", Err(InvalidName::HyphenAtEdge)),
            ("Web", forbidden),
            ("web.db", forbidden),
            ("web\0", forbidden),
            ("wéb", forbidden),
            (long.as_str(), Err(InvalidName::TooLong { max: 63 })),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Datacenter>().map(drop), expected, "{text:?}");
            let is_label = text.parse::<ServiceName>().is_ok_and(|name| name.is_label());
            assert_eq!(is_label, expected.is_ok(), "{text:?}");
        }
    }

    #[test]
    fn the_catalog_keeps_what_registrars_write() {
        for text in ["Web", "app#127.0.0.1#3000", "my service", "a/b", "_x._y", "wéb"] {
            assert!(text.parse::<ServiceName>().is_ok(), "{text:?}");
        }
        for text in ["arn:aws:ecs:eu-west-1:123456789012:task/c/0123", "Web_1", "a b"] {
            assert!(text.parse::<NodeName>().is_ok(), "{text:?}");
        }
        for text in [
            "",
            "*",
            ".",
            "..",
            "a\nb",
            "a\0",
            "a\u{9b}31m",
            "a\u{202e}b",
            "a\u{200b}",
            "a\u{2028}",
        ] {
            assert!(text.parse::<ServiceName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn only_one_path_segment_is_a_name_for_an_agent() {
        for (text, good) in [
            ("ip-10-0-0-1.ec2.internal", true),
            ("Web_1", true),
            (".", false),
            ("..", false),
            ("a/b", false),
            ("a b", false),
            ("", false),
        ] {
            let is_segment = text.parse::<NodeName>().is_ok_and(|name| name.is_segment());
            assert_eq!(is_segment, good, "{text:?}");
        }
    }

    #[test]
    fn a_bad_name_in_json_says_which_and_why() {
        let refused = serde_json::from_str::<Datacenter>("\"Dc1\"").expect_err("upper case");
        assert!(refused.to_string().contains("\"Dc1\" is no Datacenter"), "{refused}");
    }
}
