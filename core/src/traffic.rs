//! Traffic: which route a request takes, which share it falls to, and how it is sent on the way.
//!
//! A [`Table`] is made when a view arrives: regular expressions are compiled then, and a request
//! costs comparisons only.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use regex::Regex;

use crate::entry::{
    FaultInjection, HeaderMatch, HttpMatch, IdleTimeout, PSEUDO, Percentage, QueryMatch,
    RouteDestination, Sticky, pattern,
};
use crate::retry::Conditions;
use crate::view::{RouteView, Routing};

/// What of a request decides where it goes.
pub trait Head {
    /// Its method.
    fn method(&self) -> &str;
    /// Its path, without the query.
    fn path(&self) -> &str;
    /// What stands after the question mark.
    fn query(&self) -> Option<&str>;
    /// Whom it is for: host, and port if there is one.
    fn authority(&self) -> &str;
    /// Whether `test` holds for one of the fields called `name`, in lower case; none without any.
    fn field(&self, name: &str, test: &mut dyn FnMut(&str) -> bool) -> Option<bool>;
}

/// The routes of one service, ready for requests.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rules: Vec<Rule>,
}

/// One route, ready for requests.
#[derive(Clone, Debug)]
pub struct Rule {
    condition: Condition,
    /// The path that it matches, shortened; empty where any does.
    class: String,
    sticky: Option<Sticky>,
    /// How its requests are sent.
    pub policy: Policy,
    /// Its shares: weight, and the end.
    shares: Vec<(u16, usize)>,
    /// The end that copies go to, and of which share.
    pub mirror: Option<(usize, Percentage)>,
}

/// How the requests of a route are sent.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Policy {
    /// Longest wait for a whole answer, all tries together; none leaves it to the end.
    pub request_timeout: Option<Duration>,
    /// Longest silence within an answer; none for ever.
    pub idle_timeout: Option<Duration>,
    /// Longest wait for the beginning of an answer while there may be one more try.
    pub per_try_timeout: Option<Duration>,
    /// Whether and when to try again; none leaves it to the service.
    pub retries: Option<Retries>,
    /// Faults that its requests meet on purpose.
    pub faults: Option<FaultInjection>,
    /// What stands in place of the path, or of the beginning of it, that was matched.
    rewrite: Option<Rewrite>,
}

/// When to try again, beside what is always safe.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Retries {
    /// Most tries beside the first; none leaves it to the service.
    pub most: Option<u8>,
    /// What is tried again, whatever the method; none leaves it to the service.
    pub on: Option<Conditions>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Rewrite {
    /// Octets of the path that go.
    matched: Option<usize>,
    to: String,
}

#[derive(Clone, Debug, Default)]
struct Condition {
    path: Path,
    fields: Vec<Field>,
    params: Vec<(String, Test)>,
    methods: Vec<String>,
}

#[derive(Clone, Debug, Default)]
enum Path {
    #[default]
    Any,
    Exact(String, Case),
    Prefix(String, Case),
    Matches(Regex),
    /// What cannot be compiled matches nothing.
    Never,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Case {
    Counts,
    Ignored,
}

#[derive(Clone, Debug)]
struct Field {
    name: String,
    test: Test,
    is_inverted: bool,
}

#[derive(Clone, Debug)]
enum Test {
    Present,
    Exact(String),
    Prefix(String),
    Suffix(String),
    Matches(Regex),
    Never,
}

impl Table {
    /// Makes the routes of `routing` ready.
    pub fn new(routing: &Routing) -> Self {
        Self { rules: routing.routes.iter().map(Rule::new).collect() }
    }

    /// The first route that `head` matches, and its position.
    pub fn route(&self, head: &impl Head) -> Option<(usize, &Rule)> {
        self.rules.iter().enumerate().find(|(_, rule)| rule.condition.holds(head))
    }

    /// The route for connections, which have no head.
    pub fn last(&self) -> Option<(usize, &Rule)> {
        self.rules.iter().enumerate().next_back()
    }

