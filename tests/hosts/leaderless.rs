//! Item 4: the leader dies, all servers die, an agent starts anew: traffic never notices.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hawser_rig::cluster::{API_UPSTREAM, SERVERS, ask};
use hawser_rig::{Cluster, Host, wait_for};
use serde_json::json;

use crate::load::{Load, failures, quantile};
use crate::scene::on_hosts;

#[test]
fn a_killed_leader_costs_no_request_and_no_acknowledged_write() {
    on_hosts("leader", false, |cluster| {
        for n in 0..5 {
            write(cluster, SERVERS[0], n)?;
        }
        let load = Load::start(Host::named("a1")?, UPSTREAM, RATE, Duration::from_secs(60));
        wait_for("the load to flow", Duration::from_secs(5), || {
            ensure!(load.elapsed() > Duration::from_secs(2), "not yet");
            Ok(())
        })?;
        let leader = cluster.leader(SERVERS[0])?;
        cluster.process(leader)?.kill()?;
        let killed = Instant::now();
        let others: Vec<&str> = SERVERS.into_iter().filter(|name| *name != leader).collect();
        let mut turn = 0;
        wait_for("the next acknowledged write", WRITTEN, || {
            turn += 1;
            write(cluster, others[turn % 2], 5)
        })?;
        let gap = killed.elapsed();
        println!("leader {leader} killed: next write acknowledged after {gap:?}");
        // The dead one comes back as a follower, and the load sees that too.
        cluster.start_hawser(leader)?;
        cluster.await_leader(leader, Duration::from_secs(20))?;
        let answers = load.finish(RATE)?;
        let failed = failures(&answers);
        println!(
            "{} requests, {} failed, p99 {:?}",
            answers.len(),
            failed.len(),
            quantile(&answers, Duration::ZERO, 990)
        );
        ensure!(failed.is_empty(), "requests failed: {failed:#?}");
        ensure!(gap <= WRITTEN, "the next write took {gap:?}");
        for server in SERVERS {
            wait_for(
                format_args!("{server} to hold every acknowledged write"),
                Duration::from_secs(10),
                || (0..=5).try_for_each(|n| holds(cluster, server, n)),
            )?;
        }
        Ok(())
    });
}

#[test]
fn with_every_server_gone_traffic_and_dns_go_on_and_an_agent_restarts_from_disk() {
    on_hosts("serverless", false, |cluster| {
        write(cluster, SERVERS[0], 0)?;
        let before = cluster.dig("a1", "api.service.consul")?;
        let load = Load::start(Host::named("a1")?, UPSTREAM, RATE, Duration::from_secs(60));
        for server in SERVERS {
            cluster.process(server)?.kill()?;
        }
        let dead = load.elapsed();
        wait_for("ten seconds without servers", Duration::from_secs(15), || {
            ensure!(load.elapsed() > dead + Duration::from_secs(10), "not yet");
            let now = cluster.dig("a1", "api.service.consul")?;
            ensure!(now == before, "DNS says {now:?}, and said {before:?}");
            Ok(())
        })?;
        let answers = load.finish(RATE)?;
        let failed = failures(&answers);
        println!("{} requests without servers, {} failed", answers.len(), failed.len());
        ensure!(failed.is_empty(), "requests failed: {failed:#?}");

        // The caller's agent, then a callee's, each from its own disk.
        for agent in ["a1", "a3"] {
            cluster.process(agent)?.kill()?;
            let started = Instant::now();
            cluster.start_hawser(agent)?;
            served_again(agent)?;
            let took = started.elapsed();
            println!("{agent} restarted without servers: serving after {took:?}");
            ensure!(took <= RESTARTED, "{agent} served only after {took:?}");
        }
        let now = cluster.dig("a1", "api.service.consul")?;
        ensure!(now == before, "after the restart DNS says {now:?}, and said {before:?}");

        for server in SERVERS {
            cluster.start_hawser(server)?;
        }
        cluster.await_leader(SERVERS[0], Duration::from_secs(30))?;
        wait_for("the first write after the return", Duration::from_secs(10), || {
            write(cluster, SERVERS[0], 1)
        })?;
        holds(cluster, SERVERS[0], 0)?;
        cluster.await_healthy("a1", "api", 3, Duration::from_secs(30))?;
        cluster.through("a1", API_UPSTREAM, "/").map(drop)
    });
}

/// For a1: a request through its upstream. For a3: its own listener answers a1's requests, which
/// is seen by the instance's name.
fn served_again(agent: &str) -> Result<()> {
    let a1 = Host::named("a1")?;
    let url = format!("http://{UPSTREAM}/");
    wait_for(format_args!("{agent} to serve"), Duration::from_secs(10), || {
        let reply = ask(a1, "GET", &url, b"", Duration::from_millis(500))?;
        ensure!(reply.status == 200, "{}: {}", reply.status, reply.body);
        let by_a3 = reply.body.starts_with("api-2") || reply.body.starts_with("api-3");
        ensure!(agent == "a1" || by_a3, "answered by {:?}", reply.body);
        Ok(())
    })?;
    Ok(())
}

/// One acknowledged write: the intention `w<n>` → `api`.
fn write(cluster: &Cluster, server: &str, n: u32) -> Result<()> {
    let path = format!("/v1/connect/intentions/exact?source=w{n}&destination=api");
    let body = json!({ "SourceType": "consul", "Action": "allow" }).to_string();
    let reply = cluster.ask(server, "PUT", &path, body.as_bytes(), Duration::from_secs(1))?;
    ensure!((200..300).contains(&reply.status), "{}: {}", reply.status, reply.body);
    Ok(())
}

fn holds(cluster: &Cluster, server: &str, n: u32) -> Result<()> {
    let path = format!("/v1/connect/intentions/exact?source=w{n}&destination=api");
    let told = cluster.get(server, &path)?;
    ensure!(told["Action"] == "allow", "{server} says {told}");
    Ok(())
}

const UPSTREAM: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), API_UPSTREAM);

const RATE: u32 = 200;

/// The figure for the next acknowledged write.
const WRITTEN: Duration = Duration::from_secs(3);

/// The figure for an agent restarted without servers.
const RESTARTED: Duration = Duration::from_secs(1);
