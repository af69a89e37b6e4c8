//! Filter expressions: which elements of a reply are wanted, in the grammar of go-bexpr.
//!
//! `Service.Meta.version == "2" and not ("canary" in Service.Tags or Node is empty)`
//!
//! An element is looked at as the JSON that it is written as. A selector that passes a list means
//! any element of it; one that names a key that a map does not have finds nothing, and nothing is
//! empty and unequal to everything.

mod parse;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;

use regex::Regex;
use serde_json::Value;

/// A filter expression, parsed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Filter(Expression);

/// Why a text is no filter, or none for what it is put to.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidFilter {
    /// More octets than an expression may have.
    #[error("Failed to create boolean expression evaluator: longer than {max} bytes")]
    TooLong {
        /// The most that it may have.
        max: usize,
    },
    /// More parentheses and negations inside each other than an expression may have.
    #[error("Failed to create boolean expression evaluator: nested deeper than {max}")]
    TooDeep {
        /// The most that it may have.
        max: usize,
    },
    /// It looks at too much: `any` and `all` inside each other, over long lists.
    #[error("Failed to evaluate the expression: more than {max} steps; ask for less")]
    TooMuch {
        /// The most that it may take.
        max: u32,
    },
    /// It cannot be read.
    #[error("Failed to create boolean expression evaluator: {expected} expected {at}")]
    Syntax {
        /// What should stand there.
        expected: &'static str,
        /// Where, in words.
        at: Place,
    },
    /// What `matches` is given is no regular expression, or one that takes too much memory.
    #[error("Failed to create boolean expression evaluator: {0:?} is no regular expression")]
    Pattern(String),
    /// No element has such a field.
    #[error("Selector {0:?} is not valid")]
    Selector(String),
    /// The field cannot be compared like that.
    #[error("Invalid match operator {operator:?} for selector {selector:?}: it is {is}")]
    Operator {
        /// What was to be done.
        operator: &'static str,
        /// With which field.
        selector: String,
        /// What stands there.
        is: &'static str,
    },
}

/// Where in an expression.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Place {
    /// In the place of this.
    Before(String),
    /// After all of it.
    End,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Before(token) => write!(f, "before {token:?}"),
            Self::End => f.write_str("at the end"),
        }
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Expression {
    All(Vec<Self>),
    Any(Vec<Self>),
    Not(Box<Self>),
    Test { selector: Vec<String>, is_not: bool, test: Test },
    Each { is_all: bool, selector: Vec<String>, bound: Bound, body: Box<Self> },
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Test {
    Equals(String),
    /// `value in selector`, and `selector contains value`.
    Holds(String),
    IsEmpty,
    Matches(Pattern),
}

/// What an `any` or `all` calls the elements that it looks at.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Bound {
    /// The position or key.
    key: Option<String>,
    /// The element.
    value: Option<String>,
    /// One name was given: it is the element of a list, and the key of a map.
    is_single: bool,
}

/// A regular expression, equal to another that is written the same.
#[derive(Clone, Debug)]
struct Pattern(Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

impl Filter {
    /// Parses an expression of at most 4 KiB.
    ///
    /// # Errors
    /// [`InvalidFilter`], with the place where it goes wrong.
    pub fn parse(text: &str) -> Result<Self, InvalidFilter> {
        parse::expression(text).map(Self)
    }

    /// Keeps the elements of `list` that match.
    ///
    /// # Errors
    /// [`InvalidFilter::Selector`] when no element has the field that a selector begins with,
    /// [`InvalidFilter::Operator`] when one cannot be compared as it is, and
    /// [`InvalidFilter::TooMuch`] when it takes more steps than a list of that length is worth.
    pub fn retain(&self, list: &mut Vec<Value>) -> Result<(), InvalidFilter> {
        self.check_roots(list)?;
        let elements = u32::try_from(list.len()).unwrap_or(u32::MAX);
        let budget = Budget::of(LIST_STEPS.max(elements.saturating_mul(ELEMENT_STEPS)));
        let matching: Result<Vec<bool>, _> =
            list.iter().map(|item| self.0.matches(&Scope::of(item, &budget))).collect();
        let mut matching = matching?.into_iter();
        list.retain(|_| matching.next().unwrap_or_default());
        Ok(())
    }

    /// Whether the fields that selectors begin with are there at all, in one of `list` at least.
    ///
    /// # Errors
    /// [`InvalidFilter::Selector`]
    fn check_roots(&self, list: &[Value]) -> Result<(), InvalidFilter> {
        let has = |root: &str| list.iter().any(|item| item.get(root).is_some());
        let mut roots = Vec::new();
        self.0.roots(&mut Vec::new(), &mut roots);
        match roots.into_iter().find(|root| !OPTIONAL.contains(root) && !has(root)) {
            Some(root) if !list.is_empty() => Err(InvalidFilter::Selector(root.to_owned())),
            _ => Ok(()),
        }
    }

    /// Whether one element matches.
    ///
    /// # Errors
    /// [`InvalidFilter::Operator`] when a field cannot be compared as it is, and
    /// [`InvalidFilter::TooMuch`] when it takes more than 4,096 steps.
    pub fn matches(&self, item: &Value) -> Result<bool, InvalidFilter> {
        self.0.matches(&Scope::of(item, &Budget::of(ONE_STEPS)))
    }
}

/// How many steps an evaluation may still take. Without a bound, what `any` and `all` inside each
/// other look at grows with the power of their depth.
struct Budget {
    left: Cell<u32>,
    max: u32,
}

impl Budget {
    fn of(max: u32) -> Self {
        Self { left: Cell::new(max), max }
    }

    fn spend(&self) -> Result<(), InvalidFilter> {
        let left = self.left.get().checked_sub(1);
        self.left.set(left.ok_or(InvalidFilter::TooMuch { max: self.max })?);
        Ok(())
    }
}

/// The element, and what `any` and `all` around a test call parts of it.
#[derive(Clone)]
struct Scope<'a> {
    item: &'a Value,
    names: BTreeMap<&'a str, Named<'a>>,
    budget: &'a Budget,
}

