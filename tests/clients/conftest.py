"""A real `hawser agent -dev` for each test file, on ports of its own, and a py-consul client."""

import json
import os
import socket
import subprocess
import time

import consul
import pytest

PATIENCE = 60


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def eventually(check, what: str):
    """What `check` returns once it is true; it may raise until then."""
    deadline = time.monotonic() + PATIENCE
    while True:
        failure = None
        try:
            if found := check():
                return found
        except (OSError, consul.ConsulException) as error:
            failure = error
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: {failure}")
        time.sleep(0.02)


class Agent:
    """A running agent with a server inside, and where it listens."""

    def __init__(self, folder, **more):
        self.port = free_port()
        self.dns = free_port()
        ports = {"http": self.port, "dns": self.dns, "server": free_port()}
        ports |= {"https": -1, "grpc_tls": -1}
        config = {"ports": ports, "node_name": "n1", "enable_script_checks": True} | more
        self.log = folder / "agent.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [os.environ["HAWSER"], "agent", "-dev", "-client=127.0.0.1", "-log-level", "info"],
                env=os.environ | {"CONSUL_LOCAL_CONFIG": json.dumps(config)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def ready(self) -> consul.Consul:
        client = consul.Consul(host="127.0.0.1", port=self.port)
        eventually(client.status.leader, f"no leader: {self.log.read_text()}")
        eventually(lambda: client.catalog.nodes()[1], "the agent is not in the catalog")
        eventually(lambda: client.health.node("n1")[1], "the node has no check")
        return client

    def hawser(self, *arguments: str, **options) -> subprocess.CompletedProcess:
        """Runs the command line against this agent."""
        return subprocess.run(
            [os.environ["HAWSER"], *arguments],
            env=os.environ | {"CONSUL_HTTP_ADDR": f"127.0.0.1:{self.port}"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            **options,
        )

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    running = Agent(tmp_path_factory.mktemp("agent"))
    try:
        running.ready()
        yield running
    finally:
        running.stop()


@pytest.fixture
def client(agent) -> consul.Consul:
    with consul.Consul(host="127.0.0.1", port=agent.port) as client:
        yield client
