//! The hosts: network namespaces on a bridge that stands in a namespace of its own.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::told;
use crate::wait::wait_for;

/// One machine of the rig.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Host {
    /// `s1`…`s3` are servers, `a1`…`a3` agents, `r` an outsider, `t0`…`t19` ECS tasks.
    pub name: &'static str,
    /// Its one address: in 10.77.0.0/24, or in its region's network.
    pub address: Ipv4Addr,
}

impl Host {
    /// The host called `name`.
    ///
    /// # Errors
    /// There is no such host.
    pub fn named(name: &str) -> Result<Self> {
        let known = HOSTS.iter().copied().find(|host| host.name == name);
        known.with_context(|| format!("no host {name:?}: there are s1 to s3, a1 to a3 and r"))
    }

    /// A command that will run `program` on this host.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace())).arg("--").arg(program);
        command
    }

    /// Runs `program` on this host to its end and returns what it printed.
    ///
    /// # Errors
    /// It fails, or takes longer than 20 s.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(program);
        command.args(arguments);
        told(command, COMMAND)
    }

    /// Moves the calling thread onto this host: sockets it makes from here on are the host's.
    ///
    /// # Errors
    /// The host is not standing.
    pub fn enter(&self) -> Result<()> {
        let path = format!("/run/netns/{}", self.namespace());
        let space = File::open(&path).with_context(|| format!("opening {path}"))?;
        move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("entering {path}"))
    }

    /// Pulls the cable.
    ///
    /// # Errors
    /// The host is not standing.
    pub fn unplug(&self) -> Result<()> {
        ip(&["-n", ROOT, "link", "set", &self.cable(), "down"])
    }

    /// Puts the cable back.
    ///
    /// # Errors
    /// The host is not standing.
    pub fn plug(&self) -> Result<()> {
        ip(&["-n", ROOT, "link", "set", &self.cable(), "up"])
    }

    /// The bridge's end of this host's cable: all that it sends and receives passes there.
    #[must_use]
    pub fn cable(&self) -> String {
        format!("hw-{}v", self.name)
    }

    /// The host's address as the standard library's general one.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        IpAddr::V4(self.address)
    }

    /// The network namespace that is this host.
    pub(crate) fn namespace(&self) -> String {
        format!("hw-{}", self.name)
    }
}

/// The standing hosts. Dropping it ends whatever runs on them and takes them down.
pub struct Net {
    kept: bool,
    _lock: File,
}

impl Net {
    /// Takes down what an earlier run left behind and builds the hosts anew.
    ///
    /// # Errors
    /// Not root, another run has the hosts, or `ip` fails.
    pub fn build() -> Result<Self> {
        let net = Self::empty()?;
        bridge(BRIDGE)?;
        for host in HOSTS {
            stand(&host, BRIDGE)?;
        }
        Ok(net)
    }

    /// Takes down what an earlier run left behind and builds no host yet.
    ///
    /// # Errors
    /// Not root, another run has the hosts, or `ip` fails.
    pub(crate) fn empty() -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "network namespaces need root");
        let lock = File::create(LOCK).with_context(|| format!("creating {LOCK}"))?;
        lock.try_lock().context("another run has the hosts; there is one set per machine")?;
        clear()?;
        ip(&["netns", "add", ROOT])?;
        Ok(Self { kept: false, _lock: lock })
    }

    /// Sets up one more host: of [`TASKS`], since those of [`HOSTS`] stand from the beginning.
    ///
    /// # Errors
    /// It stands already, or `ip` fails.
    pub fn attach(&self, host: Host) -> Result<()> {
        stand(&host, BRIDGE)
    }

    /// A command that will run `program` beside the bridge, where every cable ends.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{ROOT}")).arg("--").arg(program);
        command
    }

    /// Leaves the hosts standing when this value goes.
    pub fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if !self.kept
            && let Err(why) = clear()
        {
            // A destructor has nobody to return it to; the next build clears again.
            drop(why);
        }
    }
}

/// Makes a bridge that hosts can stand on.
pub(crate) fn bridge(name: &str) -> Result<()> {
    ip(&["-n", ROOT, "link", "add", name, "type", "bridge"])?;
    ip(&["-n", ROOT, "link", "set", name, "up"])
}

/// Makes `host`, on `bridge`.
pub(crate) fn stand(host: &Host, bridge: &str) -> Result<()> {
    let (space, cable) = (host.namespace(), host.cable());
    let address = format!("{}/24", host.address);
    ip(&["netns", "add", &space])?;
    let peer = ["peer", "name", "eth0", "netns", &space];
    let link = ["-n", ROOT, "link", "add", &cable, "type", "veth"];
    ip(&[&link[..], &peer[..]].concat())?;
    ip(&["-n", ROOT, "link", "set", &cable, "master", bridge, "up"])?;
    ip(&["-n", &space, "address", "add", &address, "dev", "eth0"])?;
    ip(&["-n", &space, "link", "set", "eth0", "up"])?;
    ip(&["-n", &space, "link", "set", "lo", "up"])
}

