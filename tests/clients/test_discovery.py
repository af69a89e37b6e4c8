"""Agent, catalog, health, status and operator, as py-consul calls them."""

import consul
import pytest

from conftest import eventually


def test_a_service_is_registered_found_and_gone(client):
    assert client.agent.service.register("api", service_id="api-1", port=80, tags=["v1", "blue"])
    assert client.agent.services()["api-1"]["Port"] == 80

    def found():
        return client.health.service("api")[1]

    [entry] = eventually(found, "it is not in the catalog")
    assert entry["Service"]["ID"] == "api-1"
    assert entry["Node"]["Node"] == "n1"
    index, services = client.catalog.services()
    assert int(index) > 0
    assert sorted(services["api"]) == ["blue", "v1"]
    [flat] = client.catalog.service("api", tag="v1")[1]
    assert (flat["ServicePort"], sorted(flat["ServiceTags"])) == (80, ["blue", "v1"])
    assert client.catalog.service("api", tag="none")[1] == []
    assert client.catalog.node("n1")[1]["Services"]["api-1"]["Service"] == "api"
    assert client.agent.service.deregister("api-1") is True
    eventually(lambda: not found(), "it is still in the catalog")


def test_checks_say_how_a_service_is(client):
    client.agent.service.register("db", service_id="db-1", check=consul.Check.ttl("10m"))
    report = client.agent.check
    for tell, status in [
        (report.ttl_pass, "passing"),
        (report.ttl_warn, "warning"),
        (report.ttl_fail, "critical"),
    ]:
        assert tell("service:db-1", notes="said so") is True
        assert client.agent.checks()["service:db-1"]["Status"] == status
        eventually(
            lambda: [check["Status"] for check in client.health.checks("db")[1]] == [status],  # noqa: B023
            f"the catalog does not say {status}",
        )
    assert client.health.service("db", passing=True)[1] == []
    assert [check["CheckID"] for check in client.health.state("critical")[1]] == ["service:db-1"]
    assert client.agent.service.deregister("db-1") is True


def test_maintenance_takes_a_service_out(client):
    client.agent.service.register("cron", service_id="cron-1")
    eventually(lambda: client.health.service("cron", passing=True)[1], "it does not pass")
    assert client.agent.service.maintenance("cron-1", "true", reason="later") is True
    eventually(lambda: not client.health.service("cron", passing=True)[1], "it still passes")
    assert client.agent.service.maintenance("cron-1", "false") is True
    eventually(lambda: client.health.service("cron", passing=True)[1], "it does not pass again")
    assert client.agent.service.deregister("cron-1") is True


def test_a_node_without_an_agent_is_registered_and_gone(client):
    assert client.catalog.register("ext", "10.9.9.9", service={"service": "old", "ID": "old-1"})
    nodes = {node["Node"]: node["Address"] for node in client.catalog.nodes()[1]}
    assert nodes["ext"] == "10.9.9.9"
    assert [entry["Service"]["ID"] for entry in client.health.service("old")[1]] == ["old-1"]
    assert client.catalog.deregister("ext", service_id="old-1") is True
    assert client.health.service("old")[1] == []
    assert client.catalog.deregister("ext") is True
    assert client.catalog.node("ext")[1] is None


def test_the_agent_and_the_servers_speak_of_themselves(client):
    about = client.agent.self()
    assert set(about) == {"Config", "Coord", "DebugConfig", "Member", "Meta", "Stats", "xDS"}
    assert about["Stats"]["consul"]["leader_addr"] == client.status.leader()
    assert client.status.peers() == [client.status.leader()]
    assert [member["Name"] for member in client.agent.members()] == ["n1"]
    assert client.catalog.datacenters() == ["dc1"]
    raft = client.operator.raft_config()
    assert raft["Index"] == 0
    assert [server["Leader"] for server in raft["Servers"]] == [True]
    assert client.operator.autopilot_health()["Healthy"] is True


def test_another_datacenter_is_refused(client):
    for ask in [client.catalog.nodes, client.catalog.services]:
        with pytest.raises(consul.exceptions.ConsulException, match="No path to datacenter"):
            ask(dc="dc2")
