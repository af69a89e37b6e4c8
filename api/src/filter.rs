//! Consul's filter expressions: which elements of a reply are wanted.
//!
//! `Service.Meta.version == "2" and not ("canary" in Service.Tags or Node is empty)`

use std::fmt;

use serde_json::Value;

/// A filter expression, parsed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Filter(Expression);

/// Why a text is no filter, or none for what it is put to.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidFilter {
    /// More octets than an expression may have.
    #[error("Failed to create boolean expression evaluator: longer than {FILTER_OCTETS_MAX} bytes")]
    TooLong,
    /// More parentheses and negations inside each other than an expression may have.
    #[error("Failed to create boolean expression evaluator: nested deeper than {DEPTH_MAX}")]
    TooDeep,
    /// It cannot be read.
    #[error("Failed to create boolean expression evaluator: {expected} expected {at}")]
    Syntax {
        /// What should stand there.
        expected: &'static str,
        /// Where, in words.
        at: Place,
    },
    /// Regular expressions are not evaluated.
    #[error(
        "Failed to create boolean expression evaluator: `matches` is not supported: use == or \
             contains"
    )]
    Matches,
    /// No element has such a field.
    #[error("Selector {0:?} is not valid")]
    Selector(String),
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
    Test { selector: Vec<String>, test: Test },
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Test {
    Equals(String),
    Holds(String),
    IsEmpty,
}

impl Filter {
    /// Parses an expression of at most 4 KiB.
    ///
    /// # Errors
    /// [`InvalidFilter`], with the place where it goes wrong.
    pub fn parse(text: &str) -> Result<Self, InvalidFilter> {
        if text.len() > FILTER_OCTETS_MAX {
            return Err(InvalidFilter::TooLong);
        }
        let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0 };
        let expression = parser.any()?;
        match parser.next() {
            None => Ok(Self(expression)),
            Some(token) => Err(before("and, or, or the end", Some(token))),
        }
    }

    /// Keeps the elements of `list` that match.
    ///
    /// # Errors
    /// [`InvalidFilter::Selector`] when no element has the field that a selector begins with.
    pub fn retain(&self, list: &mut Vec<Value>) -> Result<(), InvalidFilter> {
        let has = |root: &str| list.iter().any(|item| item.get(root).is_some());
        let mut roots = Vec::new();
        self.0.roots(&mut roots);
        let unknown = roots.into_iter().find(|root| !OPTIONAL.contains(root) && !has(root));
        if let Some(root) = unknown
            && !list.is_empty()
        {
            return Err(InvalidFilter::Selector(root.to_owned()));
        }
        list.retain(|item| self.matches(item));
        Ok(())
    }

    /// Whether one element matches.
    pub fn matches(&self, item: &Value) -> bool {
        self.0.matches(item)
    }
}

impl Expression {
    fn matches(&self, item: &Value) -> bool {
        match self {
            Self::All(parts) => parts.iter().all(|part| part.matches(item)),
            Self::Any(parts) => parts.iter().any(|part| part.matches(item)),
            Self::Not(part) => !part.matches(item),
            Self::Test { selector, test } => {
                let mut found = Vec::new();
                select(item, selector, &mut found);
                match test {
                    Test::Equals(wanted) => found.iter().any(|value| equals(value, wanted)),
                    Test::Holds(wanted) => found.iter().any(|value| holds(value, wanted)),
                    Test::IsEmpty => found.iter().all(|value| is_empty(value)),
                }
            }
        }
    }

    fn roots<'a>(&'a self, roots: &mut Vec<&'a str>) {
        match self {
            Self::All(parts) | Self::Any(parts) => {
                parts.iter().for_each(|part| part.roots(roots));
            }
            Self::Not(part) => part.roots(roots),
            Self::Test { selector, .. } => roots.extend(selector.first().map(String::as_str)),
        }
    }
}

