//! The balancer as a whole: tables and simulations on seeds.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::catalog::{Endpoint, Locality, Weights};
use crate::entry::GatewayMode;
use crate::health::Status;
use crate::route::Nearness;

fn endpoints(count: u16) -> Vec<Endpoint> {
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    (0..count)
        .map(|n| Endpoint {
            node: format!("n{n}").parse().expect("a name"),
            instance: format!("i{n}").parse().expect("an id"),
            address,
            has_own_address: false,
            ports: Default::default(),
            port: n,
            mesh: Some(SocketAddr::new(address, n)),
            locality: Locality::default(),
            tags: BTreeSet::new(),
            weights: Weights::default(),
            status: Status::Passing,
        })
        .collect()
}

fn target(peer: &str) -> Target {
    let peer = (!peer.is_empty()).then(|| peer.parse().expect("a name"));
    Target { service: "web".parse().expect("a name"), peer }
}

fn group<'a>(peer: &str, endpoints: &'a [Endpoint]) -> Group<'a> {
    Group {
        target: target(peer),
        gateway_mode: GatewayMode::Default,
        nearness: Nearness::Zone,
        endpoints: endpoints.iter().map(|endpoint| (endpoint, 1)).collect(),
    }
}

fn balancer(endpoints: &[Endpoint], sizes: &[usize]) -> Balancer {
    let mut rest = endpoints;
    let mut groups = Vec::new();
    for size in sizes {
        let (members, others) = rest.split_at(*size);
        rest = others;
        groups.push(group("", members));
    }
    let mut balancer = Balancer::default();
    balancer.update(&groups, &Rules::default(), Duration::ZERO);
    balancer
}

