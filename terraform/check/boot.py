#!/usr/bin/env python3
"""Boots what Terraform rendered: servers, VMs and ECS tasks in network namespaces, as root.

    boot.py FOLDER

FOLDER holds hawser (the binary), and what Terraform made of two examples: vms.json and tasks.json, as
`terraform show -json` prints states. The real first-boot scripts run, with the real aws, curl,
systemd-sysusers and systemd-tmpfiles, against cloud.py: an AWS that checks signatures and lets a role
call only what its rendered policy names. Only systemctl is pretended. One thing is changed in what was
rendered: hawser is told where this AWS answers, because it asks the true one by names and certificates
that nobody else has.

Checked: servers find one another by their tag and found one cluster; a role that is not on the
allow-list is refused; VMs and tasks join by their roles, a fleet's VMs under names of their own; after
hawser-allow-list on each server the refused one joins; services are in the catalog; the task's health
check passes; and a server that lost its disk is replaced by a new one of its name, but by none that has
the key of another cluster.
"""

import base64
import contextlib
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
DEADLINE = 180.0
NETWORK, SWITCH = "10.99.0.0/24", "10.99.0.254"
AWS = "http://169.254.169.253:5000"
REGION = "eu-central-1"
FLEET = 2
# The VM whose role the allow-list lacks at first.
LATE = "web-1"
# What is pretended comes first.
PATHS = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def run(*words, **options):
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, **options)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: {done.stderr or done.stdout}")
    return done.stdout


# ---- what Terraform made ----

def resources(state):
    """(module's address, type, name, values) of each resource in a state."""
    def walk(module):
        for one in module.get("resources", []):
            yield module.get("address", ""), one["type"], one["name"], one["values"]
        for inner in module.get("child_modules", []):
            yield from walk(inner)

    return list(walk(state["values"]["root_module"]))


def only(found, kind, module, name=None):
    """The one resource of a kind in a module."""
    (values,) = (values for place, type_name, called, values in found
                 if (place, type_name) == (module, kind) and name in (None, called))
    return values


def policies(found):
    """Role -> the policies that it was given."""
    given = {}
    for place, kind, name, values in found:
        if kind == "aws_iam_role":
            given[values["name"]] = [
                widened(other["policy"]) for module, other_kind, role, other in found
                if (module, other_kind, role) == (place, "aws_iam_role_policy", name)]
    return given


def widened(policy):
    """A policy for moto, which knows resources of S3 alone: for all else actions are what counts."""
    held = json.loads(policy)
    for statement in held["Statement"]:
        if not statement["Action"].startswith("s3:"):
            statement["Resource"] = "*"
    return json.dumps(held)


def near(text):
    """A configuration whose hawser asks this AWS and not the true one."""
    changed = text.replace(f"region={REGION}", f"region={REGION} endpoint={AWS}")
    assert changed != text, f"servers are not looked for by tag: {text}"
    return changed


def near_script(script):
    """A first-boot script with such a configuration."""
    held = re.search(r"base64 -d <<<'([^']+)' \| configure 10-", script)[1]
    changed = base64.b64encode(near(base64.b64decode(held).decode()).encode()).decode()
    return script.replace(held, changed)


def near_list(text):
    """An allow-list whose servers ask this AWS who has signed."""
    held = json.loads(text)
    held["aws_iam"]["sts_endpoint"] = AWS
    return held


def machines(found):
    """A VM for each launch template, and several for one that is a fleet's."""
    made = []
    for place, kind, _, values in found:
        if kind != "aws_launch_template":
            continue
        script = base64.b64decode(values["user_data"]).decode()
        (tags,) = (spec["tags"] for spec in values["tag_specifications"]
                   if spec["resource_type"] == "instance")
        role = only(found, "aws_iam_role", place)["name"]
        fleet = re.search(r"'([^']+)' \"\$\(about instance-id\)\"", script)
        config = re.search(r"base64 -d <<<'([^']+)' \| configure 10-", script)[1]
        node = json.loads(base64.b64decode(config))["node_name"]
        for at in range(FLEET if fleet else 1):
            made.append({
                "name": f"{node}-{at + 1}" if fleet else node,
                "prefix": fleet[1] if fleet else None,
                "script": near_script(script), "tags": tags, "role": role,
                "is_server": "hawser-server.service" in script,
            })
    return made


