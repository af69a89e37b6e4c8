//! Item 5: one of three instances dies in each of three ways under load, and no client notices.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use hawser_rig::cluster::API_UPSTREAM;
use hawser_rig::{Cluster, Host, wait_for};

use crate::load::{Load, failures, quantile};
use crate::scene::on_hosts;

#[test]
fn a_killed_instance_costs_no_request() {
    on_hosts("killed", false, |cluster| {
        one_of_three(cluster, |cluster| cluster.process("api-1")?.kill())?;
        Ok(())
    });
}

#[test]
fn a_stopped_instance_costs_no_request_and_is_ejected() {
    on_hosts("stopped", false, |cluster| {
        one_of_three(cluster, |cluster| cluster.process("api-1")?.stop())?;
        cluster.process("api-1")?.resume()?;
        // Mended, it takes its share again.
        wait_for("the resumed instance to be used", Duration::from_secs(60), || {
            let body = cluster.through("a1", API_UPSTREAM, "/")?;
            ensure!(body.starts_with("api-1"), "answered by {body:?}");
            Ok(())
        })?;
        Ok(())
    });
}

#[test]
fn an_unplugged_host_costs_no_request_and_leaves_dns() {
    on_hosts("unplugged", false, |cluster| {
        let a2 = Host::named("a2")?;
        let gone = one_of_three(cluster, |_| a2.unplug())?;
        ensure!(gone <= OUT_OF_DNS, "the dead host left DNS only after {gone:?}");
        a2.plug()?;
        cluster.await_healthy("a1", "api", 3, Duration::from_secs(60))
    });
}

/// Lets `fault` happen to api-1 on a2 under load. Returns how long a2 stayed in DNS after it.
fn one_of_three(
    cluster: &mut Cluster,
    fault: impl FnOnce(&mut Cluster) -> Result<()>,
) -> Result<Duration> {
    let a2 = Host::named("a2")?.address.to_string();
    let load = Load::start(Host::named("a1")?, UPSTREAM, RATE, Duration::from_secs(60));
    wait_for("the load to flow", Duration::from_secs(10), || {
        ensure!(load.elapsed() > Duration::from_secs(3), "not yet");
        Ok(())
    })?;
    fault(cluster)?;
    let broken = load.elapsed();
    let (_, gone) = wait_for("a2 to leave DNS", OUT_OF_DNS, || {
        let found = cluster.dig("a1", "api.service.consul")?;
        ensure!(!found.contains(&a2), "dig finds {found:?}");
        Ok(())
    })?;
    // Ejection must hold by itself for a while, not only until the next probe.
    wait_for("ten seconds after the fault", Duration::from_secs(15), || {
        ensure!(load.elapsed() > broken + Duration::from_secs(10), "not yet");
        Ok(())
    })?;
    let answers = load.finish(RATE)?;
    let failed = failures(&answers);
    let ejected = broken + EJECTED;
    let late = answers.iter().filter(|answer| answer.at >= ejected);
    let slow = late.clone().filter(|answer| answer.took >= SLOW).count();
    let late = late.count();
    println!(
        "{} requests, {} failed; out of DNS after {gone:?}; from {EJECTED:?} after the fault: p99 \
         {:?}, {slow} of {late} slower than {SLOW:?}",
        answers.len(),
        answers.iter().filter(|answer| answer.outcome.is_err()).count(),
        quantile(&answers, ejected, 990),
    );
    let before = answers.iter().filter(|answer| answer.at < broken);
    let used = before.filter(|answer| answer.outcome.as_deref() == Ok("api-1")).count();
    ensure!(used > 0, "api-1 was never used, so its death shows nothing");
    ensure!(failed.is_empty(), "clients saw errors: {failed:#?}");
    ensure!(slow * 100 <= late, "not ejected within {EJECTED:?}: {slow} of {late} were slow");
    Ok(gone)
}

const UPSTREAM: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), API_UPSTREAM);

const RATE: u32 = 500;

/// The figure for ejection: from then on, requests do not go to the dead instance.
const EJECTED: Duration = Duration::from_secs(3);

/// The figure for a dead host in DNS.
const OUT_OF_DNS: Duration = Duration::from_secs(20);

/// A request that waited for a dead instance takes at least this long.
const SLOW: Duration = Duration::from_secs(1);