/// Follows a selector; a list on the way stands for each of its elements.
fn select<'a>(value: &'a Value, selector: &[String], found: &mut Vec<&'a Value>) {
    match (selector, value) {
        ([], value) => found.push(value),
        (selector, Value::Array(items)) => {
            items.iter().for_each(|item| select(item, selector, found));
        }
        ([first, rest @ ..], value) => {
            if let Some(value) = value.get(first) {
                select(value, rest, found);
            }
        }
    }
}

fn equals(value: &Value, wanted: &str) -> bool {
    match value {
        Value::String(text) => text == wanted,
        Value::Bool(flag) => wanted.parse() == Ok(*flag),
        Value::Number(number) => {
            wanted.parse::<f64>().is_ok_and(|wanted| number.as_f64() == Some(wanted))
        }
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

fn holds(value: &Value, wanted: &str) -> bool {
    match value {
        Value::Array(items) => items.iter().any(|item| equals(item, wanted)),
        Value::Object(object) => object.contains_key(wanted),
        Value::String(text) => text.contains(wanted),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Token {
    Open,
    Close,
    Equal,
    Unequal,
    /// A quoted value.
    Quoted(String),
    /// A selector, a keyword, or a value without quotes: its parts, and its text.
    Word(Vec<String>, String),
}

impl Token {
    fn is(&self, keyword: &str) -> bool {
        matches!(self, Self::Word(_, text) if text == keyword)
    }

    fn shown(self) -> String {
        match self {
            Self::Open => "(".to_owned(),
            Self::Close => ")".to_owned(),
            Self::Equal => "==".to_owned(),
            Self::Unequal => "!=".to_owned(),
            Self::Quoted(text) | Self::Word(_, text) => text,
        }
    }
}

fn before(expected: &'static str, token: Option<Token>) -> InvalidFilter {
    let at = token.map_or(Place::End, |token| Place::Before(token.shown()));
    InvalidFilter::Syntax { expected, at }
}

fn tokens(text: &str) -> Result<Vec<Token>, InvalidFilter> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, after) = match first {
            '(' => (Token::Open, &rest[1..]),
            ')' => (Token::Close, &rest[1..]),
            '=' | '!' => match rest.get(..2) {
                Some("==") => (Token::Equal, &rest[2..]),
                Some("!=") => (Token::Unequal, &rest[2..]),
                _ => return Err(syntax("== or !=", rest)),
            },
            '"' | '`' => {
                let (value, after) = quoted(rest)?;
                (Token::Quoted(value), after)
            }
            _ => word(rest)?,
        };
        tokens.push(token);
        rest = after.trim_start();
    }
    Ok(tokens)
}

fn syntax(expected: &'static str, rest: &str) -> InvalidFilter {
    let shown: String = rest.chars().take(SHOWN).collect();
    InvalidFilter::Syntax { expected, at: Place::Before(shown) }
}

/// A value in double quotes, with escapes as in JSON, or in back quotes, raw.
fn quoted(rest: &str) -> Result<(String, &str), InvalidFilter> {
    if let Some(raw) = rest.strip_prefix('`') {
        return match raw.split_once('`') {
            Some((value, after)) => Ok((value.to_owned(), after)),
            None => Err(syntax("a closing quote", rest)),
        };
    }
    let mut is_escaped = false;
    let end = rest.char_indices().skip(1).find_map(|(at, c)| {
        let ends = c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        ends.then_some(at + 1)
    });
    let end = end.ok_or_else(|| syntax("a closing quote", rest))?;
    let (value, after) = rest.split_at(end);
    let value = serde_json::from_str(value).map_err(|_| syntax("a text", value))?;
    Ok((value, after))
}

/// `Node.Meta.rack`, `Node.Meta["a.b"]`, a keyword, or a bare value such as `8080` or `web-1`.
fn word(rest: &str) -> Result<(Token, &str), InvalidFilter> {
    let stops = |c: char| c.is_whitespace() || "()[]=!\"`".contains(c);
    let end = rest.find(stops).unwrap_or(rest.len());
    if end == 0 {
        return Err(syntax("a selector or a value", rest));
    }
    let (text, mut after) = rest.split_at(end);
    let mut parts: Vec<String> = text.split('.').map(str::to_owned).collect();
    while let Some(key) = after.strip_prefix('[') {
        let (key, closed) = quoted(key)?;
        after = closed.strip_prefix(']').ok_or_else(|| syntax("]", closed))?;
        parts.push(key);
        if let Some(more) = after.strip_prefix('.') {
            let end = more.find(stops).unwrap_or(more.len());
            parts.extend(more[..end].split('.').map(str::to_owned));
            after = &more[end..];
        }
    }
    Ok((Token::Word(parts, text.to_owned()), after))
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += usize::from(token.is_some());
        token
    }

    fn takes(&mut self, keyword: &str) -> bool {
        let is_it = self.tokens.get(self.at).is_some_and(|token| token.is(keyword));
        self.at += usize::from(is_it);
        is_it
    }

    fn any(&mut self) -> Result<Expression, InvalidFilter> {
        let mut parts = vec![self.all()?];
        while self.takes("or") {
            parts.push(self.all()?);
        }
        Ok(Expression::Any(parts))
    }

    fn all(&mut self) -> Result<Expression, InvalidFilter> {
        let mut parts = vec![self.one()?];
        while self.takes("and") {
            parts.push(self.one()?);
        }
        Ok(Expression::All(parts))
    }

    fn one(&mut self) -> Result<Expression, InvalidFilter> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(InvalidFilter::TooDeep);
        }
        let expression = if self.takes("not") {
            Expression::Not(Box::new(self.one()?))
        } else {
            match self.next() {
                Some(Token::Open) => {
                    let inner = self.any()?;
                    match self.next() {
                        Some(Token::Close) => inner,
                        token => return Err(before("a closing parenthesis", token)),
                    }
                }
                Some(token @ (Token::Quoted(_) | Token::Word(..))) => self.test(token)?,
                token => return Err(before("a selector or a value", token)),
            }
        };
        self.depth -= 1;
        Ok(expression)
    }

    fn test(&mut self, first: Token) -> Result<Expression, InvalidFilter> {
        let is_in = self.takes("in");
        let is_not_in = !is_in
            && self.tokens.get(self.at + 1).is_some_and(|token| token.is("in"))
            && self.takes("not")
            && self.takes("in");
        if is_in || is_not_in {
            let test = Test::Holds(first.shown());
            let Some(Token::Word(selector, _)) = self.next() else {
                return Err(before(
                    "a selector",
                    self.tokens.get(self.at.saturating_sub(1)).cloned(),
                ));
            };
            return Ok(negated(is_not_in, Expression::Test { selector, test }));
        }
        let Token::Word(selector, _) = first else {
            return Err(before("`in` after a value", self.next()));
        };
        let (is_not, test) = match self.next() {
            Some(Token::Equal) => (false, Test::Equals(self.value()?)),
            Some(Token::Unequal) => (true, Test::Equals(self.value()?)),
            Some(token) if token.is("is") => {
                let is_not = self.takes("not");
                if !self.takes("empty") {
                    return Err(before("`empty`", self.next()));
                }
                (is_not, Test::IsEmpty)
            }
            Some(token) if token.is("contains") => (false, Test::Holds(self.value()?)),
            Some(token) if token.is("matches") => return Err(InvalidFilter::Matches),
            Some(token) if token.is("not") => match self.next() {
                Some(token) if token.is("contains") => (true, Test::Holds(self.value()?)),
                Some(token) if token.is("matches") => return Err(InvalidFilter::Matches),
                token => return Err(before("`contains` or `in`", token)),
            },
            token => return Err(before("==, !=, is, in or contains", token)),
        };
        Ok(negated(is_not, Expression::Test { selector, test }))
    }

    fn value(&mut self) -> Result<String, InvalidFilter> {
        match self.next() {
            Some(Token::Quoted(text) | Token::Word(_, text)) => Ok(text),
            token => Err(before("a value", token)),
        }
    }
}

