//! What filters mean, and that nothing breaks them.

use super::*;
use serde_json::json;

fn element() -> Value {
    json!({
        "Node": { "Node": "vm-1", "Meta": { "rack": "1", "a.b": "c" } },
        "Service": {
            "Port": 8080, "Tags": ["v1", "blue"], "Address": "", "EnableTagOverride": false,
            "Meta": { "version": "2" },
        },
        "Checks": [{ "Status": "passing" }, { "Status": "warning" }],
        "in": "x",
    })
}

#[test]
fn elements_match_as_consul_says() {
    let item = element();
    let cases = [
        ("Node.Node == vm-1", true),
        ("Node.Node == \"vm-1\"", true),
        ("Node.Node != `vm-1`", false),
        ("Node.Node == \"vm\\x2d1\"", true),
        ("Service.Port == 8080", true),
        ("Service.Port==8080", true),
        ("Service.Port != 80", true),
        ("Service.EnableTagOverride == false", true),
        ("Service.EnableTagOverride == F", true),
        ("\"v1\" in Service.Tags", true),
        ("v2 not in Service.Tags", true),
        ("Service.Tags contains blue", true),
        ("Service.Tags not contains blue", false),
        ("Service.Tags.0 == v1", true),
        ("Service.Tags.7 == v1", false),
        ("Service.Address is empty", true),
        ("Service.Tags is not empty", true),
        ("Node.Meta[\"a.b\"] == c", true),
        ("Node.Meta[ `a.b` ] == c", true),
        ("Node.Meta contains rack", true),
        ("rack in Node.Meta", true),
        ("\"/Node/Meta/a.b\" == c", true),
        ("Node.Meta.row == 1", false),
        ("Node.Meta.row != 1", true),
        ("Node.Meta.row is empty", true),
        ("Node.Meta.row is not empty", false),
        ("Node.Meta.row matches `.*`", false),
        ("Node.Meta.row not matches `.*`", true),
        ("Node.Node contains m-", true),
        ("Node.Node matches `^vm-[0-9]+$`", true),
        ("Node.Node not matches \"^db\"", true),
        ("Checks.Status == warning", true),
        ("Checks.Status == critical", false),
        ("Checks.Status != passing", true),
        ("any Checks as c { c.Status == warning }", true),
        ("all Checks as c { c.Status == warning }", false),
        ("all Service.Tags as i, t { t matches `^[vb]` and (i == 0 or i == 1) }", true),
        ("any Node.Meta as k { k == rack }", true),
        ("any Node.Meta as _, v { v == c }", true),
        ("all Service.Nothing as c { c == 1 }", true),
        ("any Service.Nothing as c { c == 1 }", false),
        ("not Node.Node == vm-1 or Service.Port == 8080", true),
        ("not not Node.Node == vm-1", true),
        ("Node.Node == x and Service.Port == 8080 or Node.Meta.rack == 1", true),
        ("Node.Node == x and (Service.Port == 8080 or Node.Meta.rack == 1)", false),
        ("not (Node.Node == x)", true),
        ("in == x", true),
        ("x in in", true),
    ];
    for (text, expected) in cases {
        let filter = Filter::parse(text).expect(text);
        assert_eq!(filter.matches(&item), Ok(expected), "{text}");
    }
}

#[test]
fn what_cannot_be_compared_is_refused() {
    for (text, expected) in [
        ("Service.Tags == v1", "it is a list"),
        ("Node.Meta != v1", "it is a map"),
        ("Service.Port contains 8", "it is a number"),
        ("Service.Port is empty", "it is a number"),
        ("Service.Tags matches v1", "it is no text"),
    ] {
        let refused = Filter::parse(text).expect(text).matches(&element()).expect_err(text);
        assert!(refused.to_string().contains(expected), "{text}: {refused}");
    }
}

#[test]
fn what_cannot_be_read_says_where() {
    let deep = format!("{}a == b{}", "(".repeat(40), ")".repeat(40));
    let cases = [
        ("", "at the end"),
        ("Node", "==, !=, is, in, contains or matches expected at the end"),
        ("Node ==", "a value expected at the end"),
        ("Node = x", "== or != expected"),
        ("Node == \"x", "a closing quote"),
        ("Node == \"\\q\"", "a text"),
        ("(Node == x", "a closing parenthesis"),
        ("Node == x y", "before \"y\""),
        ("Node is full", "`empty` expected before \"full\""),
        ("Node matches `(`", "no regular expression"),
        ("Node matches `(a{1000}){1000}`", "no regular expression"),
        ("x in", "a selector"),
        ("Node..Meta == x", "`in` after a value"),
        ("any Checks { a == b }", "`as`"),
        ("any Checks as c { a == b", "a closing brace"),
        (deep.as_str(), "deeper than 32"),
    ];
    for (text, expected) in cases {
        let refused = Filter::parse(text).expect_err(text).to_string();
        assert!(refused.contains(expected), "{text}: {refused:?} has no {expected:?}");
    }
    assert_eq!(Filter::parse(&"a".repeat(5000)), Err(InvalidFilter::TooLong { max: 4096 }));
}