impl<'a> Scope<'a> {
    fn of(item: &'a Value, budget: &'a Budget) -> Self {
        Self { item, names: BTreeMap::new(), budget }
    }
}

#[derive(Clone)]
enum Named<'a> {
    Element(&'a Value),
    Key(String),
}

impl Expression {
    fn matches(&self, scope: &Scope<'_>) -> Result<bool, InvalidFilter> {
        scope.budget.spend()?;
        match self {
            Self::All(parts) => {
                for part in parts {
                    if !part.matches(scope)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Self::Any(parts) => {
                for part in parts {
                    if part.matches(scope)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Self::Not(part) => part.matches(scope).map(|matches| !matches),
            Self::Test { selector, is_not, test } => {
                let key;
                let (root, path): (Option<&Value>, _) = match selector.split_first() {
                    Some((first, rest)) => match scope.names.get(first.as_str()) {
                        Some(Named::Element(element)) => (Some(*element), rest),
                        Some(Named::Key(text)) => {
                            key = Value::String(text.clone());
                            (Some(&key), rest)
                        }
                        None => (Some(scope.item), &selector[..]),
                    },
                    None => (None, &[][..]),
                };
                Tested { selector, is_not: *is_not, test }.at(root, path)
            }
            Self::Each { is_all, selector, bound, body } => {
                each(scope, *is_all, selector, bound, body)
            }
        }
    }

    /// The fields of an element that selectors begin with, but for names that are bound around.
    fn roots<'a>(&'a self, bound_names: &mut Vec<&'a str>, roots: &mut Vec<&'a str>) {
        let first = |selector: &'a [String], names: &[&str]| {
            let first = selector.first().map(String::as_str);
            first.filter(|first| !names.contains(first))
        };
        match self {
            Self::All(parts) | Self::Any(parts) => {
                parts.iter().for_each(|part| part.roots(bound_names, roots));
            }
            Self::Not(part) => part.roots(bound_names, roots),
            Self::Test { selector, .. } => roots.extend(first(selector, bound_names)),
            Self::Each { selector, bound, body, .. } => {
                roots.extend(first(selector, bound_names));
                let held = bound_names.len();
                bound_names.extend(bound.key.as_deref());
                bound_names.extend(bound.value.as_deref());
                body.roots(bound_names, roots);
                bound_names.truncate(held);
            }
        }
    }
}

/// `any` and `all` over a list or a map; of what is neither, or nothing, there are no elements.
fn each(
    scope: &Scope<'_>,
    is_all: bool,
    selector: &[String],
    bound: &Bound,
    body: &Expression,
) -> Result<bool, InvalidFilter> {
    let mut found = scope.item;
    let mut path = selector;
    if let Some((first, rest)) = selector.split_first()
        && let Some(Named::Element(element)) = scope.names.get(first.as_str())
    {
        (found, path) = (*element, rest);
    }
    for step in path {
        match found.get(step) {
            Some(next) => found = next,
            None => return Ok(is_all),
        }
    }
    let elements: Vec<(String, &Value, bool)> = match found {
        Value::Array(list) => {
            list.iter().enumerate().map(|(at, value)| (at.to_string(), value, false)).collect()
        }
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), value, true)).collect(),
        _ => Vec::new(),
    };
    for (key, value, is_map) in elements {
        let mut inner = scope.clone();
        if let Some(name) = &bound.key {
            let named = match bound.is_single && !is_map {
                true => Named::Element(value),
                false => Named::Key(key),
            };
            inner.names.insert(name, named);
        }
        if let Some(name) = &bound.value {
            inner.names.insert(name, Named::Element(value));
        }
        if body.matches(&inner)? != is_all {
            return Ok(!is_all);
        }
    }
    Ok(is_all)
}

