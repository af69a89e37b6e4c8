//! A plain reading of the contract: slow, obvious, and sharing nothing with what it checks.
//!
//! Written from the words of the guide on security and intentions, not from the code: paths are
//! lists of segments, policies are JSON, regular expressions are functions.

use std::collections::BTreeMap;

use serde_json::Value;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Outcome {
    Allowed,
    Denied,
    Missing,
    Invalid,
    NoKeys,
    Bad,
}

impl Outcome {
    pub(crate) const ALL: [Self; 6] =
        [Self::Allowed, Self::Denied, Self::Missing, Self::Invalid, Self::NoKeys, Self::Bad];
}

/// What is known of a token.
#[derive(Clone, Debug)]
pub(crate) enum Token {
    Missing,
    Invalid,
    NoKeys,
    Good(Value),
}

/// A request as the caller sent it.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) source: String,
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) authority: String,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) tokens: BTreeMap<String, Token>,
}

type Matcher = fn(&str) -> bool;

/// Expressions, each with what it means said in another way.
pub(crate) const REGEXES: [(&str, Matcher); 5] = [
    ("/v[0-9]+/.*", |text| {
        let Some(rest) = text.strip_prefix("/v") else { return false };
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        digits > 0 && rest.as_bytes().get(digits) == Some(&b'/')
    }),
    ("admin|user", |text| text == "admin" || text == "user"),
    (".*admin.*", |text| text.contains("admin")),
    ("(?i)ADMIN", |text| text.eq_ignore_ascii_case("admin")),
    ("/a:b.*", |text| text.starts_with("/a:b")),
];

/// What the policies say of the request.
pub(crate) fn outcome(rules: &[Value], allows_by_default: bool, request: &Request) -> Outcome {
    const KNOWN: [&str; 4] = ["GET", "POST", "PUT", "DELETE"];
    if !KNOWN.contains(&request.method.as_str()) {
        return Outcome::Bad;
    }
    let Some(path) = normal_path(&request.target) else { return Outcome::Bad };
    // "Only the single highest-precedence match for a (source, destination) is used."
    let precedence = |rule: &&Value| match (rule["Source"].as_str(), rule["Destination"].as_str()) {
        (Some(source), Some("db")) if source == request.source => 9,
        (Some("*"), Some("db")) => 8,
        (Some(source), Some("*")) if source == request.source => 6,
        (Some("*"), Some("*")) => 5,
        _ => 0,
    };
    let allowed = |is: bool| if is { Outcome::Allowed } else { Outcome::Denied };
    let best = rules.iter().filter(|rule| precedence(rule) > 0).max_by_key(precedence);
    let Some(rule) = best else { return allowed(allows_by_default) };
    // A token that all requests must bring comes before all else.
    if let Some(jwt) = rule.get("JWT") {
        match bring(jwt, request) {
            Brought::Good => {}
            Brought::OtherClaims => return Outcome::Denied,
            Brought::Not(outcome) => return outcome,
        }
    }
    let Some(permissions) = rule.get("Permissions").and_then(Value::as_array) else {
        return allowed(rule["Action"] == "allow");
    };
    for permission in permissions {
        let denies = permission["Action"] == "deny";
        if !permission.get("HTTP").is_none_or(|http| applies(http, denies, &path, request)) {
            continue;
        }
        match permission.get("JWT").map(|jwt| bring(jwt, request)) {
            None | Some(Brought::Good) => return allowed(!denies),
            Some(Brought::OtherClaims) => {}
            Some(Brought::Not(outcome)) => return outcome,
        }
    }
    // "No permission matches: the mesh default, not a lower-precedence intention."
    allowed(allows_by_default)
}

enum Brought {
    Good,
    OtherClaims,
    Not(Outcome),
}

