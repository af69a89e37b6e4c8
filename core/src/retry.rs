//! Retries: which ends of a try may be followed by another, and after how long.

use std::time::Duration;

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

/// What `Retry-After` asks for in seconds. A date is not read: it needs a clock that both share.
pub fn retry_after(value: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?.trim();
    text.parse().ok().map(Duration::from_secs)
}

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
        assert_eq!(retry_after(b" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(b"Wed, 21 Oct 2015 07:28:00 GMT"), None);
    }
}
