#!/usr/bin/env python3
"""The AWS provider's schema, read from the npm package that was generated from the provider.

    schema.py PACKAGE.tgz FOLDER OUT.json

Reads the schemas of the resources and data sources that *.tf and *.tftest.hcl under FOLDER name;
one that the provider does not have is an error. The package loses which optional arguments the
provider fills in when they are left out: FILLED_IN has those that matter here.
"""

import json
import pathlib
import re
import sys
import tarfile

ENTRY = re.compile(
    r'^\s+"?(\w+)"?: \{\s*value: (.*?),\s*isBlock: (true|false),\s*'
    r'type: "(\w+)",\s*storageClassType: "([^"]+)",',
    re.M | re.S,
)
COMPUTED = re.compile(
    r"return (?:cdktf\.\w+\.?\w*\()?this\.get(\w+?)Attribute\('(\w+)'\)"
)
FILLED_IN = {"arn", "availability_zone", "id", "name", "name_prefix", "private_ip", "region", "tags_all"}
SCALARS = {"string": "string", "number": "number", "boolean": "bool", "any": "dynamic"}
GETTERS = {
    "String": "string",
    "Number": "number",
    "Boolean": "bool",
    "List": ["list", "string"],
    "NumberList": ["list", "number"],
    "StringMap": ["map", "string"],
    "NumberMap": ["map", "number"],
    "BooleanMap": ["map", "bool"],
}


def used(folder):
    """What the configuration under `folder` names: (kind, type) pairs."""
    found = set()
    files = [*folder.rglob("*.tf"), *folder.rglob("*.tftest.hcl")]
    for path in files:
        text = path.read_text()
        found |= set(re.findall(r'^\s*(resource|data)\s+"(aws_\w+)"', text, re.M))
    return sorted(found)


def sources(package, wanted):
    """The JavaScript and its declarations for each of `wanted`, in one pass over the archive."""
    folders = {}
    for kind, name in wanted:
        folder = name.removeprefix("aws_").replace("_", "-")
        folders[("data-aws-" if kind == "data" else "") + folder] = (kind, name)
    texts = {pair: {} for pair in wanted}
    with tarfile.open(package) as archive:
        for member in archive:
            parts = member.name.split("/")
            if len(parts) == 4 and parts[2] in folders and parts[3] in ("index.js", "index.d.ts"):
                body = archive.extractfile(member).read().decode()
                texts[folders[parts[2]]][parts[3]] = body
    for (kind, name), files in texts.items():
        if len(files) != 2 or f'tfResourceType = "{name}"' not in files["index.js"]:
            sys.exit(f"schema: the AWS provider has no {kind} {name}")
    return texts


def required_of(declarations):
    """For each interface, the arguments that must be given."""
    required = {}
    for interface, body in re.findall(
        r"^export interface (\w+)[^\n]*\{\n(.*?)^\}", declarations, re.M | re.S
    ):
        names = set()
        argument = None
        for line in body.splitlines():
            if found := re.search(r"#(\w+) \w+#\w+\}", line):
                argument = found[1]
            elif re.match(r"\s+readonly \w+:", line):
                names.add(argument)
        required[interface] = names
    return required


def attribute_type(shape, storage):
    for suffix in ("List", "Set", "Map"):
        if storage.endswith(suffix) and storage[: -len(suffix)] in SCALARS:
            element = SCALARS[storage[: -len(suffix)]]
            return ["map", element] if suffix == "Map" else [shape, element]
    return SCALARS.get(storage, "dynamic")


def block(body, functions, required, interface):
    """The schema of one block from the JavaScript that writes it as HCL."""
    attributes, blocks = {}, {}
    needed = required.get(interface, set())
    for name, value, is_block, shape, storage in ENTRY.findall(body):
        nested = re.search(r"(\w+)ToHclTerraform\b", value)
        nested = nested[1] if nested and nested[1] in functions else None
        if is_block == "true" and nested:
            inner = nested[0].upper() + nested[1:]
            many = "Mapper" in value
            blocks[name] = {
                "nesting": {"set": "set", "struct": "single"}.get(shape, "list"),
                "max": 0 if many or shape == "struct" else 1,
                "min": 1 if name in needed else 0,
                "block": block(functions[nested], functions, required, inner),
            }
        else:
            is_required = name in needed
            attributes[name] = {
                "type": attribute_type(shape, storage),
                "required": is_required,
                "optional": not is_required,
                "computed": not is_required and name in FILLED_IN,
            }
    return {"attributes": attributes, "blocks": blocks}


def schema(files):
    script = files["index.js"]
    functions = dict(
        re.findall(r"^function (\w+)ToHclTerraform\(struct\) \{\n(.*?)^\}", script, re.M | re.S)
    )
    top = re.search(r"^class (\w+) extends cdktf\.Terraform(?:Resource|DataSource) \{\n(.*?)^\}",
                    script, re.M | re.S)
    name, body = top.groups()
    synthesis = body[body.index("synthesizeHclAttributes()"):] if "synthesizeHcl" in body else ""
    whole = block(synthesis, functions, required_of(files["index.d.ts"]), f"{name}Config")
    for getter, attribute in COMPUTED.findall(body):
        if attribute not in whole["attributes"] and attribute not in whole["blocks"]:
            kind = GETTERS.get(getter, "dynamic")
            whole["attributes"][attribute] = {
                "type": kind, "required": False, "optional": False, "computed": True,
            }
    # The SDK gives every resource an id, and takes none from the configuration.
    if "id" in whole["attributes"]:
        whole["attributes"]["id"].update(optional=False, computed=True)
    return whole


def main():
    package, folder, out = map(pathlib.Path, sys.argv[1:4])
    wanted = used(folder)
    texts = sources(package, wanted)
    found = {"resource": {}, "data": {}}
    for (kind, name), files in texts.items():
        found[kind][name] = schema(files)
    out.write_text(json.dumps(found, indent=1, sort_keys=True))
    print(f"schema of {len(found['resource'])} resources and {len(found['data'])} data sources")


if __name__ == "__main__":
    main()
