//! Config entries: a key, and a body in Consul's JSON.

use hawser_core::entry::{Body, Entry, EntryKey};

use crate::field::{Invalid, parsed, present, required};
use crate::v1;

impl From<&EntryKey> for v1::EntryKey {
    fn from(key: &EntryKey) -> Self {
        Self { kind: key.kind.to_string(), name: key.name.to_string() }
    }
}

impl TryFrom<v1::EntryKey> for EntryKey {
    type Error = Invalid;

    fn try_from(key: v1::EntryKey) -> Result<Self, Invalid> {
        Ok(Self { kind: parsed("entry_key.kind", &key.kind)?, name: key.name.into() })
    }
}

impl From<&Entry> for v1::Entry {
    fn from(entry: &Entry) -> Self {
        let body_json = serde_json::to_string(entry.body());
        let body_json = body_json.expect("bodies are structs of texts, numbers and text maps");
        Self { key: Some(entry.key().into()), body_json }
    }
}

impl TryFrom<v1::Entry> for Entry {
    type Error = Invalid;

    /// What the fields say is not judged again: see [`Entry::stored`].
    fn try_from(entry: v1::Entry) -> Result<Self, Invalid> {
        let key: EntryKey = required("entry.key", entry.key)?;
        let json = present(
            "entry.body_json",
            (!entry.body_json.is_empty()).then_some(entry.body_json.as_str()),
        )?;
        let mut json = serde_json::Deserializer::from_str(json);
        let body = Body::read(key.kind, &mut json).and_then(|body| json.end().map(|()| body));
        let body = body.map_err(|why| Invalid::new("entry.body_json", why))?;
        Self::stored(&key.name, body).map_err(|why| Invalid::new("entry.body_json", why))
    }
}
