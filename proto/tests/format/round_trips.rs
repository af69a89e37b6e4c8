//! What `From` makes, `TryFrom` reads back as it was.

use std::fmt::Debug;
use std::time::Duration;

use hawser_core::anti_entropy::Rows;
use hawser_core::clock::{Index, UnixTime};
use hawser_core::edge::{EdgeKey, Tally};
use hawser_core::peering::PeerService;
use hawser_core::state::{Command, Dump, Rejection, State};
use hawser_core::view::{Change, Delta, Interest, View};
use hawser_proto::codec;
use hawser_proto::{Member, v1};

use crate::samples::{self, parse};

/// Compares what cannot be compared by `==`.
fn assert_same(one: &impl Debug, other: &impl Debug, what: &str) {
    assert_eq!(format!("{one:#?}"), format!("{other:#?}"), "{what}");
}

#[test]
fn every_command_comes_back_from_the_log() {
    let time = UnixTime::from_millis(1_790_000_000_123);
    for (name, command) in samples::commands() {
        let octets = codec::command::encode(time, &command);
        let decoded = codec::command::decode(&octets).expect(name);
        assert_eq!(decoded, (time, command.clone()), "{name}");
        assert_eq!(codec::command::encode(time, &decoded.1), octets, "{name}: equal octets");
    }
}

#[test]
fn every_outcome_comes_back_to_the_server_that_forwarded_it() {
    for (name, rejection) in samples::rejections() {
        let outcome: Result<Index, Rejection> = Err(rejection);
        assert_eq!(v1::Outcome::from(&outcome).try_into(), Ok(outcome), "{name}");
    }
    let outcome: Result<Index, Rejection> = Ok(Index(9));
    assert_eq!(v1::Outcome::from(&outcome).try_into(), Ok(outcome));
}

#[test]
fn every_change_of_a_view_comes_back() {
    for (name, change) in samples::changes() {
        let read = Change::try_from(v1::Change::from(&change)).expect(name);
        assert_same(&read, &change, name);
    }
    for is_snapshot in [false, true] {
        let delta = samples::delta(is_snapshot);
        let read = Delta::try_from(v1::Delta::from(&delta)).expect("a good delta");
        assert_same(&read, &delta, "the whole delta");
    }
}

#[test]
fn a_view_comes_back_from_disk() {
    for (view, what) in [(samples::view(), "full"), (View::default(), "empty")] {
        let read = codec::view::decode(&codec::view::encode(&view)).expect(what);
        assert_same(&read, &view, what);
    }
}

#[test]
fn a_state_comes_back_from_its_snapshot() {
    for (dump, what) in [(samples::dump(), "full"), (Dump::default(), "empty")] {
        let file = samples::snapshot(&dump);
        let read = codec::snapshot::read(&mut file.as_slice()).expect(what);
        assert_same(&read, &dump, what);
        assert_same(&State::restore(read).dump(), &dump, "and the state is the one it was of");
    }
}

#[test]
fn small_nouns_come_back() {
    let interest = Interest {
        services: [parse("db"), parse("api")].into(),
        locals: [parse("web")].into(),
        nodes: [parse("vm-1")].into(),
        imports: [PeerService { peer: parse("west"), service: parse("db") }].into(),
        gateway: true,
    };
    assert_eq!(v1::Interest::from(&interest).try_into(), Ok(interest));

    let member = Member { id: u64::MAX, name: parse("s1"), address: "[::1]:8300".into() };
    assert_eq!(v1::Member::from(&member).try_into(), Ok(member));

    let (node, instance, check) = (samples::node(), samples::instance(), samples::check());
    let rows = Rows {
        node: Some(node),
        instances: [(instance.id.clone(), instance)].into(),
        checks: [(check.id.clone(), check)].into(),
    };
    assert_eq!(v1::DeclaredReply::from((&rows, Index(8))).try_into(), Ok((rows, Index(8))));
}

#[test]
fn edges_come_back_and_success_costs_no_octets() {
    let (key, tally) = samples::edge();
    let success = (EdgeKey { verdict: "ok".into(), ..key.clone() }, Tally::default());
    for edge in [(key, tally), success.clone()] {
        let sent = v1::Edge::from((&edge.0, &edge.1));
        assert_eq!(sent.try_into(), Ok(edge));
    }
    assert_eq!(v1::Edge::from((&success.0, &success.1)).verdict, "");
}

#[test]
fn a_span_below_a_millisecond_is_not_taken_for_none() {
    let Some(Change::Service(mut service)) =
        samples::changes().into_iter().map(|(_, change)| change).nth(1)
    else {
        panic!("the second sample is a service");
    };
    for (span, millis) in [(0, 1), (1, 1), (999, 1), (1_000, 1), (1_001, 2)] {
        service.chain.connect_timeout = Duration::from_micros(span);
        let sent = v1::Chain::from(&service.chain);
        assert_eq!(sent.connect_timeout_ms, millis, "{span} µs");
        assert!(hawser_core::chain::Chain::try_from(sent).is_ok(), "{span} µs");
    }
}

#[test]
fn a_command_proposed_by_a_clock_at_zero_can_still_be_read() {
    let command = Command::DropNode(parse("vm-1"));
    let octets = codec::command::encode(UnixTime::default(), &command);
    let read = codec::command::decode(&octets).expect("what a server wrote, it can read");
    assert_eq!(read, (UnixTime::from_millis(1), command));
}
