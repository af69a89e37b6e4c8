"""The catalog keeps what registrars write: ARNs, ids with any sign, tagged addresses, checks."""

import json
import urllib.parse

from programs import fetch

NODE = "arn:aws:ecs:eu-west-1:123456789012:task/shop/0123456789abcdef"
CHECK = {
    "CheckID": "up", "Name": "up", "Status": "passing", "ServiceID": "app#127.0.0.1#3000",
    "Interval": "15s", "Definition": {"HTTP": "http://10.0.0.5/health", "IntervalDuration": "15s"},
}


def test_what_is_written_is_read(agent, client):
    assert client.catalog.register(
        NODE, "10.0.0.5",
        service={"ID": "app#127.0.0.1#3000", "Service": "My App", "Port": 3000,
                 "TaggedAddresses": {"wan": {"Address": "app.example.com", "Port": 443}},
                 "Weights": {"Passing": 7, "Warning": 2}},
        check=CHECK,
    )
    _, entries = client.health.service("My App")
    (entry,) = entries
    assert entry["Node"]["Node"] == NODE
    assert entry["Service"]["ID"] == "app#127.0.0.1#3000"
    assert entry["Service"]["TaggedAddresses"]["wan"] == {"Address": "app.example.com", "Port": 443}
    assert entry["Service"]["Weights"] == {"Passing": 7, "Warning": 2}
    (check,) = entry["Checks"]
    assert check["Definition"] == CHECK["Definition"] and check["Interval"] == "15s"
    assert "My App" in client.catalog.services()[1]
    # py-consul takes a slash for the end of a path's part.
    path = f"/v1/catalog/node/{urllib.parse.quote(NODE, safe='')}"
    node = json.loads(fetch(f"http://127.0.0.1:{agent.port}{path}"))
    assert list(node["Services"]) == ["app#127.0.0.1#3000"]
    assert client.catalog.deregister(NODE)


def test_filters_speak_the_whole_grammar(agent, client):
    client.agent.service.register("web", "web-1", port=1, tags=["v1"], meta={"version": "2"})
    base = f"http://127.0.0.1:{agent.port}/v1/agent/services?filter="
    for filter_, found in [
        ("Service+matches+%60%5Ew.b%24%60", ["web-1"]),
        ("Meta.version+%3D%3D+2+and+not+(v2+in+Tags)", ["web-1"]),
        ("any+Tags+as+t+%7B+t+%3D%3D+v1+%7D", ["web-1"]),
        ("Tags+is+empty", []),
    ]:
        assert [key for key in json.loads(fetch(base + filter_)) if key == "web-1"] == found, filter_
    client.agent.service.deregister("web-1")
