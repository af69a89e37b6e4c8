"""Resolvers and proxies that people have ask Hawser's DNS: directly, forwarded, as it changes."""

import pytest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from programs import Program, dig, eventually, fetch, free_port, needs, path_of, short
from threading import Thread


class Application:
    """An HTTP server that says its name."""

    def __init__(self, name: str):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", str(len(name)))
                self.end_headers()
                self.wfile.write(name.encode())

            def log_message(self, *_):
                pass

        self.name = name
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def applications():
    made = [Application(f"shop-{number}") for number in range(3)]
    yield made
    for one in made:
        one.stop()


def register(client, application):
    assert client.agent.service.register(
        "shop", application.name, address="127.0.0.1", port=application.port, tags=["v1"]
    )


@needs("dig")
def test_dig_reads_every_form(agent, client, applications):
    port = agent.dns
    first = applications[0]
    register(client, first)
    eventually(lambda: short(port, "shop.service.consul") == {"127.0.0.1"}, "A")
    for name in ["SHOP.service.CONSUL", "v1.shop.service.consul", "shop.service.dc1.consul",
                 "shop.service.dc1.dc.consul", "7f000001.addr.dc1.consul"]:
        assert short(port, name) == {"127.0.0.1"}, name
    for name in ["shop.service.consul", "_shop._tcp.service.consul", "_shop._v1.service.consul",
                 "_shop._tcp.consul"]:
        srv = short(port, name, "SRV")
        assert srv == {f"1 1 {first.port} 7f000001.addr.dc1.consul."}, (name, srv)
    soa = short(port, "consul", "SOA")
    assert any(line.startswith("ns.consul. hostmaster.consul.") for line in soa), soa
    assert short(port, "consul", "NS") == {"n1.node.dc1.consul."}
    assert short(port, "n1.node.consul") == {"127.0.0.1"}
    for name, status in [("nothing.service.consul", "NXDOMAIN"), ("consul", "NOERROR"),
                         ("shop.service.consul", "NOERROR"), ("x.query.consul", "NXDOMAIN"),
                         ("shop.service.dc9.consul", "NXDOMAIN")]:
        said = dig(port, name, "AAAA").stdout
        assert f"status: {status}" in said, (name, said)
        assert "IN\tSOA" in said, (name, said)
    assert "flags: qr aa" in dig(port, "shop.service.consul").stdout
    assert short(port, "+tcp", "shop.service.consul") == {"127.0.0.1"}
    client.agent.service.deregister(first.name)
    eventually(lambda: "NXDOMAIN" in dig(port, "shop.service.consul").stdout, "gone")


UNBOUND = """
server:
  interface: 127.0.0.1@{port}
  do-not-query-localhost: no
  domain-insecure: "consul."
  username: ""
  chroot: ""
  directory: "{folder}"
  pidfile: ""
  use-syslog: no
  logfile: ""
  cache-max-ttl: 0
  cache-max-negative-ttl: 0
remote-control: {{control-enable: no}}
stub-zone:
  name: "consul."
  stub-addr: 127.0.0.1@{dns}
  stub-no-cache: yes
"""


@needs("unbound")
@needs("dig")
def test_unbound_asks_as_a_stub(agent, client, applications, tmp_path):
    port = free_port()
    config = tmp_path / "unbound.conf"
    config.write_text(UNBOUND.format(port=port, dns=agent.dns, folder=tmp_path)
                      .replace("remote-control: {control-enable: no}",
                               "remote-control:\n  control-enable: no"))
    with Program(tmp_path, path_of("unbound"), "-d", "-c", str(config)) as unbound:
        forwarded(port, client, applications[0], unbound)


@needs("dnsmasq")
@needs("dig")
def test_dnsmasq_forwards(agent, client, applications, tmp_path):
    port = free_port()
    command = ["--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", f"--port={port}",
               "--listen-address=127.0.0.1", "--bind-interfaces", "--cache-size=0", "--user=",
               f"--server=/consul/127.0.0.1#{agent.dns}"]
    with Program(tmp_path, path_of("dnsmasq"), *command) as dnsmasq:
        forwarded(port, client, applications[0], dnsmasq)


def forwarded(port: int, client, application, program):
    register(client, application)
    eventually(lambda: short(port, "shop.service.consul") == {"127.0.0.1"},
               f"not forwarded: {program.said()}")
    srv = short(port, "shop.service.consul", "SRV")
    assert srv == {f"1 1 {application.port} 7f000001.addr.dc1.consul."}
    assert "NXDOMAIN" in dig(port, "nothing.service.consul").stdout
    client.agent.service.deregister(application.name)
    eventually(lambda: "NXDOMAIN" in dig(port, "shop.service.consul").stdout, "still there")


NGINX = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder};
  proxy_temp_path {folder};
  fastcgi_temp_path {folder};
  uwsgi_temp_path {folder};
  scgi_temp_path {folder};
  resolver 127.0.0.1:{dns} valid=1s ipv6=off;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      set $shop shop.service.consul;
      proxy_pass http://$shop:{application};
    }}
  }}
}}
"""


@needs("nginx")
def test_nginx_resolves_and_follows(agent, client, applications, tmp_path):
    """Without its commercial part nginx knows no SRV: addresses it follows."""
    port, application = free_port(), applications[0]
    config = tmp_path / "nginx.conf"
    config.write_text(NGINX.format(folder=tmp_path, port=port, dns=agent.dns,
                                   application=application.port))
    register(client, application)
    with Program(tmp_path, path_of("nginx"), "-p", str(tmp_path), "-c", str(config)) as nginx:
        url = f"http://127.0.0.1:{port}/"
        eventually(lambda: fetch(url) == application.name.encode(), f"no answer: {nginx.said()}")
        client.agent.service.deregister(application.name)
        eventually(lambda: refused(url), "a service that is gone is still called")
        register(client, application)
        eventually(lambda: fetch(url) == application.name.encode(), "it does not come back")
    client.agent.service.deregister(application.name)


def refused(url: str) -> bool:
    try:
        fetch(url)
    except OSError as error:
        return "502" in str(error) or "503" in str(error)
    return False
