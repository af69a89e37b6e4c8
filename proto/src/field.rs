//! Reading one field of a message: every refusal names the field.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// A field of a message that is not what it must be.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct Invalid {
    /// The message and field, such as `instance.port`.
    pub field: &'static str,
    /// What is wrong with it.
    pub why: String,
}

impl Invalid {
    /// Refuses `field`, because of `why`.
    pub fn new(field: &'static str, why: impl Display) -> Self {
        Self { field, why: why.to_string() }
    }
}

/// A name, identity or address that its own parser accepts.
pub(crate) fn parsed<T>(field: &'static str, text: &str) -> Result<T, Invalid>
where
    T: FromStr,
    T::Err: Display,
{
    text.parse().map_err(|why| Invalid::new(field, why))
}

/// All of them parsed; the first bad one refuses the whole.
pub(crate) fn each_parsed<T, C>(field: &'static str, texts: &[String]) -> Result<C, Invalid>
where
    T: FromStr,
    T::Err: Display,
    C: FromIterator<T>,
{
    texts.iter().map(|text| parsed(field, text)).collect()
}

/// All of them converted; the first bad one refuses the whole.
pub(crate) fn each<P, T: TryFrom<P, Error = Invalid>>(messages: Vec<P>) -> Result<Vec<T>, Invalid> {
    messages.into_iter().map(T::try_from).collect()
}

/// A message that must be there.
pub(crate) fn present<T>(field: &'static str, message: Option<T>) -> Result<T, Invalid> {
    message.ok_or_else(|| Invalid::new(field, "it is missing"))
}

/// A message that must be there, converted.
pub(crate) fn required<P, T: TryFrom<P, Error = Invalid>>(
    field: &'static str,
    message: Option<P>,
) -> Result<T, Invalid> {
    present(field, message)?.try_into()
}

/// A number that fits in sixteen bits.
pub(crate) fn short(field: &'static str, number: u32) -> Result<u16, Invalid> {
    u16::try_from(number).map_err(|_| Invalid::new(field, format_args!("{number} is above 65535")))
}

/// A SHA-256.
pub(crate) fn hash(field: &'static str, octets: &[u8]) -> Result<[u8; 32], Invalid> {
    let length = octets.len();
    octets
        .try_into()
        .map_err(|_| Invalid::new(field, format_args!("it has {length} octets, not 32")))
}

/// 32 octets, or none where there are none.
pub(crate) fn optional_hash(
    field: &'static str,
    octets: &[u8],
) -> Result<Option<[u8; 32]>, Invalid> {
    if octets.is_empty() { Ok(None) } else { hash(field, octets).map(Some) }
}

/// An address, or none where the text is empty.
pub(crate) fn optional_ip(field: &'static str, text: &str) -> Result<Option<IpAddr>, Invalid> {
    if text.is_empty() { Ok(None) } else { parsed(field, text).map(Some) }
}

/// A socket address, or none where the text is empty.
pub(crate) fn optional_socket(
    field: &'static str,
    text: &str,
) -> Result<Option<SocketAddr>, Invalid> {
    if text.is_empty() { Ok(None) } else { parsed(field, text).map(Some) }
}

/// A span that was sent: zero is what a missing one looks like, and no span of ours is zero.
pub(crate) fn span(field: &'static str, millis: u64) -> Result<Duration, Invalid> {
    if millis == 0 {
        return Err(Invalid::new(field, "it is missing"));
    }
    Ok(Duration::from_millis(millis))
}

/// `span` in whole milliseconds, rounded up and at least one, so that a short span is never
/// taken for a missing one.
pub(crate) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1)
}

/// An optional text as it travels: empty for none.
pub(crate) fn text_or_empty(text: Option<&Arc<str>>) -> String {
    text.map(|text| text.to_string()).unwrap_or_default()
}

/// An optional text as it arrived: none when empty.
pub(crate) fn non_empty(text: &str) -> Option<Arc<str>> {
    (!text.is_empty()).then(|| text.into())
}

/// All names as they travel.
pub(crate) fn texts<'a, T: Display + 'a>(names: impl IntoIterator<Item = &'a T>) -> Vec<String> {
    names.into_iter().map(ToString::to_string).collect()
}
