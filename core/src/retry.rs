//! Retries: which ends of a try may be followed by another, and after how long.

use std::time::Duration;

use crate::clock::UnixTime;
use crate::entry::Retries;
use crate::hedge::After;

/// How requests to one service are tried again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Retry {
    /// Most tries after the first that an application may see.
    pub retries: u8,
    /// Longest try while another is possible.
    pub per_try: Duration,
    /// Retries may be this share of the requests of the last ten seconds, in percent.
    pub budget_percent: u8,
    /// Retries per second that are allowed whatever the share.
    pub budget_floor: u32,
    /// Greatest pause before the first retry.
    pub first_pause: Duration,
    /// Greatest pause before any.
    pub longest_pause: Duration,
    /// When another instance is asked as well.
    pub hedge: Option<After>,
    on: Conditions,
}

/// How a try ended that gave no good answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// No application can have seen it.
    Unseen,
    /// The connection broke before there was an answer.
    Reset,
    /// There was no answer in time.
    TimedOut,
    /// An answer with this status.
    Status(u16),
    /// An answer with this gRPC status.
    Grpc(u32),
}

/// What is tried again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Conditions {
    /// Whether an operator chose, for every method.
    is_for_all: bool,
    reset: bool,
    timeout: bool,
    /// From, to.
    statuses: Vec<(u16, u16)>,
    grpc: Vec<u32>,
}

impl Retry {
    /// What holds where no entry says anything.
    pub fn new(retries: u8, per_try: Duration, budget_percent: u8, budget_floor: u32) -> Self {
        Self {
            retries,
            per_try,
            budget_percent,
            budget_floor,
            first_pause: FIRST_PAUSE,
            longest_pause: LONGEST_PAUSE,
            hedge: None,
            on: Conditions {
                is_for_all: false,
                reset: true,
                timeout: true,
                statuses: vec![(500, 500), (502, 504)],
                grpc: Vec::new(),
            },
        }
    }

    /// The same where `entry` has its say.
    #[must_use]
    pub fn with(mut self, entry: &Retries) -> Self {
        self.retries =
            entry.num_retries.map_or(self.retries, |count| u8::try_from(count).unwrap_or(u8::MAX));
        self.per_try = entry.per_try_timeout.unwrap_or(self.per_try);
        self.budget_percent = entry.budget_percent.unwrap_or(self.budget_percent);
        self.budget_floor = entry.budget_min_per_second.unwrap_or(self.budget_floor);
        self.first_pause = entry.backoff_base.unwrap_or(self.first_pause);
        let longest = self.longest_pause.max(self.first_pause.saturating_mul(10));
        self.longest_pause = entry.backoff_max.unwrap_or(longest);
        let percentile = entry.hedge_percentile.map(After::Percentile);
        self.hedge = entry.hedge_after.map(After::Fixed).or(percentile);
        if !entry.retry_on.is_empty() || !entry.retry_on_status_codes.is_empty() {
            self.on = Conditions::compile(&entry.retry_on, &entry.retry_on_status_codes);
        }
        self
    }

    /// Whether a try that ended so may be followed by another.
    ///
    /// What no application has seen may always. What one may have seen may if the request can be
    /// repeated, or an operator named the end; and never if the request is itself part of a retry
    /// further up (`was_retried`), so that tries do not multiply from hop to hop.
    pub fn covers(&self, end: End, is_repeatable: bool, was_retried: bool) -> bool {
        if end == End::Unseen {
            return true;
        }
        self.on.name(end) && (is_repeatable || self.on.is_for_all) && !was_retried
    }

    /// Whether somebody listed what is tried again: then the same instance may be asked again.
    pub fn is_listed(&self) -> bool {
        self.on.is_for_all
    }

    /// How long to wait before retry number `retry`, which begins with one; none when it would be
    /// of no use, for there is only `left`.
    ///
    /// Full jitter: anything up to a bound that doubles with each retry. `draw` is uniformly
    /// distributed. What the answer asks for (`after`) is honoured, and spread by up to a half so
    /// that those who were told the same do not come back together.
    pub fn pause(
        &self,
        retry: u8,
        after: Option<Duration>,
        left: Duration,
        draw: u64,
    ) -> Option<Duration> {
        let share = (draw >> 11) as f64 / (1_u64 << 53) as f64;
        let pause = match after.filter(|after| *after <= RETRY_AFTER_MAX) {
            Some(after) => after.mul_f64(1.0 + share / 2.0),
            None => {
                let bound = self.first_pause.saturating_mul((1 << retry.min(16)) - 1);
                bound.min(self.longest_pause).mul_f64(share)
            }
        };
        (pause < left).then_some(pause)
    }
}