#[test]
fn a_selector_that_nobody_has_is_refused() {
    let filter = Filter::parse("Nod.Node == x").expect("good");
    let mut list = vec![json!({ "Node": {} })];
    assert_eq!(filter.retain(&mut list), Err(InvalidFilter::Selector("Nod".to_owned())));
    let mut none = Vec::new();
    assert_eq!(filter.retain(&mut none), Ok(()));
    let bound = Filter::parse("any Node as n { n == x }").expect("good");
    assert_eq!(bound.retain(&mut list.clone()), Ok(()), "a bound name is no field");
    let filter = Filter::parse("Node.Node == x").expect("good");
    assert_eq!(filter.retain(&mut list), Ok(()));
    assert!(list.is_empty());
}

/// Numbers that follow from a seed.
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(self.0 >> 33).expect("31 bits") % bound
    }

    fn of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }
}

/// An expression that is true or false as said, for the element of these tests.
fn generate(draws: &mut Draws, depth: usize) -> (String, bool) {
    let space = |draws: &mut Draws| draws.of(&[" ", "  ", "\n", "\t "]).to_owned();
    if depth == 0 || draws.below(3) == 0 {
        let (text, is_true) = [
            ("Node.Node == vm-1", true),
            ("Node.Node != \"vm-1\"", false),
            ("v1 in Service.Tags", true),
            ("`v1` not in Service.Tags", false),
            ("Service.Tags contains \"red\"", false),
            ("Service.Address is empty", true),
            ("Service.Meta is not empty", true),
            ("Service.Port == 8080", true),
            ("Node.Meta[\"a.b\"] matches `^[cd]$`", true),
            ("any Checks as c { c.Status == critical }", false),
        ][draws.below(10)];
        return (text.to_owned(), is_true);
    }
    let (left, left_is) = generate(draws, depth - 1);
    match draws.below(4) {
        0 => (format!("not{}({left})", space(draws)), !left_is),
        1 => (format!("({left})"), left_is),
        which => {
            let (right, right_is) = generate(draws, depth - 1);
            let (word, is_true) = match which {
                2 => ("and", left_is && right_is),
                _ => ("or", left_is || right_is),
            };
            let (before, after) = (space(draws), space(draws));
            (format!("({left}){before}{word}{after}({right})"), is_true)
        }
    }
}

#[test]
fn whatever_is_generated_means_what_it_was_generated_to() {
    let item = element();
    for seed in 0..2_000 {
        let (text, expected) = generate(&mut Draws(seed), 4);
        let filter =
            Filter::parse(&text).unwrap_or_else(|why| panic!("seed {seed}: {why}: {text}"));
        assert_eq!(filter.matches(&item), Ok(expected), "seed {seed}: {text}");
    }
}

#[test]
fn precedence_is_not_then_and_then_or() {
    let leaves = [("Node.Node == vm-1", true), ("Node.Node == vm-2", false)];
    for bits in 0_usize..8 {
        let [a, b, c] = [0, 1, 2].map(|bit| leaves[(bits >> bit) & 1]);
        let text = format!("not {} and {} or {}", a.0, b.0, c.0);
        let expected = (!a.1 && b.1) || c.1;
        assert_eq!(Filter::parse(&text).expect(&text).matches(&element()), Ok(expected), "{text}");
    }
}

/// Whatever stands in a query, it is read or refused: nothing panics and nothing hangs.
#[test]
fn texts_of_any_kind_are_read_or_refused() {
    let pieces = [
        "(",
        ")",
        "{",
        "}",
        "[",
        "]",
        ",",
        "==",
        "!=",
        "=",
        "!",
        "not",
        "and",
        "or",
        "in",
        "is",
        "as",
        "any",
        "all",
        "empty",
        "contains",
        "matches",
        "\"",
        "`",
        "\\",
        ".",
        "Node",
        "Checks.Status",
        "8080",
        "é",
        "\u{0}",
        " ",
        "\"x\"",
        "`a*`",
        "_",
        "/",
        "[\"k\"]",
    ];
    let item = element();
    for seed in 0..20_000 {
        let mut draws = Draws(seed);
        let mut text = match seed % 2 {
            0 => String::new(),
            _ => generate(&mut draws, 3).0,
        };
        for _ in 0..draws.below(12) {
            let boundaries: Vec<usize> =
                text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
            let at = boundaries[draws.below(boundaries.len())];
            text.insert_str(at, draws.of(&pieces));
        }
        if let Ok(filter) = Filter::parse(&text) {
            let mut list = vec![item.clone()];
            let _ = filter.retain(&mut list);
        }
    }
}

#[test]
fn what_looks_at_too_much_is_refused_instead_of_looked_at() {
    let wide: serde_json::Map<String, Value> =
        (0..8).map(|at| (format!("k{at}"), json!("v"))).collect();
    let item = json!({ "M": wide });
    let nested = |depth: usize| {
        let begin: String = (0..depth).map(|at| format!("any M as n{at} {{ ")).collect();
        Filter::parse(&format!("{begin}n0 == \"x\"{}", " }".repeat(depth))).expect("it parses")
    };
    assert_eq!(nested(2).matches(&item), Ok(false));
    let refused = nested(31).matches(&item);
    assert!(matches!(refused, Err(InvalidFilter::TooMuch { .. })), "{refused:?}");
    let refused = nested(31).retain(&mut vec![item.clone(); 3]);
    assert!(matches!(refused, Err(InvalidFilter::TooMuch { .. })), "{refused:?}");
    let mut many = vec![item; 20_000];
    nested(2).retain(&mut many).expect("long lists may be asked simple things");
    assert!(many.is_empty());
}
