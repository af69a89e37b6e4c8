//! Samples of the key-value store, its sessions and transactions, with no field left at its default.

use std::sync::Arc;
use std::time::Duration;

use hawser_core::catalog::Row;
use hawser_core::clock::{Index, UnixTime};
use hawser_core::event::Event;
use hawser_core::kv::{Change, Item, Rows, Write};
use hawser_core::query::{Body, Dns, Failover, PreparedQuery, Selection, Target, Template};
use hawser_core::session::{Behavior, Session};
use hawser_core::state::{Command, Dump, Rejection};
use hawser_core::txn::{Failure, Op};

use crate::samples::{check, instance, node, parse};

fn write() -> Write {
    Write { key: parse("app/lock"), value: Arc::from(*b"\x00\xffheld"), flags: u64::MAX }
}

fn session() -> Session {
    Session {
        id: parse("adf4238a-882b-9ddc-4a9d-5b6758e4159e"),
        name: "deploys".into(),
        node: parse("vm-1.internal"),
        lock_delay: Duration::from_millis(15_001),
        behavior: Behavior::Delete,
        ttl: Some(Duration::from_secs(30)),
        node_checks: vec![parse("serfHealth"), parse("disk")],
        service_checks: vec![parse("service:web 1")],
    }
}

fn query() -> PreparedQuery {
    let service = Selection {
        service: "web".into(),
        failover: Failover {
            nearest_n: 1,
            datacenters: vec!["dc2".into()],
            targets: vec![Target { peer: "west".into(), datacenter: "dc3".into() }],
        },
        only_passing: true,
        ignore_check_ids: vec!["disk".into()],
        near: "_agent".into(),
        tags: vec!["!v1".into()],
        node_meta: [("rack".into(), "1".into())].into(),
        service_meta: [("version".into(), "2".into())].into(),
        connect: true,
    };
    let template = Template {
        kind: "name_prefix_match".into(),
        regexp: "^geo-(.*)$".into(),
        remove_empty_tags: true,
    };
    PreparedQuery {
        id: "q1".into(),
        name: "geo-".into(),
        session: Some(parse("s1")),
        body: Body { template, service, dns: Dns { ttl: "10s".into() } },
    }
}

fn event() -> Event {
    Event {
        id: "b54fe110-7af5-cafc-d1fb-afc8ba432b1c".into(),
        name: parse("deploy"),
        payload: Arc::from(*b"1609030"),
        node_filter: "^vm-".into(),
        service_filter: "web".into(),
        tag_filter: "v1".into(),
    }
}

fn changes() -> Vec<(&'static str, Change)> {
    vec![
        ("set", Change::Set(write())),
        ("cas", Change::Cas(write(), Index(7))),
        ("lock", Change::Lock(write(), parse("s1"))),
        ("unlock", Change::Unlock(write(), parse("s1"))),
        ("delete", Change::Delete(parse("app/lock"))),
        ("delete-cas", Change::DeleteCas(parse("app/lock"), Index(7))),
        ("delete-tree", Change::DeleteTree("app/".into())),
    ]
}

/// Every operation of a transaction.
fn ops() -> Vec<Op> {
    let host = || parse("vm-1.internal");
    let mut all: Vec<Op> = changes().into_iter().map(|(_, change)| Op::Change(change)).collect();
    all.extend([
        Op::Get(parse("a")),
        Op::GetOrEmpty(parse("a")),
        Op::GetTree("a/".into()),
        Op::CheckIndex(parse("a"), Index(5)),
        Op::CheckSession(parse("a"), parse("s1")),
        Op::CheckNotExists(parse("b")),
        Op::EndSession(parse("s2")),
        Op::PutNode(node(), Some(Index(0))),
        Op::PutNode(node(), None),
        Op::GetNode(host()),
        Op::DropNode(host(), Some(Index(3))),
        Op::PutInstance(host(), instance(), Some(Index(4))),
        Op::GetInstance(host(), parse("web 1")),
        Op::DropInstance(host(), parse("web 1"), None),
        Op::PutCheck(host(), check(), None),
        Op::GetCheck(host(), parse("service:web 1")),
        Op::DropCheck(host(), parse("service:web 1"), Some(Index(9))),
    ]);
    all
}

/// Every kind of command, by name.
pub(crate) fn commands() -> Vec<(&'static str, Command)> {
    let names = [
        "kv-set",
        "kv-cas",
        "kv-lock",
        "kv-unlock",
        "kv-delete",
        "kv-delete-cas",
        "kv-delete-tree",
    ];
    let changes = changes().into_iter().map(|(_, change)| Command::Kv(change));
    let mut all: Vec<(&'static str, Command)> = names.into_iter().zip(changes).collect();
    all.extend([
        ("create-session", Command::CreateSession(session())),
        ("end-session", Command::EndSession(parse("s1"))),
        ("txn", Command::Txn(ops())),
        ("fire-event", Command::FireEvent(event())),
        ("put-query", Command::PutQuery(query())),
        ("drop-query", Command::DropQuery("q1".into())),
    ]);
    all
}

/// Every kind of rejection, by name.
pub(crate) fn rejections() -> Vec<(&'static str, Rejection)> {
    let failures = vec![Failure { op: 3, why: "key \"a\" exists".into() }];
    vec![
        ("locked", Rejection::Locked { key: parse("app/lock") }),
        ("not-holder", Rejection::NotHolder { key: parse("app/lock") }),
        ("unknown-session", Rejection::UnknownSession { session: parse("s9") }),
        ("unknown-check", Rejection::UnknownCheck { check: parse("disk") }),
        ("critical-check", Rejection::CriticalCheck { check: parse("disk") }),
        ("txn", Rejection::Txn { failures }),
        ("query-name-taken", Rejection::QueryNameTaken { name: "geo".into() }),
    ]
}

/// What of a state this is about.
pub(crate) fn dump() -> Dump {
    let row = |item: Item, at: u64| Row {
        value: Arc::new(item),
        created: Index(at),
        modified: Index(at + 1),
    };
    let held = Item { value: write().value, flags: 42, lock_index: 3, session: Some(session().id) };
    Dump {
        applied: Index(90),
        kv: Rows {
            items: vec![
                (parse("app/empty"), row(Item::default(), 60)),
                (parse("app/lock"), row(held, 62)),
            ],
            tombstones: vec![(parse("app/gone"), Index(70))],
            delays: vec![(parse("app/gone"), UnixTime::from_millis(1_790_000_000_004))],
            cleared: Index(55),
            index: Index(70),
        },
        sessions: vec![Row { value: Arc::new(session()), created: Index(61), modified: Index(61) }],
        sessions_index: Index(80),
        events: vec![(Index(82), Arc::new(event()))],
        queries: vec![Row { value: Arc::new(query()), created: Index(83), modified: Index(84) }],
        queries_index: Index(85),
        ..Dump::default()
    }
}
