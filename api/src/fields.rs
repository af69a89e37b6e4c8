//! Reading JSON as Consul's clients write it: keys in any case, nothing unknown, nothing twice.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hawser_core::catalog::Meta;
use hawser_core::duration;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// What is wrong with which field.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct InvalidField {
    /// The field's path as it was written, such as `Checks[1].Interval`.
    pub field: String,
    /// What is wrong, and what would be right.
    pub why: String,
}

impl InvalidField {
    /// Says `why` about the field at `path`.
    pub fn new(path: impl Into<String>, why: impl fmt::Display) -> Self {
        Self { field: path.into(), why: why.to_string() }
    }
}

/// Why bytes are no JSON that may be read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InvalidJson(#[from] serde_json::Error);

/// Parses one JSON value, at most 64 levels deep, no key twice in one object.
///
/// # Errors
/// [`InvalidJson`], with line, column, and the key where one is to blame.
pub fn parse(bytes: &[u8]) -> Result<Value, InvalidJson> {
    let mut from = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { levels_left: DEPTH_MAX }.deserialize(&mut from)?;
    from.end()?;
    Ok(value)
}

/// One JSON object whose fields are taken by name; what is left over at the end is an error.
///
/// Names are matched without regard to case and underscores, as Go's decoder and Consul's
/// snake_case aliases together do: `DeregisterCriticalServiceAfter`,
/// `deregister_critical_service_after` and `deregistercriticalserviceafter` are one field.
#[derive(Debug)]
pub struct Fields<'a> {
    path: String,
    left: BTreeMap<String, (&'a str, &'a Value)>,
}

/// A field's value and the path at which it stands.
#[derive(Clone, Debug)]
pub struct Field<'a> {
    /// The path as it was written.
    pub path: String,
    /// The value, never null.
    pub value: &'a Value,
}

impl<'a> Fields<'a> {
    /// Opens the object `value`, found at `path` (empty for the outermost).
    ///
    /// A list of one object is taken for the object, because that is how a block of HCL may come
    /// out of its parser.
    ///
    /// # Errors
    /// It is no object, or two of its keys mean the same field.
    pub fn open(value: &'a Value, path: &str) -> Result<Self, InvalidField> {
        let object = match value {
            Value::Object(object) => object,
            Value::Array(list) => match list.as_slice() {
                [Value::Object(object)] => object,
                _ => return Err(InvalidField::new(named(path), "must be one object")),
            },
            _ => return Err(InvalidField::new(named(path), "must be an object")),
        };
        let mut left = BTreeMap::new();
        for (key, value) in object {
            if let Some((other, _)) = left.insert(normal(key), (key.as_str(), value)) {
                let field = join(path, key);
                return Err(InvalidField::new(field, format_args!("is {other:?} again")));
            }
        }
        Ok(Self { path: path.to_owned(), left })
    }

    /// The path of a field of this object, for errors about one that is missing.
    pub fn path_of(&self, name: &str) -> String {
        join(&self.path, name)
    }

