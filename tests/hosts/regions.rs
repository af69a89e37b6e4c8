//! Failover between three clusters in three regions, with everything failing that may.
//!
//! The environment variable `HAWSER_LOSSES` says how many times a region is lost, where more than
//! the one of a test is wanted to measure.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hawser_rig::cluster::API_UPSTREAM;
use hawser_rig::process::finish;
use hawser_rig::regions::{REGIONS, Region};
use hawser_rig::{Regions, wait_for};
use serde_json::Value;

use crate::capture::Capture;
use crate::load::{Answer, Load, failures};

#[test]
fn when_all_local_instances_die_the_peers_stand_in() {
    on_regions("regions-local", |regions| {
        let [east, west, _] = REGIONS;
        let gateway = west.host('g')?;
        let other = west.host('h')?;
        let folder = regions.folder("capture");
        fs::create_dir_all(&folder)?;
        let captures =
            [gateway, other].map(|host| Capture::start(regions.net(), &host.cable(), &folder));
        let load = flowing(&east)?;
        regions.process("e-api-1")?.kill()?;
        regions.process("e-api-2")?.kill()?;
        let dead = load.elapsed();
        // Long enough for the catalog, too, to say so.
        passed(&load, dead + Duration::from_secs(5))?;
        regions.start_api(&east, 1, 8080)?;
        regions.start_api(&east, 2, 8081)?;
        let back = load.elapsed();
        settled(regions, "e-api")?;
        let settled = load.elapsed();
        passed(&load, settled + Duration::from_secs(5))?;
        let answers = load.finish(RATE)?;

        no_failure(&answers)?;
        let stood_in = first(&answers, dead, |name| !name.starts_with("e-"))?;
        println!("local instances dead: first answer of a peer after {stood_in:?}");
        ensure!(stood_in <= FIRST_SUCCESS, "a peer answered only after {stood_in:?}");
        one_switch_back(&answers, back)?;
        for capture in captures {
            let packets = capture?.finish()?;
            ensure!(
                !packets.contain("-api-") && !packets.contain("/load"),
                "plaintext at a gateway"
            );
            let begun = packets.beginnings();
            let strange: Vec<_> = begun
                .iter()
                .filter(|(flow, octets)| {
                    (flow.1 == GATEWAY_PORT || flow.3 == GATEWAY_PORT)
                        && octets.first() != Some(&22)
                })
                .collect();
            ensure!(strange.is_empty(), "no TLS at a gateway: {strange:?}");
        }
        Ok(())
    });
}

#[test]
fn a_lost_region_is_replaced_by_the_next() {
    on_regions("regions-cut", |regions| {
        let [east, west, _] = REGIONS;
        regions.process("e-api-1")?.kill()?;
        regions.process("e-api-2")?.kill()?;
        let stands_in = stand_in(regions)?;
        let lost = if stands_in == "w-" { west } else { REGIONS[2] };
        let mut times = Vec::new();
        for _ in 0..losses() {
            let load = flowing(&east)?;
            lost.cut()?;
            let cut = load.elapsed();
            passed(&load, cut + Duration::from_secs(6))?;
            lost.join()?;
            let joined = load.elapsed();
            settled(regions, stands_in)?;
            let settled_at = load.elapsed();
            passed(&load, settled_at + Duration::from_secs(3))?;
            let answers = load.finish(RATE)?;
            no_failure(&answers)?;
            times.push(first(&answers, cut, |name| !name.starts_with(stands_in))?);
            one_switch_to(&answers, joined, stands_in)?;
        }
        times.sort();
        println!("region lost {} times: first success after {times:?}", times.len());
        ensure!(times.iter().all(|time| *time <= FIRST_SUCCESS), "too late: {times:?}");
        Ok(())
    });
}

#[test]
fn dead_gateways_and_servers_of_a_peer_cost_no_request() {
    on_regions("regions-gateways", |regions| {
        let [east, _, _] = REGIONS;
        regions.process("e-api-1")?.kill()?;
        regions.process("e-api-2")?.kill()?;
        let stands_in = stand_in(regions)?;
        let region = if stands_in == "w-" { REGIONS[1] } else { REGIONS[2] };
        let (one, other) = (region.gateways[0], region.gateways[1]);
        let load = flowing(&east)?;
        regions.process(one)?.kill()?;
        let killed = load.elapsed();
        passed(&load, killed + Duration::from_secs(3))?;
        regions.process(other)?.stop()?;
        let stopped = load.elapsed();
        passed(&load, stopped + Duration::from_secs(5))?;
        regions.process(other)?.resume()?;
        settled(regions, stands_in)?;
        let returned = load.elapsed();
        let server = region.host('s')?.name;
        regions.process(server)?.kill()?;
        let silent = regions.await_peer("es", region.name, "FAILING")?;
        println!("dead servers of a peer known after {silent:?}");
        ensure!(silent <= DEAD_PEER, "a dead peer is known only after {silent:?}");
        passed(&load, load.elapsed() + Duration::from_secs(3))?;
        let answers = load.finish(RATE)?;
        no_failure(&answers)?;
        let during = answers.iter().filter(|a| a.at > stopped && a.at < returned);
        let elsewhere =
            during.filter(|a| a.outcome.as_deref().is_ok_and(|n| !n.starts_with(stands_in)));
        ensure!(elsewhere.count() > 0, "with all its gateways gone, another region must answer");
        // What is known of a silent peer is old, and still better than nothing.
        let last = if stands_in == "w-" { REGIONS[2] } else { REGIONS[1] };
        last.cut()?;
        wait_for("the silent peer's instances to be used", Duration::from_secs(20), || {
            let body = regions.through("/")?;
            ensure!(body.starts_with(stands_in), "answered by {body:?}");
            Ok(())
        })?;
        Ok(())
    });
}