/// One test on its way along its selector.
struct Tested<'t> {
    selector: &'t [String],
    is_not: bool,
    test: &'t Test,
}

impl Tested<'_> {
    fn at(&self, value: Option<&Value>, path: &[String]) -> Result<bool, InvalidFilter> {
        match (path, value) {
            (_, None) | ([_, ..], Some(Value::Null)) => Ok(self.of_nothing()),
            ([], Some(value)) => Ok(self.holds(value)? != self.is_not),
            // A position in the list, or else any of its elements.
            ([step, rest @ ..], Some(Value::Array(items))) => {
                if let Ok(at) = step.parse::<usize>() {
                    return self.at(items.get(at), rest);
                }
                for item in items {
                    if self.at(Some(item), path)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            ([step, rest @ ..], Some(value)) => self.at(value.get(step), rest),
        }
    }

    /// What is not there is empty, and equals nothing.
    fn of_nothing(&self) -> bool {
        matches!(self.test, Test::IsEmpty) != self.is_not
    }

    fn holds(&self, value: &Value) -> Result<bool, InvalidFilter> {
        let wrong = |operator, is| {
            Err(InvalidFilter::Operator { operator, selector: self.selector.join("."), is })
        };
        match (self.test, value) {
            (Test::Equals(_), Value::Array(_)) => wrong("==", "a list"),
            (Test::Equals(_), Value::Object(_)) => wrong("==", "a map"),
            (Test::Equals(wanted), value) => Ok(equals(value, wanted)),
            (Test::Holds(wanted), Value::Array(items)) => {
                Ok(items.iter().any(|item| equals(item, wanted)))
            }
            (Test::Holds(wanted), Value::Object(object)) => Ok(object.contains_key(wanted)),
            (Test::Holds(wanted), Value::String(text)) => Ok(text.contains(wanted.as_str())),
            (Test::Holds(_), Value::Null) => Ok(false),
            (Test::Holds(_), Value::Bool(_)) => wrong("contains", "true or false"),
            (Test::Holds(_), Value::Number(_)) => wrong("contains", "a number"),
            (Test::IsEmpty, value) => match value {
                Value::Null => Ok(true),
                Value::String(text) => Ok(text.is_empty()),
                Value::Array(items) => Ok(items.is_empty()),
                Value::Object(object) => Ok(object.is_empty()),
                Value::Bool(_) => wrong("is empty", "true or false"),
                Value::Number(_) => wrong("is empty", "a number"),
            },
            (Test::Matches(pattern), Value::String(text)) => Ok(pattern.0.is_match(text)),
            (Test::Matches(_), Value::Null) => Ok(false),
            (Test::Matches(_), _) => wrong("matches", "no text"),
        }
    }
}

fn equals(value: &Value, wanted: &str) -> bool {
    match value {
        Value::String(text) => text == wanted,
        Value::Bool(flag) => match wanted {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => *flag,
            "0" | "f" | "F" | "false" | "FALSE" | "False" => !*flag,
            _ => false,
        },
        Value::Number(number) => {
            let as_whole = number.as_i64().zip(wanted.parse::<i64>().ok());
            as_whole.map_or_else(
                || wanted.parse::<f64>().is_ok_and(|wanted| number.as_f64() == Some(wanted)),
                |(number, wanted)| number == wanted,
            )
        }
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

/// Fields that are left out of a reply where they say nothing.
const OPTIONAL: [&str; 19] = [
    "Action",
    "Connect",
    "Description",
    "Kind",
    "Locality",
    "Meta",
    "Namespace",
    "Partition",
    "PeerName",
    "Permissions",
    "Port",
    "Protocol",
    "Proxy",
    "ServiceLocality",
    "ServiceTaggedAddresses",
    "SocketPath",
    "SourcePeer",
    "TaggedAddresses",
    "Weights",
];

/// The most steps for one element by itself.
const ONE_STEPS: u32 = 4_096;
/// The most steps for a list, or more where it is long.
const LIST_STEPS: u32 = 1_000_000;
const ELEMENT_STEPS: u32 = 500;

#[cfg(test)]
mod tests;
