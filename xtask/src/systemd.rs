//! `cargo xtask systemd`: the package and the guides for VMs, done on hosts that systemd boots.
//!
//! Every block of docs/vm.md and docs/dns.md is done where it says, in its order; between the steps
//! stand the checks of what the guides promise, and of what they do not show: that readiness is
//! true, that a refused join leaves nothing, that a stuck agent is restarted, that an upgrade keeps
//! everything and a purge nothing. Needs root, systemd-container and debootstrap.
//!
//! The hosts are systemd-nspawn's: systemd, dpkg, credentials, the watchdog and the sandbox are
//! real; the kernel is the machine's. So limits of control groups (`MemorySwapMax=`) are not proved
//! where the machine has version 1 of them, and neither is a boot from power-on.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

mod guide;
mod vm;

use guide::Block;
use vm::{Site, Vm};

use crate::dist;
use crate::hosts::target;

/// Packs Hawser, boots the hosts, and walks the guides on them.
///
/// # Errors
/// Not root, a program is missing, or the first check that fails.
pub(crate) fn run(root: &Path, package: Option<PathBuf>) -> Result<()> {
    let package = match package {
        Some(package) => package,
        None => dist::run(root, true)?,
    };
    for (program, package) in PROGRAMS {
        let found = std::env::var_os("PATH").is_some_and(|path| {
            std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
        });
        ensure!(found, "{program} is not installed: it is in Debian's {package}");
    }
    let folder = target(root).join("systemd");
    let debian = vm::debian(&folder)?;
    let began = Instant::now();
    let site = Site::boot(&debian, &folder)?;
    println!("{} hosts booted after {:.1} s", site.hosts().len(), began.elapsed().as_secs_f64());
    let read = |name: &str| -> Result<Vec<Block>> {
        let path = root.join("docs").join(name);
        guide::blocks(&fs::read_to_string(path)?).with_context(|| name.to_owned())
    };
    let mut walk = Walk {
        site: &site,
        package,
        guide: read("vm.md")?,
        names: read("dns.md")?,
        printed: String::new(),
        secrets: Vec::new(),
        passed: 0,
    };
    let ended = walk.all();
    if ended.is_err() {
        for vm in site.hosts() {
            let said = vm.run("journalctl --no-pager --quiet --unit 'hawser-*' --lines 30 || true");
            println!("---- {}\n{}", vm.name, said.unwrap_or_default());
        }
    }
    println!("{} passed, {} failed", walk.passed, usize::from(ended.is_err()));
    ended
}

/// One walk through the guides.
struct Walk<'a> {
    site: &'a Site,
    package: PathBuf,
    guide: Vec<Block>,
    names: Vec<Block>,
    /// What the last command of a guide printed.
    printed: String,
    /// What no journal may hold.
    secrets: Vec<String>,
    passed: usize,
}

