#!/usr/bin/env python3
"""The resolver of boot.py: names.py ADDRESS NAME IP..., answers A queries for NAME on UDP 53.

NAME has all the addresses; every other name and type has none.
"""

import ipaddress
import socket
import struct
import sys


def question(query):
    """Its name, its type, and where it ends."""
    at, labels = 12, []
    while length := query[at]:
        labels.append(query[at + 1:at + 1 + length].decode().lower())
        at += 1 + length
    return ".".join(labels), struct.unpack_from(">H", query, at + 1)[0], at + 5


def answer(query, name, addresses):
    asked, kind, end = question(query)
    found = addresses if asked == name and kind == 1 else []
    code = 0 if asked == name else 3
    head = query[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, len(found), 0, 0)
    record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4)
    return head + query[12:end] + b"".join(record + address.packed for address in found)


def main():
    listen, name, *texts = sys.argv[1:]
    addresses = [ipaddress.IPv4Address(text) for text in texts]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind((listen, 53))
        while True:
            query, peer = udp.recvfrom(4096)
            udp.sendto(answer(query, name, addresses), peer)


if __name__ == "__main__":
    main()
