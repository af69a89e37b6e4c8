#!/usr/bin/env python3
"""A provider that stands in for AWS: the real schema, and no cloud behind it.

    provider.py SCHEMA.json SOCKET

Speaks version 5 of Terraform's plugin protocol on a unix socket, by hand: the few messages that
are needed, field numbers as in the protocol's description. What AWS would decide is unknown when
planned and made up when applied. Prints one line once it serves; ends with its standard input.
"""

import concurrent.futures
import json
import sys

import grpc
import msgpack

UNKNOWN = msgpack.ExtType(0, b"\0")
NESTING = {"single": 1, "list": 2, "set": 3}


# ---- protobuf, as much as is needed ----

def varint(number):
    out = bytearray()
    while True:
        number, low = number >> 7, number & 0x7F
        out.append(low | (0x80 if number else 0))
        if not number:
            return bytes(out)


def number(field, value):
    return varint(field << 3) + varint(value) if value else b""


def octets(field, value):
    value = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(value)) + value


def fields(message):
    """Field number -> the last value given, of a message without repeated fields."""
    found, at = {}, 0

    def read():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = read()
        if key & 7 == 0:
            found[key >> 3] = read()
        elif key & 7 == 2:
            length = read()
            found[key >> 3] = message[at:at + length]
            at += length
        else:
            raise ValueError(f"wire type {key & 7} is not used by the protocol")
    return found


# ---- the schema and values ----

def wire_block(block):
    out = b""
    for name, attribute in sorted(block["attributes"].items()):
        body = octets(1, name) + octets(2, json.dumps(attribute["type"]))
        body += number(4, attribute["required"]) + number(5, attribute["optional"])
        out += octets(2, body + number(6, attribute["computed"]))
    for name, nested in sorted(block["blocks"].items()):
        body = octets(1, name) + octets(2, wire_block(nested["block"]))
        body += number(3, NESTING[nested["nesting"]])
        out += octets(3, body + number(4, nested["min"]) + number(5, nested["max"]))
    return out


def wire_schema(block):
    return octets(2, wire_block(block))


def value_of(dynamic):
    """The value that a DynamicValue carries."""
    packed = fields(dynamic).get(1, b"\xc0")
    return msgpack.unpackb(packed, ext_hook=lambda _code, _data: UNKNOWN, strict_map_key=False)


def dynamic(value):
    return octets(1, msgpack.packb(value))


def invented(kind, type_name, attribute):
    if isinstance(kind, list):
        return {} if kind[0] == "map" else []
    if kind == "number":
        return 1
    if kind == "bool":
        return False
    if "arn" in attribute.split("_"):
        return f"arn:aws:stub:eu-central-1:123456789012:{type_name}/stub"
    known = {"region": "eu-central-1", "account_id": "123456789012", "partition": "aws",
             "availability_zone": "eu-central-1a", "cidr_block": "10.0.0.0/16",
             "dns_name": "stub.elb.example"}
    return known.get(attribute, f"{type_name.removeprefix('aws_')}-{attribute}")


def planned(block, proposed):
    if proposed is None:
        return None
    for name, attribute in block["attributes"].items():
        if proposed.get(name) is None and attribute["computed"]:
            proposed[name] = UNKNOWN
    return proposed


def applied(type_name, block, value):
    if value is None:
        return None
    for name, attribute in block["attributes"].items():
        if value.get(name) == UNKNOWN:
            value[name] = invented(attribute["type"], type_name, name)
    return value


def read_data(type_name, block, config):
    for name, attribute in block["attributes"].items():
        if config.get(name) is None and attribute["computed"]:
            config[name] = invented(attribute["type"], type_name, name)
    return config


# ---- the calls ----

class Calls:
    def __init__(self, schemas):
        self.resources, self.data = schemas["resource"], schemas["data"]
        self.provider = {
            "attributes": {
                "region": {"type": "string", "required": False, "optional": True,
                           "computed": False},
                "profile": {"type": "string", "required": False, "optional": True,
                            "computed": False},
            },
            "blocks": {
                "default_tags": {
                    "nesting": "list", "min": 0, "max": 1,
                    "block": {"blocks": {}, "attributes": {
                        "tags": {"type": ["map", "string"], "required": False,
                                 "optional": True, "computed": False}}},
                }
            },
        }

    def GetSchema(self, _request):
        out = octets(1, wire_schema(self.provider))
        for field, schemas in ((2, self.resources), (3, self.data)):
            for name, block in schemas.items():
                out += octets(field, octets(1, name) + octets(2, wire_schema(block)))
        return out

    def PrepareProviderConfig(self, request):
        return octets(1, request[1])

    def ValidateResourceTypeConfig(self, _request):
        return b""

    ValidateDataSourceConfig = Configure = Stop = ValidateResourceTypeConfig

    def UpgradeResourceState(self, request):
        state = json.loads(fields(request[3])[1])
        return octets(1, dynamic(state))

    def ReadResource(self, request):
        return octets(1, request[2])

    def PlanResourceChange(self, request):
        name = request[1].decode()
        state = planned(self.resources[name], value_of(request[3]))
        return octets(1, dynamic(state)) + number(5, True)

    def ApplyResourceChange(self, request):
        name = request[1].decode()
        state = applied(name, self.resources[name], value_of(request[3]))
        return octets(1, dynamic(state)) + number(4, True)

    def ReadDataSource(self, request):
        name = request[1].decode()
        return octets(1, dynamic(read_data(name, self.data[name], value_of(request[2]))))


class Handler(grpc.GenericRpcHandler):
    def __init__(self, calls):
        self.calls = calls

    def service(self, details):
        service, _, method = details.method.lstrip("/").partition("/")
        call = getattr(self.calls, method, None) if service == "tfplugin5.Provider" else None
        if call is None:
            return None
        return grpc.unary_unary_rpc_method_handler(lambda request, _: call(fields(request)))


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        calls = Calls(json.load(file))
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((Handler(calls),))
    server.add_insecure_port(f"unix:{sys.argv[2]}")
    server.start()
    print("serving", flush=True)
    sys.stdin.read()
    server.stop(0)


if __name__ == "__main__":
    main()
