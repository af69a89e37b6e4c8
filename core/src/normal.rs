//! The normal form of a request: one spelling for what is routed, authorized and forwarded.
//!
//! A path that two programs read differently is how a request passes a rule that was written
//! against it. So there is one reading, made once: what has a normal form is rewritten to it, what
//! has none is refused, and rules, routes and the application all see the same text. Making the
//! normal form normal changes nothing, and most targets are normal already: those cost one pass
//! and no memory.
//!
//! Source: RFC 3986 §6.2.2, and what the field had to correct after it (Envoy CVE-2019-9901,
//! CVE-2021-29492; Istio CVE-2021-31920, CVE-2021-39155, CVE-2021-39156; Consul CVE-2024-10005).

use serde::{Deserialize, Serialize};

/// How requests are made normal; the default is the safe choice.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rules {
    /// Whether paths are made normal at all. Without it, only what no path may hold is refused.
    pub is_on: bool,
    /// Whether `//` becomes `/`.
    pub merges_slashes: bool,
    /// What is done about `%2F`, `%5C` and `\`.
    pub escaped_slashes: EscapedSlashes,
    /// What is done about field names with `_`, which many programs read as `-`.
    pub underscores: Underscores,
    /// What is done about `x-forwarded-for`, `-proto`, `-host` and `forwarded` of a caller.
    pub forwarded: Forwarded,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            is_on: true,
            merges_slashes: true,
            escaped_slashes: EscapedSlashes::Refuse,
            underscores: Underscores::Refuse,
            forwarded: Forwarded::Replace,
        }
    }
}

/// What is done about slashes in disguise: `%2F`, `%5C` and `\`. In Consul's words.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub enum EscapedSlashes {
    /// The request is refused.
    #[default]
    #[serde(rename = "REJECT_REQUEST", alias = "IMPLEMENTATION_SPECIFIC_DEFAULT", alias = "")]
    Refuse,
    /// They stay, escaped: part of a segment and no separator.
    #[serde(rename = "KEEP_UNCHANGED")]
    Keep,
    /// They become `/`, and the path is made normal with them.
    #[serde(rename = "UNESCAPE_AND_FORWARD")]
    Decode,
}

/// What is done about field names with `_`. In Consul's words.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub enum Underscores {
    /// The request is refused.
    #[default]
    #[serde(rename = "REJECT_REQUEST", alias = "")]
    Refuse,
    /// The field is dropped.
    #[serde(rename = "DROP_HEADER")]
    Drop,
    /// It passes.
    #[serde(rename = "ALLOW")]
    Keep,
}

/// What is done about a caller's own word on where a request came from.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub enum Forwarded {
    /// It is dropped; the callee's proxy says what it saw itself.
    #[default]
    #[serde(rename = "replace", alias = "")]
    Replace,
    /// It passes: applications trust each other on it.
    #[serde(rename = "keep")]
    Keep,
}

/// Why a request has no normal form.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Abnormal {
    /// The path does not begin with `/`.
    #[error("the path does not begin with /")]
    NotAbsolute,
    /// An octet that no target may hold: a control character, a space, or NUL, escaped or not.
    #[error("the target holds a control character, escaped or not")]
    Control,
    /// A `#`: fragments are not sent.
    #[error("the target holds a fragment")]
    Fragment,
    /// A `%` that two hexadecimal digits do not follow.
    #[error("the path holds % without two hexadecimal digits")]
    BadEscape,
    /// An escaped `%` that begins another escape.
    #[error("the path is escaped twice")]
    DoubleEscape,
    /// `%2F`, `%5C` or `\`.
    #[error("the path holds an escaped slash or a backslash")]
    EscapedSlash,
    /// Octets that are no UTF-8 once unescaped.
    #[error("the target is not UTF-8")]
    NotUtf8,
    /// `.` or `..` with parameters, which some programs read as `.` or `..`.
    #[error("the path holds a dot segment with parameters")]
    DotParameter,
    /// The authority is none, or is more than a host and a port.
    #[error("the authority is not one host with at most one port")]
    BadAuthority,
}

