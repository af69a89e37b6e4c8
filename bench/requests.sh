#!/bin/bash
# requests.sh [--requests N] [--binary FILE]
#
# Sends N requests by clients that people have through two whole proxies (server, agent of nginx,
# agent of its caller; the real binary on loopback), and counts whatever is no good answer: errors
# of the protocol, of the socket, timeouts, statuses other than 200. There must be none.
# Needs python3, nginx, h2load (nghttp2-client), wrk and curl.
exec python3 - "$@" <<'PY'
import argparse, json, os, re, shutil, signal, subprocess, sys, tempfile, time, urllib.request

arguments = argparse.ArgumentParser(prog="requests.sh")
arguments.add_argument("--requests", type=int, default=20_000)
arguments.add_argument("--binary", default="target/debug/hawser")
arguments = arguments.parse_args()

for needed in ["nginx", "h2load", "wrk", "curl", arguments.binary]:
    if not shutil.which(needed):
        sys.exit(f"{needed} is missing")

ADDRESS = "127.201.7.{}"
FOLDER = tempfile.mkdtemp(prefix="hawser-requests-")
BACKEND, UPSTREAM = 9_301, 9_191
# nginx closes each connection after so many: proxies must take that as it comes.
PER_CONNECTION = 10_000
running = []


def start(command, name, **options):
    log = open(os.path.join(FOLDER, name + ".log"), "w")
    running.append(subprocess.Popen(command, stdout=log, stderr=log, **options))


def write(name, text):
    path = os.path.join(FOLDER, name)
    with open(path, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write(text)
    return path


def ask(n, method, path, body=None):
    data = json.dumps(body).encode() if body is not None else None
    url = f"http://{ADDRESS.format(n)}:8500{path}"
    asked = urllib.request.Request(url, data=data, method=method)
    with urllib.request.urlopen(asked, timeout=5) as reply:
        return reply.read()


def eventually(what, probe):
    deadline = time.monotonic() + 60
    while True:
        try:
            return probe()
        except Exception as why:
            if time.monotonic() > deadline:
                sys.exit(f"waited in vain for {what}: {why}")
            time.sleep(0.1)


def hawser(part, n, config):
    address = ADDRESS.format(n)
    own = {
        "node_name": f"n{n}", "data_dir": os.path.join(FOLDER, f"n{n}"),
        "bind_addr": address, "client_addr": address, "retry_join": [ADDRESS.format(1)],
    }
    path = write(f"n{n}.json", json.dumps(own | config))
    start([arguments.binary, part, "--config-file", path], f"n{n}")


def agent(n, service):
    def token():
        reply = ask(1, "PUT", "/v1/hawser/join-token", {"Node": f"n{n}", "TTL": "60s"})
        return json.loads(reply)["Token"]
    file = write(f"token-{n}", eventually("a join token", token))
    hawser("agent", n, {"join_token_file": file, "service": service, "proxy": {"workers": 1}})
    eventually("an agent", lambda: ask(n, "GET", "/v1/hawser/ready"))


def build():
    nginx = write("nginx.conf", f"""daemon off;
master_process off;
error_log {FOLDER}/error.log;
pid {FOLDER}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {FOLDER}/body;
  proxy_temp_path {FOLDER}/proxy;
  fastcgi_temp_path {FOLDER}/fastcgi;
  uwsgi_temp_path {FOLDER}/uwsgi;
  scgi_temp_path {FOLDER}/scgi;
  keepalive_requests {PER_CONNECTION};
  server {{
    listen 127.0.0.1:{BACKEND} backlog=1024;
    default_type text/plain;
    location / {{ return 200 "hello\\n"; }}
  }}
}}
""")
    start(["nginx", "-p", FOLDER, "-c", nginx, "-e", os.path.join(FOLDER, "error.log")], "nginx")
    key = write("operator.key", subprocess.check_output([arguments.binary, "keygen"], text=True))
    hawser("server", 1, {"operator_key_file": key, "bootstrap_expect": 1,
                         "default_intention_policy": "allow"})
    sidecar = {"sidecar_service": {}}
    agent(2, {"name": "api", "port": BACKEND, "protocol": "http", "connect": sidecar})
    upstream = {"destination_name": "api", "local_bind_address": ADDRESS.format(3),
                "local_bind_port": UPSTREAM}
    agent(3, {"name": "web", "connect": {"sidecar_service": {"proxy": {"upstreams": [upstream]}}}})
    eventually("a call", lambda: urllib.request.urlopen(TO, timeout=5).read())


def output(command):
    # A client that fails says so by what it counts.
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout


def h2load(count, *options):
    """Requests that were sent, and those of them that got no 200."""
    told = output(["h2load", "-n", str(count), "-c", "50", *options, TO])
    sent = re.search(r"requests: (\d+) total, \d+ started, (\d+) done, (\d+) succeeded", told)
    good = re.search(r"status codes: (\d+) 2xx", told)
    if not sent or not good:
        sys.exit(told)
    return int(sent[1]), int(sent[1]) - min(int(sent[3]), int(good[1]))


def wrk(count):
    """Whole seconds of wrk, until `count` were sent."""
    sent = bad = 0
    while sent < count:
        told = output(["wrk", "-t", "1", "-c", "50", "-d", "5s", "--timeout", "20s", TO])
        done = re.search(r"(\d+) requests in", told)
        if not done:
            sys.exit(told)
        errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", told)
        others = re.search(r"Non-2xx or 3xx responses: (\d+)", told)
        sent += int(done[1])
        bad += sum(map(int, errors.groups())) if errors else 0
        bad += int(others[1]) if others else 0
    return sent, bad


def curl(count, each, *options):
    """POSTs by processes that send `each`, all in one connection."""
    bad, processes = 0, -(-count // each)
    for _ in range(processes):
        told = output(["curl", "-sS", *options, "-o", "/dev/null", "-w", "%{http_code}\n",
                       "-d", "a=b", f"{TO}path?of=[1-{each}]"])
        bad += each - told.split("\n").count("200")
    return processes * each, bad


TO = f"http://{ADDRESS.format(3)}:{UPSTREAM}/"
try:
    build()
    n, all_sent, all_bad, began = arguments.requests, 0, 0, time.monotonic()
    runs = [
        ("h2load, HTTP/1.1", lambda: h2load(n * 4 // 10, "--h1")),
        ("h2load, HTTP/2", lambda: h2load(n * 4 // 10, "-m", "20")),
        ("wrk, HTTP/1.1", lambda: wrk(n * 19 // 100)),
        ("curl, HTTP/1.1", lambda: curl(n // 100, 100)),
        # Curl 7.88 breaks a second request in a connection like this itself, to any server.
        ("curl, HTTP/2", lambda: curl(n // 5_000, 1, "--http2-prior-knowledge")),
    ]
    for name, client in runs:
        sent, bad = client()
        all_sent, all_bad = all_sent + sent, all_bad + bad
        print(f"{name}: {sent} requests, {bad} without a good answer", flush=True)
    took = time.monotonic() - began
    verdict = "met" if all_bad == 0 else "NOT MET"
    print(f"score requests: {all_bad} errors in {all_sent} requests in {took:.0f} s: {verdict}")
    sys.exit(all_bad != 0)
finally:
    for process in running:
        process.send_signal(signal.SIGKILL)
    for process in running:
        process.wait()
    shutil.rmtree(FOLDER, ignore_errors=True)
PY