impl Conditions {
    /// What a route lists, in Consul's words and by status; none if it lists nothing.
    pub fn listed(words: &[String], statuses: &[u16]) -> Option<Self> {
        let lists_any = !words.is_empty() || !statuses.is_empty();
        lists_any.then(|| Self::compile(words, statuses))
    }

    /// Whether a try on the route that lists these may be followed by another, when it ended so.
    ///
    /// What is listed may, whatever the method. What got no answer may where the request can be
    /// repeated, too: a route adds to what is safe.
    pub fn cover(&self, end: End, is_repeatable: bool, was_retried: bool) -> bool {
        let is_safe = is_repeatable && matches!(end, End::Reset | End::TimedOut);
        end == End::Unseen || ((self.name(end) || is_safe) && !was_retried)
    }

    fn name(&self, end: End) -> bool {
        match end {
            End::Unseen | End::Reset => self.reset,
            End::TimedOut => self.timeout,
            End::Status(status) => {
                self.statuses.iter().any(|(from, to)| (*from..=*to).contains(&status))
            }
            End::Grpc(status) => self.grpc.contains(&status),
        }
    }

    fn compile(words: &[String], statuses: &[u16]) -> Self {
        let mut on = Self {
            is_for_all: true,
            reset: false,
            timeout: false,
            statuses: statuses.iter().map(|status| (*status, *status)).collect(),
            grpc: Vec::new(),
        };
        for word in words {
            match word.as_str() {
                "5xx" => {
                    (on.reset, on.timeout) = (true, true);
                    on.statuses.push((500, 599));
                }
                "gateway-error" => {
                    on.timeout = true;
                    on.statuses.push((502, 504));
                }
                "reset" => (on.reset, on.timeout) = (true, true),
                "retriable-4xx" => on.statuses.push((409, 409)),
                "envoy-ratelimited" => on.statuses.push((429, 429)),
                "cancelled" => on.grpc.push(1),
                "deadline-exceeded" => on.grpc.push(4),
                "resource-exhausted" => on.grpc.push(8),
                "internal" => on.grpc.push(13),
                "unavailable" => on.grpc.push(14),
                // What reached no application is tried again in any case.
                _ => {}
            }
        }
        on
    }
}

/// What an answer asks of whoever would try again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Again {
    /// Not to.
    Never,
    /// To wait for so long.
    After(Duration),
}

/// What gRPC's `grpc-retry-pushback-ms` asks for: what is negative or no number asks for no other
/// try.
///
/// Source: gRFC A6, "Pushback".
pub fn pushback(value: &[u8]) -> Again {
    let text = std::str::from_utf8(value).unwrap_or_default().trim();
    text.parse().map_or(Again::Never, |millis| Again::After(Duration::from_millis(millis)))
}

/// What `Retry-After` asks for, in seconds or as a date beside `now`.
pub fn retry_after(value: &[u8], now: impl FnOnce() -> UnixTime) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?.trim();
    let secs = text.parse().ok().map(Duration::from_secs);
    secs.or_else(|| Some(http_date(text)?.since(now())))
}

/// What `X-RateLimit-Reset` asks for: in seconds, or, where that would be decades, as the seconds
/// since 1970 beside `now`. Both are in use.
pub fn rate_limit_reset(value: &[u8], now: impl FnOnce() -> UnixTime) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?.trim();
    let secs: u64 = text.parse().ok()?;
    Some(match secs {
        ..MOMENTS_FROM => Duration::from_secs(secs),
        _ => UnixTime::from_secs(secs).since(now()),
    })
}

