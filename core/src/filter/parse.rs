//! From text to expression: tokens, then descent by precedence; bounded in length and depth.

use regex::RegexBuilder;

use super::{Bound, Expression, InvalidFilter, Pattern, Place, Test};

/// Parses all of `text`.
pub(super) fn expression(text: &str) -> Result<Expression, InvalidFilter> {
    if text.len() > FILTER_OCTETS_MAX {
        return Err(InvalidFilter::TooLong { max: FILTER_OCTETS_MAX });
    }
    let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0 };
    let expression = parser.any()?;
    match parser.next() {
        None => Ok(expression),
        Some(token) => Err(before("and, or, or the end", Some(token))),
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Token {
    /// `(`, `)`, `{`, `}`, `,`, `==` or `!=`.
    Mark(&'static str),
    /// A quoted value.
    Quoted(String),
    /// A selector, a keyword, or a value without quotes: its parts, and its text.
    Word(Vec<String>, String),
}

impl Token {
    fn is(&self, keyword: &str) -> bool {
        match self {
            Self::Mark(mark) => *mark == keyword,
            Self::Word(_, text) => text == keyword,
            Self::Quoted(_) => false,
        }
    }

    fn shown(self) -> String {
        match self {
            Self::Mark(mark) => mark.to_owned(),
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
        let mark = MARKS.iter().find_map(|mark| Some((*mark, rest.strip_prefix(mark)?)));
        let (token, after) = match (mark, first) {
            (Some((mark, after)), _) => (Token::Mark(mark), after),
            (None, '=' | '!') => return Err(syntax("== or !=", rest)),
            (None, '"' | '`') => {
                let (value, after) = quoted(rest)?;
                (Token::Quoted(value), after)
            }
            (None, _) => word(rest)?,
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

/// A value in double quotes, with escapes, or in back quotes, raw.
fn quoted(rest: &str) -> Result<(String, &str), InvalidFilter> {
    if let Some(raw) = rest.strip_prefix('`') {
        return match raw.split_once('`') {
            Some((value, after)) => Ok((value.to_owned(), after)),
            None => Err(syntax("a closing quote", rest)),
        };
    }
    let mut is_escaped = false;
    let inner = rest.strip_prefix('"').ok_or_else(|| syntax("a quote", rest))?;
    let end = inner.char_indices().find_map(|(at, c)| {
        let ends = c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        ends.then_some(at)
    });
    let end = end.ok_or_else(|| syntax("a closing quote", rest))?;
    let value = unescaped(&inner[..end]).ok_or_else(|| syntax("a text", rest))?;
    Ok((value, &inner[end + 1..]))
}

/// Reads the escapes of a text of Go's: `\n`, `\"`, `\x41`, `\u00e9`.
fn unescaped(text: &str) -> Option<String> {
    let mut value = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            value.push(c);
            continue;
        }
        let escaped = match chars.next()? {
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            'x' => code_point(&mut chars, 2)?,
            'u' => code_point(&mut chars, 4)?,
            'U' => code_point(&mut chars, 8)?,
            plain @ ('"' | '\\' | '/' | '\'') => plain,
            _ => return None,
        };
        value.push(escaped);
    }
    Some(value)
}

fn code_point(chars: &mut std::str::Chars<'_>, digits: usize) -> Option<char> {
    let mut code = 0;
    for _ in 0..digits {
        code = code * 16 + chars.next()?.to_digit(16)?;
    }
    char::from_u32(code)
}

/// `Node.Meta.rack`, `Node.Meta["a.b"]`, a keyword, or a bare value such as `8080` or `web-1`.
fn word(rest: &str) -> Result<(Token, &str), InvalidFilter> {
    let stops = |c: char| c.is_whitespace() || "()[]{},=!\"`".contains(c);
    let end = rest.find(stops).unwrap_or(rest.len());
    if end == 0 {
        return Err(syntax("a selector or a value", rest));
    }
    let (text, mut after) = rest.split_at(end);
    let mut parts: Vec<String> = text.split('.').map(str::to_owned).collect();
    while let Some(key) = after.strip_prefix('[') {
        let (key, closed) = quoted(key.trim_start())?;
        after = closed.trim_start().strip_prefix(']').ok_or_else(|| syntax("]", closed))?;
        parts.push(key);
        if let Some(more) = after.strip_prefix('.') {
            let end = more.find(stops).unwrap_or(more.len());
            parts.extend(more[..end].split('.').map(str::to_owned));
            after = &more[end..];
        }
    }
    let whole = &rest[..rest.len() - after.len()];
    Ok((Token::Word(parts, whole.to_owned()), after))
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

    fn sees(&self, ahead: usize, keyword: &str) -> bool {
        self.tokens.get(self.at + ahead).is_some_and(|token| token.is(keyword))
    }

    fn takes(&mut self, keyword: &str) -> bool {
        let is_it = self.sees(0, keyword);
        self.at += usize::from(is_it);
        is_it
    }

    fn must(&mut self, keyword: &'static str, expected: &'static str) -> Result<(), InvalidFilter> {
        match self.takes(keyword) {
            true => Ok(()),
            false => Err(before(expected, self.next())),
        }
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
            return Err(InvalidFilter::TooDeep { max: DEPTH_MAX });
        }
        // A keyword before an operator is a selector or a value that is called so.
        let is_operand =
            OPERATORS.iter().any(|operator| self.sees(1, operator)) && !self.sees(1, "not");
        let expression = if !is_operand && self.takes("not") {
            Expression::Not(Box::new(self.one()?))
        } else if !is_operand && (self.sees(0, "any") || self.sees(0, "all")) {
            self.each()?
        } else if self.takes("(") {
            let inner = self.any()?;
            self.must(")", "a closing parenthesis")?;
            inner
        } else {
            match self.next() {
                Some(token @ (Token::Quoted(_) | Token::Word(..))) => self.test(token)?,
                token => return Err(before("a selector or a value", token)),
            }
        };
        self.depth -= 1;
        Ok(expression)
    }

    /// `any Checks as check { check.Status == passing }`
    fn each(&mut self) -> Result<Expression, InvalidFilter> {
        let is_all = self.next().is_some_and(|token| token.is("all"));
        let selector = self.selector()?;
        self.must("as", "`as`")?;
        let key = self.name()?;
        let bound = match self.takes(",") {
            true => Bound { key, value: self.name()?, is_single: false },
            false => Bound { key, value: None, is_single: true },
        };
        self.must("{", "an opening brace")?;
        let body = Box::new(self.any()?);
        self.must("}", "a closing brace")?;
        Ok(Expression::Each { is_all, selector, bound, body })
    }

    /// A name for elements; `_` is none.
    fn name(&mut self) -> Result<Option<String>, InvalidFilter> {
        match self.next() {
            Some(Token::Word(parts, text)) if parts.len() == 1 => {
                Ok(Some(text).filter(|text| text != "_"))
            }
            token => Err(before("a name", token)),
        }
    }

    fn test(&mut self, first: Token) -> Result<Expression, InvalidFilter> {
        let is_not_in = self.sees(0, "not") && self.sees(1, "in");
        if is_not_in || self.sees(0, "in") {
            self.at += 1 + usize::from(is_not_in);
            let test = Test::Holds(first.shown());
            return Ok(Expression::Test { selector: self.selector()?, is_not: is_not_in, test });
        }
        let selector = selector(first).map_err(|_| before("`in` after a value", self.next()))?;
        let (is_not, test) = self.comparison()?;
        Ok(Expression::Test { selector, is_not, test })
    }

    fn comparison(&mut self) -> Result<(bool, Test), InvalidFilter> {
        if self.takes("==") {
            return Ok((false, Test::Equals(self.value()?)));
        }
        if self.takes("!=") {
            return Ok((true, Test::Equals(self.value()?)));
        }
        if self.takes("is") {
            let is_not = self.takes("not");
            self.must("empty", "`empty`")?;
            return Ok((is_not, Test::IsEmpty));
        }
        let is_not = self.takes("not");
        if self.takes("contains") {
            return Ok((is_not, Test::Holds(self.value()?)));
        }
        if self.takes("matches") {
            return Ok((is_not, Test::Matches(pattern(&self.value()?)?)));
        }
        let expected = match is_not {
            true => "`contains`, `matches` or `in`",
            false => "==, !=, is, in, contains or matches",
        };
        Err(before(expected, self.next()))
    }

    fn selector(&mut self) -> Result<Vec<String>, InvalidFilter> {
        match self.next() {
            Some(token) => selector(token).map_err(|token| before("a selector", Some(token))),
            None => Err(before("a selector", None)),
        }
    }

    fn value(&mut self) -> Result<String, InvalidFilter> {
        match self.next() {
            Some(Token::Quoted(text) | Token::Word(_, text)) => Ok(text),
            token => Err(before("a value", token)),
        }
    }
}

/// A dotted path, or a JSON pointer in quotes.
fn selector(token: Token) -> Result<Vec<String>, Token> {
    match token {
        Token::Word(parts, _) if parts.iter().all(|part| !part.is_empty()) => Ok(parts),
        Token::Quoted(pointer) if pointer.starts_with('/') => {
            let parts = pointer[1..].split('/');
            Ok(parts.map(|part| part.replace("~1", "/").replace("~0", "~")).collect())
        }
        token => Err(token),
    }
}

fn pattern(text: &str) -> Result<Pattern, InvalidFilter> {
    let built = RegexBuilder::new(text).size_limit(PATTERN_OCTETS_MAX).build();
    built.map(Pattern).map_err(|_| InvalidFilter::Pattern(text.to_owned()))
}

const MARKS: [&str; 7] = ["(", ")", "{", "}", ",", "==", "!="];
/// What may follow a selector or a value.
const OPERATORS: [&str; 7] = ["==", "!=", "is", "in", "contains", "matches", "not"];
const FILTER_OCTETS_MAX: usize = 4096;
const DEPTH_MAX: usize = 32;
const SHOWN: usize = 32;
/// The memory that a compiled regular expression may take.
const PATTERN_OCTETS_MAX: usize = 256 * 1024;
