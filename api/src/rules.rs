//! The rules of a policy, as operators write them: HCL or JSON.
//!
//! Of HCL this reads what rules are made of and nothing else: names, quoted texts, blocks and
//! comments. So a policy cannot compute, and nothing in it recurses.

use hawser_core::acl::{Access, Resource, Rules};
use serde_json::Value;

use crate::fields;

/// Why a text holds no rules.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("Failed to parse ACL rules: {place}: {why}")]
pub struct InvalidRules {
    /// The line, or the path in JSON.
    pub place: String,
    /// What is wrong there.
    pub why: String,
}

impl InvalidRules {
    fn new(place: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self { place: place.into(), why: why.to_string() }
    }
}

/// Reads `text`, JSON where it begins with a brace, else HCL. An empty text has no rules.
///
/// # Errors
/// [`InvalidRules`], which says where.
pub fn parse(text: &str) -> Result<Rules, InvalidRules> {
    if text.len() > TEXT_OCTETS_MAX {
        return Err(InvalidRules::new("it", format_args!("more than {TEXT_OCTETS_MAX} octets")));
    }
    let statements = match text.trim_start().starts_with('{') {
        true => from_json(text)?,
        false => Hcl::new(text).statements()?,
    };
    let mut rules = Rules::default();
    for statement in statements {
        rules = statement.add_to(rules)?;
        if rules.0.len() > RULES_MAX {
            return Err(InvalidRules::new("it", format_args!("more than {RULES_MAX} rules")));
        }
    }
    Ok(rules)
}

/// One statement, whichever language it was written in.
struct Statement {
    place: String,
    word: String,
    label: Option<String>,
    /// `policy` and what stands beside it; of a statement without label, its level alone.
    levels: Vec<(String, String)>,
}

impl Statement {
    fn add_to(self, rules: Rules) -> Result<Rules, InvalidRules> {
        let refuse = |why: &dyn std::fmt::Display| InvalidRules::new(&self.place, why);
        let (word, is_prefix) = match self.word.strip_suffix("_prefix") {
            Some(word) => (word, true),
            None => (self.word.as_str(), false),
        };
        let named = |resource: &Resource| resource.as_str() == word;
        let resource = Resource::ALL
            .into_iter()
            .find(named)
            .filter(|resource| *resource != Resource::Intention)
            .filter(|resource| !(is_prefix && resource.is_single()))
            .ok_or_else(|| refuse(&format_args!("{:?} is no resource", self.word)))?;
        let Some(label) = &self.label else {
            if !resource.is_single() {
                let why = format_args!("{} needs a name: {0} \"name\" {{ policy = … }}", self.word);
                return Err(refuse(&why));
            }
            let level = self.levels.first().map_or("", |(_, level)| level.as_str());
            // Consul takes an empty level for one that is not there.
            return match level {
                "" => Ok(rules),
                level => Ok(rules.whole(resource, self.level(resource, level)?)),
            };
        };
        if resource.is_single() {
            let why = format_args!("{} takes no name: write {0} = \"read\"", self.word);
            return Err(refuse(&why));
        }
        let add = |rules: Rules, resource, access| match is_prefix {
            true => rules.prefix(resource, label, access),
            false => rules.exact(resource, label, access),
        };
        let (mut policy, mut intentions) = (None, None);
        for (key, level) in &self.levels {
            let place = match key.as_str() {
                "policy" => &mut policy,
                "intentions" if resource == Resource::Service => &mut intentions,
                "sentinel" => return Err(refuse(&"sentinel rules are not supported")),
                key => return Err(refuse(&format_args!("{key:?} is no field of {word}"))),
            };
            if place.replace(self.level(resource, level)?).is_some() {
                return Err(refuse(&format_args!("{key} is there twice")));
            }
        }
        let Some(policy) = policy else { return Err(refuse(&"policy is missing")) };
        let rules = add(rules, resource, policy);
        Ok(match resource {
            // Who may use a service may see who calls it; who manages that is said apart.
            Resource::Service => {
                let implied = if policy == Access::Deny { Access::Deny } else { Access::Read };
                add(rules, Resource::Intention, intentions.unwrap_or(implied))
            }
            _ => rules,
        })
    }

