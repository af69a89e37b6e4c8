#!/bin/bash
# gateway.sh [--rounds N] [--seconds S] [--workers W] [--build DIR]
#
# What one gateway hop adds, beside HAProxy in TCP mode with the same routing by SNI, in one run:
# direct, through Hawser's mesh gateway, through HAProxy, one after the other in each round.
# The client sends a real ClientHello and then plain bytes, so that no cryptography is measured.
# Needs python3, haproxy, and `cargo build --release --package hawser-proxy --example gateway`.
exec python3 - "$@" <<'PY'
import argparse, os, shutil, signal, socket, ssl, statistics, subprocess, sys, tempfile, threading, time

NAME = "web.default.default.east.external.own.consul"
arguments = argparse.ArgumentParser(prog="gateway.sh")
arguments.add_argument("--rounds", type=int, default=3)
arguments.add_argument("--seconds", type=float, default=3)
arguments.add_argument("--workers", type=int, default=1)
arguments.add_argument("--build", default="target/release")
arguments = arguments.parse_args()

binary = os.path.join(arguments.build, "examples", "gateway")
for needed, why in [(binary, "build the example"), (shutil.which("haproxy"), "install haproxy")]:
    if not needed or not os.path.exists(needed):
        sys.exit(f"{needed or 'haproxy'} is missing: {why}")


def hello():
    """The ClientHello of a client that asks for NAME."""
    to, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(to, out, server_hostname=NAME)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return out.read()


HELLO = hello()
CHUNK = bytes(1 << 20)
PING = bytes(64)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def exactly(stream, count):
    while count:
        got = stream.recv(count)
        if not got:
            raise EOFError
        count -= len(got)


def upstream(listener):
    """Takes the hello, then a letter: e echoes, d sends without end, u swallows."""
    def serve(stream):
        try:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            exactly(stream, len(HELLO))
            letter = stream.recv(1)
            stream.sendall(letter)
            while letter == b"e":
                exactly(stream, len(PING))
                stream.sendall(PING)
            while letter == b"d":
                stream.sendall(CHUNK)
            room = bytearray(len(CHUNK))
            while letter == b"u" and stream.recv_into(room):
                pass
        except (EOFError, OSError):
            pass
        finally:
            stream.close()
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


def dial(port, letter):
    stream = socket.create_connection(("127.0.0.1", port))
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.sendall(HELLO + letter)
    exactly(stream, 1)
    return stream


def quantiles(spans):
    spans.sort()
    at = lambda share: spans[min(len(spans) - 1, int(len(spans) * share))] * 1e6
    return at(0.5), at(0.99)


def round_trips(port):
    spans, end = [], time.perf_counter() + arguments.seconds
    with dial(port, b"e") as stream:
        while time.perf_counter() < end:
            began = time.perf_counter()
            stream.sendall(PING)
            exactly(stream, len(PING))
            spans.append(time.perf_counter() - began)
    return quantiles(spans)


def connections(port):
    spans, end = [], time.perf_counter() + arguments.seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        stream = dial(port, b"e")
        spans.append(time.perf_counter() - began)
        stream.close()
    return quantiles(spans)


def gigabytes(port, letter):
    moved, room = 0, bytearray(len(CHUNK))
    with dial(port, letter) as stream:
        began = time.perf_counter()
        while time.perf_counter() - began < arguments.seconds:
            if letter == b"d":
                moved += stream.recv_into(room)
            else:
                stream.sendall(CHUNK)
                moved += len(CHUNK)
        return moved / (time.perf_counter() - began) / (1 << 30)


def cpu(process):
    """Seconds of CPU that `process` has used."""
    with open(f"/proc/{process.pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(port, process):
    p50, p99 = round_trips(port)
    open50, open99 = connections(port)
    before = cpu(process) if process else 0
    down = gigabytes(port, b"d")
    spent = cpu(process) - before if process else 0
    return {
        "round trip p50, µs": p50, "round trip p99, µs": p99,
        "connect and first byte p50, µs": open50, "connect and first byte p99, µs": open99,
        "down, GiB/s": down, "up, GiB/s": gigabytes(port, b"u"),
        "CPU-s per GiB, down": spent / (down * arguments.seconds),
    }


def until_open(port, process):
    for _ in range(200):
        if process.poll() is not None:
            sys.exit(f"{process.args[0]} ended with {process.returncode}")
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.05)
    sys.exit(f"{process.args[0]} does not listen")


def haproxy(port, to, folder):
    path = os.path.join(folder, "haproxy.cfg")
    with open(path, "w") as out:
        out.write(f"""
global
  nbthread {arguments.workers}
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
frontend gateway
  bind 127.0.0.1:{port}
  tcp-request inspect-delay 5s
  tcp-request content accept if {{ req_ssl_hello_type 1 }}
  use_backend web if {{ req_ssl_sni -i {NAME} }}
backend web
  server web-1 127.0.0.1:{to}
""")
    return ["haproxy", "-db", "-f", path]


listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
to = listener.getsockname()[1]
# A process of its own, so that it does not wait for the client's interpreter.
upstreams = os.fork()
if upstreams == 0:
    upstream(listener)
with tempfile.TemporaryDirectory() as folder:
    ports = {"hawser": free_port(), "haproxy": free_port()}
    hawser = [binary, "--listen", f"127.0.0.1:{ports['hawser']}", "--to", f"127.0.0.1:{to}",
              "--workers", str(arguments.workers)]
    commands = {"hawser": hawser, "haproxy": haproxy(ports["haproxy"], to, folder)}
    running = {who: subprocess.Popen(command) for who, command in commands.items()}
    try:
        for who, process in running.items():
            until_open(ports[who], process)
        found = {who: [] for who in ["direct", *running]}
        for _ in range(arguments.rounds):
            for who in found:
                found[who].append(measure(ports.get(who, to), running.get(who)))
    finally:
        for process in running.values():
            process.terminate()
            process.wait()
        os.kill(upstreams, signal.SIGKILL)


def median(who, figure):
    return statistics.median(row[figure] for row in found[who])


print(f"{arguments.rounds} rounds of {arguments.seconds:g} s, {arguments.workers} worker(s), median")
print("| figure | direct | Hawser | HAProxy | Hawser ÷ HAProxy |")
print("|---|---|---|---|---|")
for figure in found["direct"][0]:
    direct, ours, theirs = (median(who, figure) for who in found)
    told = "–" if figure.startswith("CPU") else f"{direct:.3g}"
    print(f"| {figure} | {told} | {ours:.3g} | {theirs:.3g} | {ours / theirs:.2f} |")
    if figure.endswith("µs"):
        ours, theirs = ours - direct, theirs - direct
        ratio = f"{ours / theirs:.2f}" if theirs > 0 else "–"
        print(f"| added {figure} | | {ours:.3g} | {theirs:.3g} | {ratio} |")
PY