    /// Takes the field called any of `names`; null counts as absent.
    ///
    /// # Errors
    /// Two of the names are there at once.
    pub fn take(&mut self, names: &[&str]) -> Result<Option<Field<'a>>, InvalidField> {
        let mut found: Option<Field<'a>> = None;
        for name in names {
            let Some((key, value)) = self.left.remove(&normal(name)) else { continue };
            if value.is_null() {
                continue;
            }
            let path = join(&self.path, key);
            if let Some(first) = found {
                return Err(InvalidField::new(path, format_args!("says {} again", first.path)));
            }
            found = Some(Field { path, value });
        }
        Ok(found)
    }

    /// Takes a text; absent, null and empty are all none.
    ///
    /// # Errors
    /// It is no text.
    pub fn text(&mut self, names: &[&str]) -> Result<Option<(String, &'a str)>, InvalidField> {
        let Some(Field { path, value }) = self.take(names)? else { return Ok(None) };
        match value.as_str() {
            Some("") => Ok(None),
            Some(text) => Ok(Some((path, text))),
            None => Err(InvalidField::new(path, "must be a text")),
        }
    }

    /// Takes a text and parses it; absent, null and empty are none.
    ///
    /// # Errors
    /// It is no text, or the parser's error.
    pub fn parsed<T>(&mut self, names: &[&str]) -> Result<Option<T>, InvalidField>
    where
        T: std::str::FromStr,
        T::Err: fmt::Display,
    {
        let Some((path, text)) = self.text(names)? else { return Ok(None) };
        match text.parse() {
            Ok(parsed) => Ok(Some(parsed)),
            Err(why) => Err(InvalidField::new(path, format_args!("{text:?}: {why}"))),
        }
    }

    /// Takes a yes or no; absent is no.
    ///
    /// # Errors
    /// It is neither true nor false.
    pub fn flag(&mut self, names: &[&str]) -> Result<bool, InvalidField> {
        match self.take(names)? {
            None => Ok(false),
            Some(Field { value: Value::Bool(flag), .. }) => Ok(*flag),
            Some(Field { path, .. }) => Err(InvalidField::new(path, "must be true or false")),
        }
    }

    /// Takes a whole number of at most `max`.
    ///
    /// # Errors
    /// It is none, negative, or too great.
    pub fn whole(&mut self, names: &[&str], max: u64) -> Result<Option<u64>, InvalidField> {
        let Some(Field { path, value }) = self.take(names)? else { return Ok(None) };
        match value.as_u64().filter(|number| *number <= max) {
            Some(number) => Ok(Some(number)),
            None => {
                Err(InvalidField::new(path, format_args!("must be a whole number from 0 to {max}")))
            }
        }
    }

    /// Takes a port; absent and zero are none.
    ///
    /// # Errors
    /// It is none.
    pub fn port(&mut self, names: &[&str]) -> Result<Option<u16>, InvalidField> {
        let port = self.whole(names, u16::MAX.into())?;
        // The bound just checked is u16's own.
        Ok(port.map(|port| port as u16).filter(|port| *port > 0))
    }

    /// Takes a duration: text as Go writes it, or nanoseconds; absent, empty and zero are none.
    ///
    /// # Errors
    /// It is no duration.
    pub fn duration(&mut self, names: &[&str]) -> Result<Option<Duration>, InvalidField> {
        let Some(Field { path, value }) = self.take(names)? else { return Ok(None) };
        let span = match value {
            Value::String(text) if text.is_empty() => Duration::ZERO,
            Value::String(text) => {
                duration::parse(text).map_err(|why| InvalidField::new(&path, why))?
            }
            Value::Number(nanos) => nanos.as_u64().map(Duration::from_nanos).ok_or_else(|| {
                InvalidField::new(&path, "must be a duration such as \"10s\", or nanoseconds")
            })?,
            _ => return Err(InvalidField::new(path, "must be a duration such as \"10s\"")),
        };
        Ok(Some(span).filter(|span| !span.is_zero()))
    }

    /// Takes a list of texts; absent is empty.
    ///
    /// # Errors
    /// It is no list, or has something else in it.
    pub fn texts(&mut self, names: &[&str]) -> Result<Vec<String>, InvalidField> {
        let Some(Field { path, value }) = self.take(names)? else { return Ok(Vec::new()) };
        let list = value.as_array().ok_or_else(|| {
            InvalidField::new(&path, "must be a list of texts, such as [\"a\", \"b\"]")
        })?;
        let text = |(at, item): (usize, &Value)| match item.as_str() {
            Some(text) => Ok(text.to_owned()),
            None => Err(InvalidField::new(format!("{path}[{at}]"), "must be a text")),
        };
        list.iter().enumerate().map(text).collect()
    }

    /// Takes an object as fields of its own.
    ///
    /// # Errors
    /// It is no object.
    pub fn object(&mut self, names: &[&str]) -> Result<Option<Fields<'a>>, InvalidField> {
        match self.take(names)? {
            None => Ok(None),
            Some(Field { path, value }) => Fields::open(value, &path).map(Some),
        }
    }

    /// Takes a list, or one value in its place, as values with their paths.
    ///
    /// # Errors
    /// The names are there twice.
    pub fn list(&mut self, names: &[&str]) -> Result<Vec<Field<'a>>, InvalidField> {
        Ok(match self.take(names)? {
            None => Vec::new(),
            Some(Field { path, value: Value::Array(list) }) => list
                .iter()
                .enumerate()
                .map(|(at, value)| Field { path: format!("{path}[{at}]"), value })
                .collect(),
            Some(one) => vec![one],
        })
    }

    /// Takes free pairs within Consul's bounds: 64 pairs, keys of 128 and values of 512 octets,
    /// keys of letters, digits, `-` and `_`, none beginning with the reserved `consul-`.
    ///
    /// # Errors
    /// It is no object of texts, or beyond a bound.
    pub fn meta(&mut self, names: &[&str]) -> Result<Meta, InvalidField> {
        let Some(Field { path, value }) = self.take(names)? else { return Ok(Meta::new()) };
        let object = match value {
            Value::Object(object) => object,
            Value::Array(list) => match list.as_slice() {
                [Value::Object(object)] => object,
                _ => return Err(InvalidField::new(path, "must be one object of texts")),
            },
            _ => return Err(InvalidField::new(path, "must be an object of texts")),
        };
        meta(object, &path)
    }

    /// Drops the field called any of `names`, whatever it holds.
    pub fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.left.remove(&normal(name));
        }
    }

    /// Refuses the fields called `names` with `why`, unless they are absent or say nothing: null,
    /// false, zero, an empty text, list or object.
    ///
    /// # Errors
    /// One of them says something.
    pub fn refuse(&mut self, names: &[&str], why: &str) -> Result<(), InvalidField> {
        for name in names {
            if let Some(Field { path, value }) = self.take(&[name])?
                && !says_nothing(value)
            {
                return Err(InvalidField::new(path, why));
            }
        }
        Ok(())
    }

    /// Refuses a namespace or partition other than `default`.
    ///
    /// # Errors
    /// There is one.
    pub fn default_tenancy(&mut self) -> Result<(), InvalidField> {
        for name in ["Namespace", "Partition"] {
            if let Some((path, text)) = self.text(&[name])?
                && text != "default"
            {
                return Err(InvalidField::new(
                    path,
                    "only \"default\" exists: leave it out, or run a cluster of its own",
                ));
            }
        }
        Ok(())
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// A field was never taken: nobody knows it.
    pub fn finish(self) -> Result<(), InvalidField> {
        match self.left.into_values().next() {
            None => Ok(()),
            Some((key, _)) => Err(InvalidField::new(
                join(&self.path, key),
                format_args!("unknown field {key:?}: check the spelling"),
            )),
        }
    }
}