    fn level(&self, resource: Resource, text: &str) -> Result<Access, InvalidRules> {
        let access: Access = text.parse().map_err(|why| InvalidRules::new(&self.place, why))?;
        if access == Access::List && resource != Resource::Key {
            return Err(InvalidRules::new(&self.place, "only keys can be listed: use \"read\""));
        }
        Ok(access)
    }
}

fn from_json(text: &str) -> Result<Vec<Statement>, InvalidRules> {
    let value = fields::parse(text.as_bytes()).map_err(|why| InvalidRules::new("JSON", why))?;
    let mut statements = Vec::new();
    for (word, value) in value.as_object().into_iter().flatten() {
        for value in one_or_more(value) {
            match value {
                Value::String(level) => statements.push(Statement {
                    place: word.clone(),
                    word: word.clone(),
                    label: None,
                    levels: vec![("policy".to_owned(), level.clone())],
                }),
                Value::Object(labels) => {
                    for (label, value) in labels {
                        let place = format!("{word} {label:?}");
                        for value in one_or_more(value) {
                            let levels = levels(value, &place)?;
                            let (word, label) = (word.clone(), Some(label.clone()));
                            statements.push(Statement {
                                place: place.clone(),
                                word,
                                label,
                                levels,
                            });
                        }
                    }
                }
                _ => return Err(InvalidRules::new(word, "must be a level or an object of names")),
            }
        }
    }
    Ok(statements)
}

fn one_or_more(value: &Value) -> &[Value] {
    value.as_array().map_or_else(|| std::slice::from_ref(value), Vec::as_slice)
}

fn levels(value: &Value, place: &str) -> Result<Vec<(String, String)>, InvalidRules> {
    let object = value.as_object();
    let object = object.ok_or_else(|| InvalidRules::new(place, "must be an object with policy"))?;
    let level = |(key, value): (&String, &Value)| match value.as_str() {
        Some(level) => Ok((key.to_lowercase(), level.to_owned())),
        None => Err(InvalidRules::new(format!("{place}.{key}"), "must be a text")),
    };
    object.iter().map(level).collect()
}

/// Reads HCL, a token at a time.
struct Hcl<'a> {
    left: &'a str,
    line: usize,
}

#[derive(Debug, Eq, PartialEq)]
enum Part {
    Word(String),
    Text(String),
    Mark(char),
    End,
}

impl<'a> Hcl<'a> {
    fn new(text: &'a str) -> Self {
        Self { left: text, line: 1 }
    }

    fn refuse(&self, why: impl std::fmt::Display) -> InvalidRules {
        InvalidRules::new(format!("line {}", self.line), why)
    }

    fn statements(mut self) -> Result<Vec<Statement>, InvalidRules> {
        let mut statements = Vec::new();
        loop {
            let word = match self.part()? {
                Part::End => return Ok(statements),
                Part::Word(word) | Part::Text(word) => word,
                Part::Mark(mark) => {
                    return Err(self.refuse(format_args!("a rule cannot begin with {mark:?}")));
                }
            };
            let place = format!("line {}", self.line);
            let mut label = None;
            let levels = loop {
                match self.part()? {
                    Part::Text(text) if label.is_none() => label = Some(text),
                    Part::Mark('=') => match self.part()? {
                        Part::Text(level) if label.is_none() => {
                            break vec![("policy".to_owned(), level)];
                        }
                        Part::Mark('{') => break self.block()?,
                        _ => return Err(self.refuse("a quoted level is missing after =")),
                    },
                    Part::Mark('{') => break self.block()?,
                    found => return Err(self.refuse(format_args!("{found} after {word}"))),
                }
            };
            statements.push(Statement { place, word, label, levels });
        }
    }

