//! Admission: what is checked of a request, and made normal, before anything is decided about it.
//!
//! Both edges do this first. What they route, authorize and pass on is what comes out here.

use hawser_core::normal::{self, Rules, Underscores};
use hawser_core::reason::Reason;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, Response, StatusCode, Uri};

use crate::limits::Limits;

/// A request that is not passed on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct BadRequest(pub(crate) StatusCode);

const BAD: BadRequest = BadRequest(StatusCode::BAD_REQUEST);

/// Checks one request and makes it normal in place; says which authority it is for.
///
/// Exactly one method, target, authority and length: a second way to read any of them is how one
/// proxy is made to see another request than the next.
pub(crate) fn admit<B>(
    request: &mut Request<B>,
    limits: &Limits,
    rules: &Rules,
) -> Result<Authority, BadRequest> {
    if !normal::is_method(request.method().as_str()) {
        return Err(BadRequest(StatusCode::METHOD_NOT_ALLOWED));
    }
    if !matches!(request.uri().scheme_str(), None | Some("http" | "https")) {
        return Err(BAD);
    }
    let path_and_query = request.uri().path_and_query().map_or("", |target| target.as_str());
    if path_and_query.len() > limits.target_bytes {
        return Err(BadRequest(StatusCode::URI_TOO_LONG));
    }
    if !(path_and_query == "*" && request.method() == Method::OPTIONS)
        && let Some(new) = normal::target(path_and_query.as_bytes(), rules).map_err(|_| BAD)?
    {
        retarget(request.uri_mut(), new)?;
    }
    let authority = authority(request.uri(), request.headers())?;
    check_framing(request.headers_mut())?;
    check_names(request.headers_mut(), rules.underscores)?;
    Ok(authority)
}

fn retarget(uri: &mut Uri, target: String) -> Result<(), BadRequest> {
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(target).map_err(|_| BAD)?);
    *uri = Uri::from_parts(parts).map_err(|_| BAD)?;
    Ok(())
}

fn authority(uri: &Uri, headers: &HeaderMap) -> Result<Authority, BadRequest> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (host, None) = (hosts.next(), hosts.next()) else { return Err(BAD) };
    let host = match host {
        Some(host) => {
            normal::authority(host.as_bytes()).map_err(|_| BAD)?;
            Some(Authority::try_from(host.as_bytes()).map_err(|_| BAD)?)
        }
        None => None,
    };
    let authority = match (uri.authority(), host) {
        (Some(target), Some(host)) if *target != host => return Err(BAD),
        (Some(target), _) => target.clone(),
        (None, Some(host)) => host,
        (None, None) => return Err(BAD),
    };
    match normal::authority(authority.as_str().as_bytes()).map_err(|_| BAD)? {
        None => Ok(authority),
        Some(lower) => Authority::try_from(lower).map_err(|_| BAD),
    }
}

/// More than one way to say where the body ends is how one proxy is made to see another end.
fn check_framing(headers: &mut HeaderMap) -> Result<(), BadRequest> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let coding = codings.next();
    let is_chunked =
        coding.is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if codings.next().is_some() || (coding.is_some() && !is_chunked) {
        return Err(BAD);
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let length = lengths.next();
    if lengths.next().is_some() || (length.is_some() && is_chunked) {
        return Err(BAD);
    }
    let Some(length) = length else { return Ok(()) };
    let text = length.to_str().map_err(|_| BAD)?;
    if text.is_empty() || !text.bytes().all(|octet| octet.is_ascii_digit()) {
        return Err(BAD);
    }
    if text.len() > 1 && text.starts_with('0') {
        let number: u64 = text.parse().map_err(|_| BAD)?;
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(number));
    }
    Ok(())
}

/// Many programs read `_` in a field's name as `-`: then `x_role` would pass for `x-role`.
fn check_names(headers: &mut HeaderMap, underscores: Underscores) -> Result<(), BadRequest> {
    if underscores == Underscores::Keep {
        return Ok(());
    }
    let is_bad = |name: &&HeaderName| name.as_str().contains('_');
    if !headers.keys().any(|name| is_bad(&name)) {
        return Ok(());
    }
    if underscores == Underscores::Refuse {
        return Err(BAD);
    }
    let bad: Vec<HeaderName> = headers.keys().filter(is_bad).cloned().collect();
    for name in bad {
        headers.remove(name);
    }
    Ok(())
}

