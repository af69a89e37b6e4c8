//! What is missing, unknown or malformed is refused, by the name of its field.

use std::fmt::Debug;

use hawser_core::ca::{Authority, Root};
use hawser_core::catalog::{Check, Instance, Node};
use hawser_core::clock::{Index, UnixTime};
use hawser_core::edge::{EdgeKey, Tally};
use hawser_core::entry::Entry;
use hawser_core::intention::{Intention, Pair};
use hawser_core::state::{Cluster, Command, JoinToken, NodeChanges, Rejection};
use hawser_core::view::{Change, Endpoint, Interest, Trust};
use hawser_proto::{Invalid, Member, codec, v1};

use crate::samples;

/// The field that converting `message` is refused for.
fn field<P, T: TryFrom<P, Error = Invalid> + Debug>(message: P) -> &'static str {
    T::try_from(message).expect_err("it must be refused").field
}

fn spoilt<P>(message: P, spoil: impl FnOnce(&mut P)) -> P {
    let mut message = message;
    spoil(&mut message);
    message
}

#[test]
fn a_node_is_refused_by_its_bad_field() {
    let node = || v1::Node::from(&samples::node());
    let cases = [
        (spoilt(node(), |n| n.name = String::new()), "node.name"),
        (spoilt(node(), |n| n.name = "..".into()), "node.name"),
        (spoilt(node(), |n| n.address = String::new()), "node.address"),
        (spoilt(node(), |n| n.address = "10.0.0.256".into()), "node.address"),
    ];
    for (message, expected) in cases {
        assert_eq!(field::<_, Node>(message), expected);
    }
    let unsaid = Node::try_from(spoilt(node(), |n| n.locality = None)).expect("it may be unsaid");
    assert_eq!(unsaid.locality.region, None);
}

#[test]
fn an_instance_is_refused_by_its_bad_field() {
    let instance = || v1::Instance::from(&samples::instance());
    let cases = [
        (spoilt(instance(), |i| i.id = String::new()), "instance.id"),
        (spoilt(instance(), |i| i.service = "*".into()), "instance.service"),
        (spoilt(instance(), |i| i.address = "localhost".into()), "instance.address"),
        (spoilt(instance(), |i| i.port = 65_536), "instance.port"),
        (spoilt(instance(), |i| i.mesh_port = u32::MAX), "instance.mesh_port"),
        (spoilt(instance(), |i| i.weight_passing = 65_536), "instance.weight_passing"),
        (spoilt(instance(), |i| i.weight_warning = 65_536), "instance.weight_warning"),
        (spoilt(instance(), |i| i.protocol = 99), "instance.protocol"),
        (spoilt(instance(), |i| i.protocol = -1), "instance.protocol"),
    ];
    for (message, expected) in cases {
        assert_eq!(field::<_, Instance>(message), expected);
    }
}

#[test]
fn unknown_and_missing_words_are_refused() {
    let check = |status| spoilt(v1::Check::from(&samples::check()), |c| c.status = status);
    let intention =
        |action| spoilt(v1::Intention::from(&samples::intention()), |i| i.action = action);
    for number in [0, 4, -1, i32::MAX] {
        assert_eq!(field::<_, Check>(check(number)), "check.status", "{number}");
        assert_eq!(field::<_, Intention>(intention(number)), "intention.action", "{number}");
    }
    let why = |number| Check::try_from(check(number)).expect_err("no status").to_string();
    assert_eq!(why(0), "check.status: it is missing");
    assert_eq!(why(4), "check.status: 4 is no value that this release knows");
}

#[test]
fn nothing_that_must_be_there_may_be_missing() {
    assert_eq!(field::<_, NodeChanges>(v1::NodeChanges::default()), "node_changes.node");
    assert_eq!(field::<_, Intention>(v1::Intention::default()), "intention.pair");
    assert_eq!(field::<_, Pair>(v1::Pair::default()), "pair.destination");
    assert_eq!(field::<_, Entry>(v1::Entry::default()), "entry.key");
    assert_eq!(field::<_, Root>(v1::Root::default()), "root.validity");
    assert_eq!(field::<_, Authority>(v1::Authority::default()), "authority.intermediate");
    assert_eq!(field::<_, Cluster>(v1::Cluster::default()), "cluster.trust_domain");
    assert_eq!(field::<_, JoinToken>(v1::JoinToken::default()), "join_token.hash");
    assert_eq!(field::<_, Member>(v1::Member::default()), "member.id");
    assert_eq!(field::<_, Trust>(v1::Trust::default()), "trust.trust_domain");
    assert_eq!(field::<_, Endpoint>(v1::Endpoint::default()), "endpoint.node");
    assert_eq!(field::<_, Change>(v1::Change::default()), "change.kind");
    assert_eq!(field::<_, Rejection>(v1::Rejection::default()), "rejection.kind");
    assert_eq!(field::<_, Result<Index, Rejection>>(v1::Outcome::default()), "outcome.index");
    assert_eq!(field::<_, (EdgeKey, Tally)>(v1::Edge::default()), "edge.source");
}

