"""Requests of every kind, made from docs/openapi.json: none of them crashes or breaks anything."""

import json
import os
from pathlib import Path

import hypothesis
import pytest
import schemathesis

DOCUMENT = json.loads((Path(__file__).parents[2] / "docs/openapi.json").read_text())
# These end the agent, or never end.
LEFT_OUT = {"/v1/agent/leave", "/v1/agent/monitor"}
# They make a reader wait, or ask elsewhere, as they are meant to.
WAITING = {"index", "wait", "dc"}
# Consul answers these with 500, and its clients look for the words.
KNOWN = ["No path to datacenter", "No cluster leader", "aliases an existing query name",
         "there is no ", "does not exist", "belongs to", "has another id", "was changed meanwhile",
         "unknown session", "Missing node registration", "token", "peer", "too many"]

for path in LEFT_OUT:
    del DOCUMENT["paths"][path]
for methods in DOCUMENT["paths"].values():
    for operation in methods.values():
        operation["parameters"] = [
            one for one in operation["parameters"] if one["name"] not in WAITING
        ]
schema = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def base(agent):
    return f"http://127.0.0.1:{agent.port}"


@schema.parametrize()
@hypothesis.settings(
    max_examples=int(os.environ.get("EXAMPLES", "6")), deadline=None, database=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
def test_nothing_breaks(base, case):
    reply = case.call(base_url=base, timeout=20)
    if reply.status_code == 500:
        assert any(text in reply.text for text in KNOWN), f"{case.as_curl_command()}: {reply.text}"
    assert reply.status_code in (200, 400, 401, 403, 404, 405, 409, 413, 429, 500, 501, 503), (
        f"{case.as_curl_command()}: {reply.status_code} {reply.text}"
    )


def test_and_the_agent_still_runs(agent, client):
    assert agent.process.poll() is None
    assert client.status.leader()
    assert "panicked" not in agent.log.read_text(errors="replace")
