//! How much one host may ask of this server, as `control-plane-request-limit` entries say.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hawser_core::clock::Index;
use hawser_core::entry::{AreaLimit, Entries, LimitMode, PerSecond, RequestLimit};
use hawser_core::name::NodeName;
use prometheus::IntCounterVec;
use tonic::Status;

use crate::read::Reader;

/// What is asked about.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Area {
    Acl,
    Catalog,
    ConfigEntry,
    ConnectCa,
    Coordinate,
    DiscoveryChain,
    Health,
    Intention,
    Kv,
    PreparedQuery,
    Session,
    Txn,
    /// What has no rate of its own, and counts with all together.
    Other,
}

/// Whether it changes anything.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Access {
    Read,
    Write,
}

impl Area {
    /// The area of the endpoint at `pattern`; none for what is never limited: how the servers are,
    /// and what operators need to lift a limit.
    pub(crate) fn of(pattern: &str) -> Option<Self> {
        let within = |prefix: &str| {
            pattern
                .strip_prefix(prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let row = AREAS.iter().find(|(prefix, _)| within(prefix));
        row.map_or(Some(Self::Other), |(_, area)| *area)
    }

    fn limit(self, entry: &RequestLimit) -> Option<&AreaLimit> {
        match self {
            Self::Acl => entry.acl.as_ref(),
            Self::Catalog => entry.catalog.as_ref(),
            Self::ConfigEntry => entry.config_entry.as_ref(),
            Self::ConnectCa => entry.connect_ca.as_ref(),
            Self::Coordinate => entry.coordinate.as_ref(),
            Self::DiscoveryChain => entry.discovery_chain.as_ref(),
            Self::Health => entry.health.as_ref(),
            Self::Intention => entry.intention.as_ref(),
            Self::Kv => entry.kv.as_ref(),
            Self::PreparedQuery => entry.prepared_query.as_ref(),
            Self::Session => entry.session.as_ref(),
            Self::Txn => entry.txn.as_ref(),
            Self::Other => None,
        }
    }
}

/// Counts what hosts ask of this server. Clones share it.
#[derive(Clone)]
pub(crate) struct RequestLimits(Arc<Inner>);

struct Inner {
    reader: Reader,
    limited: IntCounterVec,
    began: Instant,
    counted: Mutex<Counted>,
}

/// What is too much, by which entry, and when more is allowed.
#[derive(Debug)]
pub(crate) struct Exceeded {
    pub(crate) by: Arc<str>,
    pub(crate) after: Duration,
}

impl RequestLimits {
    /// Counts by the entries that `reader` shows; what is too much adds to `limited`.
    pub(crate) fn new(reader: Reader, limited: IntCounterVec) -> Self {
        let (began, counted) = (Instant::now(), Mutex::default());
        Self(Arc::new(Inner { reader, limited, began, counted }))
    }

    /// Counts one request of `node`.
    ///
    /// # Errors
    /// It is too much.
    pub(crate) fn take(&self, node: &NodeName, area: Area, access: Access) -> Result<(), Exceeded> {
        let Inner { reader, limited, began, counted } = &*self.0;
        let state = reader.current();
        let mut counted = counted.lock().unwrap_or_else(PoisonError::into_inner);
        counted.follow(state.entries());
        if counted.entries.is_empty() {
            return Ok(());
        }
        let now = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let (permissive, enforced) = counted.take(node, area, access, now);
        drop(counted);
        let word = match access {
            Access::Read => "read",
            Access::Write => "write",
        };
        if permissive {
            limited.with_label_values(&["permissive", word]).inc();
        }
        enforced.inspect_err(|_| limited.with_label_values(&["enforcing", word]).inc())
    }

    /// The same, for an agent's own calls: it waits a while, or asks another server.
    pub(crate) fn permit(&self, node: &NodeName, area: Area, access: Access) -> Result<(), Status> {
        self.take(node, area, access).map_err(|Exceeded { by, after }| {
            Status::unavailable(format!(
                "rate limit exceeded: control-plane-request-limit/{by} allows {node} no more in \
                 the next {after:?}"
            ))
        })
    }
}

/// What was counted by the entries as of one index.
#[derive(Default)]
struct Counted {
    index: Index,
    entries: Vec<(Arc<str>, Arc<RequestLimit>)>,
    /// When each bucket is full again. Those that are full are dropped when there are too many.
    kept: HashMap<Key, u64>,
}

#[derive(Clone, Eq, Hash, PartialEq)]
struct Key {
    entry: usize,
    node: NodeName,
    /// None for all areas together.
    area: Option<Area>,
    access: Access,
}

impl Counted {
    fn follow(&mut self, entries: &Entries) {
        if self.index == entries.index() {
            return;
        }
        self.index = entries.index();
        let of = |(name, entry): (&str, &RequestLimit)| (name.into(), Arc::new(entry.clone()));
        let new: Vec<_> = entries.request_limits().map(of).collect();
        if new != self.entries {
            (self.entries, self.kept) = (new, HashMap::new());
        }
    }

    /// Whether it is too much for an entry that lets it pass, and for one that does not. Nothing is
    /// taken from any bucket by what is refused.
    fn take(
        &mut self,
        node: &NodeName,
        area: Area,
        access: Access,
        now: u64,
    ) -> (bool, Result<(), Exceeded>) {
        let (mut taken, mut is_permitted) = (Vec::new(), false);
        for (n, (name, entry)) in self.entries.iter().enumerate() {
            let own = area.limit(entry);
            let own =
                own.map(|limit| (Some(area), rate(access, limit.read_rate, limit.write_rate)));
            let all = (None, rate(access, entry.read_rate, entry.write_rate));
            let rates = own.into_iter().chain([all]).filter(|(_, rate)| !rate.is_unlimited());
            for (area, rate) in rates.filter(|_| entry.mode != LimitMode::Disabled) {
                let key = Key { entry: n, node: node.clone(), area, access };
                let kept = self.kept.get(&key).copied().unwrap_or(0);
                match (take(rate, kept, now), entry.mode) {
                    (Ok(next), _) => taken.push((key, next)),
                    (Err(after), LimitMode::Enforcing) => {
                        return (is_permitted, Err(Exceeded { by: name.clone(), after }));
                    }
                    (Err(_), _) => is_permitted = true,
                }
            }
        }
        if self.kept.len() + taken.len() > BUCKETS_MAX {
            self.kept.retain(|_, full_at| *full_at > now);
        }
        for (key, next) in taken {
            // Full of the hasty: a newcomer goes uncounted, and the table stays bounded.
            if self.kept.len() < BUCKETS_MAX || self.kept.contains_key(&key) {
                self.kept.insert(key, next);
            }
        }
        (is_permitted, Ok(()))
    }
}

fn rate(access: Access, read: PerSecond, write: PerSecond) -> PerSecond {
    match access {
        Access::Read => read,
        Access::Write => write,
    }
}

/// Takes one of `rate` by the generic cell rate algorithm, with a burst of one second's.
fn take(rate: PerSecond, kept: u64, now: u64) -> Result<u64, Duration> {
    let each = 1_000_000_000_000 / rate.milli.max(1);
    let next = kept.max(now).saturating_add(each);
    match next.saturating_sub(now).checked_sub(each.max(1_000_000_000)) {
        Some(early) if early > 0 => Err(Duration::from_nanos(early)),
        _ => Ok(next),
    }
}

const BUCKETS_MAX: usize = 65_536;
/// The first that a pattern begins with counts.
const AREAS: &[(&str, Option<Area>)] = &[
    ("acl", Some(Area::Acl)),
    ("catalog", Some(Area::Catalog)),
    ("config", Some(Area::ConfigEntry)),
    ("connect/intentions", Some(Area::Intention)),
    ("connect", Some(Area::ConnectCa)),
    ("hawser/connect", Some(Area::ConnectCa)),
    ("coordinate", Some(Area::Coordinate)),
    ("discovery-chain", Some(Area::DiscoveryChain)),
    ("health", Some(Area::Health)),
    ("kv", Some(Area::Kv)),
    ("query", Some(Area::PreparedQuery)),
    ("session", Some(Area::Session)),
    ("txn", Some(Area::Txn)),
    ("status", None),
    ("operator", None),
    ("snapshot", None),
];

#[cfg(test)]
mod tests {
    use hawser_core::entry::{Body, Entry, Kind};

    use super::*;

    fn counted(entries: &[&str]) -> Counted {
        let mut all = Entries::default();
        for (n, json) in entries.iter().enumerate() {
            let mut json = serde_json::Deserializer::from_str(json);
            let body = Body::read(Kind::RequestLimit, &mut json).expect("an entry");
            let at = Index(n as u64 + 1);
            all.put(Entry::new(&format!("limit{n}"), body).expect("fits"), at);
        }
        let mut counted = Counted::default();
        counted.follow(&all);
        counted
    }

    #[test]
    fn each_host_may_read_and_write_as_much_of_each_area_as_every_entry_allows() {
        use Access::{Read, Write};
        let kv = r#"{"Mode":"enforcing","ReadRate":5,"KV":{"WriteRate":2,"ReadRate":0.5}}"#;
        let seen = r#"{"Mode":"permissive","ReadRate":1,"WriteRate":1}"#;
        let off = r#"{"Mode":"disabled","ReadRate":1,"WriteRate":1}"#;
        type Case<'a> = (&'a [&'a str], Area, Access, usize, bool, &'a str);
        let cases: [Case<'_>; 8] = [
            (&[kv], Area::Kv, Write, 2, false, "a rate of its own, and none for all"),
            (&[kv], Area::Kv, Read, 1, false, "the lower of two; half a request is one at first"),
            (&[kv], Area::Health, Read, 5, false, "the rate of all areas together"),
            (&[kv], Area::Health, Write, 9, false, "nobody limits these"),
            (&[seen], Area::Kv, Write, 9, true, "counted, and let through"),
            (&[off], Area::Kv, Write, 9, false, "not even counted"),
            (&[off, seen, kv], Area::Kv, Write, 2, true, "each counts by itself"),
            (&[], Area::Kv, Write, 9, false, "no entry"),
        ];
        for (entries, area, access, expected, warned, why) in cases {
            let mut counted = counted(entries);
            let nodes: [NodeName; 2] = ["a", "b"].map(|name| name.parse().expect("a name"));
            for node in &nodes {
                let tries = (0..9).map(|_| counted.take(node, area, access, 7));
                let tries: Vec<_> = tries.collect();
                let passed = tries.iter().filter(|(_, taken)| taken.is_ok()).count();
                assert_eq!(passed, expected, "{why}: each host by itself");
                assert_eq!(tries.iter().any(|(permitted, _)| *permitted), warned, "{why}");
            }
            let again = counted.take(&nodes[0], area, access, 3_000_000_000);
            assert!(again.1.is_ok(), "{why}: time passes");
        }
    }

    #[test]
    fn who_is_refused_hears_when_to_come_again() {
        let mut counted = counted(&[r#"{"Mode":"enforcing","WriteRate":1}"#]);
        let node = "a".parse().expect("a name");
        let mut write = |now| counted.take(&node, Area::Txn, Access::Write, now).1;
        assert!(write(0).is_ok());
        let Exceeded { by, after } = write(400_000_000).expect_err("too early");
        assert_eq!((&*by, after), ("limit0", Duration::from_millis(600)));
        assert!(write(1_000_000_000).is_ok());
    }

    #[test]
    fn endpoints_belong_to_the_areas_that_consul_names() {
        for (pattern, expected) in [
            ("kv/*", Some(Area::Kv)),
            ("connect/intentions/exact", Some(Area::Intention)),
            ("connect/ca/roots", Some(Area::ConnectCa)),
            ("config", Some(Area::ConfigEntry)),
            ("configuration", Some(Area::Other)),
            ("peering/:", Some(Area::Other)),
            ("status/leader", None),
            ("operator/raft/configuration", None),
        ] {
            assert_eq!(Area::of(pattern), expected, "{pattern}");
        }
    }
}
