//! Item 1: traffic reaches its service on another host, DNS finds the healthy, and only TLS is seen.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use hawser_rig::application::psql;
use hawser_rig::cluster::{API_UPSTREAM, DB_UPSTREAM, ask};
use hawser_rig::{Cluster, Host, wait_for};

use crate::capture::{Capture, contains, is_tls};
use crate::scene::on_hosts;

#[test]
fn applications_reach_each_other_and_the_wire_shows_tls_only() {
    on_hosts("carried", true, |cluster| {
        curl_reaches_nginx(cluster)?;
        psql_reaches_postgres()?;
        dig_finds_the_healthy(cluster)?;
        the_wire_shows_tls_only(cluster)
    });
}

fn curl_reaches_nginx(cluster: &Cluster) -> Result<()> {
    let mut answered = BTreeSet::new();
    wait_for("each instance to answer", Duration::from_secs(20), || {
        let body = cluster.through("a1", API_UPSTREAM, "/path?query=1")?;
        ensure!(body.ends_with(" /path?query=1\n"), "the path was changed: {body:?}");
        answered.extend(body.split_whitespace().next().map(str::to_owned));
        ensure!(answered.len() == 3, "only {answered:?}");
        Ok(())
    })?;
    Ok(())
}

fn psql_reaches_postgres() -> Result<()> {
    let a1 = Host::named("a1")?;
    psql(
        a1,
        DB_UPSTREAM,
        "create table kept (n int); insert into kept select generate_series(1, 1000)",
    )?;
    let sum = psql(a1, DB_UPSTREAM, "select sum(n) from kept")?;
    ensure!(sum == "500500", "psql says {sum:?}");
    // A result of some megabytes crosses in one piece.
    let long =
        psql(a1, DB_UPSTREAM, "select length(repeat('x', 5000000)), md5(repeat('x', 5000000))")?;
    ensure!(long.starts_with("5000000|"), "psql says {long:?}");
    let rows = psql(a1, DB_UPSTREAM, "select repeat('y', 1000) from generate_series(1, 3000)")?;
    ensure!(rows.len() == 3000 * 1001 - 1, "{} bytes came", rows.len());
    Ok(())
}

fn dig_finds_the_healthy(cluster: &mut Cluster) -> Result<()> {
    let name = "api.service.consul";
    let (a2, a3) = (Host::named("a2")?, Host::named("a3")?);
    let both = [a2.address.to_string(), a3.address.to_string()];
    let found = cluster.dig("a1", name)?;
    ensure!(found == both, "dig finds {found:?}");
    cluster.process("api-1")?.kill()?;
    let only = &both[1..];
    wait_for("the dead instance to leave DNS", Duration::from_secs(20), || {
        let found = cluster.dig("a1", name)?;
        ensure!(found == only, "dig finds {found:?}");
        Ok(())
    })?;
    cluster.restart_api("api-1", "a2", 8080)?;
    wait_for("the mended instance to return to DNS", Duration::from_secs(20), || {
        let found = cluster.dig("a1", name)?;
        ensure!(found == both, "dig finds {found:?}");
        Ok(())
    })?;
    Ok(())
}

/// A marker goes to both hosts of `api` and to PostgreSQL. It must be seen on a host's own loopback,
/// or the search is worth nothing, and nowhere on the cables.
fn the_wire_shows_tls_only(cluster: &mut Cluster) -> Result<()> {
    let (a1, a2, a3) = (Host::named("a1")?, Host::named("a2")?, Host::named("a3")?);
    let folder = cluster.folder("capture");
    std::fs::create_dir_all(&folder)?;
    let cables = [a1, a2, a3].map(|host| Capture::start(cluster.net(), &host.cable(), &folder));
    let cables = cables.into_iter().collect::<Result<Vec<_>>>()?;
    let mut loopback = a1.command("tcpdump");
    let seen = folder.join("loopback.pcap");
    loopback.args(["-Z", "root", "-n", "-U", "-s", "0", "-i", "lo", "-w"]).arg(&seen);
    let control = hawser_rig::Process::spawn("control", loopback, &folder.join("control.log"))?;
    wait_for("the control to listen", Duration::from_secs(10), || {
        ensure!(control.printed().contains("listening on"), "not yet");
        Ok(())
    })?;

    // New connections, so that their beginnings are on the cables.
    cluster.process("a1")?.kill()?;
    cluster.start_hawser("a1")?;
    cluster.await_carried("a1", API_UPSTREAM, Duration::from_secs(20))?;
    let mut answered = BTreeSet::new();
    wait_for("each instance to see the marker", Duration::from_secs(20), || {
        let url = format!("http://127.0.0.1:{API_UPSTREAM}/{MARKER}");
        let reply = ask(a1, "GET", &url, b"", Duration::from_secs(2))?;
        ensure!(reply.body.contains(MARKER), "nginx says {:?}", reply.body);
        answered.extend(reply.body.split_whitespace().next().map(str::to_owned));
        ensure!(answered.len() == 3, "only {answered:?}");
        Ok(())
    })?;
    let told = psql(a1, DB_UPSTREAM, &format!("select '{MARKER}'"))?;
    ensure!(told == MARKER, "psql says {told:?}");
    wait_for("the control to see the marker", Duration::from_secs(10), || {
        ensure!(contains(&std::fs::read(&seen)?, MARKER.as_bytes()), "not on loopback");
        Ok(())
    })?;
    drop(control);

    for (capture, host) in cables.into_iter().zip([a1, a2, a3]) {
        wait_for("the capture to be written", Duration::from_secs(10), || {
            ensure!(capture.so_far().len() > 1_000, "nothing passed");
            Ok(())
        })?;
        let packets = capture.finish()?;
        let cable = host.cable();
        ensure!(!packets.contain(MARKER), "the marker is on {cable}");
        ensure!(!packets.contain("/v1/"), "an API path is on {cable}");
        let beginnings = packets.beginnings();
        ensure!(!beginnings.is_empty(), "no connection began on {cable}");
        for (flow, octets) in &beginnings {
            let shown = &octets[..octets.len().min(32)];
            ensure!(is_tls(octets), "{flow:?} on {cable} begins with {shown:02x?}");
        }
        let strangers = packets.strangers();
        ensure!(strangers.is_empty(), "neither TCP nor ARP on {cable}: {strangers:?}");
    }
    Ok(())
}

const MARKER: &str = "hawser-marker-5f0c2a9be14d7783";