    /// `key = "level"` until the closing brace.
    fn block(&mut self) -> Result<Vec<(String, String)>, InvalidRules> {
        let mut levels = Vec::new();
        loop {
            let key = match self.part()? {
                Part::Mark('}') => return Ok(levels),
                Part::Mark(',') => continue,
                Part::Word(key) | Part::Text(key) => key,
                found => return Err(self.refuse(format_args!("{found} in a block"))),
            };
            match (self.part()?, self.part()?) {
                (Part::Mark('='), Part::Text(level)) => levels.push((key, level)),
                _ => return Err(self.refuse(format_args!("write {key} = \"…\""))),
            }
        }
    }

    fn part(&mut self) -> Result<Part, InvalidRules> {
        self.skip()?;
        let Some(first) = self.left.chars().next() else { return Ok(Part::End) };
        if first == '"' {
            return self.text();
        }
        let is_word = |at: char| at.is_ascii_alphanumeric() || at == '_' || at == '-';
        let length = self.left.find(|at| !is_word(at)).unwrap_or(self.left.len());
        if length > 0 {
            return Ok(Part::Word(self.take(length).to_owned()));
        }
        if !"={},".contains(first) {
            return Err(self.refuse(format_args!("{first:?} is not understood here")));
        }
        self.take(1);
        Ok(Part::Mark(first))
    }

    fn take(&mut self, octets: usize) -> &'a str {
        let (taken, left) = self.left.split_at(octets);
        self.left = left;
        self.line += taken.matches('\n').count();
        taken
    }

    /// Passes over space and comments.
    fn skip(&mut self) -> Result<(), InvalidRules> {
        loop {
            let space = self.left.len() - self.left.trim_start().len();
            self.take(space);
            if self.left.starts_with('#') || self.left.starts_with("//") {
                self.take(self.left.find('\n').unwrap_or(self.left.len()));
            } else if self.left.starts_with("/*") {
                let end = self.left.find("*/");
                let end = end.ok_or_else(|| self.refuse("a comment does not end"))?;
                self.take(end + 2);
            } else {
                return Ok(());
            }
        }
    }

    /// A quoted text; `\"` and `\\` stand for themselves.
    fn text(&mut self) -> Result<Part, InvalidRules> {
        self.take(1);
        let mut text = String::new();
        loop {
            let mut ahead = self.left.chars();
            let (octet, escaped) = (ahead.next(), ahead.next());
            match (octet, escaped) {
                (Some('"'), _) => {
                    self.take(1);
                    return Ok(Part::Text(text));
                }
                (Some('\\'), Some(escaped @ ('"' | '\\'))) => {
                    text.push(escaped);
                    self.take(2);
                }
                (None | Some('\n'), _) => return Err(self.refuse("a quoted text does not end")),
                (Some('\\'), _) => return Err(self.refuse("only \\\" and \\\\ are escapes here")),
                (Some('$'), Some('{')) => return Err(self.refuse("rules do not compute")),
                (Some(plain), _) => {
                    text.push(plain);
                    self.take(plain.len_utf8());
                }
            }
        }
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Word(word) => write!(f, "{word}"),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Mark(mark) => write!(f, "{mark:?}"),
            Self::End => write!(f, "the end"),
        }
    }
}

const TEXT_OCTETS_MAX: usize = 64 * 1024;
const RULES_MAX: usize = 2_048;

#[cfg(test)]
mod tests {
    use super::*;

    use Access::{Deny, List, Read, Write};

