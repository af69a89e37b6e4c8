//! Durations as Consul's clients write them: Go's `1m30s`, `100ms`, `2h`.

use std::time::Duration;

/// Why a text is no duration.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidDuration {
    /// It is not a run of numbers with units.
    #[error("{0:?} is no duration: write it like 10s, 1m30s or 250ms")]
    Malformed(String),
    /// It does not fit.
    #[error("{0:?} is too long a duration")]
    TooLong(String),
}

/// Parses a non-negative Go duration.
///
/// # Errors
/// A text without units (other than `0`), with an unknown unit, a sign, or too great a value.
pub fn parse(text: &str) -> Result<Duration, InvalidDuration> {
    let malformed = || InvalidDuration::Malformed(text.to_owned());
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(malformed());
    }
    let mut total_nanos: f64 = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(malformed)?;
        let (number, after) = rest.split_at(digits);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let nanos_each = UNITS
            .iter()
            .find_map(|(name, nanos)| (*name == unit).then_some(*nanos))
            .ok_or_else(malformed)?;
        total_nanos += number.parse::<f64>().map_err(|_| malformed())? * nanos_each;
        rest = next;
    }
    if total_nanos > NANOS_MAX {
        return Err(InvalidDuration::TooLong(text.to_owned()));
    }
    // Bounded above and not negative, so the cast is exact to the nanosecond that f64 can hold.
    Ok(Duration::from_nanos(total_nanos.round() as u64))
}

/// Writes `span` as Go does: `1m30s`, `1.5s`, `250ms`, `0s`.
pub fn format(span: Duration) -> String {
    let nanos = span.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    if nanos < 1_000_000_000 {
        let (unit, each) = match nanos {
            0..1_000 => ("ns", 1),
            1_000..1_000_000 => ("µs", 1_000),
            _ => ("ms", 1_000_000),
        };
        return format!("{}{unit}", decimal(nanos, each));
    }
    let (hours, minutes) = (span.as_secs() / 3600, span.as_secs() / 60 % 60);
    let seconds = decimal(nanos % 60_000_000_000, 1_000_000_000);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// `value / each` without trailing zeros.
fn decimal(value: u128, each: u128) -> String {
    let (whole, part) = (value / each, value % each);
    if part == 0 {
        return whole.to_string();
    }
    let digits = each.ilog10() as usize;
    format!("{whole}.{part:0digits$}").trim_end_matches('0').to_owned()
}

/// Serde for a field that holds an optional duration as Consul writes it.
pub mod serde_option {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// Writes the duration as text.
    ///
    /// # Errors
    /// The serializer's own.
    #[allow(clippy::ref_option, reason = "serde's signature")]
    pub fn serialize<S: Serializer>(span: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        span.map(super::format).serialize(to)
    }

    /// Reads text (`"5s"`) or whole nanoseconds; an empty text is none.
    ///
    /// # Errors
    /// Anything else.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Nanos(u64),
            Text(String),
        }
        match Option::<Written>::deserialize(from)? {
            None => Ok(None),
            Some(Written::Nanos(nanos)) if nanos as f64 > super::NANOS_MAX => {
                Err(serde::de::Error::custom(super::InvalidDuration::TooLong(format!("{nanos}ns"))))
            }
            Some(Written::Nanos(nanos)) => Ok(Some(Duration::from_nanos(nanos))),
            Some(Written::Text(text)) if text.is_empty() => Ok(None),
            Some(Written::Text(text)) => {
                super::parse(&text).map(Some).map_err(serde::de::Error::custom)
            }
        }
    }
}

const UNITS: [(&str, f64); 7] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];

/// Go's greatest duration, about 292 years.
const NANOS_MAX: f64 = i64::MAX as f64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_are_read_and_written() {
        let cases = [
            ("10s", 10_000, "10s"),
            ("1m30s", 90_000, "1m30s"),
            ("100ms", 100, "100ms"),
            ("1.5h", 5_400_000, "1h30m0s"),
            ("60000ms", 60_000, "1m0s"),
            ("0", 0, "0s"),
        ];
        for (text, millis, written) in cases {
            let span = parse(text).expect(text);
            assert_eq!(span, Duration::from_millis(millis), "{text}");
            assert_eq!(format(span), written, "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "10", "s", "-1s", "10 s", "10y", "1..5s", "1e400h"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert!(matches!(parse("9999999999h"), Err(InvalidDuration::TooLong(_))));
    }
}
