//! One document from the web: an identity provider's keys, which are public.

use std::time::Duration;

use bytes::Bytes;

use crate::call::{CallError, Trusted, call_trusting};
use crate::endpoint::{Endpoint, InvalidEndpoint};

/// Why a document was not got.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// The address is none, or would be asked in the clear over a network.
    #[error(transparent)]
    Endpoint(#[from] InvalidEndpoint),
    /// The path cannot be asked for.
    #[error("{0:?} is no path")]
    Path(String),
    /// The authorities are no certificates.
    #[error("the CA certificate is no PEM with a certificate in it")]
    Authority,
    /// Nothing was answered.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Another status than 200: no redirect is followed.
    #[error("it answers {0}")]
    Status(u16),
}

/// Gets the document at `url`, `https://host[:port]/path`, within a time and 2 MiB.
///
/// # Errors
/// [`GetError`].
pub async fn get(url: &str, within: Duration) -> Result<Bytes, GetError> {
    got(url, within, &Trusted::Web).await
}

/// As [`get`], of a host that one of the authorities in `ca`, PEM, vouches for, and no other.
///
/// # Errors
/// [`GetError`].
pub async fn get_trusting(url: &str, ca: &str, within: Duration) -> Result<Bytes, GetError> {
    let trusted = Trusted::only(ca).ok_or(GetError::Authority)?;
    got(url, within, &trusted).await
}

async fn got(url: &str, within: Duration, trusted: &Trusted) -> Result<Bytes, GetError> {
    let authority = url.find("://").map_or(0, |at| at + 3);
    let end = url[authority..].find(['/', '?']).map_or(url.len(), |at| authority + at);
    let endpoint: Endpoint = url[..end].parse()?;
    let path = match &url[end..] {
        "" => "/",
        path => path,
    };
    let request = http::Request::get(path)
        .header("host", endpoint.authority())
        .header("accept", "application/json")
        .body(Bytes::new())
        .map_err(|_| GetError::Path(path.to_owned()))?;
    let answer = call_trusting(&endpoint, request, within, trusted).await?;
    if answer.status == 200 { Ok(answer.body) } else { Err(GetError::Status(answer.status)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    #[tokio::test]
    async fn a_document_is_got_whole_or_not_at_all() {
        let fake = Fake::answering(|_| (200, "{}".to_owned())).await;
        let url = format!("http://{}/keys?a=b", fake.endpoint.authority());
        assert_eq!(get(&url, Duration::from_secs(10)).await.expect("answered"), "{}");
        let fake = Fake::answering(|_| (302, String::new())).await;
        let url = format!("http://{}/keys", fake.endpoint.authority());
        let moved = get(&url, Duration::from_secs(10)).await;
        assert!(matches!(moved, Err(GetError::Status(302))), "{moved:?}");
        let clear = get("http://example.com/keys", Duration::from_secs(10)).await;
        assert!(matches!(clear, Err(GetError::Endpoint(_))), "{clear:?}");
    }
}