def task_script(task, roles):
    """What ECS does for the sidecar, and what the sidecar runs, as a shell script."""
    (sidecar,) = (one for one in task["definition"] if one["name"] == "hawser")
    (pin,) = sidecar["secrets"]
    (config,) = sidecar["environment"]
    assert sidecar["readonlyRootFilesystem"] and config["name"] == "HAWSER_CONFIG_JSON", sidecar
    parameter = pin["valueFrom"].split(":parameter", 1)[1]
    uid, gid = sidecar["user"].split(":")
    return "\n".join([
        "set -euo pipefail",
        f"export AWS_CONTAINER_CREDENTIALS_RELATIVE_URI=/v2/credentials/{roles['execution']}",
        f"pin=$(AWS_ENDPOINT_URL={AWS} \"$RIG/../cloud/bin/aws\" ssm get-parameters "
        f"--region {REGION} --names {parameter} --query 'Parameters[0].Value' --output text)",
        f"export {pin['name']}=$pin",
        f"export AWS_CONTAINER_CREDENTIALS_RELATIVE_URI=/v2/credentials/{roles['task']}",
        f"export ECS_CONTAINER_METADATA_URI_V4=http://169.254.170.2/v4/{task['id']}",
        f"export HAWSER_CONFIG_JSON={shlex.quote(near(config['value']))}",
        f"exec setpriv --reuid {uid} --regid {gid} --clear-groups --bounding-set=-all "
        + shlex.join([*sidecar["entryPoint"], *sidecar["command"]]),
    ]) + "\n"


# ---- the rig ----

class Rig:
    def __init__(self, folder):
        self.folder = folder
        self.processes, self.spaces, self.last = {}, [], ""
        self.prefix = f"tf{os.getpid()}"

    def network(self, hosts):
        switch = self.space("switch")
        self.add_space(switch)
        inside = ("ip", "-n", switch, "link")
        run(*inside, "set", "lo", "up")
        run(*inside, "add", "bridge", "type", "bridge")
        run(*inside, "set", "bridge", "up")
        # The switch is also the metadata services of instances and tasks, and all of AWS.
        for address in (f"{SWITCH}/24", "169.254.169.254/32", "169.254.170.2/32", "169.254.169.253/32"):
            run("ip", "-n", switch, "address", "add", address, "dev", "bridge")
        for at, (name, address) in enumerate(hosts.items(), 1):
            space = self.space(name)
            self.add_space(space)
            run("ip", "-n", switch, "link", "add", f"port{at}", "type", "veth",
                "peer", "name", "eth0", "netns", space)
            run(*inside, "set", f"port{at}", "master", "bridge", "up")
            run("ip", "-n", space, "address", "add", f"{address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                run("ip", "-n", space, "link", "set", link, "up")
            run("ip", "-n", space, "route", "add", "default", "via", SWITCH)

    def serve_aws(self, plan):
        """Starts cloud.py; the ids of the instances by name."""
        file = self.folder / "plan.json"
        file.write_text(json.dumps(plan))
        python = self.folder.parent / "cloud/bin/python"
        log = (self.folder / "cloud.log").open("w")
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.space("switch"), python, HERE / "cloud.py", file],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            start_new_session=True)
        self.processes["cloud"] = process
        line = process.stdout.readline()
        if not line:
            raise SystemExit("the AWS of this test does not serve")
        return json.loads(line)

    def put(self, **told):
        """Changes parameters or the operator key's secret, as an operator does."""
        cloud = self.processes["cloud"]
        cloud.stdin.write(json.dumps(told) + "\n")
        cloud.stdin.flush()
        assert cloud.stdout.readline() == "put\n", f"not taken: {told}"

    def add_space(self, space):
        run("ip", "netns", "add", space)
        self.spaces.append(space)

    def space(self, name):
        return f"{self.prefix}-{name}"

    def boot(self, name, script):
        log = (self.folder / f"{name}.log").open("a")
        command = ["ip", "netns", "exec", self.space(name), "unshare", "--mount", "--", "bash",
                   str(HERE / script), name, str(self.folder)]
        self.processes[name] = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env={**PATHS, "RIG": str(self.folder)})

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

    def log(self, name):
        return (self.folder / f"{name}.log").read_text()

    def is_member(self, asked, node):
        return node in (self.inside(asked, "hawser", "catalog", "nodes") or "").split()

    def replace(self, name, asked):
        """Ends a server for good, and boots new ones of its name with an empty disk: one with a key of
        another cluster, which must not start, and one with the right key."""
        def voters():
            rows = (self.inside(asked, "hawser", "operator", "raft", "list-peers") or "").splitlines()
            return {row.split()[1] for row in rows[1:] if name in row and "true" in row}

        key, before = (self.folder / "operator.key").read_text().strip(), voters()
        self.end(self.processes.pop(name))
        self.put(secret=run(str(self.folder / "hawser"), "keygen").strip())
        self.boot(name, "vm.sh")
        stranger = self.processes.pop(name)
        self.until(f"{name} does not start with another cluster's key",
                   lambda: stranger.poll() is not None)
        assert "this is not the operator key" in self.log(name), self.log(name)
        self.put(secret=key)
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