fn negated(is_not: bool, test: Expression) -> Expression {
    if is_not { Expression::Not(Box::new(test)) } else { test }
}

const FILTER_OCTETS_MAX: usize = 4096;
const DEPTH_MAX: usize = 32;
const SHOWN: usize = 32;
/// Fields that are left out of a reply where they say nothing.
const OPTIONAL: [&str; 7] = [
    "Kind",
    "Locality",
    "Meta",
    "Protocol",
    "Description",
    "TaggedAddresses",
    "ServiceTaggedAddresses",
];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn elements_match_as_consul_says() {
        let item = json!({
            "Node": { "Node": "vm-1", "Meta": { "rack": "1", "a.b": "c" } },
            "Service": { "Port": 8080, "Tags": ["v1", "blue"], "Address": "", "EnableTagOverride": false },
            "Checks": [{ "Status": "passing" }, { "Status": "warning" }],
        });
        let cases = [
            ("Node.Node == vm-1", true),
            ("Node.Node == \"vm-1\"", true),
            ("Node.Node != `vm-1`", false),
            ("Service.Port == 8080", true),
            ("Service.Port != 80", true),
            ("Service.EnableTagOverride == false", true),
            ("\"v1\" in Service.Tags", true),
            ("v2 not in Service.Tags", true),
            ("Service.Tags contains blue", true),
            ("Service.Tags not contains blue", false),
            ("Service.Address is empty", true),
            ("Service.Tags is not empty", true),
            ("Node.Meta[\"a.b\"] == c", true),
            ("Node.Meta contains rack", true),
            ("Node.Meta.row == 1", false),
            ("Node.Meta.row != 1", true),
            ("Checks.Status == warning", true),
            ("Checks.Status == critical", false),
            ("not Node.Node == vm-1 or Service.Port == 8080", true),
            ("Node.Node == x and Service.Port == 8080 or Node.Meta.rack == 1", true),
            ("Node.Node == x and (Service.Port == 8080 or Node.Meta.rack == 1)", false),
            ("not (Node.Node == x)", true),
        ];
        for (text, expected) in cases {
            let filter = Filter::parse(text).expect(text);
            assert_eq!(filter.matches(&item), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_says_where() {
        let deep = format!("{}a == b{}", "(".repeat(40), ")".repeat(40));
        let cases = [
            ("", "at the end"),
            ("Node", "==, !=, is, in or contains expected at the end"),
            ("Node ==", "a value expected at the end"),
            ("Node = x", "== or != expected"),
            ("Node == \"x", "a closing quote"),
            ("(Node == x", "a closing parenthesis"),
            ("Node == x y", "before \"y\""),
            ("Node is full", "`empty` expected before \"full\""),
            ("Node matches x", "`matches` is not supported"),
            ("x in", "a selector"),
            (deep.as_str(), "deeper than 32"),
        ];
        for (text, expected) in cases {
            let refused = Filter::parse(text).expect_err(text).to_string();
            assert!(refused.contains(expected), "{text}: {refused:?} has no {expected:?}");
        }
        assert_eq!(Filter::parse(&"a".repeat(5000)), Err(InvalidFilter::TooLong));
    }

    #[test]
    fn a_selector_that_nobody_has_is_refused() {
        let filter = Filter::parse("Nod.Node == x").expect("good");
        let mut list = vec![json!({ "Node": {} })];
        assert_eq!(filter.retain(&mut list), Err(InvalidFilter::Selector("Nod".to_owned())));
        let mut none = Vec::new();
        assert_eq!(filter.retain(&mut none), Ok(()));
        let filter = Filter::parse("Node.Node == x").expect("good");
        assert_eq!(filter.retain(&mut list), Ok(()));
        assert!(list.is_empty());
    }
}