/// The answer, if it says in one way only where its body ends. One that does not may be two answers
/// to whoever reads it next.
///
/// # Errors
/// [`Reason::UpstreamProtocol`].
pub(crate) fn sound<B>(response: &Response<B>) -> Result<&Response<B>, Reason> {
    let headers = response.headers();
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let (length, second) = (lengths.next(), lengths.next());
    let is_sound =
        second.is_none() && (length.is_none() || !headers.contains_key(header::TRANSFER_ENCODING));
    is_sound.then_some(response).ok_or(Reason::UpstreamProtocol)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(request: http::request::Builder) -> Result<(String, String, HeaderMap), u16> {
        let mut request = request.body(()).map_err(|_| 0_u16)?;
        let authority = admit(&mut request, &Limits::default(), &Rules::default())
            .map_err(|bad| bad.0.as_u16())?;
        let target = request.uri().path_and_query().map_or("", |target| target.as_str());
        Ok((authority.to_string(), target.to_owned(), request.headers().clone()))
    }

    #[test]
    fn a_request_is_one_request_or_refused() {
        let get = |target: &str| Request::get(target.to_owned());
        let to = |method: &str, target: &str| {
            Request::builder().method(method).uri(target.to_owned()).header("host", "db")
        };
        let sized = |lengths: &[&str]| {
            let request = Request::post("/").header("host", "db");
            lengths
                .iter()
                .fold(request, |request, length| request.header("content-length", *length))
        };
        let long = format!("/{}", "x".repeat(9_000));
        type Expected<'a> = Result<(&'a str, &'a str), u16>;
        let cases: Vec<(http::request::Builder, Expected<'_>, &str)> = vec![
            (get("/a").header("host", "db"), Ok(("db", "/a")), "as it should be"),
            (get("/a/../b").header("host", "DB:80"), Ok(("db:80", "/b")), "made normal"),
            (get("http://db/a").header("host", "db"), Ok(("db", "/a")), "absolute, and agreed"),
            (get("http://DB/%61"), Ok(("db", "/a")), "absolute, and alone"),
            (get("http://db/a").header("host", "evil"), Err(400), "two authorities"),
            (get("/").header("host", "db").header("host", "db"), Err(400), "two hosts"),
            (get("/"), Err(400), "none"),
            (get("/").header("host", "a, b"), Err(400), "a list"),
            (get("/").header("host", "a@db"), Err(400), "user information"),
            (get("http://a@db/"), Err(400), "in the target"),
            (get("ftp://db/"), Err(400), "another scheme"),
            (to("OPTIONS", "*"), Ok(("db", "*")), "the server as a whole"),
            (to("GET", "*"), Err(400), "is asked for nothing else"),
            (to("CONNECT", "/"), Err(405), "no tunnels"),
            (to("get", "/"), Err(405), "methods are spelt as they are"),
            (to("FOO", "/"), Err(405), "and known"),
            (get(&long).header("host", "db"), Err(414), "too long"),
            (to("GET", "/%2f"), Err(400), "no normal form"),
            (to("GET", "/").header("x_role", "a"), Err(400), "a name with _"),
            (to("GET", "/").header("transfer-encoding", "identity"), Err(400), "a coding"),
            (to("GET", "/").header("transfer-encoding", "x, chunked"), Err(400), "two codings"),
            (sized(&["5", "5"]), Err(400), "two lengths"),
            (sized(&["5"]).header("transfer-encoding", "chunked"), Err(400), "two framings"),
            (sized(&["+5"]), Err(400), "no number"),
            (sized(&["0x5"]), Err(400), "in decimal only"),
            (sized(&["099999999999999999999"]), Err(400), "too great a number"),
        ];
        for (request, expected, why) in cases {
            let got = admitted(request).map(|(authority, target, _)| (authority, target));
            let expected = expected.map(|(host, path)| (host.to_owned(), path.to_owned()));
            assert_eq!(got, expected, "{why}");
        }
        let (_, _, headers) = admitted(sized(&["05"])).expect("a number");
        assert_eq!(headers["content-length"], "5", "the number is written in one way");
    }

    #[test]
    fn an_answer_has_one_end() {
        let with = |fields: &[(&'static str, &'static str)]| {
            let response = Response::builder();
            let add = |response: http::response::Builder, (name, value): &(&'static str, _)| {
                response.header(*name, *value)
            };
            fields.iter().fold(response, add).body(()).expect("good")
        };
        assert!(sound(&with(&[("content-length", "5")])).is_ok());
        assert!(sound(&with(&[("transfer-encoding", "chunked")])).is_ok());
        assert!(sound(&with(&[("content-length", "5"), ("content-length", "5")])).is_err());
        assert!(
            sound(&with(&[("content-length", "5"), ("transfer-encoding", "chunked")])).is_err()
        );
    }
}
