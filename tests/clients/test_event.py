"""Events and coordinates, as py-consul calls them."""


def test_an_event_is_fired_and_listed(agent, client):
    index, before = client.event.list(name="deploy")
    assert before == []
    fired = client.event.fire("deploy", body="1609030", service="web")
    assert (fired["Name"], fired["ServiceFilter"]) == ("deploy", "web")
    later, [listed] = client.event.list(name="deploy")
    assert int(later) > int(index)
    assert (listed["ID"], listed["Payload"]) == (fired["ID"], b"1609030")
    ran = agent.hawser("event", "-name=restart", "now")
    assert ran.returncode == 0, ran
    [restart] = client.event.list(name="restart")[1]
    assert ran.stdout == f"Event ID: {restart['ID']}\n"
    assert [event["Name"] for event in client.event.list()[1]] == ["deploy", "restart"]


def test_coordinates_have_their_shape(client):
    index, nodes = client.coordinate.nodes()
    assert int(index) > 0
    assert nodes == []
    [here] = client.coordinate.datacenters()
    assert set(here) == {"Datacenter", "AreaID", "Coordinates"}