/// Ends every process on the hosts, and takes the hosts down. Nothing standing is fine.
///
/// # Errors
/// A process does not end or `ip` fails.
pub fn clear() -> Result<()> {
    let hosts = HOSTS.iter().chain(&TASKS).chain(&REGION_HOSTS).map(Host::namespace);
    let spaces: Vec<String> = hosts.chain([ROOT, ROUTER].map(str::to_owned)).collect();
    let standing = told_ip(&["netns", "list"])?;
    let stands = |space: &&String| {
        standing.lines().any(|line| line.split_whitespace().next() == Some(space.as_str()))
    };
    for space in spaces.iter().filter(stands) {
        wait_for(format_args!("{space} to be empty"), COMMAND, || {
            let running = told_ip(&["netns", "pids", space])?;
            for pid in running.lines().filter_map(|line| line.trim().parse().ok()) {
                if let Some(pid) = Pid::from_raw(pid) {
                    // It may have ended between the two lines above.
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            if running.trim().is_empty() { Ok(()) } else { bail!("{} runs", running.trim()) }
        })?;
        ip(&["netns", "delete", space])?;
    }
    Ok(())
}

pub(crate) fn ip(arguments: &[&str]) -> Result<()> {
    told_ip(arguments).map(drop)
}

fn told_ip(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("ip");
    command.args(arguments);
    told(command, COMMAND)
}

/// Every host there is.
pub const HOSTS: [Host; 7] = [
    Host { name: "s1", address: Ipv4Addr::new(10, 77, 0, 11) },
    Host { name: "s2", address: Ipv4Addr::new(10, 77, 0, 12) },
    Host { name: "s3", address: Ipv4Addr::new(10, 77, 0, 13) },
    Host { name: "a1", address: Ipv4Addr::new(10, 77, 0, 21) },
    Host { name: "a2", address: Ipv4Addr::new(10, 77, 0, 22) },
    Host { name: "a3", address: Ipv4Addr::new(10, 77, 0, 23) },
    Host { name: "r", address: Ipv4Addr::new(10, 77, 0, 31) },
];

/// Hosts that are ECS tasks, each with the address of a network interface of its own.
pub const TASKS: [Host; 20] = {
    let names = [
        "t0", "t1", "t2", "t3", "t4", "t5", "t6", "t7", "t8", "t9", "t10", "t11", "t12", "t13",
        "t14", "t15", "t16", "t17", "t18", "t19",
    ];
    let mut tasks = [HOSTS[0]; 20];
    let mut at = 0;
    while at < tasks.len() {
        tasks[at] = Host { name: names[at], address: Ipv4Addr::new(10, 77, 0, 100 + at as u8) };
        at += 1;
    }
    tasks
};

/// Every host of every region, for [`crate::Regions`].
pub const REGION_HOSTS: [Host; 12] = [
    Host { name: "es", address: Ipv4Addr::new(10, 81, 1, 11) },
    Host { name: "ew", address: Ipv4Addr::new(10, 81, 1, 21) },
    Host { name: "ea", address: Ipv4Addr::new(10, 81, 1, 22) },
    Host { name: "eg", address: Ipv4Addr::new(10, 81, 1, 31) },
    Host { name: "ws", address: Ipv4Addr::new(10, 81, 2, 11) },
    Host { name: "wa", address: Ipv4Addr::new(10, 81, 2, 22) },
    Host { name: "wg", address: Ipv4Addr::new(10, 81, 2, 31) },
    Host { name: "wh", address: Ipv4Addr::new(10, 81, 2, 32) },
    Host { name: "ns", address: Ipv4Addr::new(10, 81, 3, 11) },
    Host { name: "na", address: Ipv4Addr::new(10, 81, 3, 22) },
    Host { name: "ng", address: Ipv4Addr::new(10, 81, 3, 31) },
    Host { name: "nh", address: Ipv4Addr::new(10, 81, 3, 32) },
];

/// The namespace of the router between regions.
pub(crate) const ROUTER: &str = "hw-rtr";

/// The namespace of the bridges.
pub(crate) const ROOT: &str = "hw-net";
const BRIDGE: &str = "hwbr0";
const LOCK: &str = "/run/hawser-hosts.lock";
const COMMAND: Duration = Duration::from_secs(20);