#[test]
fn a_command_that_this_release_does_not_know_is_refused() {
    let unknown_kind = [0x08, 0x05, 0xfa, 0x07, 0x00];
    let cases: [(&[u8], &str); 4] = [
        (&[], "command.time_ms"),
        (&[0x08, 0x05], "command.kind"),
        (&unknown_kind, "command.kind"),
        (&[0xff], "command"),
    ];
    for (octets, expected) in cases {
        let refused = codec::command::decode(octets).expect_err("no command");
        assert_eq!(refused.field, expected, "{octets:?}");
    }
}

#[test]
fn a_command_cut_short_is_never_another_command() {
    let time = UnixTime::from_millis(1_790_000_000_123);
    for (name, command) in samples::commands() {
        let octets = codec::command::encode(time, &command);
        for length in 0..octets.len() {
            let read: Result<(UnixTime, Command), Invalid> =
                codec::command::decode(&octets[..length]);
            assert!(read.is_err(), "{name} cut at {length}");
        }
    }
}

#[test]
fn hashes_are_32_octets() {
    for length in [0, 31, 33] {
        let node = || "a".to_owned();
        let good = v1::JoinToken { hash: vec![0; 32], node: node(), ..Default::default() };
        let token = v1::JoinToken { hash: vec![0; length], ..good.clone() };
        assert_eq!(field::<_, JoinToken>(token), "join_token.hash", "{length}");
        let used = v1::JoinToken { used_by: vec![0; length], ..good };
        let refused = JoinToken::try_from(used).map_err(|why| why.field).err();
        let expected = (length > 0).then_some("join_token.used_by");
        assert_eq!(refused, expected, "{length}: none is none");
        let shown = v1::UseJoinToken { hash: vec![0; length], node: node(), key: vec![] };
        let kind = v1::command::Kind::UseJoinToken(shown);
        assert_eq!(field::<_, Command>(kind), "use_join_token.hash", "{length}");
    }
}

#[test]
fn rules_that_came_later_do_not_make_a_log_unreadable() {
    let stored = entry("service-defaults", "web", r#"{"Protocol":"smtp"}"#);
    let read = Entry::try_from(stored.clone()).expect("a body of its kind");
    assert_eq!(v1::Entry::from(&read), stored);
}

fn entry(kind: &str, name: &str, body: &str) -> v1::Entry {
    v1::Entry {
        key: Some(v1::EntryKey { kind: kind.into(), name: name.into() }),
        body_json: body.into(),
    }
}

#[test]
fn an_entry_that_is_none_is_refused() {
    let cases = [
        (entry("ingress", "web", "{}"), "entry_key.kind"),
        (entry("service-defaults", "web", ""), "entry.body_json"),
        (entry("service-defaults", "web", "{"), "entry.body_json"),
        (entry("service-defaults", "web", r#"{"Unknown": 1}"#), "entry.body_json"),
        (entry("service-defaults", "a\nb", "{}"), "entry.body_json"),
        (entry("proxy-defaults", "other", "{}"), "entry.body_json"),
    ];
    for (message, expected) in cases {
        let what = format!("{message:?}");
        assert_eq!(field::<_, Entry>(message), expected, "{what}");
    }
}

#[test]
fn a_member_has_an_address_that_can_be_dialled() {
    for address in ["", ":8300", "s1", "s1:", "s1:0", "s1:65536", "s1:http"] {
        let member = v1::Member { id: 1, name: "s1".into(), address: address.into() };
        assert_eq!(field::<_, Member>(member), "member.address", "{address:?}");
    }
}

#[test]
fn one_bad_name_refuses_a_whole_list() {
    let interest = |services: &[&str], nodes: &[&str]| v1::Interest {
        services: services.iter().map(ToString::to_string).collect(),
        locals: vec![],
        nodes: nodes.iter().map(ToString::to_string).collect(),
        ..v1::Interest::default()
    };
    assert_eq!(field::<_, Interest>(interest(&["web", "*"], &[])), "interest.services");
    assert_eq!(field::<_, Interest>(interest(&[], &["a", "a\nb"])), "interest.nodes");
}

#[test]
fn what_an_agent_reports_cannot_break_a_label_or_a_sketch() {
    let (key, tally) = samples::edge();
    let edge = || v1::Edge::from((&key, &tally));
    let sketch = |buckets: &[u32], counts: &[u64]| {
        spoilt(edge(), |e| {
            let (buckets, counts) = (buckets.into(), counts.into());
            e.latency = Some(v1::LatencySketch { buckets, counts });
        })
    };
    let cases = [
        (spoilt(edge(), |e| e.verdict = "ok\"} 1\n".into()), "edge.verdict"),
        (spoilt(edge(), |e| e.verdict = "a".repeat(254)), "edge.verdict"),
        (spoilt(edge(), |e| e.cluster = "e u".into()), "edge.cluster"),
        (sketch(&[1, 2], &[1]), "latency_sketch.buckets"),
        (sketch(&[2, 1], &[1, 1]), "latency_sketch.buckets"),
        (sketch(&[1, 1], &[1, 1]), "latency_sketch.buckets"),
        (sketch(&[1, 976], &[1, 1]), "latency_sketch.buckets"),
        (sketch(&[1, 65_537], &[1, 1]), "latency_sketch.buckets"),
    ];
    for (message, expected) in cases {
        assert_eq!(field::<_, (EdgeKey, Tally)>(message), expected);
    }
}