    /// What the route at a position is called in records: the path that it matches, with a `*`
    /// after a beginning and a `~` before an expression, or else its number; the same as no other's
    /// of the table. None for the last, which takes what no other does.
    pub fn class(&self, at: usize) -> Option<Arc<str>> {
        let own = self.rules.get(at).filter(|_| at + 1 < self.rules.len())?;
        let is_taken = self.rules[..at].iter().any(|other| other.class == own.class);
        Some(match own.class.as_str() {
            "" => format!("#{at}").into(),
            class if is_taken => format!("{class}#{at}").into(),
            class => class.into(),
        })
    }

    /// The route at a position.
    pub fn rule(&self, at: usize) -> Option<&Rule> {
        self.rules.get(at)
    }
}

/// What the requests that `matching` takes are called.
fn class(matching: &HttpMatch) -> String {
    let HttpMatch { path_exact, path_prefix, path_regex, .. } = matching;
    let whole = match (path_exact.as_str(), path_prefix.as_str(), path_regex.as_str()) {
        ("", "", "") => String::new(),
        ("", "", regex) => format!("~{regex}"),
        ("", prefix, _) => format!("{prefix}*"),
        (exact, ..) => exact.to_owned(),
    };
    match whole.char_indices().nth(CLASS_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &whole[..end]),
        None => whole,
    }
}

impl Rule {
    fn new(route: &RouteView) -> Self {
        let definition = route.definition.as_ref();
        let http = definition.and_then(|it| it.matching.as_ref()).and_then(|it| it.http.as_ref());
        let destination = definition.and_then(|it| it.destination.as_ref());
        Self {
            condition: http.map(Condition::new).unwrap_or_default(),
            class: http.map(class).unwrap_or_default(),
            sticky: route.sticky.clone(),
            policy: destination.map(|it| Policy::new(it, http)).unwrap_or_default(),
            shares: route.splits.iter().map(|split| (split.weight.0, split.end)).collect(),
            mirror: route
                .mirror
                .zip(destination.and_then(|it| it.mirror.as_ref()))
                .map(|(end, mirror)| (end, mirror.percentage)),
        }
    }

    /// Which of the route's shares takes the request, and the end that it is of. None when no share
    /// takes any.
    ///
    /// Those that have in common what the splitter asks for go to the same share, whichever proxy
    /// they pass; all others go round.
    pub fn share(&self, head: &impl Head, rotation: &mut Rotation) -> Option<(usize, usize)> {
        let share = match self.sticky.as_ref().and_then(|sticky| hashed(sticky, head)) {
            Some(hash) => self.share_of(hash),
            None => rotation.next(&self.shares),
        }?;
        Some((share, self.shares[share].1))
    }

    /// The share for a connection.
    pub fn next_share(&self, rotation: &mut Rotation) -> Option<(usize, usize)> {
        let share = rotation.next(&self.shares)?;
        Some((share, self.shares[share].1))
    }

    fn share_of(&self, hash: u64) -> Option<usize> {
        let whole: u64 = self.shares.iter().map(|(weight, _)| u64::from(*weight)).sum();
        let mut ticket = hash.checked_rem(whole)?;
        self.shares.iter().position(|(weight, _)| {
            let weight = u64::from(*weight);
            let is_hit = ticket < weight;
            ticket = ticket.saturating_sub(weight);
            is_hit
        })
    }
}

impl Policy {
    fn new(destination: &RouteDestination, http: Option<&HttpMatch>) -> Self {
        let given = |span: Option<Duration>| span.filter(|span| !span.is_zero());
        let rewrite = Some(&destination.prefix_rewrite).filter(|to| !to.is_empty());
        Self {
            request_timeout: given(destination.request_timeout),
            idle_timeout: match destination.idle_timeout {
                Some(IdleTimeout::After(span)) => given(Some(span)),
                Some(IdleTimeout::Off) | None => None,
            },
            per_try_timeout: given(destination.per_try_timeout),
            retries: Retries::new(destination),
            faults: destination.fault_injection.clone(),
            rewrite: rewrite.zip(http).map(|(to, http)| Rewrite {
                matched: Some(http.path_prefix.len()).filter(|_| http.path_exact.is_empty()),
                to: to.clone(),
            }),
        }
    }

