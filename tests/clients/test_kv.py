"""Keys, as py-consul reads and writes them."""

import threading

import consul
import pytest


def test_a_key_that_is_not_there_has_an_index(client):
    index, found = client.kv.get("nothing")
    assert found is None
    assert int(index) > 0


def test_values_are_octets(client):
    for value in ["text", "", "\x00\xff", b"\x00\xfe", None]:
        assert client.kv.put("value", value) is True
        _, found = client.kv.get("value")
        expected = value.encode() if isinstance(value, str) else value
        assert found["Value"] == (expected or None)
        assert found["Key"] == "value"
        assert found["LockIndex"] == 0


def test_flags_and_indexes_come_back(client):
    assert client.kv.put("flagged", "x", flags=2**63) is True
    _, found = client.kv.get("flagged")
    assert found["Flags"] == 2**63
    assert client.kv.put("flagged", "y") is True
    _, again = client.kv.get("flagged")
    assert again["Flags"] == 0
    assert again["CreateIndex"] == found["CreateIndex"] < again["ModifyIndex"]


def test_check_and_set(client):
    assert client.kv.put("cas", "1", cas=0) is True
    assert client.kv.put("cas", "2", cas=0) is False
    _, found = client.kv.get("cas")
    assert client.kv.put("cas", "2", cas=found["ModifyIndex"] - 1) is False
    assert client.kv.put("cas", "2", cas=found["ModifyIndex"]) is True
    assert client.kv.delete("cas", cas=found["ModifyIndex"]) is False
    _, found = client.kv.get("cas")
    assert client.kv.delete("cas", cas=found["ModifyIndex"]) is True
    assert client.kv.get("cas")[1] is None


def test_what_is_below_a_prefix(client):
    for key in ["tree/a", "tree/b/1", "tree/b/2", "tree", "trees"]:
        assert client.kv.put(key, key) is True
    _, found = client.kv.get("tree/", recurse=True)
    assert [(item["Key"], item["Value"]) for item in found] == [
        ("tree/a", b"tree/a"),
        ("tree/b/1", b"tree/b/1"),
        ("tree/b/2", b"tree/b/2"),
    ]
    assert client.kv.get("tree/", keys=True)[1] == ["tree/a", "tree/b/1", "tree/b/2"]
    assert client.kv.get("tree/", keys=True, separator="/")[1] == ["tree/a", "tree/b/"]
    assert client.kv.delete("tree/", recurse=True) is True
    assert client.kv.get("tree/", recurse=True)[1] is None
    assert client.kv.get("tree", keys=True)[1] == ["tree", "trees"]


@pytest.mark.parametrize("consistency", ["default", "consistent", "stale"])
def test_every_consistency_reads_its_own_writes(client, consistency):
    assert client.kv.put("fresh", consistency) is True
    _, found = client.kv.get("fresh", consistency=consistency)
    assert found["Value"] == consistency.encode()


def test_a_waiting_read_wakes(agent, client):
    index, found = client.kv.get("awaited")
    assert found is None
    woken = []

    def wait():
        with consul.Consul(host="127.0.0.1", port=agent.port) as waiting:
            woken.append(waiting.kv.get("awaited", index=index, wait="1m"))

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert client.kv.put("other", "x") is True
    assert client.kv.put("awaited", "now") is True
    waiter.join(60)
    [(later, found)] = woken
    assert found["Value"] == b"now"
    assert int(later) > int(index)


def test_what_is_wrong_is_refused(client):
    with pytest.raises(consul.exceptions.ConsulException):
        client.kv.put("key", "x" * (512 * 1024 + 1))
    with pytest.raises(consul.exceptions.ConsulException):
        client.kv.put("key", "x", acquire="no-session")
    with pytest.raises(consul.exceptions.ConsulException):
        client.kv.get("key", dc="elsewhere")


def test_the_command_line_does_what_consuls_does(agent, client):
    def says(*arguments: str, code: int = 0) -> str:
        ran = agent.hawser("kv", *arguments)
        assert ran.returncode == code, ran
        return ran.stdout + ran.stderr

    assert says("put", "cli/a", "one") == "Success! Data written to: cli/a\n"
    assert says("put", "-flags=42", "cli/b/c", "two") == "Success! Data written to: cli/b/c\n"
    assert says("get", "cli/a") == "one\n"
    assert says("get", "-recurse", "cli/") == "cli/a:one\ncli/b/c:two\n"
    assert says("get", "-keys", "cli/") == "cli/a\ncli/b/\n"
    assert "Flags            42\n" in says("get", "-detailed", "cli/b/c")
    assert "CAS failed" in says("put", "-cas", "-modify-index=1", "cli/a", "no", code=1)
    assert "No key exists at: cli/none" in says("get", "cli/none", code=1)
    exported = says("export", "cli/")
    assert says("delete", "-recurse", "cli/") == "Success! Deleted keys with prefix: cli/\n"
    assert says("import", exported) == "Imported: cli/a\nImported: cli/b/c\n"
    assert client.kv.get("cli/b/c")[1]["Flags"] == 42
    assert says("delete", "cli/a") == "Success! Deleted key: cli/a\n"
