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
    /// A service's name in the catalog: one lower-case DNS label.
    ///
    /// Holding one is the proof that it can be asked for in DNS and carried in a SPIFFE ID,
    /// so nothing downstream checks again.
    ServiceName, label
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
    /// A host's name in the catalog: what one segment of a SPIFFE path may hold.
    NodeName, segment
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
    fn a_service_name_is_one_lower_case_label() {
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
            assert_eq!(text.parse::<ServiceName>().map(drop), expected, "{text:?}");
        }
    }

    #[test]
    fn a_node_name_is_one_path_segment() {
        for (text, good) in [
            ("ip-10-0-0-1.ec2.internal", true),
            ("Web_1", true),
            (".", false),
            ("..", false),
            ("a/b", false),
            ("a b", false),
            ("", false),
        ] {
            assert_eq!(text.parse::<NodeName>().is_ok(), good, "{text:?}");
        }
    }

    #[test]
    fn a_bad_name_in_json_says_which_and_why() {
        let refused = serde_json::from_str::<ServiceName>("\"Web\"").expect_err("upper case");
        assert!(refused.to_string().contains("\"Web\" is no ServiceName"), "{refused}");
    }
}
