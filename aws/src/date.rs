//! Moments as AWS writes them: `20261120T160500Z`.

use std::time::{Duration, SystemTime};

use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

/// A moment to the second, in AWS's basic form.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AmzDate {
    text: String,
    secs: u64,
}

impl AmzDate {
    /// `secs` after the epoch; the epoch itself for what no calendar has.
    pub fn at(secs: u64) -> Self {
        let moment = i64::try_from(secs).ok();
        let moment = moment.and_then(|secs| OffsetDateTime::from_unix_timestamp(secs).ok());
        let text = moment.and_then(|moment| moment.format(FORM).ok());
        match text.filter(|text| text.len() == OCTETS) {
            Some(text) => Self { text, secs },
            None => Self { text: EPOCH.to_owned(), secs: 0 },
        }
    }

    /// The wall clock's.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self::at(since.unwrap_or_default().as_secs())
    }

    /// Parses the form that [`AmzDate::as_str`] gives, and no other.
    pub fn parse(text: &str) -> Option<Self> {
        let moment = PrimitiveDateTime::parse(text, FORM).ok()?;
        let parsed = Self::at(u64::try_from(moment.assume_utc().unix_timestamp()).ok()?);
        (parsed.text == text).then_some(parsed)
    }

    /// `20261120T160500Z`
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// `20261120`
    pub(crate) fn day(&self) -> &str {
        self.text.get(..8).unwrap_or_default()
    }

    /// How far apart two moments are.
    pub fn apart(&self, other: &Self) -> Duration {
        Duration::from_secs(self.secs.abs_diff(other.secs))
    }
}

const FORM: &[BorrowedFormatItem<'_>] =
    format_description!("[year][month][day]T[hour][minute][second]Z");
const EPOCH: &str = "19700101T000000Z";
const OCTETS: usize = EPOCH.len();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_basic_form_is_a_date() {
        let date = AmzDate::parse("20261120T160500Z").expect("a date");
        assert_eq!((date.day(), date.as_str()), ("20261120", "20261120T160500Z"));
        assert_eq!(AmzDate::at(1_795_190_700), date);
        for text in [
            "",
            "20261120",
            "20261120T160500",
            "20261120T160500Z ",
            "20261320T160500Z",
            "20261120T250500Z",
            "+0261120T160500Z",
            "2026-11-20T16:05:00Z",
            "19691231T235959Z",
        ] {
            assert_eq!(AmzDate::parse(text), None, "{text:?}");
        }
    }
}
