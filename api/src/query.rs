//! The part of a URL after the question mark: which rows, how fresh, and how long to wait.

use std::time::Duration;

use hawser_core::clock::Index;
use hawser_core::duration;
use hawser_core::filter::Filter;
use percent_encoding::percent_decode_str;

use crate::error::ApiError;

/// The decoded pairs of a query string, in order.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Decodes a query string without its question mark.
    ///
    /// # Errors
    /// More than 128 pairs, or one that is no UTF-8 once decoded.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        let mut pairs = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            if pairs.len() == PAIRS_MAX {
                let why = format_args!("more than {PAIRS_MAX} query parameters");
                return Err(ApiError::bad_request(why));
            }
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            pairs.push((decode(key)?, decode(value)?));
        }
        Ok(Self { pairs })
    }

    /// The first value of `key`; empty when the key stands alone.
    pub fn first(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The first value of `key` that is not empty.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.first(key).filter(|value| !value.is_empty())
    }

    /// Every value of `key`, in order.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.pairs.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Whether `key` is there and not said to be false: bare, `1` and `true` are yes.
    ///
    /// # Errors
    /// The value is neither.
    pub fn flag(&self, key: &str) -> Result<bool, ApiError> {
        match self.first(key) {
            None | Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
            Some("" | "1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
            Some(value) => {
                Err(ApiError::bad_request(format_args!("Invalid value for ?{key}: {value:?}")))
            }
        }
    }

    /// The value of `key` as a whole number.
    ///
    /// # Errors
    /// It is none.
    pub fn number(&self, key: &str) -> Result<Option<u64>, ApiError> {
        match self.text(key) {
            None => Ok(None),
            Some(value) => value.parse().map(Some).map_err(|_| {
                ApiError::bad_request(format_args!("Invalid value for ?{key}: {value:?}"))
            }),
        }
    }
}

/// How fresh an answer must be.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Freshness {
    /// As fresh as a leader that trusts its lease.
    #[default]
    Default,
    /// Whatever the server that was asked has.
    Stale {
        /// Unless it has not heard from a leader for longer than this.
        max: Option<Duration>,
    },
    /// As fresh as a leader that just asked a majority.
    Consistent,
    /// What the server that was asked has, kept up to date in the background.
    Cached(Cached),
}

/// How old an answer from memory may be: what `?cached` and `Cache-Control` say together.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Cached {
    /// An answer that is older is asked for anew; none takes one of any age.
    pub max_age: Option<Duration>,
    /// When nobody can be asked anew, an answer of this age will do after all.
    pub stale_if_error: Duration,
}

impl Cached {
    /// Reads the directives that clients of Consul send; others change nothing.
    ///
    /// # Errors
    /// A directive whose seconds are none.
    pub fn from_cache_control(header: &str) -> Result<Self, ApiError> {
        let mut cached = Self::default();
        for directive in header.split(',') {
            let (name, value) = directive.trim().split_once('=').unwrap_or((directive.trim(), ""));
            let seconds = || {
                value.trim_matches('"').parse().map(Duration::from_secs).map_err(|_| {
                    ApiError::bad_request(format_args!(
                        "Invalid Cache-Control header: {name} needs whole seconds"
                    ))
                })
            };
            match name.to_ascii_lowercase().as_str() {
                "max-age" => cached.max_age = Some(seconds()?),
                "stale-if-error" => cached.stale_if_error = seconds()?,
                "must-revalidate" | "no-cache" => cached.max_age = Some(Duration::ZERO),
                _ => {}
            }
        }
        Ok(cached)
    }
}

/// What every read takes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct QueryOptions {
    /// Wait until the answer is newer than this; none does not wait.
    pub index: Option<Index>,
    /// Wait at most this long: [`WAIT_DEFAULT`] unless it is said, and never above [`WAIT_MAX`].
    pub wait: Duration,
    /// How fresh the answer must be.
    pub freshness: Freshness,
    /// Whose datacenter; none is the server's own.
    pub datacenter: Option<String>,
    /// Whether the answer is indented.
    pub pretty: bool,
    /// Whether only passing instances are wanted.
    pub passing: bool,
    /// Tags that an instance must all have.
    pub tags: Vec<String>,
    /// Pairs that a node must all have.
    pub node_meta: Vec<(String, String)>,
    /// The node, or `_agent`, that the answer is ordered by the distance from.
    pub near: Option<String>,
    /// Which elements of the answer are wanted.
    pub filter: Option<Filter>,
    /// Whose services are wanted, where an endpoint can tell; none is one's own.
    pub peer: Option<String>,
}