/// A key as it is compared: lower case, without underscores.
pub fn normal(key: &str) -> String {
    key.chars().filter(|c| *c != '_').flat_map(char::to_lowercase).collect()
}

fn meta(object: &Map<String, Value>, path: &str) -> Result<Meta, InvalidField> {
    if object.len() > META_PAIRS_MAX {
        return Err(InvalidField::new(
            path,
            format_args!("has {} pairs: {META_PAIRS_MAX} is the most", object.len()),
        ));
    }
    let mut pairs = Meta::new();
    for (key, value) in object {
        let refused = |why: &dyn fmt::Display| Err(InvalidField::new(join(path, key), why));
        let allowed = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_');
        if key.is_empty() || key.len() > META_KEY_OCTETS_MAX {
            return refused(&format_args!("a key has 1 to {META_KEY_OCTETS_MAX} octets"));
        }
        if !key.bytes().all(allowed) {
            return refused(&"a key has only letters, digits, - and _");
        }
        if key.starts_with(META_KEY_RESERVED) {
            return refused(&"keys that begin with \"consul-\" are reserved");
        }
        match value.as_str() {
            None => return refused(&"must be a text"),
            Some(text) if text.len() > META_VALUE_OCTETS_MAX => {
                return refused(&format_args!("{META_VALUE_OCTETS_MAX} octets is the most"));
            }
            Some(text) => pairs.insert(key.as_str().into(), text.into()),
        };
    }
    Ok(pairs)
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.iter().all(says_nothing),
        Value::Object(object) => object.values().all(says_nothing),
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn named(path: &str) -> &str {
    if path.is_empty() { "the body" } else { path }
}

/// Builds a [`Value`] and counts its levels.
#[derive(Clone, Copy)]
struct Strict {
    levels_left: u8,
}

impl Strict {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        match self.levels_left.checked_sub(1) {
            Some(levels_left) => Ok(Self { levels_left }),
            None => Err(E::custom(format_args!("more than {DEPTH_MAX} levels deep"))),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Bool(flag))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Value, E> {
        Number::from_f64(number).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let item = self.deeper()?;
        let mut list = Vec::new();
        while let Some(value) = items.next_element_seed(item)? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Value, A::Error> {
        let item = self.deeper()?;
        let mut object = Map::new();
        while let Some(key) = pairs.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(A::Error::custom(format_args!("field {key:?} appears twice")));
            }
            let value = pairs.next_value_seed(item)?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

/// Far deeper than any definition, far shallower than what overflows a stack.
const DEPTH_MAX: u8 = 64;
const META_PAIRS_MAX: usize = 64;
const META_KEY_OCTETS_MAX: usize = 128;
const META_VALUE_OCTETS_MAX: usize = 512;
const META_KEY_RESERVED: &str = "consul-";

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_that_could_hurt_or_mislead_is_refused() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let cases = [
            (r#"{"a":1,"a":2}"#.to_owned(), Some("\"a\" appears twice")),
            (r#"{"a":{"b":1,"b":2}}"#.to_owned(), Some("\"b\" appears twice")),
            (deep(64), None),
            (deep(65), Some("more than 64 levels")),
            (deep(100_000), Some("more than 64 levels")),
            ("{\"a\":1} x".to_owned(), Some("trailing")),
            ("{\"a\":NaN}".to_owned(), Some("expected")),
            ("{\"a\":1e999}".to_owned(), Some("out of range")),
            ("{\"a\":\"\\ud800\"}".to_owned(), Some("hex escape")),
            (String::new(), Some("EOF")),
        ];
        for (text, expected) in cases {
            let shown = text.chars().take(40).collect::<String>();
            match (parse(text.as_bytes()), expected) {
                (Ok(_), None) => {}
                (Err(refused), Some(word)) => {
                    let said = refused.to_string();
                    assert!(said.contains(word), "{shown}: {said:?} has no {word:?}");
                }
                (parsed, _) => panic!("{shown}: {parsed:?}"),
            }
        }
    }

    #[test]
    fn a_field_has_one_name_in_every_spelling() {
        for key in ["ServiceID", "service_id", "serviceid", "SERVICE_ID"] {
            let value = json!({ key: "x" });
            let mut fields = Fields::open(&value, "").expect("an object");
            let (path, text) = fields.text(&["ServiceID"]).expect("a text").expect("there");
            assert_eq!((path.as_str(), text), (key, "x"));
            fields.finish().expect("nothing is left");
        }
        let twice = json!({ "ServiceID": "x", "service_id": "y" });
        let refused = Fields::open(&twice, "Check").expect_err("twice");
        assert!(refused.to_string().starts_with("Check."), "{refused}");
    }

    #[test]
    fn what_is_left_over_is_named_with_its_path() {
        let value = json!({ "Intervall": "10s" });
        let fields = Fields::open(&value, "Checks[1]").expect("an object");
        let refused = fields.finish().expect_err("a typing error");
        assert_eq!(refused.field, "Checks[1].Intervall");
        assert!(refused.why.contains("unknown field \"Intervall\""), "{refused}");
    }
}
