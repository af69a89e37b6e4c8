"""Joins as an attacker would: with a good signature, then with it replayed, tampered with or of a
foreign account. Prints what the server answers to each, as JSON.

join.py SERVER SOURCE TRUST_DOMAIN, with the keys of the roles on standard input. The signature is
botocore's and not Hawser's own; curl speaks gRPC, and each case comes from an address of its own.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import urllib.parse

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

SERVER, SOURCE, TRUST_DOMAIN = sys.argv[1:]
BODY = "Action=GetCallerIdentity&Version=2011-06-15"


def varint(number):
    octets = []
    while number >= 0x80:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*octets, number])


def encode(*fields):
    """A message whose fields 1, 2, 3, … are these texts or octets."""
    message = b""
    for number, value in enumerate(fields, 1):
        value = value.encode() if isinstance(value, str) else value
        message += varint(number << 3 | 2) + varint(len(value)) + value
    return message


def decode(message):
    fields, at = [], 0
    while at < len(message):
        # Every field of a nonce's reply is short: one octet each for tag and length.
        length = message[at + 1]
        fields.append(message[at + 2 : at + 2 + length])
        at += 2 + length
    return fields


def call(source, method, message):
    """What the server answers: the message, or its refusal as text."""
    with tempfile.NamedTemporaryFile() as body, tempfile.NamedTemporaryFile() as head:
        body.write(b"\0" + len(message).to_bytes(4, "big") + message)
        body.flush()
        command = ["curl", "--silent", "--show-error", "--insecure", "--http2", "--max-time", "20"]
        command += ["--interface", source, "--dump-header", head.name, "--request", "POST"]
        for header in ("content-type: application/grpc", "te: trailers", "expect:"):
            command += ["--header", header]
        command += ["--data-binary", f"@{body.name}"]
        command.append(f"https://{SERVER}:8300/hawser.v1.Agent/{method}")
        answer = subprocess.run(command, check=True, capture_output=True).stdout
        lines = head.read().decode().splitlines()
    said = dict(line.split(": ", 1) for line in lines if ": " in line)
    if said["grpc-status"] == "0":
        return answer[5:], None
    return None, urllib.parse.unquote(said.get("grpc-message", ""))


def key_and_csr():
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = csr.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    spki = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(spki).hexdigest(), csr


def signed(source, node, keys):
    """A whole request, signed by `keys` over a nonce of the server's."""
    nonce, region, host = decode(call(source, "JoinNonce", b"")[0])
    key_hash, csr = key_and_csr()
    request = AWSRequest("POST", f"http://{host.decode()}/", data=BODY)
    request.headers["Content-Type"] = "application/x-www-form-urlencoded; charset=utf-8"
    request.headers["Host"] = host.decode()
    request.headers["X-Hawser-Csr-Key-Sha256"] = key_hash
    request.headers["X-Hawser-Nonce"] = nonce.hex()
    request.headers["X-Hawser-Server-Id"] = TRUST_DOMAIN
    SigV4Auth(Credentials(*keys), "sts", region.decode()).add_auth(request)
    return {
        "node": node,
        "csr": csr,
        "nonce": nonce,
        "access_key_id": keys[0],
        "date": request.headers["X-Amz-Date"],
        "session_token": keys[2],
        "signature": request.headers["Authorization"].rpartition("=")[2],
    }


def join(source, request):
    return call(source, "JoinAws", encode(*request.values()))[1]


def flipped(octets):
    return bytes([octets[0] ^ 1]) + octets[1:]


roles = json.load(sys.stdin)
web, other, foreign = roles["web"], roles["other"], roles["foreign"]
answers = {}

whole = signed(f"{SOURCE}.101", "web-101", web)
answers["whole"] = join(f"{SOURCE}.101", whole)
answers["replayed"] = join(f"{SOURCE}.101", whole)
answers["replayed for another node"] = join(f"{SOURCE}.101", {**whole, "node": "web-102"})

tampered = {
    "csr": lambda part: key_and_csr()[1],
    "nonce": flipped,
    "access_key_id": lambda part: other[0],
    "date": lambda part: part[:-2] + ("1Z" if part[-2:] != "1Z" else "2Z"),
    "session_token": lambda part: other[2],
    "signature": lambda part: ("1" if part[0] == "0" else "0") + part[1:],
}
for at, (part, change) in enumerate(tampered.items(), 111):
    request = signed(f"{SOURCE}.{at}", "web-111", web)
    request[part] = change(request[part])
    answers[part] = join(f"{SOURCE}.{at}", request)

answers["foreign"] = join(f"{SOURCE}.121", signed(f"{SOURCE}.121", "web-121", foreign))
print(json.dumps(answers))
