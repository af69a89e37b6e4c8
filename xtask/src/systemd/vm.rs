//! Hosts that systemd boots: one Debian root, an overlay and a network namespace for each.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_rig::process::{finish, told};
use hawser_rig::{Process, wait_for};
use rustix::process::{Pid, Signal, kill_process};

use crate::step::run as shown;

/// The hosts, their names and addresses.
pub(super) const HOSTS: [(&str, &str); 3] =
    [("s1", "10.78.0.11"), ("api-1", "10.78.0.21"), ("web-1", "10.78.0.22")];

/// Debian, unpacked once and kept below `folder` for the next time.
///
/// # Errors
/// debootstrap is missing or fails.
pub(super) fn debian(folder: &Path) -> Result<PathBuf> {
    let (root, stamp) = (folder.join("debian"), folder.join("debian.packages"));
    let wanted = format!("{SUITE} {PACKAGES}\n");
    if fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return Ok(root);
    }
    fs::create_dir_all(folder)?;
    for gone in [&root, &stamp] {
        shown(Command::new("rm").args(["-rf", "--one-file-system"]).arg(gone))?;
    }
    let log = folder.join("debootstrap.log");
    let output = File::create(&log)?;
    let mut unpack = Command::new("debootstrap");
    unpack.args(["--variant=minbase", &format!("--include={PACKAGES}"), SUITE]).arg(&root);
    unpack.arg(MIRROR).stdout(output.try_clone()?).stderr(output);
    shown(&mut unpack).with_context(|| format!("what it said is in {}", log.display()))?;
    // Each host starts these when its guide says so, not before; and nothing dials out by itself.
    let units = [
        "systemd-resolved.service",
        "dnsmasq.service",
        "systemd-timesyncd.service",
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
    ];
    // One that this Debian does not have is as good as disabled.
    for unit in units {
        drop(Command::new("systemctl").arg("--root").arg(&root).args(["disable", unit]).output());
    }
    drop(fs::remove_file(root.join("etc/resolv.conf")));
    fs::write(&stamp, wanted)?;
    Ok(root)
}

/// The hosts, standing. Dropping it ends and removes them.
pub(super) struct Site {
    vms: Vec<Vm>,
    folder: PathBuf,
    _lock: File,
}

impl Site {
    /// Boots every host, side by side, on one bridge.
    ///
    /// # Errors
    /// Not root, another run has the hosts, or one does not boot.
    pub(super) fn boot(debian: &Path, folder: &Path) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "hosts under systemd need root");
        let lock = File::create(LOCK).with_context(|| format!("creating {LOCK}"))?;
        lock.try_lock().context("another run has the hosts; there is one set per machine")?;
        let folder = folder.join("hosts");
        clear(&folder);
        fs::create_dir_all(&folder)?;
        let mut site = Self { vms: Vec::new(), folder: folder.clone(), _lock: lock };
        // A file system of its own, as an overlay's upper layer cannot be on another overlay.
        shown(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", "size=3g", "hawser-hosts"])
                .arg(&folder),
        )?;
        ip(&["netns", "add", NET])?;
        ip(&["-n", NET, "link", "add", BRIDGE, "type", "bridge"])?;
        ip(&["-n", NET, "link", "set", BRIDGE, "up"])?;
        for (at, (name, address)) in HOSTS.iter().enumerate() {
            connect(name, address)?;
            site.vms.push(Vm::start(debian, &folder, name, at)?);
        }
        for vm in &mut site.vms {
            vm.booted()?;
        }
        Ok(site)
    }

    /// The host called `name`.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn host(&self, name: &str) -> Result<&Vm> {
        let mut vms = self.vms.iter();
        vms.find(|vm| vm.name == name).with_context(|| format!("there is no host {name}"))
    }

    /// Every host.
    pub(super) fn hosts(&self) -> &[Vm] {
        &self.vms
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.vms.clear();
        clear(&self.folder);
    }
}

/// One booted host.
pub(super) struct Vm {
    /// Its name.
    pub(super) name: &'static str,
    process: Process,
    root: PathBuf,
    init: u32,
}

impl Vm {
    fn start(debian: &Path, folder: &Path, name: &'static str, at: usize) -> Result<Self> {
        let own = folder.join(name);
        let [upper, work, root] = ["upper", "work", "root"].map(|part| own.join(part));
        for part in [&upper, &work, &root] {
            fs::create_dir_all(part)?;
        }
        let layers = format!(
            "lowerdir={},upperdir={},workdir={}",
            debian.display(),
            upper.display(),
            work.display()
        );
        shown(Command::new("mount").args(["-t", "overlay", "-o", &layers, "overlay"]).arg(&root))?;
        fs::write(root.join("etc/hostname"), format!("{name}\n"))?;
        fs::write(root.join("etc/hosts"), format!("127.0.0.1 localhost\n127.0.1.1 {name}\n"))?;
        fs::write(root.join("etc/machine-id"), format!("{:032x}\n", 0x0078_0000 + at))?;
        fs::write(root.join("etc/resolv.conf"), "")?;
        let mut boot = Command::new("systemd-nspawn");
        boot.args(["--quiet", "--boot", "--register=no", "--keep-unit", "--console=pipe"])
            .args(["--resolv-conf=off", "--timezone=off", "--link-journal=no"])
            .arg(format!("--machine=hawser-{name}"))
            .arg(format!("--hostname={name}"))
            .arg(format!("--network-namespace-path=/run/netns/{}", space(name)))
            .arg("--directory")
            .arg(&root);
        let process = Process::spawn(name, boot, &own.join("console"))?.ended_by(Signal::TERM);
        Ok(Self { name, process, root, init: 0 })
    }

