"""What Prometheus reads of an agent and a server, and the rules made for it."""

import json
import os
import shutil
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from conftest import PATIENCE, eventually, free_port

RULES = Path(__file__).parents[2] / "docs" / "telemetry"
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="Debian's package prometheus is not installed",
)


def promtool(*arguments: str, **options) -> str:
    done = subprocess.run(
        ["promtool", *arguments],
        cwd=RULES,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_prometheus
def test_the_rules_are_sound_and_fire_for_what_they_are_for():
    promtool("check", "rules", "hawser.rules.yml")
    promtool("test", "rules", "hawser.rules.test.yml")


@needs_prometheus
def test_what_is_exposed_is_what_prometheus_expects(agent):
    with urllib.request.urlopen(f"http://127.0.0.1:{agent.port}/metrics") as answer:
        text = answer.read().decode()
    assert "hawser_raft_is_leader 1" in text
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    # Advice on names comes with code 3; what cannot be read, with 1.
    assert done.returncode in (0, 3), done.stdout + done.stderr


@pytest.fixture
def prometheus(agent, tmp_path):
    """A real Prometheus with our rules, which scrapes the agent with its server inside."""
    port = free_port()
    shutil.copy(RULES / "hawser.rules.yml", tmp_path)
    config = {
        "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
        "rule_files": ["hawser.rules.yml"],
        "scrape_configs": [
            {"job_name": "hawser", "static_configs": [{"targets": [f"127.0.0.1:{agent.port}"]}]}
        ],
    }
    # JSON is YAML, too.
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    log = (tmp_path / "prometheus.log").open("wb")
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        env=os.environ,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    try:
        yield f"http://127.0.0.1:{port}/api/v1"
    finally:
        process.terminate()
        process.wait(PATIENCE)
        log.close()


def asked(url: str):
    with urllib.request.urlopen(url, timeout=5) as answer:
        said = json.load(answer)
    assert said["status"] == "success", said
    return said["data"]


@needs_prometheus
def test_prometheus_scrapes_an_agent_and_a_server(prometheus):
    def value(expression: str):
        query = urllib.parse.urlencode({"query": expression})
        found = asked(f"{prometheus}/query?{query}")["result"]
        return [float(one["value"][1]) for one in found]

    eventually(lambda: value("up") == [1.0], "it is scraped")
    assert value("sum(hawser_raft_is_leader)") == [1.0]
    assert value("hawser_agent_server_connected") == [1.0]
    assert value("hawser_agent_view_index > 0")
    groups = eventually(lambda: asked(f"{prometheus}/rules")["groups"], "rules are loaded")
    rules = [rule for group in groups for rule in group["rules"]]

    def evaluated():
        groups = asked(f"{prometheus}/rules")["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        return rules and all(rule["health"] == "ok" for rule in rules)

    eventually(evaluated, "every rule is evaluated")
    assert len(rules) > 20
    firing = [rule["name"] for rule in rules if rule.get("state") == "firing"]
    assert firing == [], "nothing is wrong with a fresh agent"


def test_the_dashboard_and_the_rules_are_of_one_piece():
    dashboard = json.loads((RULES / "hawser-dashboard.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            assert target["expr"].count("(") == target["expr"].count(")"), target
