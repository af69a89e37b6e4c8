#!/usr/bin/env python3
"""Asks hawser whether it takes what Terraform rendered: configs.py BINARY STATE.json...

Of each launch template in the states, as `terraform show -json` prints them, the configuration that
the first boot writes goes into a folder, and `hawser validate` has to like it.
"""

import base64
import json
import pathlib
import re
import subprocess
import sys
import tempfile


def templates(module):
    for one in module.get("resources", []):
        if one["type"] == "aws_launch_template":
            yield one["address"], base64.b64decode(one["values"]["user_data"]).decode()
    for inner in module.get("child_modules", []):
        yield from templates(inner)


def files(script):
    """Name -> text of each configuration file that the script writes."""
    written = {name: base64.b64decode(text).decode() for text, name in re.findall(
        r"base64 -d <<<'([^']+)' \| configure (\S+)", script)}
    written["20-place.json"] = '{"locality": {"region": "eu-central-1", "zone": "eu-central-1a"}}'
    if prefix := re.search(r"printf '\{\"node_name\": .*' '([^']+)'", script):
        written["21-name.json"] = json.dumps({"node_name": prefix[1] + "i-0123456789abcdef0"})
    if "configure 22-pin.json" in script:
        written["22-pin.json"] = json.dumps({"server_pin": "A" * 43})
    return written


def refused(binary, written):
    """What `hawser validate` says against a folder with these files; nothing where it likes them."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in written.items():
            pathlib.Path(folder, name).write_text(text)
        done = subprocess.run([binary, "validate", folder], capture_output=True, text=True)
    return done.stderr.strip() if done.returncode else ""


def main():
    binary, faults, count = sys.argv[1], [], 0
    for state in sys.argv[2:]:
        held = json.loads(pathlib.Path(state).read_text())
        for address, script in templates(held["values"]["root_module"]):
            count += 1
            if why := refused(binary, files(script)):
                faults.append(f"{pathlib.Path(state).stem}: {address}: {why}")
    print("\n".join(faults) or f"hawser takes {count} configurations")
    sys.exit(bool(faults) or count == 0)


if __name__ == "__main__":
    main()