    fn booted(&mut self) -> Result<()> {
        let nspawn = self.process.id();
        let (init, _) = wait_for(format_args!("{}'s init", self.name), BOOT, || {
            init_below(nspawn).with_context(|| format!("not there: {}", self.process.printed()))
        })?;
        self.init = init;
        wait_for(format_args!("{} to boot", self.name), BOOT, || {
            // Degraded is a unit of Debian's own that failed; ours are looked at one by one.
            let state = self.ask("systemctl is-system-running || true")?;
            ensure!(["running", "degraded"].contains(&state.as_str()), "it is {state}");
            Ok(())
        })?;
        Ok(())
    }

    /// A command that runs `script` on this host as root, in its home.
    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args([
                "--target",
                &self.init.to_string(),
                "--all",
                "--",
                "env",
                "--ignore-environment",
            ])
            .args(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"])
            .args(["HOME=/root", "LANG=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"])
            .args(["sh", "-euc", &format!("cd /root\n{script}")]);
        command
    }

    /// Runs `script` and returns what it printed.
    ///
    /// # Errors
    /// It fails, with all it printed, or takes longer than 90 s.
    pub(super) fn run(&self, script: &str) -> Result<String> {
        let output = finish(self.command(script), b"", COMMAND)?;
        let [out, err] =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        ensure!(
            output.status.success(),
            "on {}: `{script}`: {}: {} {}",
            self.name,
            output.status,
            out.trim(),
            err.trim()
        );
        Ok(out)
    }

    /// Runs `script`, which must fail, and returns what it said.
    ///
    /// # Errors
    /// It does not fail.
    pub(super) fn refused(&self, script: &str) -> Result<String> {
        let output = finish(self.command(script), b"", COMMAND)?;
        ensure!(!output.status.success(), "on {}: `{script}` was not refused", self.name);
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// As [`Vm::run`], without the blanks around.
    ///
    /// # Errors
    /// As there.
    pub(super) fn ask(&self, script: &str) -> Result<String> {
        Ok(self.run(script)?.trim().to_owned())
    }

    /// Asks until `script` succeeds and what it prints is `right`.
    ///
    /// # Errors
    /// It is not so in time.
    pub(super) fn until(&self, script: &str, right: impl Fn(&str) -> bool) -> Result<String> {
        let (answer, _) = wait_for(format_args!("`{script}` on {}", self.name), ANSWER, || {
            let answer = self.ask(script)?;
            ensure!(right(&answer), "it says {answer:?}");
            Ok(answer)
        })?;
        Ok(answer)
    }

    /// A file of the host's, seen from outside.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

/// The process id, out here, of the first process in there.
fn init_below(parent: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find_map(|pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let inside = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
        let is_first = inside.split_whitespace().count() > 1 && inside.ends_with("\t1");
        if is_first { Some(pid) } else { init_below(pid) }
    })
}

fn connect(name: &str, address: &str) -> Result<()> {
    let (space, cable) = (space(name), format!("hwvm-{name}"));
    ip(&["netns", "add", &space])?;
    let peer = ["peer", "name", "eth0", "netns", &space];
    ip(&[&["-n", NET, "link", "add", &cable, "type", "veth"][..], &peer[..]].concat())?;
    ip(&["-n", NET, "link", "set", &cable, "master", BRIDGE, "up"])?;
    ip(&["-n", &space, "address", "add", &format!("{address}/24"), "dev", "eth0"])?;
    ip(&["-n", &space, "link", "set", "eth0", "up"])?;
    ip(&["-n", &space, "link", "set", "lo", "up"])?;
    // Every host has a way out; this one leads to an address that nobody has, on a bridge that
    // nothing leaves.
    ip(&["-n", &space, "route", "add", "default", "via", "10.78.0.1"])
}

/// Ends and removes what is standing. Nothing standing is fine, so every step may fail.
fn clear(folder: &Path) {
    let spaces = HOSTS.iter().map(|(name, _)| space(name)).chain([NET.to_owned()]);
    for space in spaces {
        let mut list = Command::new("ip");
        list.args(["netns", "pids", &space]);
        for pid in told(list, COMMAND).unwrap_or_default().lines() {
            if let Some(pid) = pid.trim().parse().ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        drop(Command::new("ip").args(["netns", "delete", &space]).output());
    }
    for (name, _) in HOSTS {
        drop(Command::new("umount").arg("--lazy").arg(folder.join(name).join("root")).output());
    }
    drop(Command::new("umount").arg("--lazy").arg(folder).output());
}

fn space(name: &str) -> String {
    format!("hwvm-{name}")
}

fn ip(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(arguments);
    told(command, COMMAND).map(drop)
}

const SUITE: &str = "bookworm";
const MIRROR: &str = "http://deb.debian.org/debian";
/// Beside systemd, what the guides and the checks call.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,iproute2,procps,curl,python3,dnsutils,dnsmasq,\
                        systemd-resolved,libnss-resolve";
const NET: &str = "hwvm-net";
const BRIDGE: &str = "hwvmbr0";
const LOCK: &str = "/run/hawser-vms.lock";
const BOOT: Duration = Duration::from_secs(60);
const COMMAND: Duration = Duration::from_secs(90);
const ANSWER: Duration = Duration::from_secs(30);
