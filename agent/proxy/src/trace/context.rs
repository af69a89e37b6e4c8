//! Trace context: read from what came, written to what goes on, in the same form.
//!
//! Sources: W3C Trace Context, level 1; Zipkin's B3, in one header and in several.

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// The place of a request in a trace, as its headers said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Context {
    pub(crate) trace_id: u128,
    /// The span that the request was sent from; none at the root.
    pub(crate) parent: Option<u64>,
    /// Whether spans are to be exported; none where whoever comes first shall decide.
    pub(crate) sampled: Option<bool>,
    forms: Forms,
}

/// Which headers carried it, and so shall carry it on.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Forms {
    w3c: bool,
    b3: bool,
    b3_multi: bool,
    /// B3's trace ids may have half the length.
    is_short: bool,
}

impl Context {
    /// The root of a new trace.
    pub(crate) fn root(trace_id: u128) -> Self {
        let forms = Forms { w3c: true, ..Forms::default() };
        // An id of all zeros is none.
        Self { trace_id: trace_id.max(1), parent: None, sampled: None, forms }
    }

    /// The place of what is sent from `span` of the same trace.
    pub(crate) fn below(self, span: u64) -> Self {
        Self { parent: Some(span), ..self }
    }

    /// What `headers` say; none where they say nothing that holds.
    ///
    /// W3C's outranks B3's. What is malformed, or there twice, was never said.
    pub(crate) fn read(headers: &HeaderMap) -> Option<Self> {
        let w3c = only(headers, &TRACEPARENT).and_then(traceparent);
        let single = only(headers, &B3).and_then(b3);
        let multi = b3_multi(headers);
        let forms = Forms {
            w3c: w3c.is_some(),
            b3: single.is_some(),
            b3_multi: multi.is_some(),
            is_short: false,
        };
        let said = w3c.or(single).or(multi)?;
        Some(Self { forms: Forms { is_short: said.forms.is_short, ..forms }, ..said })
    }

    /// Says in `headers` that the request is sent from `span`, in the forms that it came in.
    pub(crate) fn write(&self, headers: &mut HeaderMap, span: u64, sampled: bool) {
        let Forms { w3c, b3, b3_multi, is_short } = self.forms;
        let trace = self.trace_id;
        let mut set = |name: HeaderName, text: String| {
            if let Ok(value) = HeaderValue::try_from(text) {
                headers.insert(name, value);
            }
        };
        if w3c {
            set(TRACEPARENT, format!("00-{trace:032x}-{span:016x}-{:02x}", u8::from(sampled)));
        }
        let trace = if is_short { format!("{trace:016x}") } else { format!("{trace:032x}") };
        let flag = u8::from(sampled);
        if b3 {
            let parent = self.parent.map_or_else(String::new, |parent| format!("-{parent:016x}"));
            set(B3, format!("{trace}-{span:016x}-{flag}{parent}"));
        }
        if b3_multi {
            set(B3_TRACE, trace);
            set(B3_SPAN, format!("{span:016x}"));
            set(B3_SAMPLED, flag.to_string());
            if let Some(parent) = self.parent {
                set(B3_PARENT, format!("{parent:016x}"));
            }
        }
        if !w3c {
            headers.remove(TRACEPARENT);
            headers.remove(TRACESTATE);
        } else if self.parent.is_none() {
            // It belongs to a trace that this one does not continue.
            headers.remove(TRACESTATE);
        }
    }

    /// Whether a share of all traces, in millionths, has this one: the same on every host.
    pub(crate) fn is_within(&self, share_ppm: u32) -> bool {
        let draw = (self.trace_id as u64) >> 8;
        u128::from(draw) * 1_000_000 < u128::from(share_ppm) << 56
    }

    /// What other systems noted, to be exported with a span; it is forwarded whatever it is.
    pub(crate) fn state(&self, headers: &HeaderMap) -> Option<std::sync::Arc<str>> {
        if !self.forms.w3c || self.parent.is_none() {
            return None;
        }
        let mut all = headers.get_all(TRACESTATE).iter().map(HeaderValue::to_str);
        let first = all.next()?.ok()?.to_owned();
        let joined = all.try_fold(first, |sum, next| Some(format!("{sum},{}", next.ok()?)))?;
        (joined.len() <= STATE_BYTES_MAX).then(|| joined.into())
    }
}