/// A moment as HTTP writes it now: `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 §5.6.7). The forms of
/// before 1997 are not read.
fn http_date(text: &str) -> Option<UnixTime> {
    let (_, date) = text.split_once(", ")?;
    let date = date.strip_suffix(" GMT")?;
    let bytes = date.as_bytes();
    // `06 Nov 1994 08:49:37`
    let is_formed = bytes.len() == 20
        && [2, 6, 11].iter().all(|at| bytes[*at] == b' ')
        && [14, 17].iter().all(|at| bytes[*at] == b':');
    if !is_formed {
        return None;
    }
    let number = |from: usize, to: usize| {
        let digits = bytes.get(from..to)?;
        let all = digits.iter().all(u8::is_ascii_digit);
        let value =
            digits.iter().fold(0_u64, |sum, digit| sum * 10 + u64::from(digit.wrapping_sub(b'0')));
        all.then_some(value)
    };
    let month = MONTHS.iter().position(|month| date.get(3..6) == Some(*month))? as u64;
    let (day, year) = (number(0, 2)?, number(7, 11)?);
    let (hour, minute, second) = (number(12, 14)?, number(15, 17)?, number(18, 20)?);
    if !(1..=31).contains(&day) || year < 1970 || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Counted from March, so that the day that a leap year adds is its last.
    let (march_year, month) = if month < 2 { (year - 1, month + 10) } else { (year, month - 2) };
    let leaps = march_year / 4 - march_year / 100 + march_year / 400;
    let days = march_year * 365 + leaps + (month * 153 + 2) / 5 + day - 1;
    let secs = (days - DAYS_BEFORE_1970) * 86_400 + hour * 3_600 + minute * 60 + second;
    Some(UnixTime::from_secs(secs))
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
/// From the first of March of the year 0.
const DAYS_BEFORE_1970: u64 = 719_468;
/// As many seconds are a moment and no span: those since 1970 in 2001.
const MOMENTS_FROM: u64 = 1_000_000_000;
/// Envoy's pause, and its cap.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// What asks for longer is not believed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    fn usual() -> Retry {
        Retry::new(2, Duration::from_secs(2), 20, 3)
    }

    fn with(json: &str) -> Retry {
        usual().with(&serde_json::from_str(json).expect(json))
    }

    #[test]
    fn what_may_be_tried_again() {
        let on = |words: &str| with(&format!(r#"{{"RetryOn":[{words}]}}"#));
        let cases = [
            // rules, end, repeatable, part of a retry, expected, why
            (usual(), End::Unseen, false, true, true, "nobody saw it"),
            (usual(), End::Reset, true, false, true, "it can be repeated"),
            (usual(), End::Reset, false, false, false, "its work may be done"),
            (usual(), End::Reset, true, true, false, "one layer retries"),
            (usual(), End::Status(503), true, false, true, "a gateway's error"),
            (usual(), End::Status(501), true, false, false, "it will say so again"),
            (usual(), End::Status(404), true, false, false, "no error of the service"),
            (usual(), End::Grpc(14), true, false, false, "nobody asked for it"),
            (on(r#""unavailable""#), End::Grpc(14), false, false, true, "the operator says so"),
            (on(r#""unavailable""#), End::Reset, true, false, false, "and nothing else"),
            (on(r#""gateway-error""#), End::Status(500), true, false, false, "502 to 504 only"),
            (on(r#""5xx""#), End::Status(501), false, false, true, "all of them"),
            (on(r#""retriable-4xx""#), End::Status(409), false, true, false, "one layer retries"),
            (
                with(r#"{"RetryOnStatusCodes":[425]}"#),
                End::Status(425),
                false,
                false,
                true,
                "listed",
            ),
        ];
        for (retry, end, is_repeatable, was_retried, expected, why) in cases {
            assert_eq!(retry.covers(end, is_repeatable, was_retried), expected, "{end:?}: {why}");
        }
    }

    #[test]
    fn a_route_adds_to_what_is_safe() {
        let on = |word: &str| Conditions::listed(&[word.to_owned()], &[]).expect("a list");
        let cases = [
            // conditions, end, repeatable, part of a retry, expected, why
            (on("unavailable"), End::Grpc(14), false, false, true, "listed"),
            (on("unavailable"), End::Status(503), true, false, false, "something else is listed"),
            (on("unavailable"), End::Reset, true, false, true, "it can be repeated"),
            (on("unavailable"), End::Reset, false, false, false, "its work may be done"),
            (on("reset"), End::TimedOut, false, false, true, "there was no answer"),
            (on("reset"), End::Reset, false, true, false, "one layer retries"),
            (on("reset"), End::Unseen, false, true, true, "nobody saw it"),
        ];
        for (on, end, is_repeatable, was_retried, expected, why) in cases {
            assert_eq!(on.cover(end, is_repeatable, was_retried), expected, "{end:?}: {why}");
        }
        assert_eq!(Conditions::listed(&[], &[]), None);
    }

    #[test]
    fn every_word_that_is_taken_means_something() {
        use crate::entry::RETRY_CONDITIONS;
        let silent = ["reset-before-request", "connect-failure", "refused-stream"];
        let nothing = Conditions::compile(&["connect-failure".to_owned()], &[]);
        for word in RETRY_CONDITIONS {
            let means = Conditions::compile(&[word.to_owned()], &[]) != nothing;
            assert_eq!(means, !silent.contains(&word), "{word}");
        }
    }

    #[test]
    fn pauses_are_spread_and_bounded() {
        let (retry, long) = (usual(), Duration::from_secs(60));
        let ms = Duration::from_millis;
        let cases = [
            // retry, what the answer asks for, left, draw, expected
            (1, None, long, 0, Some(ms(0))),
            (1, None, long, u64::MAX, Some(ms(25))),
            (2, None, long, u64::MAX, Some(ms(75))),
            (9, None, long, u64::MAX, Some(ms(250))),
            (1, None, ms(10), u64::MAX, None),
            (1, Some(ms(2_000)), long, 0, Some(ms(2_000))),
            (1, Some(ms(2_000)), long, u64::MAX, Some(ms(3_000))),
            (1, Some(ms(2_000)), ms(1_500), 0, None),
            (1, Some(Duration::from_secs(301)), long, 0, Some(ms(0))),
        ];
        for (number, after, left, draw, expected) in cases {
            let pause = retry.pause(number, after, left, draw);
            let close = |a: Duration, b: Duration| a.abs_diff(b) < ms(1);
            let is_right = match (pause, expected) {
                (Some(pause), Some(expected)) => close(pause, expected),
                (None, None) => true,
                _ => false,
            };
            assert!(is_right, "retry {number}, {after:?}: {pause:?} is not {expected:?}");
        }
    }

    #[test]
    fn what_an_answer_asks_for_is_read() {
        let now = || UnixTime::from_secs(784_111_700);
        let secs = |secs| Some(Duration::from_secs(secs));
        let after: &[(&str, Option<Duration>)] = &[
            (" 7 ", secs(7)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", secs(77)),
            ("Sun, 06 Nov 1994 08:48:19 GMT", secs(0)),
            ("Tue, 29 Feb 2000 00:00:00 GMT", secs(951_782_400 - 784_111_700)),
            ("Wed, 01 Mar 2000 00:00:00 GMT", secs(951_868_800 - 784_111_700)),
            ("Fri, 31 Dec 2100 23:59:59 GMT", secs(4_133_980_799 - 784_111_700)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("Sun, 06 Foo 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 24:49:37 GMT", None),
            ("Sun, 06 Nov 19\u{e9}4 08:49:37 GMT", None),
            ("Sun, 06 Nov +994 08:49:37 GMT", None),
            ("-1", None),
            ("soon", None),
            ("", None),
        ];
        for (text, expected) in after {
            assert_eq!(retry_after(text.as_bytes(), now), *expected, "{text:?}");
        }
        let resets: &[(&str, Option<Duration>)] =
            &[("30", secs(30)), ("999999999", secs(999_999_999)), ("x", None)];
        for (text, expected) in resets {
            assert_eq!(rate_limit_reset(text.as_bytes(), now), *expected, "{text:?}");
        }
        let later = || UnixTime::from_secs(1_700_000_000);
        assert_eq!(rate_limit_reset(b"1700000012", later), secs(12));
        assert_eq!(rate_limit_reset(b"1600000000", later), secs(0));
        let millis = |millis| Again::After(Duration::from_millis(millis));
        for (text, expected) in
            [("250", millis(250)), ("0", millis(0)), ("-1", Again::Never), ("x", Again::Never)]
        {
            assert_eq!(pushback(text.as_bytes()), expected, "{text:?}");
        }
    }
}