/// Any provider's token will do; of what is missing, the gravest is told.
fn bring(jwt: &Value, request: &Request) -> Brought {
    let providers = jwt["Providers"].as_array().expect("providers");
    let of = |provider: &Value| &request.tokens[provider["Name"].as_str().expect("a name")];
    let is_proven = |provider: &&Value| matches!(of(provider), Token::Good(_));
    let has_claims = |provider: &Value| {
        let Token::Good(claims) = of(provider) else { return false };
        let asked = provider.get("VerifyClaims").and_then(Value::as_array);
        asked.into_iter().flatten().all(|claim| {
            let path = claim["Path"].as_array().expect("a path");
            let pointer: String =
                path.iter().map(|name| format!("/{}", name.as_str().expect("a name"))).collect();
            let found = claims.pointer(&pointer).cloned().unwrap_or(Value::Null);
            let values = match found {
                Value::Array(list) => list,
                one => vec![one],
            };
            values.iter().any(|value| match value {
                Value::String(text) => claim["Value"] == *text,
                Value::Bool(_) | Value::Number(_) => claim["Value"] == *value.to_string(),
                _ => false,
            })
        })
    };
    if providers.iter().any(has_claims) {
        return Brought::Good;
    }
    if providers.iter().any(|provider| is_proven(&provider)) {
        return Brought::OtherClaims;
    }
    let any = |is: fn(&Token) -> bool| providers.iter().any(|provider| is(of(provider)));
    Brought::Not(match () {
        () if any(|token| matches!(token, Token::NoKeys)) => Outcome::NoKeys,
        () if any(|token| matches!(token, Token::Invalid)) => Outcome::Invalid,
        () => Outcome::Missing,
    })
}

fn applies(http: &Value, denies: bool, path: &str, request: &Request) -> bool {
    let methods = http.get("Methods").and_then(Value::as_array);
    if methods.is_some_and(|all| !all.iter().any(|method| *method == *request.method)) {
        return false;
    }
    // A rule that denies is asked about the path as written and as meant.
    let mut paths = vec![path.to_owned()];
    if denies {
        paths.push(plain(path));
    }
    let text = |key: &str| http.get(key).and_then(Value::as_str);
    let fits = |path: &String| {
        text("PathExact").is_none_or(|exact| path == exact)
            && text("PathPrefix").is_none_or(|prefix| path.starts_with(prefix))
            && text("PathRegex").is_none_or(|regex| matcher(regex)(path))
    };
    let fields = http.get("Header").and_then(Value::as_array);
    paths.iter().any(fits)
        && fields.into_iter().flatten().all(|field| field_applies(field, denies, request))
}

fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => host,
        _ => authority,
    }
}

fn matcher(regex: &str) -> Matcher {
    REGEXES.iter().find(|(text, _)| *text == regex).expect("one of ours").1
}

fn field_applies(field: &Value, denies: bool, request: &Request) -> bool {
    let name = field["Name"].as_str().expect("a name").to_lowercase();
    let lines: Vec<&str> = match name.as_str() {
        "host" => vec![&request.authority],
        _ => {
            let own = request.fields.iter().filter(|(own, _)| *own == name);
            own.map(|(_, value)| value.trim()).collect()
        }
    };
    let folded = |text: &str| match field["IgnoreCase"] == true {
        true => text.to_ascii_lowercase(),
        false => text.to_owned(),
    };
    let fits = |value: &str| {
        let value = folded(value);
        let text = |key: &str| field.get(key).and_then(Value::as_str).map(folded);
        text("Exact").is_none_or(|exact| value == exact)
            && text("Prefix").is_none_or(|prefix| value.starts_with(&prefix))
            && text("Suffix").is_none_or(|suffix| value.ends_with(&suffix))
            && text("Contains").is_none_or(|part| value.contains(&part))
            && field
                .get("Regex")
                .is_none_or(|regex| matcher(regex.as_str().expect("a text"))(&value))
    };
    let any = match name.as_str() {
        // A port is no part of a host's name, and a host is no list.
        "host" => fits(&request.authority) || fits(without_port(&request.authority)),
        // Several fields of one name are one list; of cookies HTTP/2 makes several fields.
        name => {
            let (separator, joints): (char, &[&str]) =
                if name == "cookie" { (';', &["; "]) } else { (',', &[", ", ","]) };
            let elements = lines.iter().flat_map(|line| line.split(separator)).map(str::trim);
            lines.iter().any(|line| fits(line))
                || elements.into_iter().any(&fits)
                || (lines.len() > 1 && joints.iter().any(|joint| fits(&lines.join(joint))))
        }
    };
    let alone = matches!(lines[..], [line] if fits(line));
    let is_inverted = field["Invert"] == true;
    let is_presence = field["Present"] == true;
    match (denies, is_inverted) {
        // "A deny matches if any value matches; an allow needs exactly one value."
        (true, false) => any,
        (false, false) => alone,
        // Denied unless it is plainly so; allowed only if it is plainly not so.
        (true, true) => !alone,
        (false, true) if is_presence => lines.is_empty(),
        (false, true) => lines.len() == 1 && !any,
    }
}