def arrange(folder):
    """What is booted: the VMs, the tasks, and the AWS around them."""
    vms = resources(json.loads((folder / "vms.json").read_text()))
    ecs = resources(json.loads((folder / "tasks.json").read_text()))
    instances = machines(vms)
    definition = next(values for _, kind, _, values in ecs if kind == "aws_ecs_task_definition")
    containers = json.loads(definition["container_definitions"])
    task = {"id": "0af1c3", "name": "task", "family": definition["family"],
            "definition": containers, "containers": [one["name"] for one in containers]}
    for at, one in enumerate([*instances, task], 1):
        one["address"] = f"10.99.0.{at}"

    lists = [near_list(only(found, "aws_ssm_parameter", "module.servers", "allow_list")["value"])
             for found in (vms, ecs)]
    whole = lists[0]
    whole["aws_iam"]["allowed_roles"].update(lists[1]["aws_iam"]["allowed_roles"])
    short = json.loads(json.dumps(whole))
    (late,) = (role for role, nodes in whole["aws_iam"]["allowed_roles"].items() if nodes == LATE)
    del short["aws_iam"]["allowed_roles"][late]
    names = {what: only(vms, "aws_ssm_parameter", "module.servers", what)["name"]
             for what in ("pin", "allow_list")}
    server = next(one for one in instances if one["is_server"])
    plan = {
        "region": REGION, "network": NETWORK, "instances": instances, "tasks": [task],
        "roles": {**policies(ecs), **policies(vms)},
        "parameters": {names["pin"]: "unset", names["allow_list"]: json.dumps(short)},
        "secret": str(folder / "operator.key"),
        "secret_name": re.search(r"--secret-id '([^']+)'", server["script"])[1],
        "program": {"bucket": "example-artifacts", "key": "hawser", "file": str(folder / "hawser")},
    }
    service = next(place for place, kind, _, _ in ecs if kind == "aws_ecs_task_definition")
    roles = {what: only(ecs, "aws_iam_role", service, what)["name"] for what in ("task", "execution")}
    (folder / "task.sh").write_text(task_script(task, roles))
    for one in instances:
        (folder / f"{one['name']}.sh").write_text(one.pop("script"))
    shutil.copy(HERE / "pretend.sh", folder)
    return plan, names["allow_list"], whole


def main():
    folder = pathlib.Path(sys.argv[1]).resolve()
    (folder / "operator.key").write_text(run(str(folder / "hawser"), "keygen"))
    plan, allow_list, whole = arrange(folder)
    servers = sorted(one["name"] for one in plan["instances"] if one["is_server"])
    vms = sorted(one["name"] for one in plan["instances"] if not one["is_server"])
    (task,) = plan["tasks"]
    rig = Rig(folder)
    first = servers[0]
    try:
        rig.network({one["name"]: one["address"] for one in [*plan["instances"], task]})
        began = time.monotonic()
        ids = rig.serve_aws(plan)
        print(f"an AWS serves: after {time.monotonic() - began:.1f} s", flush=True)
        for name in [*servers, *vms]:
            rig.boot(name, "vm.sh")
        rig.boot("task", "task.sh")

        def peers():
            answer = rig.inside(first, "hawser", "operator", "raft", "list-peers") or ""
            return all(name in answer for name in servers) and "leader" in answer

        rig.until(f"{len(servers)} servers are one cluster", peers)
        nodes = {one["name"]: one["prefix"] + ids[one["name"]] if one["prefix"] else one["name"]
                 for one in plan["instances"]}
        nodes["task"] = f"ecs-{task['id']}"
        (sidecar,) = (one for one in task["definition"] if one["name"] == "hawser")
        check = sidecar["healthCheck"]["command"]
        assert check[0] == "CMD", check
        for name in [*vms, "task"]:
            if name != LATE:
                probe = check[1:] if name == "task" else ["hawser", "health"]
                rig.until(f"{name} is ready", lambda name=name, probe=probe: rig.inside(
                    name, *probe) is not None)
                rig.until(f"{nodes[name]} is in the catalog", lambda name=name: rig.is_member(
                    first, nodes[name]))
        refusal = "may not join: aws_iam.allowed_roles does not name it"
        rig.until(f"{LATE} is refused", lambda: refusal in rig.log(LATE))
        assert not rig.is_member(first, LATE), f"{LATE} is a member"

        rig.put(parameters={allow_list: json.dumps(whole)})
        for name in servers:
            rig.until(f"{name} takes the new allow-list", lambda name=name: rig.inside(
                name, "/usr/local/sbin/hawser-allow-list") is not None)
            rig.until(f"{name} is ready", lambda name=name: rig.inside(
                name, "hawser", "health") is not None)
        rig.until(f"{LATE} joins", lambda: rig.is_member(first, LATE))
        rig.replace(servers[1], first)
        wanted = {"web", "api", "hello"}
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