/// The normal form of `target`, a path with or without a query; none where it is normal already.
///
/// The query is not rewritten, except that octets which no target may hold are escaped.
///
/// # Errors
/// [`Abnormal`], when it has none and must be refused.
pub fn target(target: &[u8], rules: &Rules) -> Result<Option<String>, Abnormal> {
    if is_normal(target) {
        return Ok(None);
    }
    let (path, query) = match target.iter().position(|octet| *octet == b'?') {
        Some(at) => target.split_at(at),
        None => (target, &[][..]),
    };
    if !path.starts_with(b"/") {
        return Err(Abnormal::NotAbsolute);
    }
    let mut normal = if rules.is_on {
        resolved(&unescaped(path, rules)?, rules.merges_slashes)?
    } else {
        passed(path)?
    };
    escape_query(query, &mut normal)?;
    // All that was put together is ASCII.
    let normal = String::from_utf8(normal).map_err(|_| Abnormal::NotUtf8)?;
    Ok((normal.as_bytes() != target).then_some(normal))
}

/// Whether `target` is plainly normal under any rules. A false answer says nothing.
fn is_normal(target: &[u8]) -> bool {
    if target.first() != Some(&b'/') {
        return false;
    }
    let mut last = b' ';
    let mut octets = target.iter();
    for octet in octets.by_ref() {
        match octet {
            b'?' => break,
            // Whether these change anything depends on what stands around them.
            b'/' | b'.' if last == b'/' => return false,
            octet if !is_segment(*octet) => return false,
            octet => last = *octet,
        }
    }
    octets.all(|octet| is_query(*octet))
}

/// The octets that stand in a normal path as they are: RFC 3986's `pchar` without `%`, and `/`.
const fn is_segment(octet: u8) -> bool {
    is_unreserved(octet)
        || matches!(octet, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';')
        || matches!(octet, b'=' | b':' | b'@' | b'/')
}

const fn is_unreserved(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'.' | b'_' | b'~')
}

/// The octets that pass in a query as they are: more than RFC 3986 has, as browsers send more.
const fn is_query(octet: u8) -> bool {
    octet.is_ascii_graphic() && octet != b'#'
}

/// The path with every octet either plain or escaped, as is normal for it.
fn unescaped(path: &[u8], rules: &Rules) -> Result<Vec<u8>, Abnormal> {
    let mut normal = Vec::with_capacity(path.len() + 8);
    let mut meant = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [octet, after @ ..] = rest {
        rest = after;
        let is_escaped = *octet == b'%';
        let octet = match (is_escaped, after) {
            (false, _) => *octet,
            (true, [high, low, after @ ..]) => {
                rest = after;
                hex(*high)
                    .zip(hex(*low))
                    .map_or(Err(Abnormal::BadEscape), |(h, l)| Ok(h << 4 | l))?
            }
            (true, _) => return Err(Abnormal::BadEscape),
        };
        meant.push(octet);
        match octet {
            0..=0x20 | 0x7F if !(is_escaped && octet == b' ') => return Err(Abnormal::Control),
            b'#' if !is_escaped => return Err(Abnormal::Fragment),
            b'/' if !is_escaped => normal.push(octet),
            b'/' | b'\\' => match rules.escaped_slashes {
                EscapedSlashes::Refuse => return Err(Abnormal::EscapedSlash),
                EscapedSlashes::Keep => escape(octet, &mut normal),
                EscapedSlashes::Decode => normal.push(b'/'),
            },
            octet if is_unreserved(octet) || (is_segment(octet) && !is_escaped) => {
                normal.push(octet);
            }
            octet => escape(octet, &mut normal),
        }
    }
    std::str::from_utf8(&meant).map_err(|_| Abnormal::NotUtf8)?;
    // Asked of the outcome: the digits after `%25` may have been escaped themselves.
    let is_twice =
        |five: &[u8]| five.starts_with(b"%25") && five[3..].iter().all(u8::is_ascii_hexdigit);
    if normal.windows(5).any(is_twice) {
        return Err(Abnormal::DoubleEscape);
    }
    Ok(normal)
}