impl QueryOptions {
    /// Reads the options out of a query, for an endpoint that does not filter.
    ///
    /// # Errors
    /// As [`Self::with_filter`], and a filter.
    pub fn from_query(query: &Query) -> Result<Self, ApiError> {
        match query.text("filter") {
            None => Self::with_filter(query),
            Some(_) => Err(ApiError::bad_request(
                "Invalid query parameter: \"filter\" is not supported here",
            )),
        }
    }

    /// Reads the options out of a query, for an endpoint that heeds the filter.
    ///
    /// # Errors
    /// As [`Self::with_peer`], and a peer.
    pub fn with_filter(query: &Query) -> Result<Self, ApiError> {
        match query.text("peer") {
            None => Self::with_peer(query),
            Some(_) => Err(ApiError::bad_request(
                "Invalid query parameter: \"peer\" is not supported here",
            )),
        }
    }

    /// Reads the options out of a query, for an endpoint that heeds the filter and can tell of
    /// peers.
    ///
    /// # Errors
    /// A value that is none, options that contradict each other, and options that are not
    /// supported: a sameness group, a namespace or partition other than `default`.
    pub fn with_peer(query: &Query) -> Result<Self, ApiError> {
        refuse_unsupported(query)?;
        let index = match query.text("index") {
            None => None,
            Some(text) => {
                let number = text.parse().map_err(|_| ApiError::bad_request("Invalid index"))?;
                Some(Index(number)).filter(|index| *index > Index(0))
            }
        };
        let wait = match query.text("wait") {
            None => WAIT_DEFAULT,
            Some(text) => {
                duration::parse(text).map_err(|_| ApiError::bad_request("Invalid wait time"))?
            }
        };
        let wait = if wait.is_zero() { WAIT_DEFAULT } else { wait.min(WAIT_MAX) };
        let datacenter = query.text("datacenter").or_else(|| query.text("dc")).map(str::to_owned);
        let mut node_meta = Vec::new();
        for pair in query.all("node-meta") {
            let (key, value) = pair.split_once(':').unwrap_or((pair, ""));
            node_meta.push((key.to_owned(), value.to_owned()));
        }
        Ok(Self {
            index,
            wait,
            freshness: freshness(query)?,
            datacenter,
            pretty: query.first("pretty").is_some(),
            passing: query.flag("passing")?,
            tags: query.all("tag").filter(|tag| !tag.is_empty()).map(str::to_owned).collect(),
            node_meta,
            near: query.text("near").map(str::to_owned),
            filter: query
                .text("filter")
                .map(|text| Filter::parse(text).map_err(ApiError::bad_request))
                .transpose()?,
            peer: query.text("peer").map(str::to_owned),
        })
    }

    /// How long to wait in all: the wait and up to a sixteenth more, so that clients that began
    /// together do not come back together.
    ///
    /// `draw_permille` is in `0..=1000` and comes from the caller's generator.
    pub fn wait_with_jitter(&self, draw_permille: u16) -> Duration {
        self.wait + self.wait / 16 * u32::from(draw_permille.min(1000)) / 1000
    }
}

fn freshness(query: &Query) -> Result<Freshness, ApiError> {
    let [stale, consistent, leader, cached] =
        ["stale", "consistent", "leader", "cached"].map(|key| query.first(key).is_some());
    let max = match query.text("max_stale") {
        None => None,
        Some(text) => Some(duration::parse(text).map_err(|_| {
            ApiError::bad_request(format_args!("Invalid max_stale value {text:?}"))
        })?),
    };
    let conflict = |both: &str| {
        Err(ApiError::bad_request(format_args!("Cannot specify {both}, conflicting semantics.")))
    };
    match (stale || max.is_some(), consistent, leader, cached) {
        (true, true, _, _) => conflict("?stale with ?consistent"),
        (true, _, true, _) => conflict("?stale with ?leader"),
        (_, true, true, _) => conflict("?leader with ?consistent"),
        (_, _, true, true) => conflict("?cached with ?leader"),
        (_, true, _, true) => conflict("?cached with ?consistent"),
        (_, true, _, _) => Ok(Freshness::Consistent),
        (true, _, _, _) => Ok(Freshness::Stale { max }),
        (_, _, _, true) => Ok(Freshness::Cached(Cached::default())),
        _ => Ok(Freshness::Default),
    }
}

/// Refuses what would change the answer if it were understood.
fn refuse_unsupported(query: &Query) -> Result<(), ApiError> {
    for key in ["ns", "namespace", "partition", "ap"] {
        if let Some(value) = query.text(key)
            && value != "default"
        {
            return Err(ApiError::bad_request(format_args!(
                "Invalid query parameter: \"{key}\": only \"default\" exists"
            )));
        }
    }
    for key in ["sg", "sameness-group"] {
        if query.text(key).is_some() {
            return Err(ApiError::bad_request(format_args!(
                "Invalid query parameter: \"{key}\" is not supported"
            )));
        }
    }
    Ok(())
}