/// SplitMix64: enough for draws, and the same everywhere.
fn draws(mut seed: u64) -> impl FnMut() -> u64 {
    move || {
        seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = (seed ^ (seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

const FIRST: Duration = Duration::from_secs(1);

fn ask(tried: &[PeerId], may_probe: bool) -> Ask<'_> {
    Ask { tried, may_probe, hash: None }
}

fn at(secs: f64) -> Duration {
    Duration::from_secs_f64(secs)
}

/// Fails requests to `port` until nothing changes, and says what ejected it.
fn fail(balancer: &mut Balancer, port: u16, times: u32, now: Duration) -> Effect {
    let mut last = Effect::None;
    for _ in 0..times {
        let at = balancer.peers.iter().position(|p| p.key.3.port() == port).expect("known");
        let pick = balancer.take(at);
        last = balancer.finish(pick, Outcome::Failed, now);
    }
    last
}

#[test]
fn five_failures_in_a_row_eject_and_one_good_probe_returns() {
    let all = endpoints(3);
    let mut balancer = balancer(&all, &[3]);
    let mut draw = draws(1);
    assert_eq!(fail(&mut balancer, 0, 4, at(0.0)), Effect::None);
    assert_eq!(fail(&mut balancer, 0, 1, at(0.0)), Effect::Ejected(FIRST));
    for _ in 0..100 {
        let pick = balancer.pick(at(0.5), ask(&[], true), &mut draw).expect("two are in");
        assert_ne!(pick.address.port(), 0);
        balancer.finish(pick, Outcome::Answered(at(0.001)), at(0.5));
    }
    let not_yet = balancer.pick(at(1.5), ask(&[], false), &mut draw).expect("two are in");
    assert_ne!(not_yet.address.port(), 0, "a request that cannot be repeated does not probe");
    let probe = balancer.pick(at(1.5), ask(&[], true), &mut draw).expect("due");
    assert_eq!((probe.address.port(), probe.is_probe), (0, true));
    let other = balancer.pick(at(1.5), ask(&[], true), &mut draw).expect("two are in");
    assert_ne!(other.address.port(), 0, "one probe at a time");
    let failed = balancer.finish(probe, Outcome::Failed, at(1.5));
    assert_eq!(failed, Effect::Ejected(FIRST * 2), "the wait doubles");
    let probe = balancer.pick(at(3.6), ask(&[], true), &mut draw).expect("due");
    assert_eq!((probe.address.port(), probe.is_probe), (0, true));
    let good = balancer.finish(probe, Outcome::Answered(at(0.001)), at(3.6));
    assert_eq!(good, Effect::Returned);
    assert_eq!(balancer.ejected(), 0);
}

#[test]
fn the_cap_is_half_but_at_least_one_and_never_the_last_without_a_substitute() {
    let cases: &[(&[usize], &[u16], usize, &str)] = &[
        (&[1], &[0], 0, "a lone instance stays"),
        (&[2], &[0, 1], 1, "one of two"),
        (&[3], &[0, 1, 2], 1, "half of three is one"),
        (&[4], &[0, 1, 2, 3], 2, "half of four"),
        (&[1, 1], &[0], 1, "another group can take the load"),
        (&[1, 1], &[0, 1], 1, "but not when it is the last of all"),
    ];
    for (sizes, failing, expected, why) in cases {
        let all = endpoints(sizes.iter().sum::<usize>() as u16);
        let mut balancer = balancer(&all, sizes);
        for port in *failing {
            fail(&mut balancer, *port, 20, at(0.0));
        }
        assert_eq!(balancer.ejected(), *expected, "{why}");
    }
}

#[test]
fn a_group_without_an_available_instance_hands_over() {
    let all = endpoints(3);
    let mut balancer = balancer(&all, &[1, 2]);
    let mut draw = draws(2);
    let first = balancer.pick(at(0.0), ask(&[], true), &mut draw).expect("three are in");
    assert_eq!(first.address.port(), 0, "the nearest group first");
    let second = balancer.pick(at(0.0), ask(&[first.peer], true), &mut draw).expect("two left");
    assert_ne!(second.address.port(), 0, "what was tried is not tried again");
    let third =
        balancer.pick(at(0.0), ask(&[first.peer, second.peer], true), &mut draw).expect("one left");
    let tried = [first.peer, second.peer, third.peer];
    assert!(balancer.has_other(&tried[..2]) && !balancer.has_other(&tried));
    assert_eq!(balancer.pick(at(0.0), ask(&tried, true), &mut draw), None);
}

#[test]
fn load_follows_latency_and_weight() {
    let all = endpoints(2);
    let groups = [group("", &all[..2])];
    let mut balancer = Balancer::default();
    balancer.update(&groups, &Rules::default(), at(0.0));
    let mut draw = draws(3);
    let mut counts = [0_u32; 2];
    for n in 0..1_000 {
        let now = at(f64::from(n) * 0.01);
        let pick = balancer.pick(now, ask(&[], true), &mut draw).expect("in");
        let port = usize::from(pick.address.port());
        counts[port] += 1;
        let latency = if port == 0 { 0.005 } else { 0.200 };
        balancer.finish(pick, Outcome::Answered(at(latency)), now);
    }
    assert!(counts[0] > 9 * counts[1], "the slow one takes little: {counts:?}");
}

#[test]
fn failing_fast_attracts_no_load() {
    let all = endpoints(2);
    let mut balancer = balancer(&all, &[2]);
    let mut draw = draws(4);
    let mut failed = 0_u32;
    for n in 0..1_000 {
        let now = at(f64::from(n) * 0.001);
        let pick = balancer.pick(now, ask(&[], true), &mut draw).expect("in");
        let is_bad = pick.address.port() == 0;
        failed += u32::from(is_bad);
        let good = Outcome::Answered(at(0.005));
        balancer.finish(pick, if is_bad { Outcome::Failed } else { good }, now);
    }
    assert!(failed <= 10, "{failed} of 1,000 went to an instance that fails at once");
}

#[test]
fn what_is_known_of_an_instance_outlives_a_new_route() {
    let all = endpoints(3);
    let mut balancer = balancer(&all, &[3]);
    fail(&mut balancer, 1, 5, at(0.0));
    let before: Vec<_> = balancer.peers().collect();
    balancer.update(&[group("", &all[1..])], &Rules::default(), at(0.1));
    assert_eq!(balancer.peers().collect::<Vec<_>>(), before[1..]);
    assert_eq!(balancer.ejected(), 1);
}

#[test]
fn a_target_that_comes_back_settles_and_longer_if_it_flaps() {
    let all = endpoints(4);
    let (own, west) = all.split_at(2);
    let (both, only_west) = ([group("", own), group("west", west)], [group("west", west)]);
    let mut balancer = Balancer::default();
    let mut draw = draws(7);
    let mut group_at = |balancer: &mut Balancer, now: f64| {
        let pick = balancer.pick(at(now), ask(&[], true), &mut draw).expect("one can");
        balancer.finish(pick, Outcome::Answered(at(0.001)), at(now));
        if pick.address.port() < 2 { "own" } else { "west" }
    };
    balancer.update(&both, &Rules::default(), at(0.0));
    assert_eq!(group_at(&mut balancer, 0.0), "own", "at the start nothing settles");
    balancer.update(&only_west, &Rules::default(), at(10.0));
    assert_eq!(group_at(&mut balancer, 10.0), "west");
    balancer.update(&both, &Rules::default(), at(20.0));
    assert_eq!(group_at(&mut balancer, 20.0), "west", "it settles");
    assert_eq!(group_at(&mut balancer, 24.9), "west", "it still does");
    assert_eq!(group_at(&mut balancer, 25.1), "own", "it has settled");
    balancer.update(&only_west, &Rules::default(), at(30.0));
    balancer.update(&both, &Rules::default(), at(31.0));
    assert_eq!(group_at(&mut balancer, 40.9), "west", "twice as long, for it flaps");
    balancer.update(&both, &Rules::default(), at(40.95));
    assert_eq!(group_at(&mut balancer, 41.1), "own", "another update changes nothing");
    balancer.update(&only_west, &Rules::default(), at(50.0));
    balancer.update(&both, &Rules::default(), at(51.0));
    balancer.update(&[group("", own)], &Rules::default(), at(52.0));
    assert_eq!(group_at(&mut balancer, 52.0), "own", "nothing else can");
}

#[test]
fn a_target_to_which_there_is_no_way_is_out_at_once_and_comes_back_by_a_probe() {
    let all = endpoints(4);
    let mut balancer = Balancer::default();
    balancer.update(
        &[group("east", &all[..2]), group("west", &all[2..])],
        &Rules::default(),
        at(0.0),
    );
    let mut draw = draws(9);
    let pick = balancer.pick(at(0.0), ask(&[], true), &mut draw).expect("all are in");
    assert_eq!(pick.group, 0);
    assert_eq!(balancer.finish(pick, Outcome::Unreachable, at(0.0)), Effect::Ejected(FIRST));
    for _ in 0..20 {
        let pick = balancer.pick(at(0.5), ask(&[], true), &mut draw).expect("two are in");
        assert_eq!(pick.group, 1);
        balancer.finish(pick, Outcome::Answered(at(0.001)), at(0.5));
    }
    let probe = balancer.pick(at(1.1), ask(&[], true), &mut draw).expect("one is due");
    assert!(probe.is_probe && probe.group == 0);
    assert_eq!(balancer.finish(probe, Outcome::Answered(at(0.001)), at(1.1)), Effect::Returned);
    let second = balancer.pick(at(1.2), ask(&[], false), &mut draw).expect("it settles");
    assert_eq!(second.group, 1);
    let later = balancer.pick(at(6.2), ask(&[], false), &mut draw).expect("it has settled");
    assert_eq!(later.group, 0);
}

#[test]
fn what_was_cut_off_together_comes_back_together() {
    let all = endpoints(4);
    let mut balancer = Balancer::default();
    balancer.update(
        &[group("east", &all[..3]), group("west", &all[3..])],
        &Rules::default(),
        at(0.0),
    );
    let mut draw = draws(3);
    let mut pick = |balancer: &mut Balancer, now| {
        balancer.pick(at(now), ask(&[], true), &mut draw).expect("one is in")
    };
    let picks: Vec<_> = (0..5).map(|_| pick(&mut balancer, 0.0)).collect();
    let effects: Vec<_> = picks
        .into_iter()
        .map(|pick| balancer.finish(pick, Outcome::Unreachable, at(0.0)))
        .collect();
    assert_eq!(effects[0], Effect::Ejected(FIRST));
    assert!(effects[1..].iter().all(|it| *it == Effect::None), "one cut, not five: {effects:?}");
    let probe = pick(&mut balancer, 1.0);
    assert!(probe.is_probe);
    let again = balancer.finish(probe, Outcome::Failed, at(1.0));
    assert_eq!(again, Effect::Ejected(FIRST * 2), "no instance comes back alone");
    assert_eq!(balancer.ejected(), 3);
    let probe = pick(&mut balancer, 3.0);
    balancer.finish(probe, Outcome::Answered(at(0.001)), at(3.0));
    assert_eq!(balancer.ejected(), 0);
}

/// Random histories: an ejected instance is never picked while another is available, and the
/// last available one is never ejected.
#[test]
fn no_history_breaks_the_rules_of_ejection() {
    for seed in 0..200 {
        let mut draw = draws(seed);
        let sizes: Vec<usize> = (0..1 + draw() % 3).map(|_| 1 + (draw() % 4) as usize).collect();
        let all = endpoints(sizes.iter().sum::<usize>() as u16);
        let mut balancer = balancer(&all, &sizes);
        let bad = draw();
        let mut now = Duration::ZERO;
        let mut open: Vec<Pick> = Vec::new();
        for step in 0..500 {
            now += Duration::from_millis(draw() % 200);
            if draw().is_multiple_of(3) && !open.is_empty() {
                let pick = open.swap_remove(draw() as usize % open.len());
                let outcome = match (bad >> (pick.address.port() % 64)) & 1 {
                    _ if draw().is_multiple_of(10) => Outcome::Unknown,
                    1 => Outcome::Failed,
                    _ => Outcome::Answered(Duration::from_millis(draw() % 50)),
                };
                balancer.finish(pick, outcome, now);
            } else if open.len() < 32 {
                let may_probe = draw().is_multiple_of(2);
                let before = balancer.clone();
                let pick =
                    balancer.pick(now, ask(&[], may_probe), &mut draw).expect("nothing was tried");
                let peer = before.peers.iter().find(|p| p.id == pick.peer).expect("it is known");
                let is_due = matches!(peer.standing, Standing::OutUntil(until) if now >= until);
                assert!(
                    peer.is_in() || is_due,
                    "seed {seed} step {step}: picked {peer:?} at {now:?}"
                );
                open.push(pick);
            }
            let is_in = balancer.peers.iter().filter(|p| p.is_in()).count();
            assert!(is_in > 0, "seed {seed} step {step}: the last one was ejected");
        }
    }
}

fn ruled(endpoints: &[Endpoint], rules: &Rules) -> Balancer {
    let mut balancer = Balancer::default();
    balancer.update(&[group("", endpoints)], rules, Duration::ZERO);
    balancer
}

fn with(json: &str) -> Rules {
    Rules::compile(Some(&serde_json::from_str(json).expect(json)), None)
}

/// How many of `count` requests each port takes; each is answered after `latency` of its port.
fn shares(
    balancer: &mut Balancer,
    count: u32,
    mut hash: impl FnMut(u32) -> Option<u64>,
    start: Duration,
) -> Vec<u32> {
    let mut draw = draws(11);
    let mut counts = vec![0; balancer.peers.len()];
    for n in 0..count {
        let ask = Ask { hash: hash(n), ..ask(&[], true) };
        let pick = balancer.pick(start, ask, &mut draw).expect("one is in");
        counts[usize::from(pick.address.port())] += 1;
        balancer.finish(pick, Outcome::Answered(at(0.005)), start);
    }
    counts
}

#[test]
fn every_policy_follows_the_weights_of_the_catalog() {
    let cases = [
        // policy, how far off a share may be, in percent
        (r#"{}"#, 10),
        (r#"{"Policy":"random"}"#, 10),
        (r#"{"Policy":"round_robin"}"#, 1),
        (r#"{"Policy":"least_request"}"#, 10),
        (r#"{"Policy":"ring_hash"}"#, 30),
        (r#"{"Policy":"maglev"}"#, 10),
    ];
    let all = endpoints(4);
    let weights = [1, 2, 1, 4];
    for (json, slack) in cases {
        let members = all.iter().zip(weights).collect();
        let mut balancer = Balancer::default();
        balancer.update(&[Group { endpoints: members, ..group("", &all) }], &with(json), at(0.0));
        let counts = shares(&mut balancer, 8_000, |_| None, at(0.0));
        for (count, weight) in counts.iter().zip(weights) {
            let fair = 1_000 * u32::from(weight);
            assert!(count.abs_diff(fair) * 100 <= fair * slack, "{json}: {counts:?}");
        }
    }
}

#[test]
fn turns_are_taken_one_after_another_and_nobody_catches_up() {
    let all = endpoints(3);
    let rules = with(r#"{"Policy":"round_robin","SlowStart":{"Window":"0s"}}"#);
    let mut balancer = ruled(&all[..2], &rules);
    let mut draw = draws(1);
    let mut next = |balancer: &mut Balancer| {
        let pick = balancer.pick(at(1.0), ask(&[], true), &mut draw).expect("in");
        balancer.finish(pick, Outcome::Answered(at(0.001)), at(1.0));
        pick.address.port()
    };
    assert_eq!([0; 6].map(|_| next(&mut balancer)), [0, 1, 0, 1, 0, 1]);
    balancer.update(&[group("", &all)], &rules, at(1.0));
    let taken = [0; 9].map(|_| next(&mut balancer));
    let newest = taken.iter().filter(|port| **port == 2).count();
    assert!(newest <= 3, "the new one takes its turns only: {taken:?}");
}

#[test]
fn the_least_busy_of_many_choices_takes_the_next() {
    let all = endpoints(4);
    let rules = with(r#"{"Policy":"least_request","LeastRequestConfig":{"ChoiceCount":32}}"#);
    let mut balancer = ruled(&all, &rules);
    let mut draw = draws(5);
    let mut open = Vec::new();
    for _ in 0..40 {
        open.push(balancer.pick(at(0.0), ask(&[], true), &mut draw).expect("in"));
    }
    let counts = balancer.peers.iter().map(|peer| peer.in_flight);
    assert!(
        counts.clone().all(|count| (9..=11).contains(&count)),
        "{:?}",
        counts.collect::<Vec<_>>()
    );
}

#[test]
fn a_hash_stays_where_it_is_and_only_what_was_ejected_moves() {
    for json in [r#"{"Policy":"ring_hash"}"#, r#"{"Policy":"maglev"}"#] {
        let all = endpoints(10);
        let mut balancer = ruled(&all, &with(json));
        let mut draw = draws(2);
        let mut owners = |balancer: &mut Balancer, now: f64| -> Vec<u16> {
            let mut owner = |n: u64| {
                let hash = Some(hash::mix(n));
                let ask = Ask { hash, ..ask(&[], false) };
                let pick = balancer.pick(at(now), ask, &mut draw).expect("in");
                balancer.finish(pick, Outcome::Answered(at(0.001)), at(now));
                pick.address.port()
            };
            (0..5_000).map(&mut owner).collect()
        };
        let before = owners(&mut balancer, 0.0);
        assert_eq!(before, owners(&mut balancer, 0.0), "{json}: it stays");
        fail(&mut balancer, 4, 5, at(0.0));
        let after = owners(&mut balancer, 0.5);
        for (was, is) in before.iter().zip(&after) {
            assert!(*is != 4 && (was == is || *was == 4), "{json}: {was} became {is}");
        }
        let heirs: BTreeSet<_> =
            before.iter().zip(&after).filter(|(was, _)| **was == 4).map(|(_, is)| *is).collect();
        assert!(heirs.len() >= 5, "{json}: what it had is spread: {heirs:?}");
    }
}

#[test]
fn one_hot_key_is_held_to_its_bound() {
    for json in [
        r#"{"Policy":"ring_hash","BoundedLoadPercent":125}"#,
        r#"{"Policy":"maglev","BoundedLoadPercent":125}"#,
    ] {
        let all = endpoints(10);
        let mut balancer = ruled(&all, &with(json));
        let mut draw = draws(2);
        for n in 0..1_000_u64 {
            // Half of all is one key.
            let hash = Some(if n.is_multiple_of(2) { 7 } else { hash::mix(n) });
            let ask = Ask { hash, ..ask(&[], true) };
            balancer.pick(at(0.0), ask, &mut draw).expect("in");
        }
        let most = balancer.peers.iter().map(|peer| peer.in_flight).max();
        assert!(most <= Some(126), "{json}: {most:?} of 1,000 at once, where 100 are fair");
        let unbounded = json.replace("125", "0");
        let mut balancer = ruled(&all, &with(&unbounded));
        for _ in 0..1_000 {
            let ask = Ask { hash: Some(7), ..ask(&[], true) };
            balancer.pick(at(0.0), ask, &mut draw).expect("in");
        }
        let most = balancer.peers.iter().map(|peer| peer.in_flight).max();
        assert_eq!(most, Some(1_000), "{unbounded}: no bound was asked for");
    }
}

#[test]
fn a_new_instance_comes_to_its_share_in_a_straight_line() {
    let all = endpoints(5);
    let rules = with(r#"{"Policy":"random","SlowStart":{"Window":"20s","MinimumPercent":10}}"#);
    let mut balancer = ruled(&all[..4], &rules);
    let fair = shares(&mut balancer, 4_000, |_| None, at(0.0));
    assert!(fair.iter().all(|count| (850..1_150).contains(count)), "none ramps at first: {fair:?}");
    balancer.update(&[group("", &all)], &rules, at(100.0));
    let cases = [
        // seconds after it came, its fair share in percent of a full one
        (0.0, 10),
        (1.0, 10),
        (5.0, 25),
        (10.0, 50),
        (19.0, 95),
        (21.0, 100),
    ];
    for (secs, percent) in cases {
        let counts = shares(&mut balancer, 20_000, |_| None, at(100.0 + secs));
        let fair = 20_000 * percent / (400 + percent);
        let slack = (fair / 5).max(50);
        assert!(counts[4].abs_diff(fair) <= slack, "after {secs} s: {counts:?}, {fair} is fair");
    }
}

#[test]
fn an_instance_that_returns_ramps_up_too() {
    let all = endpoints(3);
    let mut balancer = ruled(&all, &with(r#"{"Policy":"random"}"#));
    fail(&mut balancer, 2, 5, at(0.0));
    let mut draw = draws(1);
    let probe = balancer.pick(at(1.1), ask(&[], true), &mut draw).expect("due");
    assert!(probe.is_probe);
    balancer.finish(probe, Outcome::Answered(at(0.001)), at(1.1));
    let early = shares(&mut balancer, 3_000, |_| None, at(1.1))[2];
    let late = shares(&mut balancer, 3_000, |_| None, at(12.0))[2];
    assert!(early < 250 && late > 850, "{early} at once, {late} in the end");
}

/// Answers of port 0 are errors, those of the others as `others` says.
fn answer_all(balancer: &mut Balancer, count: u32, bad: Fault, others: Option<Fault>) -> u32 {
    let mut draw = draws(3);
    let mut ejections = 0;
    for n in 0..count {
        let now = at(f64::from(n) * 0.001);
        let pick = balancer.pick(now, ask(&[], false), &mut draw).expect("in");
        let fault = if pick.address.port() == 0 { Some(bad) } else { others };
        let outcome = match fault {
            Some(fault) => Outcome::Erred(at(0.001), fault),
            None => Outcome::Answered(at(0.001)),
        };
        ejections += u32::from(matches!(balancer.finish(pick, outcome, now), Effect::Ejected(_)));
    }
    ejections
}

#[test]
fn an_application_that_errs_alone_is_ejected_and_one_among_many_is_not() {
    use Fault::{Application, Busy, Gateway};
    let check = |json: &str| Rules::compile(None, Some(&serde_json::from_str(json).expect(json)));
    let usual = Rules::default();
    let lax = check(r#"{"EnforcingConsecutive5xx":0}"#);
    let gateway =
        check(r#"{"EnforcingConsecutive5xx":100,"MaxFailures":100,"MaxGatewayFailures":2}"#);
    let cases = [
        // rules, what port 0 answers, what others do, ejected, why
        (&usual, Application, None, true, "it fails while others do well"),
        (&usual, Gateway, None, true, "so does this"),
        (&usual, Busy, None, false, "it protects itself"),
        (&usual, Application, Some(Application), false, "the requests are at fault"),
        (&lax, Application, None, false, "an operator switched it off"),
        (&gateway, Gateway, None, true, "two in a row"),
    ];
    for (rules, bad, others, expected, why) in cases {
        let rules = Rules { policy: Policy::Random, ..rules.clone() };
        let mut balancer = ruled(&endpoints(3), &rules);
        assert_eq!(answer_all(&mut balancer, 100, bad, others) > 0, expected, "{why}");
    }
}

/// gRPC says at the end of an answer how the call went.
#[test]
fn an_answer_that_turns_out_an_error_at_its_end_counts_as_one() {
    let cases = [
        // how each answer of the first ends, whether that ejects it
        (Some(Fault::Gateway), true),
        (Some(Fault::Application), true),
        (Some(Fault::Busy), false),
        (None, false),
    ];
    for (fault, expected) in cases {
        let rules = Rules { policy: Policy::Random, ..Rules::default() };
        let mut balancer = ruled(&endpoints(3), &rules);
        let (mut draw, now) = (draws(7), at(1.0));
        let mut is_ejected = false;
        for _ in 0..120 {
            let Some(pick) = balancer.pick(now, Ask::default(), &mut draw) else { break };
            let began = balancer.finish(pick, Outcome::Began(at(0.01)), now);
            assert_eq!(began, Effect::None, "nothing is known yet");
            let ended = if pick.address.port() == 0 { fault } else { None };
            is_ejected |= matches!(balancer.concluded(pick, ended, now), Effect::Ejected(_));
        }
        assert_eq!(is_ejected, expected, "{fault:?}");
    }
}

#[test]
fn saying_no_quickly_attracts_no_load() {
    let mut balancer = ruled(&endpoints(2), &Rules::default());
    let mut draw = draws(4);
    let mut busy = 0_u32;
    for n in 0..1_000 {
        let now = at(f64::from(n) * 0.001);
        let pick = balancer.pick(now, ask(&[], true), &mut draw).expect("in");
        let is_busy = pick.address.port() == 0;
        busy += u32::from(is_busy);
        let outcome = match is_busy {
            true => Outcome::Erred(at(0.000_1), Fault::Busy),
            false => Outcome::Answered(at(0.010)),
        };
        balancer.finish(pick, outcome, now);
    }
    assert!(busy <= 20, "{busy} of 1,000 went to one that takes none");
    assert_eq!(balancer.ejected(), 0, "and it is not to blame");
}

#[test]
fn who_said_no_is_asked_again_after_a_while_that_is_bounded() {
    for policy in [Policy::PeakEwma, Policy::LeastRequest(2)] {
        let rules = Rules { policy, ..Rules::default() };
        // How many of the requests after `now` go to the one that said no `times` in a row.
        let share_after = |times: u32, wait: f64| {
            let mut balancer = ruled(&endpoints(2), &rules);
            let mut draw = draws(4);
            let mut now = 0.0;
            for n in 0..times {
                let pick = balancer.take(0);
                balancer.finish(pick, Outcome::Erred(at(0.000_1), Fault::Busy), at(now));
                now += if n + 1 < times { 5.0 } else { wait };
            }
            let asked = (0..1_000_u32).filter(|_| {
                let pick = balancer.pick(at(now), ask(&[], true), &mut draw).expect("in");
                balancer.finish(pick, Outcome::Answered(at(0.010)), at(now));
                pick.address.port() == 0
            });
            asked.count()
        };
        let cases = [
            // how often in a row, seconds afterwards, whether it is asked, why
            (1, 0.9, false, "it said no a moment ago"),
            (1, 1.1, true, "once is forgotten in a second"),
            (2, 1.9, false, "twice is not"),
            (2, 2.1, true, "but in two"),
            (50, 4.9, false, "often is longer"),
            (50, 5.1, true, "and never more than five"),
        ];
        for (times, wait, is_asked, why) in cases {
            let share = share_after(times, wait);
            assert_eq!(share >= 300, is_asked, "{policy:?}: {share} of 1,000: {why}");
        }
    }
}

#[test]
fn what_was_under_way_when_it_said_no_does_not_add_up() {
    let mut balancer = ruled(&endpoints(2), &Rules::default());
    let picks: Vec<Pick> = (0..20).map(|_| balancer.take(0)).collect();
    for pick in picks {
        balancer.finish(pick, Outcome::Erred(at(0.000_1), Fault::Busy), at(0.5));
    }
    let mut draw = draws(4);
    let mut is_asked = |now: f64| {
        (0..20).any(|_| {
            let pick = balancer.pick(at(now), ask(&[], true), &mut draw).expect("in");
            balancer.finish(pick, Outcome::Answered(at(0.010)), at(now));
            pick.address.port() == 0
        })
    };
    assert!(!is_asked(1.4));
    assert!(is_asked(1.6), "twenty at once are one refusal");
}

#[test]
fn draws_follow_weights_and_slow_starts_however_few_may_be_chosen() {
    let cases = [
        // out of 40 instances these may be chosen; draws are by luck, or counted
        (40, "all"),
        (3, "few"),
    ];
    for (count, why) in cases {
        let rules = Rules { policy: Policy::Random, ..Rules::default() };
        let mut balancer = ruled(&endpoints(40), &rules);
        let tried: Vec<PeerId> = balancer.peers().skip(count).collect();
        let mut draw = draws(11);
        let mut counts = vec![0_usize; 40];
        for _ in 0..40_000 {
            let pick = balancer.pick(at(20.0), ask(&tried, true), &mut draw).expect("in");
            counts[usize::from(pick.address.port())] += 1;
            balancer.finish(pick, Outcome::Unknown, at(20.0));
        }
        let fair = 40_000 / count;
        for (n, seen) in counts.iter().enumerate() {
            let expected = if n < count { fair } else { 0 };
            assert!(seen.abs_diff(expected) * 8 <= fair, "{why}: {n} had {seen}, not {expected}");
        }
    }
}

#[test]
fn a_success_rate_far_below_the_others_ejects() {
    let cases: &[(u16, u32, u32, usize, &str)] = &[
        // instances, failing of 100 at port 0, requests to each, ejected, why
        (6, 50, 200, 1, "half of its answers are errors"),
        (6, 8, 200, 0, "a little worse is no fault"),
        (4, 50, 200, 0, "too few to compare"),
        (6, 50, 50, 0, "too little is known"),
    ];
    for (count, failing, requests, expected, why) in cases {
        let mut balancer = ruled(&endpoints(*count), &with(r#"{"Policy":"round_robin"}"#));
        let mut draw = draws(8);
        assert!(balancer.sweep(at(0.0)).is_empty());
        for n in 0..requests * u32::from(*count) {
            let pick = balancer.pick(at(1.0), ask(&[], true), &mut draw).expect("in");
            // Never five in a row.
            let round = n / u32::from(*count);
            let fails = pick.address.port() == 0 && (round * failing) % 100 < *failing;
            let outcome = match fails {
                true => Outcome::Erred(at(0.001), Fault::Application),
                false => Outcome::Answered(at(0.001)),
            };
            balancer.finish(pick, outcome, at(1.0));
        }
        assert!(balancer.sweep(at(5.0)).is_empty(), "{why}: the interval has not passed");
        let ejected = balancer.sweep(at(10.0));
        assert_eq!(ejected.len(), *expected, "{why}");
        assert_eq!(balancer.ejected(), *expected, "{why}");
    }
}

#[test]
fn the_cap_follows_its_percentage_and_leaves_one() {
    let cases = [
        // max percent, instances, ejected when all but port 9 fail
        (0, 10, 1),
        (10, 10, 1),
        (30, 10, 3),
        (100, 10, 9),
        (100, 1, 0),
        (10, 3, 1),
    ];
    for (percent, count, expected) in cases {
        let json = format!(r#"{{"MaxEjectionPercent":{percent}}}"#);
        let rules = Rules::compile(None, Some(&serde_json::from_str(&json).expect("good")));
        let mut balancer = ruled(&endpoints(count), &rules);
        for port in 0..count {
            fail(&mut balancer, port, 20, at(0.0));
        }
        assert_eq!(balancer.ejected(), expected, "{percent} % of {count}");
    }
}

#[test]
fn in_a_panic_ejections_do_not_count() {
    let check = r#"{"MaxEjectionPercent":100,"PanicPercent":50}"#;
    let rules = Rules::compile(None, Some(&serde_json::from_str(check).expect("good")));
    let mut balancer = ruled(&endpoints(4), &Rules { policy: Policy::Random, ..rules });
    let taken = |balancer: &mut Balancer| {
        let mut draw = draws(6);
        let ports = (0..200).map(|_| {
            let pick = balancer.pick(at(0.1), ask(&[], false), &mut draw).expect("one");
            balancer.finish(pick, Outcome::Unknown, at(0.1));
            pick.address.port()
        });
        ports.collect::<BTreeSet<_>>().len()
    };
    fail(&mut balancer, 0, 5, at(0.0));
    fail(&mut balancer, 1, 5, at(0.0));
    assert_eq!(taken(&mut balancer), 2, "half of them are in");
    fail(&mut balancer, 2, 5, at(0.0));
    assert_eq!(taken(&mut balancer), 4, "too few are in: all share the load");
}

/// F33 in simulated time: every answer is an error for a minute, then none is.
#[test]
fn a_storm_of_retries_stays_within_its_budget_and_ends_with_its_cause() {
    use crate::budget::Budget;
    use crate::retry::{End, Retry};
    let retry = Retry::new(2, at(2.0), 20, 3);
    let mut balancer = ruled(&endpoints(3), &Rules::default());
    let (mut budget, mut draw) = (Budget::default(), draws(33));
    let (mut offered, mut seen) = (0_u32, 0_u32);
    let mut last_failure = Duration::ZERO;
    for millis in (0..90_000).step_by(5) {
        let now = Duration::from_millis(millis);
        let is_broken = now < at(60.0);
        budget.request(now);
        offered += u32::from(is_broken);
        let mut tried = Vec::new();
        for _ in 0..=retry.retries {
            if !tried.is_empty() && !budget.retry(now, retry.budget_percent, retry.budget_floor) {
                break;
            }
            let Some(pick) = balancer.pick(now, ask(&tried, true), &mut draw) else { break };
            tried.push(pick.peer);
            seen += u32::from(is_broken);
            if !is_broken {
                balancer.finish(pick, Outcome::Answered(at(0.002)), now);
                break;
            }
            balancer.finish(pick, Outcome::Erred(at(0.002), Fault::Gateway), now);
            last_failure = now;
            assert!(retry.covers(End::Status(503), true, false));
        }
    }
    assert!(seen * 10 <= offered * 12, "{seen} of {offered} offered");
    assert!(last_failure < at(60.0));
    assert_eq!(balancer.ejected(), 0, "what all answer ejects none");
}