/// The path without `.` and `..`, and where `merges` without empty segments.
fn resolved(path: &[u8], merges: bool) -> Result<Vec<u8>, Abnormal> {
    let mut kept: Vec<&[u8]> = Vec::new();
    let mut segments = path[1..].split(|octet| *octet == b'/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            b"." => {}
            b".." => {
                kept.pop();
            }
            b"" if merges && !is_last => continue,
            segment if has_dots_and_parameters(segment) => return Err(Abnormal::DotParameter),
            segment => {
                kept.push(segment);
                continue;
            }
        }
        // `/a/.` is the folder `/a/`.
        if is_last {
            kept.push(b"");
        }
    }
    let mut normal = Vec::with_capacity(path.len());
    for segment in kept {
        normal.push(b'/');
        normal.extend_from_slice(segment);
    }
    Ok(normal)
}

fn has_dots_and_parameters(segment: &[u8]) -> bool {
    [&b".;"[..], b"..;", b".%3B", b"..%3B"].iter().any(|start| segment.starts_with(start))
}

/// The path as it came, without what no path may hold.
fn passed(path: &[u8]) -> Result<Vec<u8>, Abnormal> {
    let mut passed = Vec::with_capacity(path.len());
    for (at, octet) in path.iter().enumerate() {
        match octet {
            0..=0x20 | 0x7F => return Err(Abnormal::Control),
            b'%' if path[at + 1..].starts_with(b"00") => return Err(Abnormal::Control),
            b'#' => return Err(Abnormal::Fragment),
            0x80.. => escape(*octet, &mut passed),
            octet => passed.push(*octet),
        }
    }
    std::str::from_utf8(path).map_err(|_| Abnormal::NotUtf8)?;
    Ok(passed)
}

fn escape_query(query: &[u8], onto: &mut Vec<u8>) -> Result<(), Abnormal> {
    std::str::from_utf8(query).map_err(|_| Abnormal::NotUtf8)?;
    for octet in query {
        match octet {
            b'#' => return Err(Abnormal::Fragment),
            octet if is_query(*octet) => onto.push(*octet),
            0x80.. => escape(*octet, onto),
            _ => return Err(Abnormal::Control),
        }
    }
    Ok(())
}

fn escape(octet: u8, onto: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    onto.extend([b'%', DIGITS[usize::from(octet >> 4)], DIGITS[usize::from(octet & 15)]]);
}

const fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// The octets that a normal `path` stands for; none where it stands for itself.
///
/// Rules that deny look at these too: `/a%3Ab` is another path than `/a:b`, and yet applications
/// that unescape before they choose take the two for one.
pub fn meaning(path: &str) -> Option<Vec<u8>> {
    if !path.contains('%') {
        return None;
    }
    let mut meant = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [octet, after @ ..] = rest {
        rest = after;
        match after {
            [high, low, after @ ..] if *octet == b'%' => match hex(*high).zip(hex(*low)) {
                Some((high, low)) => {
                    meant.push(high << 4 | low);
                    rest = after;
                }
                None => meant.push(b'%'),
            },
            _ => meant.push(*octet),
        }
    }
    Some(meant)
}

/// The normal form of an authority, a host with or without a port; none where it is normal already.
///
/// # Errors
/// [`Abnormal::BadAuthority`] for anything else: user information, lists, escapes.
pub fn authority(text: &[u8]) -> Result<Option<String>, Abnormal> {
    let (host, port) = match text {
        [b'[', rest @ ..] => {
            let end = rest.iter().position(|octet| *octet == b']').ok_or(Abnormal::BadAuthority)?;
            let (address, after) = (&rest[..end], &rest[end + 1..]);
            if !address
                .iter()
                .all(|octet| octet.is_ascii_hexdigit() || matches!(octet, b':' | b'.'))
            {
                return Err(Abnormal::BadAuthority);
            }
            (address, after)
        }
        text => {
            let end = text.iter().position(|octet| *octet == b':').unwrap_or(text.len());
            let is_host = |octet: &u8| octet.is_ascii_alphanumeric() || b"-._".contains(octet);
            if !text[..end].iter().all(is_host) {
                return Err(Abnormal::BadAuthority);
            }
            text.split_at(end)
        }
    };
    let is_port = match port {
        [] => true,
        [b':', digits @ ..] => {
            let number = std::str::from_utf8(digits).ok().and_then(|text| text.parse::<u16>().ok());
            number.is_some() && digits.iter().all(u8::is_ascii_digit)
        }
        _ => false,
    };
    if host.is_empty() || host.len() > HOST_OCTETS_MAX || !is_port {
        return Err(Abnormal::BadAuthority);
    }
    if !text.iter().any(u8::is_ascii_uppercase) {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(text).to_ascii_lowercase()))
}