/// Decodes one percent-encoded part of a query; a plus is a space.
fn decode(text: &str) -> Result<String, ApiError> {
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced)
        .decode_utf8()
        .map(|decoded| decoded.into_owned())
        .map_err(|_| ApiError::bad_request("a query parameter is not UTF-8"))
}

/// How long a read that named an index waits when it does not say.
pub const WAIT_DEFAULT: Duration = Duration::from_secs(300);
/// The longest that a read waits, before jitter.
pub const WAIT_MAX: Duration = Duration::from_secs(600);
const PAIRS_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Result<QueryOptions, ApiError> {
        QueryOptions::from_query(&Query::parse(text)?)
    }

    #[test]
    fn waits_are_bounded() {
        let cases = [
            // query, index, wait, why
            ("", None, WAIT_DEFAULT, "nothing asked"),
            ("index=0&wait=5s", None, Duration::from_secs(5), "index 0 never blocks"),
            ("index=7", Some(Index(7)), WAIT_DEFAULT, "the default wait"),
            ("index=7&wait=60000ms", Some(Index(7)), Duration::from_secs(60), "Prometheus"),
            ("index=7&wait=1000000h", Some(Index(7)), WAIT_MAX, "the cap"),
            ("index=18446744073709551615", Some(Index(u64::MAX)), WAIT_DEFAULT, "2^64-1"),
        ];
        for (text, index, wait, why) in cases {
            let options = options(text).expect(why);
            assert_eq!((options.index, options.wait), (index, wait), "{text}: {why}");
        }
        let options = options("index=1&wait=160s").expect("good");
        assert_eq!(options.wait_with_jitter(0), Duration::from_secs(160));
        assert_eq!(options.wait_with_jitter(1000), Duration::from_secs(170));
        assert_eq!(options.wait_with_jitter(u16::MAX), Duration::from_secs(170));
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let cases = [
            ("index=x", "Invalid index"),
            ("index=-1", "Invalid index"),
            ("index=18446744073709551616", "Invalid index"),
            ("wait=5", "Invalid wait time"),
            ("stale&consistent", "?stale with ?consistent"),
            ("stale&leader", "?stale with ?leader"),
            ("cached&consistent", "?cached with ?consistent"),
            ("passing=maybe", "?passing"),
            ("ns=team", "\"ns\""),
            ("filter=Node%3D%3Dx", "\"filter\" is not supported"),
            ("peer=west", "\"peer\" is not supported here"),
            ("sg=all", "\"sg\" is not supported"),
            ("tag=%ff", "UTF-8"),
        ];
        for (text, expected) in cases {
            let refused = options(text).expect_err(text);
            assert_eq!(refused.status(), 400, "{text}");
            assert!(refused.to_string().contains(expected), "{text}: {refused}");
        }
        let many = "a=1&".repeat(PAIRS_MAX + 1);
        assert!(Query::parse(&many).is_err());
    }

    #[test]
    fn how_old_an_answer_may_be_is_read_from_its_header() {
        let age = |max_age: Option<u64>, stale_if_error| Cached {
            max_age: max_age.map(Duration::from_secs),
            stale_if_error: Duration::from_secs(stale_if_error),
        };
        let cases = [
            ("", Some(age(None, 0))),
            ("max-age=10", Some(age(Some(10), 0))),
            ("Max-Age=10, stale-if-error=300", Some(age(Some(10), 300))),
            ("must-revalidate", Some(age(Some(0), 0))),
            ("private, no-transform", Some(age(None, 0))),
            ("max-age", None),
            ("max-age=-1", None),
            ("max-age=10s", None),
        ];
        for (header, expected) in cases {
            assert_eq!(Cached::from_cache_control(header).ok(), expected, "{header:?}");
        }
    }

    #[test]
    fn options_are_read_as_clients_write_them() {
        let cases = [
            ("stale", Freshness::Stale { max: None }),
            ("stale=&max_stale=10s", Freshness::Stale { max: Some(Duration::from_secs(10)) }),
            ("consistent=1", Freshness::Consistent),
            ("cached", Freshness::Cached(Cached::default())),
            ("leader", Freshness::Default),
        ];
        for (text, expected) in cases {
            assert_eq!(options(text).expect(text).freshness, expected, "{text}");
        }
        let read = options("passing&tag=v1&tag=a%20b+c&node-meta=rack:1&dc=a&datacenter=b&pretty")
            .expect("good");
        assert!(read.passing && read.pretty);
        assert_eq!(read.tags, ["v1", "a b c"]);
        assert_eq!(read.node_meta, [("rack".to_owned(), "1".to_owned())]);
        assert_eq!(read.datacenter.as_deref(), Some("b"), "the longer spelling wins");
        assert!(!options("passing=false").expect("good").passing);
    }
}