/// One octet of a path: plain, or escaped.
#[derive(Clone, Copy, PartialEq)]
enum Octet {
    Plain(u8),
    Escaped(u8),
}

/// The path in its one spelling; none when it has none.
pub(crate) fn normal_path(target: &str) -> Option<String> {
    // What no target may hold as it is; escaped, a space may stand in a path.
    if target.contains('#') || target.contains(' ') || !target.starts_with('/') {
        return None;
    }
    let path = target.split('?').next()?;
    // An escape is two digits after `%`.
    let mut octets = Vec::new();
    let bytes = path.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%' {
            let digits = std::str::from_utf8(bytes.get(at + 1..at + 3)?).ok()?;
            if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return None;
            }
            octets.push(Octet::Escaped(u8::from_str_radix(digits, 16).ok()?));
            at += 3;
        } else {
            octets.push(Octet::Plain(bytes[at]));
            at += 1;
        }
    }
    // No control characters, no slashes in disguise, and nothing that is not UTF-8.
    let meant: Vec<u8> = octets
        .iter()
        .map(|octet| match octet {
            Octet::Plain(octet) | Octet::Escaped(octet) => *octet,
        })
        .collect();
    std::str::from_utf8(&meant).ok()?;
    if meant.iter().any(|octet| octet.is_ascii_control()) || meant.contains(&b'\\') {
        return None;
    }
    if octets.contains(&Octet::Escaped(b'/')) {
        return None;
    }
    let spelt: String = octets.iter().map(|octet| spell(*octet)).collect();
    // What is escaped twice: `%25` and two digits.
    for (at, _) in spelt.match_indices("%25") {
        let after: String = spelt[at + 3..].chars().take(2).collect();
        if after.len() == 2 && after.chars().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
    }
    let mut kept: Vec<&str> = Vec::new();
    let segments: Vec<&str> = spelt[1..].split('/').collect();
    let ends_in_folder = matches!(segments.last(), Some(&("" | "." | "..")));
    for segment in segments {
        // Escaped or not: some programs cut parameters off before they unescape, some after.
        let name = segment.split("%3B").next().unwrap_or_default();
        let name = name.split(';').next().unwrap_or_default();
        if (name == "." || name == "..") && name != segment {
            return None;
        }
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    let end = if ends_in_folder && !kept.is_empty() { "/" } else { "" };
    Some(format!("/{}{end}", kept.join("/")))
}

fn spell(octet: Octet) -> String {
    let is_unreserved = |octet: u8| octet.is_ascii_alphanumeric() || b"-._~".contains(&octet);
    match octet {
        Octet::Plain(octet) | Octet::Escaped(octet) if is_unreserved(octet) => {
            char::from(octet).to_string()
        }
        Octet::Plain(octet) if b"/!$&'()*+,;=:@".contains(&octet) => char::from(octet).to_string(),
        Octet::Plain(octet) | Octet::Escaped(octet) => format!("%{octet:02X}"),
    }
}

/// The path with its escapes undone.
fn plain(path: &str) -> String {
    let mut meant = Vec::new();
    let mut pieces = path.split('%');
    meant.extend(pieces.next().unwrap_or_default().bytes());
    for piece in pieces {
        meant.push(u8::from_str_radix(&piece[..2], 16).expect("a normal path's escape"));
        meant.extend(piece[2..].bytes());
    }
    String::from_utf8(meant).expect("a normal path means UTF-8")
}
