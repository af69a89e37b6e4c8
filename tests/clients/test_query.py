"""Prepared queries, as py-consul writes and asks them."""

from conftest import eventually
from programs import dig, needs, short


def test_a_query_lives_and_is_asked(client):
    client.agent.service.register("geo", "geo-1", address="127.0.0.1", port=1, tags=["v1"])
    eventually(lambda: client.health.service("geo")[1], "the service")
    made = client.query.create("geo", name="where-is-geo", onlypassing=True, tags=["v1"], ttl="10s")
    query = made["ID"]
    assert [one["Name"] for one in client.query.list()] == ["where-is-geo"]
    for asked in (query, "where-is-geo"):
        found = client.query.execute(asked)
        assert [node["Service"]["ID"] for node in found["Nodes"]] == ["geo-1"]
        assert (found["Datacenter"], found["Failovers"], found["Service"]) == ("dc1", 0, "geo")
    assert client.query.explain("where-is-geo")["Query"]["Service"]["Service"] == "geo"
    assert client.query.update(query, service="geo", name="renamed")
    assert client.query.get(query)[0]["Name"] == "renamed"
    assert client.query.delete(query)
    assert client.query.execute("renamed") is None, "py-consul's word for 404"
    client.agent.service.deregister("geo-1")


@needs("dig")
def test_dns_answers_what_a_query_finds(agent, client):
    dns = agent.dns
    client.agent.service.register("geo", "geo-1", address="127.0.0.7", port=7, tags=["v1"])
    eventually(lambda: client.health.service("geo")[1], "the service")
    query = client.query.create("geo", name="Where.Is-Geo", ttl="77s")["ID"]
    names = ["where.is-geo.query.consul", "WHERE.is-geo.query.dc1.consul", f"{query}.query.consul"]
    for name in names:
        assert short(dns, name) == {"127.0.0.7"}, name
        assert short(dns, name, "SRV") == {"1 1 7 7f000007.addr.dc1.consul."}, name
    assert "\t77\tIN\tA\t" in dig(dns, names[0]).stdout.replace(" ", "\t"), "the query's TTL"
    assert "status: NXDOMAIN" in dig(dns, "nobody.query.consul").stdout
    client.agent.service.deregister("geo-1")
    eventually(lambda: "status: NXDOMAIN" in dig(dns, names[0]).stdout, "none is left")
    assert client.query.delete(query)
