"""Prepared queries, as py-consul writes and asks them."""

from conftest import eventually


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
