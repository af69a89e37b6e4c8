//! Heads: where one ends, and what it says, by RFC 9112 §2 to §6 without the forgiveness.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};

use crate::fault::Fault;
use crate::limits::{FIELDS_MAX, Limits, METHOD_BYTES_MAX};

/// How a message says where its body ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Framing {
    /// There is none.
    Empty,
    /// After so many bytes.
    Length(u64),
    /// With its last chunk.
    Chunked,
    /// With the connection; answers only.
    UntilClose,
}

/// What a head says about its connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Manner {
    pub(crate) framing: Framing,
    /// Whether the connection may be used again after this message.
    pub(crate) keeps_alive: bool,
    /// Whether `Connection` asks for, or grants, a change of protocol.
    pub(crate) upgrades: bool,
    /// Whether the body is sent only when asked for.
    pub(crate) expects_continue: bool,
    /// Whether trailers are understood.
    pub(crate) takes_trailers: bool,
}

/// Looks for the end of a head, line by line, and remembers where it was.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scan {
    line: usize,
    seen: usize,
    /// Whether an empty line before the head was passed over.
    pub(crate) had_blank: bool,
}

impl Scan {
    /// The length of the head that `input` begins with; none while it has not all arrived.
    ///
    /// # Errors
    /// [`Fault::LineEnd`], [`Fault::Folded`]: what the parser behind it would forgive.
    pub(crate) fn end(&mut self, input: &[u8]) -> Result<Option<usize>, Fault> {
        while let Some(at) = memchr::memchr(b'\n', &input[self.seen..]) {
            let at = self.seen + at;
            let line = &input[self.line..at];
            let [line @ .., b'\r'] = line else { return Err(Fault::LineEnd) };
            if self.line > 0 && matches!(line, [b' ' | b'\t', ..]) {
                return Err(Fault::Folded);
            }
            (self.line, self.seen) = (at + 1, at + 1);
            if line.is_empty() {
                return Ok(Some(at + 1));
            }
        }
        self.seen = input.len();
        Ok(None)
    }

    /// Whether not even the first line has ended.
    pub(crate) const fn is_in_first_line(self) -> bool {
        self.line == 0
    }
}

/// Reads the head of a request.
///
/// # Errors
/// The first [`Fault`] that is found.
pub(crate) fn request(head: &Bytes, limits: &Limits) -> Result<(Request<()>, Manner), Fault> {
    let mut room = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; FIELDS_MAX];
    let room = &mut room[..limits.fields.min(FIELDS_MAX)];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(head, room) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(Fault::FirstLine),
        Err(error) => return Err(first_line_fault(error, head)),
    }
    let (method, target) = (parsed.method.unwrap_or_default(), parsed.path.unwrap_or_default());
    if method.len() > METHOD_BYTES_MAX {
        return Err(Fault::MethodTooLong);
    }
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| Fault::FirstLine)?;
    let target = self::target(&method, head, target, limits)?;
    let is_http10 = parsed.version == Some(0);
    let mut facts = Facts::default();
    let headers = fields(head, parsed.headers, &mut facts)?;
    if facts.hosts == 0 && !is_http10 {
        return Err(Fault::NoHost);
    }
    if facts.hosts > 1 {
        return Err(Fault::Hosts);
    }
    let framing = facts.framing(is_http10)?.unwrap_or(Framing::Empty);
    if facts.expects_other {
        return Err(Fault::Expectation);
    }
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = target;
    *request.version_mut() = if is_http10 { Version::HTTP_10 } else { Version::HTTP_11 };
    *request.headers_mut() = headers;
    let manner = Manner {
        framing,
        keeps_alive: facts.keeps_alive(is_http10),
        // With a body, it would be unclear from where on the bytes are another protocol's.
        upgrades: facts.upgrades && facts.names_protocol && !is_http10 && framing == Framing::Empty,
        expects_continue: facts.expects_continue && !is_http10,
        takes_trailers: facts.takes_trailers,
    };
    Ok((request, manner))
}