/// The host of a normal authority: without its port, and without the root's dot.
pub fn host(authority: &[u8]) -> &[u8] {
    let digits = authority.iter().rev().take_while(|octet| octet.is_ascii_digit()).count();
    let host = match &authority[..authority.len() - digits] {
        [host @ .., b':'] => host,
        _ => authority,
    };
    host.strip_suffix(b".").unwrap_or(host)
}

/// Whether `method` is one that proxies pass on: those of IANA's registry and those in wide use,
/// in their own spelling. `CONNECT` is none: nothing here is a tunnel.
pub fn is_method(method: &str) -> bool {
    METHODS.binary_search(&method).is_ok()
}

/// Sorted.
const METHODS: [&str; 44] = [
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "COPY",
    "DELETE",
    "GET",
    "HEAD",
    "LABEL",
    "LINK",
    "LOCK",
    "M-SEARCH",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "NOTIFY",
    "OPTIONS",
    "ORDERPATCH",
    "PATCH",
    "POST",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "PUT",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "SUBSCRIBE",
    "TRACE",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UNSUBSCRIBE",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
    "VIEW",
];
/// The longest name in DNS.
const HOST_OCTETS_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: Rules = Rules {
        is_on: true,
        merges_slashes: true,
        escaped_slashes: EscapedSlashes::Refuse,
        underscores: Underscores::Refuse,
        forwarded: Forwarded::Replace,
    };

    #[test]
    fn a_target_has_one_normal_form_or_is_refused() {
        use Abnormal::*;
        type Expected = Result<&'static str, Abnormal>;
        let cases: &[(&[u8], Expected, &str)] = &[
            (b"/", Ok("/"), "the root"),
            (b"/a/b.c/d;x=1?q=%zz", Ok("/a/b.c/d;x=1?q=%zz"), "normal; a query is its own"),
            (b"/pub/../admin", Ok("/admin"), "dot segments are resolved"),
            (b"/pub/%2e%2E/admin", Ok("/admin"), "in any spelling"),
            (b"/pub/.%2e/admin", Ok("/admin"), "also half escaped"),
            (b"/../../admin", Ok("/admin"), "nothing is above the root"),
            (b"/a/./b/.", Ok("/a/b/"), "a dot is the folder itself"),
            (b"/a/..", Ok("/"), "and so are two"),
            (b"//admin", Ok("/admin"), "slashes are merged"),
            (b"/a///b//", Ok("/a/b/"), "all of them"),
            (b"/%61dmin", Ok("/admin"), "what needs no escape has none"),
            (b"/a%2a%3a", Ok("/a%2A%3A"), "what is reserved stays escaped, in upper case"),
            (b"/a|[b]", Ok("/a%7C%5Bb%5D"), "what may not stand is escaped"),
            ("/é".as_bytes(), Ok("/%C3%A9"), "UTF-8 is escaped"),
            (b"/%c3%a9", Ok("/%C3%A9"), "to the same"),
            (b"/admin%20", Ok("/admin%20"), "an escaped space stays"),
            (b"/ADMIN", Ok("/ADMIN"), "case is the path's own"),
            (b"/admin/", Ok("/admin/"), "so is the last slash"),
            (b"/admin?", Ok("/admin?"), "an empty query is no part of the path"),
            (b"/.well-known/x", Ok("/.well-known/x"), "a name may begin with a dot"),
            (b"/...", Ok("/..."), "three dots are a name"),
            (b"/a?../\\|{\xC3\xA9", Ok("/a?../\\|{%C3%A9"), "a query is only made sendable"),
            (b"/a\\b", Err(EscapedSlash), "a backslash"),
            (b"/a%5cb", Err(EscapedSlash), "an escaped one"),
            (b"/a%2Fb", Err(EscapedSlash), "an escaped slash"),
            (b"/a%252fb", Err(DoubleEscape), "escaped twice"),
            (b"/a%25%32fb", Err(DoubleEscape), "with the digits escaped, too"),
            (b"/100%25", Ok("/100%25"), "an escaped percent alone is one"),
            (b"/a%00", Err(Control), "NUL"),
            (b"/a%0d%0a", Err(Control), "line ends"),
            (b"/a\0", Err(Control), "NUL as it is"),
            (b"/a b", Err(Control), "a space"),
            (b"/a%zz", Err(BadEscape), "no digits"),
            (b"/a%2", Err(BadEscape), "one digit"),
            (b"/\xFF", Err(NotUtf8), "no UTF-8"),
            (b"/%c0%af", Err(NotUtf8), "an overlong slash"),
            (b"/%ED%A0%80", Err(NotUtf8), "half a surrogate pair"),
            (b"/a?\xFF", Err(NotUtf8), "nor in a query"),
            (b"/a?b\x01", Err(Control), "nor control characters"),
            (b"/users/..;/admin", Err(DotParameter), "dots with parameters"),
            (b"/users/.;a=b/admin", Err(DotParameter), "one dot, too"),
            (b"/users/..%3b/admin", Err(DotParameter), "also escaped"),
            (b"/admin#x", Err(Fragment), "a fragment"),
            (b"/admin?a#x", Err(Fragment), "after a query"),
            (b"admin", Err(NotAbsolute), "no slash"),
            (b"", Err(NotAbsolute), "nothing"),
            (b"*", Err(NotAbsolute), "no path"),
        ];
        for (given, expected, why) in cases {
            let shown = String::from_utf8_lossy(given);
            let got = target(given, &DEFAULT);
            let whole = got.map(|new| new.unwrap_or_else(|| shown.clone().into_owned()));
            assert_eq!(whole, expected.map(str::to_owned), "{shown}: {why}");
        }
    }

    #[test]
    fn the_mesh_may_choose_other_rules() {
        use EscapedSlashes::{Decode, Keep};
        let with = |escaped_slashes| Rules { escaped_slashes, ..DEFAULT };
        let unmerged = Rules { merges_slashes: false, ..DEFAULT };
        let off = Rules { is_on: false, ..DEFAULT };
        let cases = [
            (with(Keep), "/a%2fb\\c%5Cd", Ok("/a%2Fb%5Cc%5Cd"), "kept, and escaped"),
            (with(Decode), "/a%2f..%5cb\\c", Ok("/b/c"), "unescaped before dots are resolved"),
            (with(Decode), "/a%2f%2fb", Ok("/a/b"), "and before slashes are merged"),
            (with(Decode), "/a%252fb", Err(Abnormal::DoubleEscape), "but once only"),
            (unmerged, "//a//b", Ok("//a//b"), "slashes may count"),
            (unmerged, "/a//../b", Ok("/a/b"), "an empty segment is one"),
            (off, "/a/../%2f\\%zz", Ok("/a/../%2f\\%zz"), "nothing is normal"),
            (off, "/a%00", Err(Abnormal::Control), "but NUL never passes"),
        ];
        for (rules, given, expected, why) in cases {
            let got = target(given.as_bytes(), &rules);
            let whole = got.map(|new| new.unwrap_or_else(|| given.to_owned()));
            assert_eq!(whole, expected.map(str::to_owned), "{given}: {why}");
        }
    }

    #[test]
    fn an_authority_is_one_host_and_at_most_one_port() {
        let cases = [
            ("db", Ok(None)),
            ("db_1.example:8080", Ok(None)),
            ("[::1]:80", Ok(None)),
            ("DB.Example", Ok(Some("db.example"))),
            ("[FE80::1]", Ok(Some("[fe80::1]"))),
            ("", Err(())),
            (":80", Err(())),
            ("db:", Err(())),
            ("db:+80", Err(())),
            ("db:65536", Err(())),
            ("db:80:80", Err(())),
            ("a@b", Err(())),
            ("a, b", Err(())),
            ("a%2e", Err(())),
            ("[::1", Err(())),
            ("[::1]x", Err(())),
            ("[x]", Err(())),
            ("a/b", Err(())),
        ];
        for (given, expected) in cases {
            let got = authority(given.as_bytes()).map_err(|_| ());
            assert_eq!(got, expected.map(|new| new.map(str::to_owned)), "{given}");
        }
        assert!(authority(&[b'a'; 256]).is_err());
    }

    #[test]
    fn methods_are_known_in_their_own_spelling() {
        assert!(METHODS.is_sorted());
        for (method, expected) in
            [("GET", true), ("M-SEARCH", true), ("get", false), ("CONNECT", false), ("FOO", false)]
        {
            assert_eq!(is_method(method), expected, "{method}");
        }
    }

    #[test]
    fn a_rule_that_denies_sees_what_a_path_means() {
        assert_eq!(meaning("/a:b"), None);
        assert_eq!(meaning("/a%3Ab%25"), Some(b"/a:b%".to_vec()));
    }

    /// A generator of its own, so that a seed always gives the same octets.
    struct Draw(u64);

    impl Draw {
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 >> 33).unwrap_or(0) % bound
        }
    }

    /// The fuzz target: whatever comes in, what comes out is normal, and made of harmless octets.
    #[test]
    fn whatever_comes_in_what_comes_out_is_normal() {
        const PIECES: [&[u8]; 40] = [
            b"/",
            b"//",
            b".",
            b"..",
            b"/..",
            b"/.",
            b"%2e",
            b"%2E",
            b"%2f",
            b"%5C",
            b"\\",
            b"%25",
            b"%",
            b"%3b",
            b";",
            b"a",
            b"admin",
            b"A",
            b"?",
            b"#",
            b"\0",
            b"%00",
            b"\xC3\xA9",
            b"\xFF",
            b"%c3%a9",
            b"%c0%af",
            b" ",
            b"%20",
            b"+",
            b"%2B",
            b":",
            b"%3A",
            b"[",
            b"|",
            b"\x7F",
            b"5",
            b"c",
            b"F",
            b"~",
            b"%7e",
        ];
        let mut draw = Draw(0x5EED_0001);
        for _ in 0..60_000 {
            let mut given = if draw.below(10) > 0 { b"/".to_vec() } else { Vec::new() };
            for _ in 0..draw.below(9) {
                given.extend_from_slice(PIECES[draw.below(PIECES.len())]);
            }
            let mut rules = DEFAULT;
            rules.merges_slashes = draw.below(2) == 0;
            rules.escaped_slashes =
                [EscapedSlashes::Refuse, EscapedSlashes::Keep, EscapedSlashes::Decode]
                    [draw.below(3)];
            let Ok(normal) = target(&given, &rules) else { continue };
            let normal = normal.map_or_else(|| given.clone(), String::into_bytes);
            let shown = String::from_utf8_lossy(&normal);
            assert_eq!(target(&normal, &rules), Ok(None), "{given:?} became {shown}, not normal");
            let path = normal.split(|octet| *octet == b'?').next().unwrap_or_default();
            assert!(normal.iter().all(u8::is_ascii_graphic), "{shown}");
            let has_dots =
                path.split(|octet| *octet == b'/').any(|part| part == b"." || part == b"..");
            assert!(!has_dots && !path.contains(&b'\\') && path.starts_with(b"/"), "{shown}");
            if rules.merges_slashes {
                assert!(!path.windows(2).any(|two| two == b"//"), "{shown}");
            }
        }
    }
}