/// The one value of a header; none where it is missing, there twice, or no text.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut all = headers.get_all(name).iter();
    match (all.next(), all.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

/// `version-trace-span-flags`, <https://www.w3.org/TR/trace-context/#traceparent-header>.
fn traceparent(text: &str) -> Option<Context> {
    let bytes = text.as_bytes();
    let dashes = [2, 35, 52];
    if bytes.len() < 55 || !text.is_ascii() || dashes.iter().any(|at| bytes[*at] != b'-') {
        return None;
    }
    let version = hex(&text[..2])?;
    let is_known = version == 0 && bytes.len() == 55;
    // A later version may have more to say, after another dash.
    let is_later = (1..255).contains(&version) && (bytes.len() == 55 || bytes[55] == b'-');
    if !is_known && !is_later {
        return None;
    }
    let flags = hex(&text[53..55])?;
    Some(Context {
        trace_id: hex(&text[3..35]).filter(|id| *id != 0)?,
        parent: Some(hex(&text[36..52]).filter(|id| *id != 0)? as u64),
        sampled: Some(flags & 1 == 1),
        forms: Forms { w3c: true, ..Forms::default() },
    })
}

/// `trace-span[-sampled[-parent]]`, <https://github.com/openzipkin/b3-propagation>.
fn b3(text: &str) -> Option<Context> {
    let mut parts = text.split('-');
    let (trace, span) = (parts.next()?, parts.next()?);
    let sampled = match parts.next() {
        None => None,
        Some(flag) => Some(decision(flag)?),
    };
    if let Some(parent) = parts.next() {
        (parent.len() == 16).then(|| hex(parent)).flatten()?;
    }
    match parts.next() {
        None => ids(trace, span, sampled),
        Some(_) => None,
    }
}

fn b3_multi(headers: &HeaderMap) -> Option<Context> {
    let (trace, span) = (only(headers, &B3_TRACE)?, only(headers, &B3_SPAN)?);
    let sampled = match only(headers, &B3_FLAGS) {
        Some("1") => Some(true),
        _ => match only(headers, &B3_SAMPLED) {
            None => None,
            Some(flag) => Some(decision(flag)?),
        },
    };
    ids(trace, span, sampled)
}

fn ids(trace: &str, span: &str, sampled: Option<bool>) -> Option<Context> {
    if !matches!(trace.len(), 16 | 32) || span.len() != 16 {
        return None;
    }
    let forms = Forms { is_short: trace.len() == 16, ..Forms::default() };
    let trace_id = hex(trace).filter(|id| *id != 0)?;
    let parent = Some(hex(span).filter(|id| *id != 0)? as u64);
    Some(Context { trace_id, parent, sampled, forms })
}

fn decision(flag: &str) -> Option<bool> {
    match flag {
        "1" | "d" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// A number in lower-case hexadecimal digits, and nothing else: no sign, no capital.
fn hex(text: &str) -> Option<u128> {
    let is_digit = |octet: u8| matches!(octet, b'0'..=b'9' | b'a'..=b'f');
    text.bytes().all(is_digit).then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");
/// What W3C asks everybody to carry.
const STATE_BYTES_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
    const SPAN: u64 = 0x00f0_67aa_0ba9_02b7;
    const W3C: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    type Fields<'a> = &'a [(&'a str, &'a str)];

    fn headers(pairs: Fields<'_>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let name: HeaderName = name.parse().expect("a name");
            headers.append(name, value.parse().expect("a value"));
        }
        headers
    }

    #[test]
    fn a_context_is_read_strictly() {
        let short = "a3ce929d0e0e4736";
        let later = format!("cc{}-what-comes-later", &W3C[2..]);
        let cases: &[(Fields<'_>, Option<Option<bool>>, &str)] = &[
            (&[("traceparent", W3C)], Some(Some(true)), "W3C"),
            (&[("traceparent", &W3C.replace("-01", "-00"))], Some(Some(false)), "not sampled"),
            (&[("traceparent", &W3C.replace("-01", "-09"))], Some(Some(true)), "flags of later"),
            (&[("traceparent", &later)], Some(Some(true)), "a later version"),
            (&[("traceparent", &format!("{W3C}-x"))], None, "version 0 has no more"),
            (&[("traceparent", &format!("ff{}", &W3C[2..]))], None, "version 255 is none"),
            (&[("traceparent", &W3C.to_uppercase())], None, "capitals"),
            (&[("traceparent", &W3C.replace('4', "+"))], None, "signs"),
            (&[("traceparent", &W3C.replace("00f067aa0ba902b7", "0000000000000000"))], None, "0"),
            (&[("traceparent", "00-x")], None, "too short"),
            (&[("traceparent", W3C), ("traceparent", W3C)], None, "twice"),
            (&[("b3", &format!("{short}-00f067aa0ba902b7-1"))], Some(Some(true)), "B3, short"),
            (&[("b3", &format!("{short}-00f067aa0ba902b7-d"))], Some(Some(true)), "B3, debug"),
            (&[("b3", &format!("{short}-00f067aa0ba902b7"))], Some(None), "B3, undecided"),
            (&[("b3", &format!("{short}-00f067aa0ba902b7-1-1-1"))], None, "B3, a bad parent"),
            (&[("b3", "0")], None, "B3 without ids"),
            (&[("x-b3-traceid", short)], None, "B3 without a span"),
            (
                &[("x-b3-traceid", short), ("x-b3-spanid", "00f067aa0ba902b7")],
                Some(None),
                "B3 in several headers",
            ),
            (
                &[
                    ("x-b3-traceid", short),
                    ("x-b3-spanid", "00f067aa0ba902b7"),
                    ("x-b3-sampled", "0"),
                ],
                Some(Some(false)),
                "B3 in several headers, not sampled",
            ),
            (&[], None, "nothing"),
        ];
        for (given, expected, why) in cases {
            let context = Context::read(&headers(given));
            assert_eq!(context.map(|context| context.sampled), *expected, "{why}");
            if let Some(context) = context {
                assert_eq!(context.parent, Some(SPAN), "{why}");
                assert_eq!(context.trace_id as u64, TRACE as u64, "{why}");
            }
        }
    }

    #[test]
    fn a_context_goes_on_in_the_form_it_came_in() {
        let parent = "00f067aa0ba902b7";
        let cases: &[(Fields<'_>, Fields<'_>)] = &[
            (
                &[("traceparent", W3C), ("tracestate", "a=1")],
                &[
                    ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000007-01"),
                    ("tracestate", "a=1"),
                ],
            ),
            (
                &[("b3", "a3ce929d0e0e4736-00f067aa0ba902b7-1")],
                &[("b3", "a3ce929d0e0e4736-0000000000000007-1-00f067aa0ba902b7")],
            ),
            (
                &[("x-b3-traceid", "4bf92f3577b34da6a3ce929d0e0e4736"), ("x-b3-spanid", parent)],
                &[
                    ("x-b3-traceid", "4bf92f3577b34da6a3ce929d0e0e4736"),
                    ("x-b3-spanid", "0000000000000007"),
                    ("x-b3-sampled", "1"),
                    ("x-b3-parentspanid", parent),
                ],
            ),
            (
                &[("b3", "a3ce929d0e0e4736-00f067aa0ba902b7-1"), ("traceparent", "bad")],
                &[("b3", "a3ce929d0e0e4736-0000000000000007-1-00f067aa0ba902b7")],
            ),
        ];
        for (came, goes) in cases {
            let mut going = headers(came);
            let context = Context::read(&going).expect("a context");
            context.write(&mut going, 7, true);
            assert_eq!(going, headers(goes), "{came:?}");
        }
        let mut fresh = headers(&[("tracestate", "of=another")]);
        Context::root(TRACE).write(&mut fresh, 7, false);
        let expected = format!("00-{TRACE:032x}-0000000000000007-00");
        assert_eq!(fresh, headers(&[("traceparent", &expected)]), "a new trace");
    }

    #[test]
    fn a_share_of_traces_is_about_that_share_and_its_ends_are_exact() {
        let at = |n: u128| Context::root(n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
        let within = |ppm| (1..10_000).filter(|n| at(*n).is_within(ppm)).count();
        assert_eq!(within(0), 0);
        assert_eq!(within(1_000_000), 9_999);
        let tenth = within(100_000);
        assert!((800..1_200).contains(&tenth), "{tenth}");
    }

    #[test]
    fn a_state_is_exported_only_while_it_is_of_a_length_that_everybody_carries() {
        let long = format!("a={}", "x".repeat(STATE_BYTES_MAX));
        for (state, expected) in [("a=1", Some("a=1")), (long.as_str(), None)] {
            let headers = headers(&[("traceparent", W3C), ("tracestate", state)]);
            let context = Context::read(&headers).expect("a context");
            assert_eq!(context.state(&headers).as_deref(), expected);
        }
    }
}