    /// The path that is sent on in place of `path`, which the route matched; none for the same.
    ///
    /// Where the new beginning ends with a slash and the rest begins with one, one is enough.
    pub fn rewritten(&self, path: &str) -> Option<String> {
        let Rewrite { matched, to } = self.rewrite.as_ref()?;
        let rest = match matched {
            None => "",
            Some(matched) => path.get(*matched..)?,
        };
        let rest = if to.ends_with('/') { rest.strip_prefix('/').unwrap_or(rest) } else { rest };
        Some(format!("{to}{rest}"))
    }
}

impl Retries {
    fn new(destination: &RouteDestination) -> Option<Self> {
        let most = u8::try_from(destination.num_retries).unwrap_or(u8::MAX);
        let retries = Self {
            most: Some(most).filter(|most| *most > 0),
            on: Conditions::listed(&destination.retry_on, &destination.retry_on_status_codes),
        };
        Some(retries).filter(|retries| *retries != Self::default())
    }
}

impl Condition {
    fn new(http: &HttpMatch) -> Self {
        let case = if http.case_insensitive { Case::Ignored } else { Case::Counts };
        let path = if !http.path_exact.is_empty() {
            Path::Exact(http.path_exact.clone(), case)
        } else if !http.path_prefix.is_empty() {
            Path::Prefix(http.path_prefix.clone(), case)
        } else if !http.path_regex.is_empty() {
            pattern(&http.path_regex).map_or(Path::Never, Path::Matches)
        } else {
            Path::Any
        };
        let param = |param: &QueryMatch| (param.name.clone(), Test::of_param(param));
        Self {
            path,
            fields: http.header.iter().map(Field::new).collect(),
            params: http.query_param.iter().map(param).collect(),
            methods: http.methods.clone(),
        }
    }

    fn holds(&self, head: &impl Head) -> bool {
        self.path.holds(head.path())
            && (self.methods.is_empty() || self.methods.iter().any(|it| it == head.method()))
            && self.fields.iter().all(|field| field.holds(head))
            && self.params.iter().all(|(name, test)| param(head, name, |value| test.holds(value)))
    }
}

impl Path {
    fn holds(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact, Case::Counts) => path == exact,
            Self::Exact(exact, Case::Ignored) => path.eq_ignore_ascii_case(exact),
            Self::Prefix(prefix, Case::Counts) => path.starts_with(prefix.as_str()),
            Self::Prefix(prefix, Case::Ignored) => {
                path.get(..prefix.len()).is_some_and(|it| it.eq_ignore_ascii_case(prefix))
            }
            Self::Matches(regex) => regex.is_match(path),
            Self::Never => false,
        }
    }
}

impl Field {
    fn new(header: &HeaderMatch) -> Self {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let test = if let Some(exact) = given(&header.exact) {
            Test::Exact(exact)
        } else if let Some(prefix) = given(&header.prefix) {
            Test::Prefix(prefix)
        } else if let Some(suffix) = given(&header.suffix) {
            Test::Suffix(suffix)
        } else if !header.regex.is_empty() {
            pattern(&header.regex).map_or(Test::Never, Test::Matches)
        } else {
            Test::Present
        };
        Self { name: header.name.to_ascii_lowercase(), test, is_inverted: header.invert }
    }

    fn holds(&self, head: &impl Head) -> bool {
        let found = match self.name.as_str() {
            ":method" => Some(self.test.holds(head.method())),
            ":path" => Some(self.test.holds(head.path())),
            ":authority" | "host" => Some(self.test.holds(head.authority())),
            // Between proxies there is but one.
            name if PSEUDO.contains(&name) => Some(self.test.holds("http")),
            name => head.field(name, &mut |value| self.test.holds(value)),
        };
        found.unwrap_or_default() != self.is_inverted
    }
}