#[test]
fn what_is_not_exported_allowed_or_meant_is_refused_across_clusters() {
    on_regions("regions-refused", |regions| {
        let [_, west, north] = REGIONS;
        let domain = regions.get("ws", "/v1/connect/ca/roots")?["TrustDomain"]
            .as_str()
            .context("no trust domain")?
            .to_owned();
        let cases = [
            (format!("web.default.default.east.external.{domain}"), "not_exported"),
            (format!("api.default.default.north.external.{domain}"), "not_exported"),
            (format!("api.default.west.internal.{domain}"), "local_name"),
            ("api.example.com".to_owned(), "unknown_name"),
            ("api.default.default.east.external.other.consul".to_owned(), "unknown_name"),
        ];
        for (name, reason) in cases {
            let before = counted(regions, "wg", reason)?;
            let printed = hello(regions, &name)?;
            ensure!(printed.contains("unrecognized name"), "{name}: {printed}");
            wait_for(format_args!("{reason} in the gateway's metrics"), SOON, || {
                ensure!(counted(regions, "wg", reason)? > before, "still {before}; {printed}");
                Ok(())
            })?;
        }
        // A caller that nobody vouches for gets through the gateway, and no further.
        let name = format!("api.default.default.east.external.{domain}");
        hello(regions, &name)?;
        logged(regions, "wa", "no_client_certificate")?;

        // Denied at the far end: only west is left, and its intention says no.
        regions.export(&north, &[])?;
        regions.await_imported("ew", "north", 0)?;
        regions.process("e-api-1")?.kill()?;
        regions.process("e-api-2")?.kill()?;
        wait_for("west to stand in", Duration::from_secs(20), || {
            let body = regions.through("/")?;
            ensure!(body.starts_with("w-api"), "answered by {body:?}");
            Ok(())
        })?;
        regions.intend(&west, "peer:east/web", "api", "deny")?;
        refused(regions, "intention_denied")?;
        logged(regions, "wa", "intention_denied")?;
        regions.intend(&west, "peer:east/web", "api", "allow")?;
        wait_for("the call to be allowed again", Duration::from_secs(20), || regions.through("/"))?;
        // Exported no more: neither the gateway nor the callee lets it through.
        regions.export(&west, &[])?;
        wait_for("the import to be gone", Duration::from_secs(20), || {
            let reply = regions.answer("/")?;
            ensure!(reply.status != 200, "still {}: {}", reply.status, reply.body);
            Ok(())
        })?;
        Ok(())
    });
}

/// Runs `test` on fresh regions, as [`crate::scene::on_hosts`] does on a fresh cluster.
fn on_regions(name: &str, test: impl FnOnce(&mut Regions) -> Result<()>) {
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_hawser"));
    let folder = std::env::temp_dir().join(format!("hawser-hosts-{name}"));
    let mut regions = match Regions::start(binary, folder.clone()) {
        Ok(regions) => regions,
        Err(why) => panic!("the regions do not come up: {why:#}"),
    };
    if let Err(why) = test(&mut regions) {
        regions.tell_logs();
        panic!("{why:#}");
    }
    drop(regions);
    fs::remove_dir_all(&folder).expect("the scene's folder is ours");
}

/// A load from `web` to `api` that flows.
fn flowing(east: &Region) -> Result<Load> {
    let upstream = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), API_UPSTREAM);
    let load = Load::start(east.host('w')?, upstream, RATE, Duration::from_secs(180));
    passed(&load, Duration::from_secs(2))?;
    Ok(load)
}

/// Waits until the load has run for `until`.
fn passed(load: &Load, until: Duration) -> Result<()> {
    let left = until.saturating_sub(load.elapsed());
    wait_for("the load to go on", left + Duration::from_secs(5), || {
        ensure!(load.elapsed() >= until, "not yet");
        Ok(())
    })?;
    Ok(())
}

/// Waits until ten answers in a row come from instances whose names begin with `prefix`.
fn settled(regions: &Regions, prefix: &str) -> Result<()> {
    wait_for(format_args!("{prefix} to answer"), SETTLED, || {
        for _ in 0..10 {
            let body = regions.through("/")?;
            ensure!(body.starts_with(prefix), "answered by {body:?}");
        }
        Ok(())
    })?;
    Ok(())
}