/// Reads the head of the answer to a request of `method`.
///
/// # Errors
/// The first [`Fault`] that is found.
pub(crate) fn response(
    head: &Bytes,
    method: &Method,
    limits: &Limits,
) -> Result<(Response<()>, Manner), Fault> {
    let mut room = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; FIELDS_MAX];
    let room = &mut room[..limits.fields.min(FIELDS_MAX)];
    let mut parsed = httparse::Response::new(&mut []);
    let parsing = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut parsed,
        head,
        room,
    );
    match parsing {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(Fault::FirstLine),
        Err(error) => return Err(first_line_fault(error, head)),
    }
    let is_http10 = parsed.version == Some(0);
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.filter(|status| status.as_u16() < 600).ok_or(Fault::Status)?;
    let mut facts = Facts::default();
    let headers = fields(head, parsed.headers, &mut facts)?;
    let framing = facts.framing(is_http10)?;
    let has_no_body = *method == Method::HEAD
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    // What no body may follow says nothing of one: bytes after it would be read as another answer.
    let is_framed = framing.is_some_and(|framing| framing != Framing::Empty);
    if is_framed && status.is_informational() {
        return Err(Fault::Status);
    }
    let is_suspect = is_framed && status == StatusCode::NO_CONTENT;
    let framing = if has_no_body { Framing::Empty } else { framing.unwrap_or(Framing::UntilClose) };
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = if is_http10 { Version::HTTP_10 } else { Version::HTTP_11 };
    *response.headers_mut() = headers;
    let manner = Manner {
        framing,
        keeps_alive: facts.keeps_alive(is_http10) && framing != Framing::UntilClose && !is_suspect,
        upgrades: facts.upgrades && facts.names_protocol,
        expects_continue: false,
        takes_trailers: false,
    };
    Ok((response, manner))
}

/// Reads the trailers that end a chunked body; `section` ends with the empty line.
///
/// # Errors
/// [`Fault::Trailer`], also for fields that decide how a message is framed or where it goes. Others
/// that have no meaning there, or one that comes too late, are dropped.
pub(crate) fn trailers(section: &Bytes, limits: &Limits) -> Result<HeaderMap, Fault> {
    let mut room = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let room = &mut room[..limits.fields.min(FIELDS_MAX)];
    let parsed = match httparse::parse_headers(section, room) {
        Ok(httparse::Status::Complete((length, parsed))) if length == section.len() => parsed,
        _ => return Err(Fault::Trailer),
    };
    let mut trailers =
        fields(section, parsed, &mut Facts::default()).map_err(|_| Fault::Trailer)?;
    if trailers.keys().any(|name| REFRAMING.contains(name)) {
        return Err(Fault::Trailer);
    }
    LATE.iter().for_each(|name| drop(trailers.remove(name)));
    Ok(trailers)
}

/// Whether a field decides how a message is framed, routed, authorised or read: too late in a
/// trailer.
pub(crate) fn is_never_trailer(name: &HeaderName) -> bool {
    REFRAMING.contains(name) || LATE.contains(name)
}

/// Which rule a head breaks that the parser refuses.
fn first_line_fault(error: httparse::Error, head: &[u8]) -> Fault {
    match error {
        httparse::Error::TooManyHeaders => Fault::TooManyFields,
        httparse::Error::HeaderName | httparse::Error::HeaderValue => Fault::Field,
        httparse::Error::NewLine => Fault::LineEnd,
        httparse::Error::Status => Fault::Status,
        httparse::Error::Version => {
            let line = head.split(|octet| *octet == b'\r').next().unwrap_or_default();
            let is_other = |version: &[u8]| {
                matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
                    if major.is_ascii_digit() && minor.is_ascii_digit() && *major != b'1')
            };
            let version = line.rsplit(|octet| *octet == b' ').next().unwrap_or_default();
            if is_other(version) { Fault::OtherVersion } else { Fault::Version }
        }
        httparse::Error::Token => Fault::FirstLine,
    }
}

/// A request's target, in a form that goes with its method (RFC 9112 §3.2).
fn target(method: &Method, head: &Bytes, text: &str, limits: &Limits) -> Result<Uri, Fault> {
    if text.len() > limits.target_bytes {
        return Err(Fault::TargetTooLong);
    }
    // A fragment is never sent: who cuts it off and who does not would see two targets.
    if !text.bytes().all(|octet| octet.is_ascii_graphic() && octet != b'#') {
        return Err(Fault::Target);
    }
    let uri = Uri::from_maybe_shared(head.slice_ref(text.as_bytes())).map_err(|_| Fault::Target)?;
    let is_absolute = || {
        let is_web = uri.scheme().is_some_and(|scheme| {
            *scheme == http::uri::Scheme::HTTP || *scheme == http::uri::Scheme::HTTPS
        });
        is_web && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
    };
    let fits = if *method == Method::CONNECT {
        uri.scheme().is_none() && uri.authority().is_some() && uri.path_and_query().is_none()
    } else if text.starts_with('/') {
        uri.authority().is_none()
    } else if text == "*" {
        *method == Method::OPTIONS
    } else {
        is_absolute()
    };
    if fits { Ok(uri) } else { Err(Fault::Target) }
}

