#!/usr/bin/env python3
"""Boots what Terraform rendered: servers, a VM and an ECS task in network namespaces, as root.

    boot.py FOLDER

FOLDER holds hawser (the binary), user-data.json (name -> first-boot script), containers.json (the task's containers)
and lb.json (the load balancer's DNS name). The real scripts run, with real systemd-sysusers and
systemd-tmpfiles; only aws, curl and systemctl are pretended. What stands for the load balancer is
its name, which resolves to one address for each server, as it does without cross-zone balancing.
Checked: the servers found one cluster, the VM and the task join it by tokens from
hawser-publish-token, their services are in the catalog, the task's health check passes, and a
server that lost its disk is replaced by a new one of its name.
"""

import base64
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
DEADLINE = 30.0
TASK = "hello"
# What is pretended comes first: no real aws is ever run.
PATHS = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def run(*words, **options):
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, **options)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: {done.stderr or done.stdout}")
    return done.stdout


class Rig:
    def __init__(self, folder):
        self.folder = folder
        self.processes, self.spaces, self.last = {}, [], ""
        self.prefix = f"tf{os.getpid()}"
        shutil.rmtree(folder / "parameters", ignore_errors=True)
        (folder / "parameters").mkdir()
        (folder / "operator.key").write_text(run(str(folder / "hawser"), "keygen"))

    def network(self, names):
        switch = self.space("switch")
        self.add_space(switch)
        inside = ("ip", "-n", switch, "link")
        run(*inside, "add", "bridge", "type", "bridge")
        run(*inside, "set", "bridge", "up")
        run("ip", "-n", switch, "address", "add", "10.99.0.254/24", "dev", "bridge")
        for at, name in enumerate(names, 1):
            space = self.space(name)
            self.add_space(space)
            run("ip", "-n", switch, "link", "add", f"port{at}", "type", "veth",
                "peer", "name", "eth0", "netns", space)
            run(*inside, "set", f"port{at}", "master", "bridge", "up")
            run("ip", "-n", space, "address", "add", f"10.99.0.{at}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                run("ip", "-n", space, "link", "set", link, "up")
            run("ip", "-n", space, "route", "add", "default", "via", "10.99.0.254")

    def serve_names(self, name, addresses):
        command = ["ip", "netns", "exec", self.space("switch"), sys.executable,
                   str(HERE / "names.py"), "10.99.0.254", name, *addresses]
        self.processes["names"] = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, start_new_session=True)

    def add_space(self, space):
        run("ip", "netns", "add", space)
        self.spaces.append(space)

    def space(self, name):
        return f"{self.prefix}-{name}"

    def boot(self, name, script):
        log = (self.folder / f"{name}.log").open("w")
        command = ["ip", "netns", "exec", self.space(name), "unshare", "--mount", "--", "bash",
                   str(HERE / script), name, str(self.folder)]
        self.processes[name] = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env=PATHS)

    def inside(self, name, *words):
        """Runs a command in a VM; what it printed, or nothing where it fails."""
        # Each program on the way to the VM's replaces the one before it, so that this is the VM's.
        pid = str(self.processes[name].pid)
        enter = ("nsenter", "--target", pid, "--mount", "--net", "--", *words)
        try:
            done = subprocess.run(enter, capture_output=True, text=True, timeout=20, env=PATHS)
        except subprocess.TimeoutExpired:
            return None
        self.last = f"{words[0]}: {done.stderr or done.stdout}"
        return done.stdout if done.returncode == 0 else None

    def until(self, what, holds):
        began = time.monotonic()
        while not holds():
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise SystemExit(f"{name} ended ({process.returncode}) before {what}")
            if time.monotonic() - began > DEADLINE:
                raise SystemExit(f"not within {DEADLINE:.0f} s: {what}\n{self.last}")
            time.sleep(0.1)
        print(f"{what}: after {time.monotonic() - began:.1f} s", flush=True)

    def replace(self, name, asked):
        """Ends a server for good, and boots a new one of its name with an empty disk."""
        def voters():
            rows = (self.inside(asked, "hawser", "operator", "raft", "list-peers") or "").splitlines()
            return {row.split()[1] for row in rows[1:] if name in row and "true" in row}

        before = voters()
        self.end(self.processes.pop(name))
        self.boot(name, "vm.sh")
        self.until(f"{name} is replaced", lambda: len(voters()) == 1 and voters() != before)

    def end(self, process):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def clean_up(self):
        for process in self.processes.values():
            self.end(process)
        for space in self.spaces:
            subprocess.run(["ip", "netns", "delete", space], check=False)


