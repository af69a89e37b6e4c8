//! XML as AWS answers it: no document type, a bounded tree, and children asked for by name.

use roxmltree::{Document, Node, ParsingOptions};

/// A text that is not the XML that was asked for.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the answer is not the XML that was asked for: {0}")]
pub(crate) struct Unexpected(pub(crate) String);

/// Parses `body`.
pub(crate) fn parse(body: &str) -> Result<Document<'_>, Unexpected> {
    let options =
        ParsingOptions { allow_dtd: false, nodes_limit: NODES_MAX, ..ParsingOptions::default() };
    Document::parse_with_options(body, options).map_err(|why| Unexpected(why.to_string()))
}

/// The elements of `node` called `name`, in its own namespace.
pub(crate) fn children<'a, 'input>(
    node: Node<'a, 'input>,
    name: &'static str,
) -> impl Iterator<Item = Node<'a, 'input>> {
    let namespace = node.tag_name().namespace();
    node.children().filter(move |child| {
        child.is_element()
            && child.tag_name().name() == name
            && child.tag_name().namespace() == namespace
    })
}

/// The one element of `node` called `name`: none and two are refused.
pub(crate) fn only<'a, 'input>(
    node: Node<'a, 'input>,
    name: &'static str,
) -> Result<Node<'a, 'input>, Unexpected> {
    let mut found = children(node, name);
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(Unexpected(format!("there is no {name}"))),
        (Some(_), Some(_)) => Err(Unexpected(format!("there are two {name}"))),
    }
}

/// What stands in `node`, which must hold text alone and no comment or element between.
pub(crate) fn text<'a>(node: Node<'a, '_>) -> Result<&'a str, Unexpected> {
    let name = node.tag_name().name();
    let mut children = node.children();
    match (children.next(), children.next()) {
        (Some(one), None) if one.is_text() => Ok(one.text().unwrap_or_default()),
        _ => Err(Unexpected(format!("{name} holds more or less than text"))),
    }
}

/// The code of an AWS error, if `body` is one that is written as such.
pub(crate) fn error_code(body: &str) -> Option<String> {
    let document = parse(body).ok()?;
    let mut codes = document.descendants().filter(|node| node.has_tag_name_local("Code"));
    let code = text(codes.next()?).ok()?;
    let fits = code.len() <= CODE_OCTETS_MAX
        && code.bytes().all(|octet| octet.is_ascii_alphanumeric() || octet == b'.');
    (fits && !code.is_empty()).then(|| code.to_owned())
}

trait LocalName {
    fn has_tag_name_local(&self, name: &str) -> bool;
}

impl LocalName for Node<'_, '_> {
    fn has_tag_name_local(&self, name: &str) -> bool {
        self.is_element() && self.tag_name().name() == name
    }
}

/// A page of a hundred instances has some twenty thousand.
const NODES_MAX: u32 = 200_000;
const CODE_OCTETS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_plain_xml_is_refused() {
        for body in [
            "",
            "{}",
            "<a>",
            "<a/><b/>",
            "<!DOCTYPE a [<!ENTITY x \"y\">]><a>&x;</a>",
            "<a>&x;</a>",
        ] {
            assert!(parse(body).is_err(), "{body}");
        }
    }

    #[test]
    fn an_error_is_told_by_its_code_alone() {
        let cases = [
            ("<E><Error><Code>ExpiredToken</Code></Error></E>", Some("ExpiredToken")),
            ("<E><Error><Code>a b\n</Code></Error></E>", None),
            ("<E><Error/></E>", None),
            ("no", None),
        ];
        for (body, code) in cases {
            assert_eq!(error_code(body).as_deref(), code, "{body}");
        }
    }
}