impl Walk<'_> {
    fn all(&mut self) -> Result<()> {
        for vm in self.site.hosts() {
            let name = self.package.file_name().context("a package without a name")?;
            fs::copy(&self.package, vm.path("/root").join(name))?;
        }
        self.install()?;
        self.serve()?;
        self.refuse()?;
        self.join()?;
        self.call()?;
        self.resolve()?;
        self.operate()?;
        self.survive()?;
        self.upgrade()?;
        self.reboot()?;
        self.keep_quiet()?;
        self.purge()
    }

    /// Does one check and says how it ended.
    fn check(&mut self, name: &str, check: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let began = Instant::now();
        let ended = check(self).with_context(|| name.to_owned());
        let verdict = if ended.is_ok() { "ok" } else { "FAILED" };
        println!("{verdict}: {name} ({:.1} s)", began.elapsed().as_secs_f64());
        self.passed += usize::from(ended.is_ok());
        ended
    }

    /// Does the step of docs/vm.md whose heading begins with `heading`.
    fn step(&mut self, heading: &str) -> Result<()> {
        self.check(&format!("docs/vm.md, {heading}"), |walk| {
            let blocks: Vec<Block> = walk
                .guide
                .iter()
                .filter(|block| block.heading.starts_with(heading))
                .cloned()
                .collect();
            ensure!(!blocks.is_empty(), "there is no such step");
            for block in blocks {
                for host in &block.hosts {
                    walk.follow(&block, host)?;
                }
            }
            Ok(())
        })
    }

    fn follow(&mut self, block: &Block, host: &str) -> Result<()> {
        let vm = self.site.host(host)?;
        if let Some(file) = &block.file {
            let path = vm.path(file);
            fs::create_dir_all(path.parent().context("a file without a folder")?)?;
            return fs::write(&path, &block.text)
                .with_context(|| format!("writing {file} of {host}"));
        }
        for line in block.text.lines() {
            let printed = self.printed.trim();
            if printed.starts_with("hj1.") && line.contains("TOKEN") {
                self.secrets.push(printed.to_owned());
            }
            let line = line.replace("TOKEN", printed);
            self.printed = if guide::is_question(&line) {
                vm.until(&line, |answer| !answer.is_empty())?
            } else {
                vm.run(&line)?
            };
        }
        Ok(())
    }

    fn host(&self, name: &str) -> Result<&Vm> {
        self.site.host(name)
    }

    fn install(&mut self) -> Result<()> {
        self.step("1.")?;
        self.check("the units verify, and are confined", |walk| {
            let s1 = walk.host("s1")?;
            for unit in UNITS {
                s1.run(&format!("systemd-analyze verify --man=no --recursive-errors=yes {unit}"))?;
                let confined =
                    format!("systemd-analyze security --offline=true --threshold=30 {PATHS}{unit}");
                let told = s1.run(&confined)?;
                println!("    {}", told.lines().last().unwrap_or_default().trim());
            }
            Ok(())
        })?;
        self.check("the package is whole, its folders are closed, and nothing runs", |walk| {
            for vm in walk.site.hosts() {
                let told = vm.ask("dpkg --verify hawser")?;
                ensure!(told.is_empty(), "{told}");
                let modes =
                    vm.ask("stat --format '%a %U %G' /etc/hawser/agent.d /etc/hawser/server.d")?;
                ensure!(modes == "750 root hawser\n750 root hawser", "{modes}");
                vm.refused("systemctl is-active --quiet hawser-agent hawser-server")?;
                vm.refused("systemctl is-enabled --quiet hawser-agent hawser-server")?;
                // A unit that is not configured is skipped, not failed.
                vm.run("systemctl start hawser-agent && ! systemctl is-active hawser-agent")?;
            }
            Ok(())
        })
    }

    fn serve(&mut self) -> Result<()> {
        self.step("2.")?;
        self.check("a server without its key says which file is missing", |walk| {
            let s1 = walk.host("s1")?;
            s1.run(
                "mv /etc/hawser/operator.key /root/key; echo 'data_dir = \"/x\"' > \
                 /etc/hawser/server.d/a.hcl",
            )?;
            s1.run("systemctl start hawser-server; ! systemctl is-active hawser-server")?;
            let told = s1.run("systemctl status --no-pager hawser-server || true")?;
            ensure!(told.contains("ConditionPathExists=/etc/hawser/operator.key"), "{told}");
            s1.run(
                "systemctl stop hawser-server; rm /etc/hawser/server.d/a.hcl; mv /root/key \
                 /etc/hawser/operator.key",
            )?;
            Ok(())
        })?;
        self.step("3.")?;
        self.check("an active server is ready, and nobody else reads its key or data", |walk| {
            let s1 = walk.host("s1")?;
            s1.run("systemctl is-active hawser-server && hawser health")?;
            ensure!(
                s1.ask("stat --format '%a %U' /etc/hawser/operator.key /var/lib/hawser")?
                    == "600 root\n700 hawser",
                "modes"
            );
            s1.refused(
                "setpriv --reuid=nobody --clear-groups cat \
                 /run/credentials/hawser-server.service/operator.key",
            )?;
            let key = fs::read_to_string(s1.path("/etc/hawser/operator.key"))?;
            let pid = s1.ask("systemctl show hawser-server --property=MainPID --value")?;
            let status = s1.ask(&format!("cat /proc/{pid}/status"))?;
            // CAP_NET_BIND_SERVICE is bit 10; the filter of system calls is mode 2.
            for line in ["CapBnd:\t0000000000000400", "NoNewPrivs:\t1", "Seccomp:\t2"] {
                ensure!(status.contains(line), "{line:?} is not in {status}");
            }
            walk.secrets.push(key.trim().to_owned());
            Ok(())
        })
    }

    fn refuse(&mut self) -> Result<()> {
        let cases = [
            // node of the token, arguments of join, what is told
            ("web-1", "10.78.0.99 TOKEN --timeout 4s", "longer than 4s"),
            ("other", "10.78.0.11 TOKEN", "not valid for node web-1"),
            ("web-1", "10.78.0.11 TOKEN --node other", "not valid for node other"),
            ("web-1", "10.78.0.11 hj1.a.b", "hj1.SECRET.PIN"),
        ];
        for (node, arguments, expected) in cases {
            let name = format!("`hawser join {arguments}` by a token for {node} leaves no trace");
            self.check(&name, |walk| {
                let token = walk.host("s1")?.ask(&format!("hawser token create --node {node}"))?;
                let web = walk.host("web-1")?;
                let told =
                    web.refused(&format!("hawser join {}", arguments.replace("TOKEN", &token)))?;
                ensure!(told.contains(expected), "{told}");
                println!("    {}", told.trim());
                web.run(
                    "test -z \"$(find /etc/hawser/agent.d /etc/credstore -type f)\" \
                     && ! systemctl is-active hawser-agent && ! systemctl is-enabled hawser-agent \
                     && test -z \"$(systemctl --failed --quiet 'hawser*')\" \
                     && ! journalctl --unit hawser-agent | grep 'Started hawser-agent'",
                )?;
                walk.secrets.push(token);
                Ok(())
            })?;
        }
        Ok(())
    }

    fn join(&mut self) -> Result<()> {
        self.step("4.")?;
        self.check("a host that joined is ready and enabled, and keeps no token", |walk| {
            for host in ["api-1", "web-1"] {
                let vm = walk.host(host)?;
                vm.run(
                    "systemctl is-active hawser-agent && systemctl is-enabled hawser-agent && \
                     hawser health",
                )?;
                vm.run("test -z \"$(ls -A /etc/credstore)\"")?;
                let told = vm.refused(&format!("hawser join 10.78.0.11 {TOKEN}"))?;
                ensure!(told.contains("configured already"), "{told}");
                vm.run("systemctl is-active hawser-agent")?;
            }
            let told = walk.host("s1")?.refused(&format!("hawser join 10.78.0.11 {TOKEN}"))?;
            ensure!(told.contains("server"), "{told}");
            Ok(())
        })?;
        self.check("a host that has joined starts again without a token", |walk| {
            walk.host("web-1")?.run("systemctl restart hawser-agent && hawser health")?;
            Ok(())
        })
    }

    fn call(&mut self) -> Result<()> {
        for heading in ["5.", "6."] {
            self.step(heading)?;
        }
        self.check("a reload is enough for a new service", |walk| {
            walk.host("s1")?
                .until("curl --silent '127.0.0.1:8500/v1/health/connect/api?passing'", |told| {
                    told.contains("api-sidecar-proxy")
                })?;
            let restarts = "systemctl show hawser-agent --property=NRestarts,ActiveState";
            let told = walk.host("api-1")?.ask(restarts)?;
            ensure!(told.contains("ActiveState=active") && told.contains("NRestarts=0"), "{told}");
            Ok(())
        })?;
        self.check("without an intention the call is denied, with the reason", |walk| {
            walk.host("web-1")?
                .until("curl --silent --include http://127.0.0.1:9191/", |told| {
                    told.contains("x-hawser-reason: intention_denied")
                })?;
            Ok(())
        })?;
        self.step("7.")?;
        self.step("8.")
    }

    /// Does the part of docs/dns.md for `resolver` on `host`.
    fn names_of(&mut self, resolver: &str, host: &str) -> Result<()> {
        let blocks = self.names.clone();
        let mut own = blocks.iter().filter(|block| block.hosts == [resolver]).peekable();
        ensure!(own.peek().is_some(), "docs/dns.md says nothing about {resolver}");
        own.try_for_each(|block| self.follow(block, host))
    }

    fn resolve(&mut self) -> Result<()> {
        self.check("the network has a resolver of its own, which knows no mesh", |walk| {
            let s1 = walk.host("s1")?;
            s1.run(
                "systemd-run --quiet --unit=network-dns dnsmasq --keep-in-foreground \
                --conf-file=/dev/null \
                 --no-resolv --no-hosts --bind-interfaces --listen-address=10.78.0.11 \
                 --address=/corp.example/10.78.0.77",
            )?;
            walk.host("web-1")?
                .until("dig +short @10.78.0.11 host.corp.example", |told| told == "10.78.0.77")?;
            Ok(())
        })?;
        self.check("docs/dns.md, systemd-resolved", |walk| {
            let web = walk.host("web-1")?;
            web.run("systemctl enable --quiet --now systemd-resolved")?;
            walk.names_of("resolved", "web-1")?;
            ensure!(walk.printed.starts_with("10.78.0.21"), "{}", walk.printed);
            let web = walk.host("web-1")?;
            web.until("resolvectl dns eth0 10.78.0.11 && echo set", |told| told == "set")?;
            web.until("getent hosts host.corp.example", |told| told.starts_with("10.78.0.77"))?;
            web.refused("resolvectl query no-such.service.consul")?;
            Ok(())
        })?;
        self.check("docs/dns.md, dnsmasq", |walk| {
            walk.names_of("dnsmasq", "api-1")?;
            ensure!(walk.printed.starts_with("10.78.0.21"), "{}", walk.printed);
            let api = walk.host("api-1")?;
            api.until("getent hosts host.corp.example", |told| told.starts_with("10.78.0.77"))?;
            api.until("dig no-such.service.consul", |told| told.contains("status: NXDOMAIN"))?;
            Ok(())
        })
    }

    fn operate(&mut self) -> Result<()> {
        self.step("9.")?;
        self.check(
            "script checks run as user hawser, and see processes, load and sockets",
            |walk| {
                let api = walk.host("api-1")?;
                fs::write(api.path("/etc/hawser/agent.d/scripts.hcl"), SCRIPTS)?;
                api.run("systemctl restart hawser-agent")?;
                api.until(
                    "curl --silent 127.0.0.1:8500/v1/agent/checks | python3 -c \
                 'import json, sys; print(json.load(sys.stdin)[\"sandbox\"][\"Status\"])'",
                    |told| told == "passing",
                )?;
                Ok(())
            },
        )?;
        self.check("a file that is broken is refused on reload, and what held goes on", |walk| {
            let web = walk.host("web-1")?;
            fs::write(web.path("/etc/hawser/agent.d/zz.hcl"), "service { nmae = \"x\" }\n")?;
            web.run("systemctl reload hawser-agent")?;
            web.until("journalctl --no-pager --unit hawser-agent", |said| {
                said.contains("the configuration was not reloaded")
            })?;
            web.refused("hawser validate /etc/hawser/agent.d")?;
            web.run(
                "rm /etc/hawser/agent.d/zz.hcl; systemctl reload hawser-agent; systemctl \
                 is-active hawser-agent",
            )?;
            web.until(CALL, |told| !told.is_empty())?;
            Ok(())
        })
    }

    fn survive(&mut self) -> Result<()> {
        for (host, unit) in [("web-1", "hawser-agent"), ("s1", "hawser-server")] {
            self.check(&format!("{unit} that hangs is restarted by its watchdog"), |walk| {
                let vm = walk.host(host)?;
                vm.run(&format!(
                    "mkdir -p /run/systemd/system/{unit}.service.d; \
                    printf '[Service]\\nWatchdogSec=2\\nTimeoutAbortSec=2\\n' \
                    > /run/systemd/system/{unit}.service.d/quick.conf; \
                    systemctl daemon-reload; systemctl restart {unit}"
                ))?;
                vm.run(&format!("kill -STOP $(systemctl show {unit} --property=MainPID --value)"))?;
                vm.until(
                    &format!("systemctl show {unit} --property=NRestarts,ActiveState"),
                    |told| told.contains("NRestarts=1") && told.contains("ActiveState=active"),
                )?;
                vm.run(&format!(
                    "journalctl --no-pager --unit {unit} | grep -q 'Watchdog timeout'"
                ))?;
                vm.run("hawser health")?;
                walk.host("web-1")?.until(CALL, |told| !told.is_empty())?;
                Ok(())
            })?;
        }
        self.check("a stopped agent leaves the catalog first, and ends well", |walk| {
            let (s1, api) = (walk.host("s1")?, walk.host("api-1")?);
            // Its server was away just now, and it can only say goodbye to one that it reaches.
            api.until("curl --silent 127.0.0.1:8500/metrics", |told| {
                told.lines().any(|line| line == "hawser_agent_server_connected 1")
            })?;
            api.run("systemctl stop hawser-agent")?;
            let told =
                s1.ask("curl --silent '127.0.0.1:8500/v1/health/service/api?passing&stale'")?;
            ensure!(told == "[]", "right after the stop the catalog says {told}");
            let told = api.ask("systemctl show hawser-agent --property=Result,ExecMainStatus")?;
            ensure!(told.contains("Result=success") && told.contains("ExecMainStatus=0"), "{told}");
            api.run("systemctl start hawser-agent")?;
            walk.host("web-1")?.until(CALL, |told| !told.is_empty())?;
            Ok(())
        })
    }

    /// The same package under a higher version, for dpkg to upgrade to.
    fn newer_package(&self) -> Result<PathBuf> {
        let s1 = self.host("s1")?;
        s1.run(
            "dpkg-deb --raw-extract hawser_*.deb newer && \
             sed -i 's/^Version: .*/&+newer/' newer/DEBIAN/control && \
             dpkg-deb --build -Zgzip -z1 newer built.deb && rm -r newer",
        )?;
        Ok(s1.path("/root/built.deb"))
    }

    fn upgrade(&mut self) -> Result<()> {
        self.check("an upgrade replaces what runs, and keeps data and configuration", |walk| {
            let catalog =
                "curl --silent 127.0.0.1:8500/v1/catalog/nodes | tr ',' '\\n' | grep '\"ID\"' | \
                 sort";
            let before = walk.host("s1")?.until(catalog, |told| told.lines().count() == 3)?;
            let newer = walk.newer_package()?;
            for vm in walk.site.hosts() {
                fs::copy(&newer, vm.path("/root/newer.deb"))?;
                vm.run("echo HAWSER_LOG=info >> /etc/default/hawser")?;
                let unit = if vm.name == "s1" { "hawser-server" } else { "hawser-agent" };
                let pid = format!("systemctl show {unit} --property=MainPID --value");
                let restarts = format!("systemctl show {unit} --property=NRestarts --value");
                let (old, restarted) = (vm.ask(&pid)?, vm.ask(&restarts)?);
                vm.run("dpkg -i newer.deb && dpkg-query --show hawser | grep -q '+newer$'")?;
                // An agent hands over to the new binary by itself; a server is restarted.
                vm.until(&pid, |told| told != old && told != "0")?;
                let again = vm.ask(&restarts)?;
                ensure!(
                    again == restarted || again == "0",
                    "{}: {unit} ended, and was started anew",
                    vm.name
                );
                vm.run(&format!(
                    "systemctl is-active {unit} && systemctl is-enabled {unit} && hawser health"))?;
                vm.run("tail -1 /etc/default/hawser | grep -qx HAWSER_LOG=info")?;
            }
            walk.host("s1")?.until(catalog, |told| told == before)?;
            walk.host("s1")?.run("hawser intention check web api")?;
            walk.host("web-1")?.until(CALL, |told| !told.is_empty())?;
            Ok(())
        })?;
        self.check("systemd keeps an agent's sockets while it crashes", |walk| {
            let web = walk.host("web-1")?;
            let kept = "systemctl show hawser-agent --property=NFileDescriptorStore --value";
            web.until(kept, |told| told.parse::<u32>().is_ok_and(|kept| kept > 0))?;
            web.run("systemctl kill --kill-whom=main --signal=KILL hawser-agent")?;
            // Started again after two seconds: until then the question waits in the socket.
            web.run("curl --silent --fail --max-time 60 127.0.0.1:8500/v1/agent/self")?;
            web.run("hawser health")?;
            web.until(CALL, |told| !told.is_empty())?;
            Ok(())
        })?;
        self.check("what was removed comes back with its data", |walk| {
            let web = walk.host("web-1")?;
            web.run("dpkg --remove hawser && ! pgrep -u hawser && test -d /var/lib/hawser/agent")?;
            web.run(
                "dpkg -i hawser_*.deb; systemctl enable --quiet --now hawser-agent; hawser health",
            )?;
            web.until(CALL, |told| !told.is_empty())?;
            Ok(())
        })
    }

    fn reboot(&mut self) -> Result<()> {
        self.check("with the server down, an agent that starts serves from its disk", |walk| {
            let web = walk.host("web-1")?;
            walk.host("s1")?.run("systemctl stop hawser-server")?;
            web.run("systemctl restart hawser-agent && hawser health")?;
            web.until(CALL, |told| !told.is_empty())?;
            walk.host("s1")?.run("systemctl start hawser-server && hawser health")?;
            Ok(())
        })
    }

    fn keep_quiet(&mut self) -> Result<()> {
        self.check("no journal holds a secret", |walk| {
            ensure!(walk.secrets.len() >= 6, "only {} secrets are known", walk.secrets.len());
            for vm in walk.site.hosts() {
                let journal = vm.run("journalctl --no-pager --output export")?;
                ensure!(journal.contains("hawser"), "{}'s journal is empty", vm.name);
                ensure!(!journal.contains("PRIVATE KEY"), "{}: a private key", vm.name);
                let told = walk.secrets.iter().any(|secret| {
                    // The part between the dots is the secret; a pin is public.
                    journal.contains(secret.split('.').nth(1).unwrap_or(secret))
                });
                ensure!(!told, "{}: a key or token", vm.name);
            }
            Ok(())
        })
    }

    fn purge(&mut self) -> Result<()> {
        self.check("a purge leaves nothing behind", |walk| {
            for host in ["web-1", "api-1", "s1"] {
                let vm = walk.host(host)?;
                vm.run(
                    "dpkg --purge hawser; rm -rf /run/systemd/system/hawser-*; systemctl \
                     daemon-reload",
                )?;
                let left = vm.ask(
                    "find / -xdev -iname '*hawser*' -not -path '/proc/*' -not -path '/root/*' \
                       -not -path '/etc/systemd/resolved.conf.d/*' -not -path '/etc/dnsmasq.d/*'; \
                     getent passwd hawser || true; getent group hawser || true; \
                     pgrep -l hawser || true; systemctl list-unit-files --quiet 'hawser*' || true; \
                     ls -A /etc/credstore 2>/dev/null || true",
                )?;
                ensure!(left.is_empty(), "{host}: {left}");
            }
            Ok(())
        })
    }
}

/// What boots the hosts, and where Debian has it.
const PROGRAMS: [(&str, &str); 4] = [
    ("debootstrap", "debootstrap"),
    ("systemd-nspawn", "systemd-container"),
    ("nsenter", "util-linux"),
    ("ip", "iproute2"),
];
const UNITS: [&str; 2] = ["hawser-agent.service", "hawser-server.service"];
const PATHS: &str = "/usr/lib/systemd/system/";
const CALL: &str = "curl --fail --silent http://127.0.0.1:9191/copyright";
/// A token in form.
const TOKEN: &str =
    "hj1.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
const SCRIPTS: &str = r#"
enable_local_script_checks = true

check {
  id       = "sandbox"
  name     = "what a script may see"
  args     = ["/bin/sh", "-ec", "test $(id -un) = hawser; pgrep -f http.server; uptime; ss -ltn"]
  interval = "1s"
}
"#;
