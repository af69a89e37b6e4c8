//! What is changed in the fields of a request or an answer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::fault::Fault;

/// Changes of the fields of a request or an answer: removed first, then set, then added.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct HeaderEdits {
    /// Beside what is there under the same name.
    #[serde(alias = "add", skip_serializing_if = "BTreeMap::is_empty")]
    pub add: BTreeMap<String, String>,
    /// In place of what is there under the same name.
    #[serde(alias = "set", skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, String>,
    /// Names to take away.
    #[serde(alias = "remove", skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
}

impl HeaderEdits {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.set.is_empty() && self.remove.is_empty()
    }

    /// These edits, and those of `inner` where they say otherwise about the same name.
    #[must_use]
    pub(crate) fn overlaid(&self, inner: &Self) -> Self {
        let mut both = self.clone();
        both.add.extend(inner.add.clone());
        both.set.extend(inner.set.clone());
        both.remove.extend(inner.remove.iter().filter(|it| !self.remove.contains(it)).cloned());
        both
    }

    pub(super) fn check(&self, at: &str) -> Result<(), Fault> {
        let pairs = [("Add", &self.add), ("Set", &self.set)];
        let names =
            pairs.iter().flat_map(|(field, map)| map.keys().map(move |name| (*field, name)));
        let mut count = 0;
        for (field, name) in names.chain(self.remove.iter().map(|name| ("Remove", name))) {
            count += 1;
            check_name(&format!("{at}.{field}"), name)?;
        }
        if count > EDITS_MAX {
            return Err(Fault::new(at, format!("{EDITS_MAX} fields are the most")));
        }
        for (field, map) in pairs {
            for (name, value) in map {
                let is_text = |octet: u8| octet == b'\t' || (octet >= b' ' && octet != 0x7f);
                if value.len() > VALUE_OCTETS_MAX || !value.bytes().all(is_text) {
                    let why = "use at most 4096 octets without control characters";
                    return Err(Fault::new(format!("{at}.{field}[{name:?}]"), why));
                }
            }
        }
        Ok(())
    }
}

/// A field's name must be a token, and none that only proxies may write.
pub(super) fn check_name(at: &str, name: &str) -> Result<(), Fault> {
    let is_token = |octet: u8| octet.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&octet);
    if name.is_empty() || name.len() > NAME_OCTETS_MAX || !name.bytes().all(is_token) {
        return Err(Fault::new(at, format!("{name:?} is no header's name")));
    }
    let lower = name.to_ascii_lowercase();
    if RESERVED.contains(&lower.as_str()) || lower.starts_with("x-hawser-") {
        let why = format!("{name:?} is written by the proxies themselves: leave it to them");
        return Err(Fault::new(at, why));
    }
    Ok(())
}

/// What says where a message ends, to whom it goes and who sends it.
const RESERVED: [&str; 10] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-client-cert",
];
const EDITS_MAX: usize = 64;
const NAME_OCTETS_MAX: usize = 128;
const VALUE_OCTETS_MAX: usize = 4096;
