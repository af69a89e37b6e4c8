//! What a prepared query found, as records.

use std::time::Duration;

use super::{Answer, Kind, Question, Record, Selector, Way, is_of, missing, srv};
use crate::catalog::Endpoint;

/// What a prepared query found, as a server told.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Found {
    /// The instances, in the order that the query gives them: nearest first where it says so, else
    /// drawn. Each with the socket that the query wants, the proxy's or the application's.
    pub endpoints: Vec<Endpoint>,
    /// How long clients may keep the answer, where the query says so.
    pub ttl: Option<Duration>,
    /// Whether they are a peer's, whose nodes have no names here.
    pub is_foreign: bool,
}

/// Answers `question`, asked below the zone's domain number `domain`, with what was `found`.
///
/// A query that finds nothing does not exist, nor does one that nobody wrote: both as in Consul.
pub fn answer<'v>(found: &'v Found, domain: usize, question: &Question<'_>) -> Answer<'v> {
    let answer = Answer {
        domain,
        is_in_domain: true,
        exists: true,
        is_cut: false,
        about: None,
        records: Vec::new(),
        extra: Vec::new(),
    };
    if found.endpoints.is_empty() {
        return missing(answer);
    }
    let selector = Selector { tag: None, way: Way::Application, is_foreign: found.is_foreign };
    let record = |endpoint: &'v Endpoint| match question.kind {
        Kind::Srv => Some(srv(endpoint, selector)),
        kind => is_of(kind, endpoint.address).then_some(Record::Address(endpoint.address)),
    };
    let mut records: Vec<Record<'v>> = Vec::new();
    for record in found.endpoints.iter().take(FOUND_MAX).filter_map(record) {
        if !records.contains(&record) {
            records.push(record);
        }
    }
    let is_cut = records.len() > question.most || found.endpoints.len() > FOUND_MAX;
    records.truncate(question.most);
    Answer { records, is_cut, ..answer }
}

/// The most instances that an answer is made of: those that are nearest.
pub const FOUND_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::super::{Host, QName};
    use super::*;
    use crate::catalog::{Locality, Weights};
    use crate::health::Status;

    fn endpoint(node: &str, address: &str, port: u16, status: Status) -> Endpoint {
        Endpoint {
            node: node.parse().expect("a name"),
            instance: format!("{node}-{port}").parse().expect("an id"),
            address: address.parse().expect("an address"),
            has_own_address: false,
            ports: Default::default(),
            port,
            mesh: None,
            locality: Locality::default(),
            tags: Default::default(),
            weights: Weights { passing: 7, warning: 2 },
            status,
        }
    }

    fn found() -> Found {
        let endpoints = vec![
            endpoint("near", "10.0.0.9", 80, Status::Passing),
            endpoint("far", "10.0.0.1", 80, Status::Warning),
            endpoint("near", "10.0.0.9", 81, Status::Passing),
            endpoint("six", "fd00::1", 80, Status::Passing),
        ];
        Found { endpoints, ..Found::default() }
    }

    fn ask(found: &Found, kind: Kind, most: usize) -> Answer<'_> {
        let name = QName::parse("geo.query.consul").expect("a name");
        answer(found, 0, &Question { name: &name, kind, draw: 7, most })
    }

    #[test]
    fn addresses_keep_the_querys_order_and_come_once() {
        let found = found();
        let address = |text: &str| Record::Address(text.parse().expect("an address"));
        let cases = [
            (Kind::A, 9, vec!["10.0.0.9", "10.0.0.1"], false),
            (Kind::A, 1, vec!["10.0.0.9"], true),
            (Kind::Aaaa, 9, vec!["fd00::1"], false),
            (Kind::Any, 9, vec!["10.0.0.9", "10.0.0.1", "fd00::1"], false),
            (Kind::Txt, 9, vec![], false),
        ];
        for (kind, most, expected, is_cut) in cases {
            let answer = ask(&found, kind, most);
            let expected: Vec<_> = expected.into_iter().map(address).collect();
            assert_eq!(answer.records, expected, "{kind:?}");
            assert_eq!((answer.exists, answer.is_cut), (true, is_cut), "{kind:?}");
        }
    }

    #[test]
    fn ports_and_weights_come_with_srv_and_a_peers_nodes_go_by_address() {
        let mut found = found();
        let targets = |answer: &Answer<'_>| -> Vec<(String, u16, u16)> {
            let records = answer.records.iter().map(|record| match record {
                Record::Srv { target: Host::Node(node), port, weight, .. } => {
                    ((*node).to_owned(), *port, *weight)
                }
                Record::Srv { target: Host::Address(address), port, weight, .. } => {
                    (address.to_string(), *port, *weight)
                }
                other => panic!("{other:?}"),
            });
            records.collect()
        };
        let row = |name: &str, port, weight| (name.to_owned(), port, weight);
        let own = [row("near", 80, 7), row("far", 80, 2), row("near", 81, 7), row("six", 80, 7)];
        assert_eq!(targets(&ask(&found, Kind::Srv, 9)), own);
        found.is_foreign = true;
        assert_eq!(
            targets(&ask(&found, Kind::Srv, 2)),
            [row("10.0.0.9", 80, 7), row("10.0.0.1", 80, 2)]
        );
    }

    #[test]
    fn a_query_that_finds_nothing_does_not_exist() {
        assert!(!ask(&Found::default(), Kind::A, 9).exists);
    }
}