impl Test {
    fn of_param(param: &QueryMatch) -> Self {
        match (&param.exact, &param.regex) {
            (exact, _) if !exact.is_empty() => Self::Exact(exact.clone()),
            (_, regex) if !regex.is_empty() => pattern(regex).map_or(Self::Never, Self::Matches),
            _ => Self::Present,
        }
    }

    fn holds(&self, value: &str) -> bool {
        match self {
            Self::Present => true,
            Self::Exact(exact) => value == exact,
            Self::Prefix(prefix) => value.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => value.ends_with(suffix.as_str()),
            Self::Matches(regex) => regex.is_match(value),
            Self::Never => false,
        }
    }
}

/// Whether `test` holds for one of the query's parameters called `name`.
fn param(head: &impl Head, name: &str, mut test: impl FnMut(&str) -> bool) -> bool {
    head.query().unwrap_or_default().split('&').any(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        plain(key) == name && test(&plain(value))
    })
}

/// A part of a query without its escapes; what is no escape stays.
fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digit = |at: usize| after.get(at).and_then(|it| char::from(*it).to_digit(16));
        rest = after;
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                octets.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                rest = &after[2..];
            }
            (b'+', ..) => octets.push(b' '),
            (octet, ..) => octets.push(*octet),
        }
    }
    Cow::Owned(String::from_utf8_lossy(&octets).into_owned())
}

/// What `sticky` finds in a request, hashed the same in every proxy.
fn hashed(sticky: &Sticky, head: &impl Head) -> Option<u64> {
    let name = sticky.field_value.as_str();
    let mut hash = None;
    match sticky.field.as_str() {
        "header" => {
            head.field(&name.to_ascii_lowercase(), &mut |value| {
                hash = Some(spread(value));
                true
            });
        }
        "cookie" => {
            head.field("cookie", &mut |cookies| {
                let mut pairs = cookies.split(';').filter_map(|pair| pair.trim().split_once('='));
                hash = pairs.find(|(key, _)| *key == name).map(|(_, value)| spread(value));
                hash.is_some()
            });
        }
        _ => {
            param(head, name, |value| {
                hash = Some(spread(value));
                true
            });
        }
    }
    hash
}