    #[test]
    fn hcl_and_json_say_the_same() {
        let none = Rules::default;
        let cases = [
            ("", "{}", none()),
            (
                "operator = \"read\"\nacl=\"\" # nothing\n",
                r#"{"operator": "read", "acl": ""}"#,
                none().whole(Resource::Operator, Read),
            ),
            (
                "key_prefix \"app/\" { policy = \"list\" } /* all */ key \"app/pw\" {policy=\"deny\"}",
                r#"{"key_prefix": {"app/": {"policy": "list"}}, "key": [{"app/pw": {"Policy": "deny"}}]}"#,
                none().prefix(Resource::Key, "app/", List).exact(Resource::Key, "app/pw", Deny),
            ),
            (
                "service \"web\" {\n  policy = \"write\"\n  intentions = \"write\"\n}",
                r#"{"service": {"web": {"policy": "write", "intentions": "write"}}}"#,
                none().exact(Resource::Service, "web", Write).exact(
                    Resource::Intention,
                    "web",
                    Write,
                ),
            ),
            (
                "// implied\n\"service_prefix\" \"\" = { \"policy\" = \"write\", }",
                r#"{"service_prefix": {"": {"policy": "write"}}}"#,
                none().prefix(Resource::Service, "", Write).prefix(Resource::Intention, "", Read),
            ),
            (
                "node \"a\\\"b\" { policy = \"read\" }",
                r#"{"node": {"a\"b": {"policy": "read"}}}"#,
                none().exact(Resource::Node, "a\"b", Read),
            ),
        ];
        for (hcl, json, expected) in cases {
            assert_eq!(parse(hcl), Ok(expected.clone()), "{hcl}");
            let mut parsed = parse(json).expect(json);
            // JSON's keys come in order of the alphabet.
            parsed.0.sort_by(|one, other| format!("{one:?}").cmp(&format!("{other:?}")));
            let mut expected = expected;
            expected.0.sort_by(|one, other| format!("{one:?}").cmp(&format!("{other:?}")));
            assert_eq!(parsed, expected, "{json}");
        }
    }

    #[test]
    fn what_rules_write_of_themselves_reads_back() {
        for template in hawser_core::acl::Template::ALL {
            let text = template.rules("web").to_string();
            let again = parse(&text).expect(&text);
            assert_eq!(again, template.rules("web"), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let cases = [
            ("nodes \"a\" { policy = \"read\" }", "line 1: \"nodes\" is no resource"),
            ("\n\nnode { policy = \"read\" }", "line 3: node needs a name"),
            ("operator \"a\" { policy = \"read\" }", "operator takes no name"),
            ("operator_prefix \"\" { policy = \"read\" }", "is no resource"),
            ("intention \"a\" { policy = \"read\" }", "is no resource"),
            ("node \"a\" { policy = \"list\" }", "only keys can be listed"),
            ("node \"a\" { policy = \"all\" }", "\"all\" is no level of access"),
            ("node \"a\" { policy = read }", "write policy ="),
            ("node \"a\" { }", "policy is missing"),
            ("node \"a\" { intentions = \"read\" }", "\"intentions\" is no field of node"),
            ("key \"a\" { policy = \"read\" policy = \"write\" }", "policy is there twice"),
            ("key \"a\" { sentinel = \"x\" }", "sentinel rules are not supported"),
            ("key \"${a}\" { policy = \"read\" }", "rules do not compute"),
            ("key \"a { policy = \"read\" }", "line 1"),
            ("key \"a\" {{{{", "'{' in a block"),
            ("key \"a\" (", "'(' is not understood here"),
            ("/* ", "a comment does not end"),
            ("{\"key\": 1}", "key: must be a level"),
            ("{\"key\": {\"a\": 1}}", "key \"a\": must be an object"),
            ("{\"key\": {\"a\": {\"policy\": 1}}}", "key \"a\".policy: must be a text"),
            ("{\"key\"", "JSON"),
            ("{} {}", "JSON"),
        ];
        for (text, expected) in cases {
            let refused = parse(text).expect_err(text).to_string();
            assert!(refused.contains(expected), "{text}: {refused} has no {expected:?}");
        }
        let long = "#".repeat(TEXT_OCTETS_MAX + 1);
        assert!(parse(&long).is_err());
        let many = "node \"a\" { policy = \"read\" }\n".repeat(RULES_MAX + 1);
        assert!(parse(&many).is_err());
    }
}