/// What the fields say about framing and connection.
#[derive(Default)]
struct Facts {
    length: Option<u64>,
    is_chunked: bool,
    hosts: usize,
    closes: bool,
    persists: bool,
    upgrades: bool,
    names_protocol: bool,
    expects_continue: bool,
    expects_other: bool,
    takes_trailers: bool,
}

impl Facts {
    fn note(&mut self, name: &HeaderName, value: &HeaderValue) -> Result<(), Fault> {
        if *name == header::CONTENT_LENGTH {
            if self.length.replace(number(value.as_bytes())?).is_some() {
                return Err(Fault::Lengths);
            }
        } else if *name == header::TRANSFER_ENCODING {
            let is_chunked = value.as_bytes().eq_ignore_ascii_case(b"chunked");
            if !is_chunked || std::mem::replace(&mut self.is_chunked, true) {
                return Err(Fault::Coding);
            }
        } else if *name == header::HOST {
            self.hosts += 1;
        } else if *name == header::CONNECTION {
            for token in value.as_bytes().split(|octet| *octet == b',') {
                let token = token.trim_ascii();
                self.closes |= token.eq_ignore_ascii_case(b"close");
                self.persists |= token.eq_ignore_ascii_case(b"keep-alive");
                self.upgrades |= token.eq_ignore_ascii_case(b"upgrade");
            }
        } else if *name == header::UPGRADE {
            self.names_protocol = true;
        } else if *name == header::TE {
            let mut codings = value.as_bytes().split(|octet| *octet == b',');
            self.takes_trailers |=
                codings.any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"));
        } else if *name == header::EXPECT {
            let is_known = value.as_bytes().eq_ignore_ascii_case(b"100-continue");
            self.expects_continue |= is_known;
            self.expects_other |= !is_known;
        }
        Ok(())
    }

    fn framing(&self, is_http10: bool) -> Result<Option<Framing>, Fault> {
        match (self.length, self.is_chunked) {
            (Some(_), true) => Err(Fault::LengthAndCoding),
            (None, true) if is_http10 => Err(Fault::Coding),
            (None, true) => Ok(Some(Framing::Chunked)),
            (Some(0), false) => Ok(Some(Framing::Empty)),
            (Some(length), false) => Ok(Some(Framing::Length(length))),
            (None, false) => Ok(None),
        }
    }

    const fn keeps_alive(&self, is_http10: bool) -> bool {
        !self.closes && (!is_http10 || self.persists)
    }
}

/// Takes the fields over without copying their values.
fn fields(
    head: &Bytes,
    parsed: &[httparse::Header<'_>],
    facts: &mut Facts,
) -> Result<HeaderMap, Fault> {
    // Room for those that a proxy adds.
    let mut headers = HeaderMap::with_capacity(parsed.len() + 4);
    for field in parsed {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Fault::Field)?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value));
        let value = value.map_err(|_| Fault::Field)?;
        facts.note(&name, &value)?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// `1*DIGIT`, and nothing else.
pub(crate) fn number(text: &[u8]) -> Result<u64, Fault> {
    if text.is_empty() {
        return Err(Fault::Length);
    }
    text.iter().try_fold(0_u64, |sum, octet| {
        let digit = octet.is_ascii_digit().then(|| u64::from(octet - b'0'));
        let sum = sum.checked_mul(10).zip(digit).and_then(|(sum, digit)| sum.checked_add(digit));
        sum.ok_or(Fault::Length)
    })
}

/// Fields that say where a message ends or goes.
const REFRAMING: &[HeaderName] = &[
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::UPGRADE,
    header::HOST,
    header::TE,
    header::TRAILER,
    header::EXPECT,
];

/// Fields that say who sends a message, and how its body is to be read.
const LATE: &[HeaderName] = &[
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::COOKIE,
    header::SET_COOKIE,
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    header::CONTENT_RANGE,
];
