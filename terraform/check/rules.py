#!/usr/bin/env python3
"""The manners of terraform/: rules.py SCHEMA.json FOLDER.

Every variable has a type and a description, every output a description, every root and module
pins Terraform and its providers, every module has a README that names its variables and outputs,
and every resource has only arguments that the provider's schema knows. Needs no Terraform.
"""

import json
import pathlib
import re
import sys

import hcl2

# Terraform's own, in any resource.
META = {"count", "depends_on", "for_each", "lifecycle", "provider", "provisioner", "connection"}


def plain(key):
    return key.strip('"')


def bodies(parsed, kind):
    """(labels, body) of each block of a kind."""
    for block in parsed.get(kind, []):
        labels, body = [], block
        while kind in ("resource", "data") and len(labels) < 2 or kind in ("variable", "output", "module") and not labels:
            (label, body), = ((key, value) for key, value in body.items() if not key.startswith("__"))
            labels.append(plain(label))
        yield labels, body


def unknown(body, block, place):
    """Arguments and blocks of `body` that the schema's `block` does not have."""
    for name, value in body.items():
        if name.startswith("__") or name in META and place.count(".") == 1:
            continue  # one dot: the resource itself, and no block in it
        if name == "dynamic":
            for one in value:
                for inner, dynamic in one.items():
                    yield from unknown({plain(inner): dynamic.get("content", [])}, block, place)
        elif name in block["blocks"]:
            for one in value if isinstance(value, list) else [value]:
                yield from unknown(one, block["blocks"][name]["block"], f"{place}.{name}")
        elif not block["attributes"].get(name, {}).get("optional") \
                and not block["attributes"].get(name, {}).get("required"):
            yield f"{place}: the provider knows no argument {name}"


def missing(body, block, place):
    for name, attribute in block["attributes"].items():
        if attribute["required"] and name not in body:
            yield f"{place}: {name} is required"


def folder_faults(folder, schemas):
    readme = folder / "README.md"
    words = readme.read_text() if readme.exists() else ""
    is_module = folder.parent.name == "modules"
    if not words:
        yield f"{folder}: no README.md"
    pinned, uses_aws, pins_aws = False, False, False
    for path in sorted(folder.glob("*.tf")):
        try:
            parsed = hcl2.loads(path.read_text())
        except Exception as why:  # the parser has many kinds of failure
            yield f"{path}: {str(why).splitlines()[0]}"
            continue
        for settings in parsed.get("terraform", []):
            pinned |= "<" in str(settings.get("required_version", ""))
            pins_aws |= "~>" in str(settings.get("required_providers", ""))
        for kind, needs in (("variable", ("type", "description")), ("output", ("description",))):
            for (name,), body in bodies(parsed, kind):
                for need in needs:
                    if not body.get(need):
                        yield f"{path}: {kind} {name} has no {need}"
                if is_module and f"`{name}`" not in words:
                    yield f"{readme}: says nothing of {kind} {name}"
        for kind in ("resource", "data"):
            for (type_name, name), body in bodies(parsed, kind):
                uses_aws = True
                block = schemas[kind][type_name]
                for fault in (*unknown(body, block, f"{type_name}.{name}"),
                              *missing(body, block, f"{type_name}.{name}")):
                    yield f"{path}: {fault}"
    if not pinned:
        yield f"{folder}: required_version has no upper bound"
    if uses_aws and not pins_aws:
        yield f"{folder}: the AWS provider's version is not pinned"
    for word in re.findall(r"^\| `(\w+)` \|", words, re.M) if is_module else []:
        known = "".join(path.read_text() for path in folder.glob("*.tf"))
        if f'variable "{word}"' not in known and f'output "{word}"' not in known:
            yield f"{readme}: names {word}, which does not exist"


def main():
    schemas = json.loads(pathlib.Path(sys.argv[1]).read_text())
    root = pathlib.Path(sys.argv[2])
    folders = sorted({path.parent for path in root.rglob("*.tf")})
    faults = [fault for folder in folders for fault in folder_faults(folder, schemas)]
    print("\n".join(faults) or f"{len(folders)} modules and examples keep the rules")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
