//! `cargo xtask score`: runs that end in a figure, each with what was promised.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::hosts::target;
use crate::step::{cargo, run as shown, timed};
use crate::{hosts, powercut};

/// Which one, and how.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Which; without one, all are listed.
    name: Option<String>,
    /// The short form that CI runs, on the debug build: counts are judged, and times are not.
    #[arg(long)]
    quick: bool,
    /// Run this `hawser`, instead of the one of `cargo build --release`.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// How many requests `requests` sends.
    #[arg(long, value_name = "N")]
    requests: Option<u64>,
}

/// A scored run.
struct Score {
    name: &'static str,
    /// What it shows.
    what: &'static str,
    how: How,
}

/// What carries a scored run out.
enum How {
    /// A test of tests/cluster, with what its full form is asked for by.
    Cluster(&'static str, &'static [(&'static str, &'static str)]),
    /// Tests of a crate: the arguments of cargo, with what their full form is asked for by.
    Tests(&'static [&'static str], &'static [(&'static str, &'static str)]),
    /// A test of tests/hosts (needs root).
    Hosts(&'static str),
    /// Power cuts (needs root).
    Powercut,
    /// Clients that people have, by bench/requests.sh.
    Requests,
}

/// Carries it out, or lists all.
///
/// # Errors
/// There is none of that name, it cannot be run, or what it promises is not kept.
pub(crate) fn run(root: &Path, arguments: &Arguments) -> Result<()> {
    let Some(name) = &arguments.name else {
        for score in SCORES {
            println!("{:<14} {}", score.name, score.what);
        }
        return Ok(());
    };
    let score = SCORES.iter().find(|score| score.name == name);
    let score =
        score.with_context(|| format!("no score {name:?}: `cargo xtask score` lists all"))?;
    timed(score.name, || match score.how {
        How::Cluster(test, full) => cluster(root, arguments, test, full),
        How::Tests(tests, full) => {
            let full = if arguments.quick { &[] } else { full };
            shown(cargo(root, tests).envs(full.iter().copied()))
        }
        How::Hosts(test) => {
            let binary = arguments.binary.clone();
            hosts::run(root, &hosts::Action::Test { binary, arguments: vec![test.to_owned()] })
        }
        How::Requests => requests(root, arguments),
        How::Powercut => powercut::run(root, if arguments.quick { 20 } else { 200 }),
    })
}

/// A test of tests/cluster, alone and with its output shown.
fn cluster(root: &Path, arguments: &Arguments, test: &str, full: &[(&str, &str)]) -> Result<()> {
    let mut command = cargo(root, &["test", "--workspace", "--test", "cluster", "--", "--exact"]);
    command.args([test, "--nocapture", "--include-ignored"]);
    if let Some(binary) = binary(root, arguments)? {
        command.env("HAWSER_BINARY", binary);
    }
    if !arguments.quick {
        command.env("HAWSER_SCORE", "full").envs(full.iter().copied());
    }
    shown(&mut command)
}

fn requests(root: &Path, arguments: &Arguments) -> Result<()> {
    let few = if arguments.quick { 20_000 } else { 10_000_000 };
    let count = arguments.requests.unwrap_or(few).to_string();
    let binary = match binary(root, arguments)? {
        Some(binary) => binary,
        None => {
            shown(&mut cargo(root, &["build", "--bin", "hawser"]))?;
            target(root).join("debug/hawser")
        }
    };
    let mut command = Command::new(root.join("bench/requests.sh"));
    shown(command.args(["--requests", &count, "--binary"]).arg(binary))
}

/// The binary to run, where it is not the one that is built with the tests.
fn binary(root: &Path, arguments: &Arguments) -> Result<Option<PathBuf>> {
    if let Some(binary) = &arguments.binary {
        return Ok(Some(binary.canonicalize()?));
    }
    if arguments.quick {
        return Ok(None);
    }
    let mut build: Command = cargo(root, &["build", "--release", "--bin", "hawser"]);
    shown(&mut build)?;
    Ok(Some(target(root).join("release/hawser")))
}

const SCORES: &[Score] = &[
    Score {
        name: "instancedeath",
        what: "F32: one of three instances fails in six ways; no request fails",
        how: How::Cluster("score::faults::instance_faults_cost_no_request", &[]),
    },
    Score {
        name: "retrystorm",
        what: "F33: all instances fail; they see 1.2 x what is offered at most",
        how: How::Cluster("score::storm::retries_add_a_fifth_at_most_while_all_fail", &[]),
    },
    Score {
        name: "overload",
        what: "F34: three times the capacity is offered; goodput stays at 80 % of its peak",
        how: How::Cluster(
            "score::overload::three_times_the_capacity_leaves_most_of_it_useful",
            &[],
        ),
    },
    Score {
        name: "rolling",
        what: "agents are replaced 100 times under 10,000 connections; no request fails",
        how: How::Cluster(
            "upgrade::agents_are_replaced_under_load_and_nothing_fails",
            &[
                ("HAWSER_UPGRADES", "100"),
                ("HAWSER_UPGRADE_CONNECTIONS", "10000"),
                ("HAWSER_UPGRADE_RATE", "2000"),
            ],
        ),
    },
    Score {
        name: "requests",
        what: "h2load, wrk and curl through two proxies; none is without a good answer",
        how: How::Requests,
    },
    Score {
        name: "history",
        what: "recorded histories under kills, pauses, partitions and changes are linearizable",
        how: How::Tests(
            &["test", "--workspace", "--test", "cluster", "histories", "--", "--nocapture"],
            &[],
        ),
    },
    Score {
        name: "powercut",
        what: "F5: the power is cut under the server's store; nothing acknowledged is lost",
        how: How::Powercut,
    },
    Score {
        name: "leaderkill",
        what: "F1: the leader is killed; no request and no acknowledged write is lost",
        how: How::Hosts("a_killed_leader_costs_no_request_and_no_acknowledged_write"),
    },
    Score {
        name: "autonomy",
        what: "F17, F18: with every server gone traffic goes on, and an agent restarts from disk",
        how: How::Hosts(
            "with_every_server_gone_traffic_and_dns_go_on_and_an_agent_restarts_from_disk",
        ),
    },
    Score {
        name: "revoke",
        what: "a flipped intention holds at once, for new and for open connections",
        how: How::Hosts("a_flipped_intention_holds_at_once_for_new_and_open_connections"),
    },
    Score {
        name: "hostdeath",
        what: "F32 between hosts: an instance is killed, stopped, unplugged; no request fails",
        how: How::Hosts("instances::"),
    },
    Score {
        name: "regionloss",
        what: "F28: a region is lost, and the next stands in",
        how: How::Hosts("a_lost_region_is_replaced_by_the_next"),
    },
    Score {
        name: "gatewayloss",
        what: "F29: gateways and servers of a peer die; no request fails",
        how: How::Hosts("dead_gateways_and_servers_of_a_peer_cost_no_request"),
    },
    Score {
        name: "smuggle",
        what: "what programs read differently, to five of them: each sees what was authorized",
        how: How::Tests(&["test", "--workspace", "--test", "smuggling"], &[]),
    },
    Score {
        name: "vectors",
        what: "T1-T25 and H: each TLS and HTTP vector ends exactly as listed",
        how: How::Tests(&["test", "--workspace", "--test", "proxy", "vectors::"], &[]),
    },
    Score {
        name: "authz",
        what: "generated policies and requests: verdicts equal those of an oracle of its own",
        how: How::Tests(
            &["test", "--release", "-p", "hawser-core", "--test", "authz"],
            &[("HAWSER_AUTHZ_CASES", "1000000")],
        ),
    },
];