/// FNV-1a with its bits mixed, so that texts which differ in one octet fall far apart.
fn spread(text: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for octet in text.bytes() {
        hash = (hash ^ u64::from(octet)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

/// Where one route's round stands.
///
/// Shares take turns by smooth weighted round robin, so that after any number of requests each has
/// had its share to within one, and after a whole round exactly.
///
/// Source: nginx's upstream balancing (commit 52327e0).
#[derive(Clone, Debug, Default)]
pub struct Rotation {
    credit: Vec<i64>,
}

impl Rotation {
    /// A round that begins somewhere, so that the proxies of a fleet do not all begin with the
    /// greatest share.
    pub fn starting_at(rule: &Rule, draw: u64) -> Self {
        let mut rotation = Self::default();
        for _ in 0..draw % STARTS {
            rotation.next(&rule.shares);
        }
        rotation
    }

    fn next(&mut self, shares: &[(u16, usize)]) -> Option<usize> {
        let whole: i64 = shares.iter().map(|(weight, _)| i64::from(*weight)).sum();
        if whole == 0 {
            return None;
        }
        self.credit.resize(shares.len(), 0);
        for (credit, (weight, _)) in self.credit.iter_mut().zip(shares) {
            *credit += i64::from(*weight);
        }
        let entitled = (0..shares.len()).filter(|at| shares[*at].0 > 0);
        // The first of equals, as `max_by_key` would take the last.
        let next = entitled.rev().max_by_key(|at| self.credit[*at])?;
        self.credit[next] -= whole;
        Some(next)
    }
}

/// A round may begin at any of so many places.
const STARTS: u64 = 100;
/// Of a class; a path may be longer.
const CLASS_CHARS_MAX: usize = 48;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{ServiceRoute, Weight};
    use crate::retry::End;
    use crate::view::SplitView;

    struct Request {
        method: &'static str,
        target: &'static str,
        fields: &'static [(&'static str, &'static str)],
    }

    impl Head for Request {
        fn method(&self) -> &str {
            self.method
        }
        fn path(&self) -> &str {
            self.target.split('?').next().unwrap_or_default()
        }
        fn query(&self) -> Option<&str> {
            self.target.split_once('?').map(|(_, query)| query)
        }
        fn authority(&self) -> &str {
            "web.example"
        }
        fn field(&self, name: &str, test: &mut dyn FnMut(&str) -> bool) -> Option<bool> {
            let values: Vec<_> = self.fields.iter().filter(|(key, _)| *key == name).collect();
            (!values.is_empty()).then(|| values.iter().any(|(_, value)| test(value)))
        }
    }

    fn get(target: &'static str, fields: &'static [(&'static str, &'static str)]) -> Request {
        Request { method: "GET", target, fields }
    }

    #[test]
    fn routes_are_called_by_the_paths_that_they_match_and_no_two_alike() {
        let long = format!("/{}", "a".repeat(60));
        let long_route = format!(r#"{{"Match":{{"HTTP":{{"PathExact":"{long}"}}}}}}"#);
        let cases = [
            (r#"{"Match":{"HTTP":{"PathExact":"/a"}}}"#, "/a".to_owned()),
            (r#"{"Match":{"HTTP":{"PathPrefix":"/a"}}}"#, "/a*".to_owned()),
            (r#"{"Match":{"HTTP":{"PathRegex":"/a|/b"}}}"#, "~/a|/b".to_owned()),
            (r#"{"Match":{"HTTP":{"PathPrefix":"/a","Methods":["PUT"]}}}"#, "/a*#3".to_owned()),
            (r#"{"Match":{"HTTP":{"Methods":["PUT"]}}}"#, "#4".to_owned()),
            (long_route.as_str(), format!("{}…", &long[..48])),
        ];
        let last = std::iter::once(rule("{}", &[10_000]));
        let rules = cases.iter().map(|(route, _)| rule(route, &[10_000])).chain(last);
        let table = Table { rules: rules.collect() };
        for (at, (route, expected)) in cases.iter().enumerate() {
            assert_eq!(table.class(at).as_deref(), Some(expected.as_str()), "{route}");
        }
        assert_eq!(table.class(cases.len()), None, "what no other route takes");
    }

    fn rule(definition: &str, weights: &[u16]) -> Rule {
        let definition: ServiceRoute = serde_json::from_str(definition).expect(definition);
        let split = |(end, weight): (usize, &u16)| SplitView {
            weight: Weight(*weight),
            end,
            ..SplitView::default()
        };
        Rule::new(&RouteView {
            definition: Some(definition),
            sticky: None,
            mirror: None,
            splits: weights.iter().enumerate().map(split).collect(),
        })
    }

    #[test]
    fn each_condition_holds_or_not() {
        let plain = || get("/a/b?x=1&y=a%20b", &[("x-id", "abc-1"), ("x-id", "zz")]);
        let cases = [
            // match, request, expected, why
            (r#"{}"#, plain(), true, "nothing is asked"),
            (r#"{"PathExact":"/a/b"}"#, plain(), true, "the query is no part of the path"),
            (r#"{"PathExact":"/a"}"#, plain(), false, "not the whole path"),
            (r#"{"PathExact":"/A/B","CaseInsensitive":true}"#, plain(), true, "case is ignored"),
            (r#"{"PathPrefix":"/a"}"#, plain(), true, "it begins so"),
            (r#"{"PathPrefix":"/A"}"#, plain(), false, "case counts"),
            (r#"{"PathPrefix":"/A","CaseInsensitive":true}"#, plain(), true, "case is ignored"),
            (r#"{"PathPrefix":"/a/b/c","CaseInsensitive":true}"#, plain(), false, "too short"),
            (r#"{"PathRegex":"/a/[a-c]"}"#, plain(), true, "as a whole"),
            (r#"{"PathRegex":"/a"}"#, plain(), false, "a part does not do"),
            (r#"{"PathRegex":"/x|/a/b"}"#, plain(), true, "both branches are anchored"),
            (r#"{"Methods":["POST","GET"]}"#, plain(), true, "one of them"),
            (r#"{"Methods":["POST"]}"#, plain(), false, "another method"),
            (r#"{"Header":[{"Name":"X-Id","Present":true}]}"#, plain(), true, "it is there"),
            (r#"{"Header":[{"Name":"x-no","Present":true}]}"#, plain(), false, "it is not"),
            (r#"{"Header":[{"Name":"x-no","Present":true,"Invert":true}]}"#, plain(), true, "so"),
            (r#"{"Header":[{"Name":"x-id","Exact":"zz"}]}"#, plain(), true, "any of several"),
            (r#"{"Header":[{"Name":"x-id","Exact":"zz","Invert":true}]}"#, plain(), false, "not"),
            (r#"{"Header":[{"Name":"x-id","Prefix":"abc"}]}"#, plain(), true, "it begins so"),
            (r#"{"Header":[{"Name":"x-id","Suffix":"-1"}]}"#, plain(), true, "it ends so"),
            (r#"{"Header":[{"Name":"x-id","Regex":"[a-z]+-\\d"}]}"#, plain(), true, "as a whole"),
            (r#"{"Header":[{"Name":"x-id","Regex":"[a-y]+"}]}"#, plain(), false, "not a part"),
            (r#"{"Header":[{"Name":":authority","Exact":"web.example"}]}"#, plain(), true, "host"),
            (r#"{"Header":[{"Name":":method","Exact":"GET"}]}"#, plain(), true, "pseudo-field"),
            (r#"{"QueryParam":[{"Name":"x","Exact":"1"}]}"#, plain(), true, "this value"),
            (r#"{"QueryParam":[{"Name":"y","Exact":"a b"}]}"#, plain(), true, "unescaped"),
            (r#"{"QueryParam":[{"Name":"z","Present":true}]}"#, plain(), false, "it is not there"),
            (r#"{"QueryParam":[{"Name":"x","Regex":"\\d+"}]}"#, plain(), true, "as a whole"),
            (
                r#"{"PathPrefix":"/a","Methods":["GET"],"QueryParam":[{"Name":"x","Exact":"2"}]}"#,
                plain(),
                false,
                "all must hold",
            ),
        ];
        for (http, request, expected, why) in cases {
            let route = rule(&format!(r#"{{"Match":{{"HTTP":{http}}}}}"#), &[10_000]);
            assert_eq!(route.condition.holds(&request), expected, "{http}: {why}");
        }
    }

    #[test]
    fn paths_are_rewritten() {
        let cases = [
            (r#"{"PathPrefix":"/api/"}"#, "/", "/api/x/y", "/x/y"),
            (r#"{"PathPrefix":"/api"}"#, "/", "/api/x", "/x"),
            (r#"{"PathPrefix":"/api"}"#, "/v2", "/api/x", "/v2/x"),
            (r#"{"PathPrefix":"/api"}"#, "/v2", "/api", "/v2"),
            (r#"{"PathExact":"/old"}"#, "/new", "/old", "/new"),
        ];
        for (http, to, path, expected) in cases {
            let text = format!(
                r#"{{"Match":{{"HTTP":{http}}},"Destination":{{"PrefixRewrite":"{to}"}}}}"#
            );
            let rewritten = rule(&text, &[]).policy.rewritten(path);
            assert_eq!(rewritten.as_deref(), Some(expected), "{http} -> {to}: {path}");
        }
        assert_eq!(rule("{}", &[]).policy.rewritten("/a"), None);
    }

    #[test]
    fn shares_are_exact_after_a_round_and_nearly_so_before() {
        let cases: [&[u16]; 5] =
            [&[9000, 1000], &[5000, 3000, 2000], &[10_000, 0], &[3333, 3333, 3334], &[1, 9999]];
        for weights in cases {
            let rule = rule("{}", weights);
            let mut rotation = Rotation::starting_at(&rule, 7);
            let mut counts = vec![0_u64; weights.len()];
            for sent in 1..=10_000_u64 {
                let (share, end) = rule.next_share(&mut rotation).expect("weights");
                assert_eq!(share, end);
                counts[share] += 1;
                for (count, weight) in counts.iter().zip(weights) {
                    let due = sent as f64 * f64::from(*weight) / 10_000.0;
                    let off = (*count as f64 - due).abs();
                    assert!(off < 2.0, "{weights:?}: after {sent} {count} and not {due}");
                }
            }
            let expected: Vec<u64> = weights.iter().map(|weight| u64::from(*weight)).collect();
            assert_eq!(counts, expected, "{weights:?}");
        }
        assert_eq!(rule("{}", &[]).next_share(&mut Rotation::default()), None);
        assert_eq!(rule("{}", &[0]).next_share(&mut Rotation::default()), None);
    }

    /// Header fields of a request.
    type Fields = &'static [(&'static str, &'static str)];

    #[test]
    fn requests_with_the_same_mark_stay_together() {
        let fields: [(&str, &str, Fields, Fields); 2] = [
            ("header", "X-User", &[("x-user", "ann")], &[("x-user", "bob")]),
            ("cookie", "sid", &[("cookie", "a=1; sid=ann")], &[("cookie", "sid=bob; a=1")]),
        ];
        for (field, name, ann, bob) in fields {
            let sticky = Sticky { field: field.into(), field_value: name.into() };
            let mut rule = rule("{}", &[5000, 5000]);
            rule.sticky = Some(sticky.clone());
            let mut rotation = Rotation::default();
            for marked in [ann, bob] {
                let mut shares =
                    (0..50).map(|_| rule.share(&get("/", marked), &mut rotation).expect("a share"));
                let first = shares.next();
                assert!(shares.all(|share| Some(share) == first), "{field}");
            }
            let mut without = [0; 2];
            for _ in 0..100 {
                without[rule.share(&get("/", &[]), &mut rotation).expect("a share").0] += 1;
            }
            assert_eq!(without, [50, 50], "{field}: without a mark they go round");
        }
        let mut counts = [0; 2];
        let rule = rule("{}", &[9000, 1000]);
        for user in 0..10_000 {
            counts[rule.share_of(spread(&format!("user-{user}"))).expect("a share")] += 1;
        }
        assert!((8_800..9_200).contains(&counts[0]), "{counts:?}");
    }

    #[test]
    fn what_is_tried_again_is_as_written() {
        let cases = [
            (r#"{"RetryOn":["5xx"]}"#, End::Status(503), true),
            (r#"{"RetryOn":["gateway-error"]}"#, End::Status(500), false),
            (r#"{"RetryOn":["gateway-error"]}"#, End::Status(504), true),
            (r#"{"RetryOn":["retriable-4xx"]}"#, End::Status(409), true),
            (r#"{"RetryOn":["unavailable"]}"#, End::Grpc(14), true),
            (r#"{"RetryOn":["unavailable"]}"#, End::Grpc(13), false),
            (r#"{"RetryOnStatusCodes":[418]}"#, End::Status(418), true),
            (r#"{"RetryOnStatusCodes":[418]}"#, End::Status(503), false),
        ];
        let retries = |destination: &str| {
            let rule = rule(&format!(r#"{{"Destination":{destination}}}"#), &[]);
            rule.policy.retries.expect(destination)
        };
        for (destination, end, expected) in cases {
            let on = retries(destination).on.expect(destination);
            assert_eq!(on.cover(end, false, false), expected, "{destination}: {end:?}");
        }
        assert_eq!(retries(r#"{"NumRetries":3}"#), Retries { most: Some(3), on: None });
        assert_eq!(rule(r#"{"Destination":{}}"#, &[]).policy.retries, None);
    }
}