def task_script(containers):
    """The task's containers in the order of their dependencies, as one shell script."""
    by_name = {container["name"]: container for container in containers}
    writer, sidecar = by_name["hawser-config"], by_name["hawser"]
    lines = ["#!/bin/bash", "set -euo pipefail", "umask 022", "mkdir -p /etc/hawser"]
    for pair in writer["environment"]:
        lines.append(f"export {pair['name']}='{pair['value']}'")
    (secret,) = writer["secrets"]
    parameter = secret["valueFrom"].split(":parameter", 1)[1]
    lines.append(f"file=$RIG/parameters/{parameter.replace('/', '_')}")
    lines.append('until [ -s "$file" ]; do sleep 0.1; done')
    lines.append(f"export {secret['name']}=$(cat \"$file\")")
    writes = base64.b64encode(writer["command"][0].encode()).decode()
    lines.append(f'{" ".join(writer["entryPoint"])} "$(base64 -d <<<{writes})"')
    uid, gid = sidecar["user"].split(":")
    lines.append(f"install -d -m 700 -o {uid} -g {gid} /var/lib/hawser")
    words = [*sidecar["entryPoint"], *sidecar["command"]]
    lines.append(f"exec setpriv --reuid {uid} --regid {gid} --clear-groups --bounding-set=-all "
                 + " ".join(words))
    return "\n".join(lines) + "\n"


def main():
    folder = pathlib.Path(sys.argv[1]).resolve()
    scripts = json.loads((folder / "user-data.json").read_text())
    containers = json.loads(json.loads((folder / "containers.json").read_text()))
    balancer = json.loads((folder / "lb.json").read_text())
    servers = sorted(name for name in scripts if "-server-" in name)
    vms = sorted(set(scripts) - set(servers))

    shutil.copy(HERE / "pretend.sh", folder)
    for name, text in scripts.items():
        (folder / f"{name}.sh").write_text(text)
    (folder / f"{TASK}.sh").write_text(task_script(containers))
    addresses = [f"10.99.0.{at}" for at in range(1, len(servers) + 1)]

    rig = Rig(folder)
    first = servers[0]
    try:
        rig.network([*servers, *vms, TASK])
        rig.serve_names(balancer, addresses)
        for name in [*servers, *vms]:
            rig.boot(name, "vm.sh")
        rig.boot(TASK, "task.sh")

        def peers():
            answer = rig.inside(first, "hawser", "operator", "raft", "list-peers") or ""
            return all(name in answer for name in servers) and "leader" in answer

        rig.until(f"{len(servers)} servers are one cluster", peers)
        for name in [*vms, TASK]:
            rig.until(f"a token for {name} is published", lambda name=name: rig.inside(
                first, "/usr/local/sbin/hawser-publish-token", name) is not None)
        for name in vms:
            rig.until(f"{name} is ready", lambda name=name: rig.inside(
                name, "hawser", "health") is not None)
            left = list((folder / "parameters").glob(f"*_{name}"))
            assert not left, f"a spent token is still there: {left}"
        (sidecar,) = (one for one in containers if one["name"] == "hawser")
        check = sidecar["healthCheck"]["command"]
        assert check[0] == "CMD", check
        rig.until(f"the task {TASK} is healthy", lambda: rig.inside(TASK, *check[1:]) is not None)
        for name in [*vms, TASK]:
            rig.until(f"{name} is in the catalog", lambda name=name: name in (
                rig.inside(first, "hawser", "catalog", "nodes") or ""))
        rig.replace(servers[1], first)
        wanted = {name.split("-")[0] for name in [*vms, TASK]}
        rig.until("their services are in the catalog", lambda: wanted <= set(
            (rig.inside(first, "hawser", "catalog", "services") or "").split()))
    except BaseException:
        for log in sorted(folder.glob("*.log")):
            print(f"---- {log.name}\n{log.read_text()[-3000:]}", flush=True)
        raise
    finally:
        rig.clean_up()


if __name__ == "__main__":
    main()