/// Waits until a peer answers for the dead local instances; the prefix of its instances' names.
fn stand_in(regions: &Regions) -> Result<&'static str> {
    let waited = wait_for("a peer to stand in", Duration::from_secs(20), || {
        let body = regions.through("/")?;
        ["w-", "n-"].into_iter().find(|prefix| body.starts_with(prefix)).context(body)
    })?;
    settled(regions, waited.0)?;
    Ok(waited.0)
}

fn no_failure(answers: &[Answer]) -> Result<()> {
    let failed = failures(answers);
    ensure!(failed.is_empty(), "clients saw errors: {failed:#?}");
    Ok(())
}

/// How long after `since` the first answer came whose instance is as `wanted`.
fn first(answers: &[Answer], since: Duration, wanted: impl Fn(&str) -> bool) -> Result<Duration> {
    let done = |answer: &&Answer| answer.outcome.as_deref().is_ok_and(&wanted);
    let ended = answers.iter().filter(done).map(|answer| answer.at + answer.took);
    let first = ended.filter(|at| *at >= since).min().context("nobody stood in")?;
    Ok(first - since)
}

/// Fails unless, once local instances answer again after `since`, no peer does for long.
fn one_switch_back(answers: &[Answer], since: Duration) -> Result<()> {
    one_switch_to(answers, since, "e-")
}

/// Fails unless traffic moved to `prefix` after `since`, once, and stayed. Each worker of the proxy
/// probes and switches by itself, so answers mix until the last one has.
fn one_switch_to(answers: &[Answer], since: Duration, prefix: &str) -> Result<()> {
    let is_home =
        |answer: &Answer| answer.outcome.as_deref().is_ok_and(|name| name.starts_with(prefix));
    let after: Vec<&Answer> = answers.iter().filter(|answer| answer.at >= since).collect();
    let shares: Vec<(Duration, usize)> = after
        .chunks(WINDOW)
        .map(|window| {
            let home = window.iter().filter(|answer| is_home(answer)).count();
            (window[0].at - since, home * 100 / window.len())
        })
        .collect();
    let back = shares.iter().position(|(_, share)| *share == 100);
    let back = back.with_context(|| format!("traffic never came back whole: {shares:?}"))?;
    let strays = shares[back..].iter().filter(|(_, share)| *share < 100).count();
    ensure!(strays == 0, "it came back and left again: {shares:?}");
    println!("traffic was back at {prefix} {:?} after it could, and stayed", shares[back].0);
    Ok(())
}

/// What `openssl s_client` prints that asks west's first gateway for `name`.
fn hello(_: &Regions, name: &str) -> Result<String> {
    let [east, west, _] = REGIONS;
    let mut command = east.host('w')?.command("timeout");
    command.args(["5", "openssl", "s_client", "-tls1_3", "-servername", name]);
    command.args(["-connect", &format!("{}:{GATEWAY_PORT}", west.host('g')?.address)]);
    let output = finish(command, b"GET / HTTP/1.0\r\n\r\n", Duration::from_secs(10))?;
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok(format!("{out}{err}"))
}

/// The sum of all counters of a host's agent that carry the reason.
fn counted(regions: &Regions, name: &str, reason: &str) -> Result<f64> {
    let label = format!("reason=\"{reason}\"");
    let metrics = regions.metrics(name)?;
    let values = metrics.lines().filter(|line| line.contains(&label));
    Ok(values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

/// Waits until the access log of that host has a line with `reason`.
fn logged(regions: &Regions, name: &str, reason: &str) -> Result<()> {
    let file = regions.folder(name).join("access.log");
    wait_for(format_args!("{reason} in the access log of {name}"), SOON, || {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        ensure!(lines.into_iter().any(|line| line["reason"] == reason), "{text}");
        Ok(())
    })?;
    Ok(())
}

/// Waits until `web` is refused with `reason`.
fn refused(regions: &Regions, reason: &str) -> Result<()> {
    let began = Instant::now();
    wait_for(format_args!("web to be refused with {reason}"), Duration::from_secs(20), || {
        let reply = regions.answer("/")?;
        ensure!(
            reply.status == 403 && reply.body.contains(reason),
            "{}: {}",
            reply.status,
            reply.body
        );
        Ok(())
    })?;
    println!("{reason} after {:?}", began.elapsed());
    Ok(())
}

fn losses() -> u32 {
    std::env::var("HAWSER_LOSSES").ok().and_then(|count| count.parse().ok()).unwrap_or(1)
}

const RATE: u32 = 200;
const GATEWAY_PORT: u16 = 8443;
/// The figure for the first success after a loss.
const FIRST_SUCCESS: Duration = Duration::from_secs(2);
/// The figure for a dead peer.
const DEAD_PEER: Duration = Duration::from_secs(5);
/// So many answers together say where traffic goes.
const WINDOW: usize = 50;
const SOON: Duration = Duration::from_secs(5);
/// A region that was lost several times in a row is held back for up to a minute.
const SETTLED: Duration = Duration::from_secs(90);
