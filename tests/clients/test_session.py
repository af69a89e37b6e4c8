"""Sessions and their locks, and transactions, as py-consul calls them."""

import base64

import consul
import pytest

from conftest import eventually


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_a_session_comes_and_goes(client):
    before = client.session.list()[1]
    session = client.session.create(name="mine")
    index, found = client.session.info(session)
    assert int(index) > 0
    assert found["ID"] == session
    assert found["Name"] == "mine"
    assert found["Node"] == "n1"
    assert found["NodeChecks"] == ["serfHealth"]
    assert found["LockDelay"] == 15_000_000_000
    assert found["Behavior"] == "release"
    assert [one["ID"] for one in client.session.node("n1")[1] if one not in before] == [session]
    assert client.session.destroy(session) is True
    assert client.session.destroy(session) is True
    assert client.session.info(session)[1] is None
    assert client.session.list()[1] == before


def test_a_lock_has_one_holder(client):
    first, second = (client.session.create(lock_delay=0) for _ in range(2))
    assert client.kv.put("lock", "a", acquire=first) is True
    assert client.kv.put("lock", "b", acquire=second) is False
    assert client.kv.get("lock")[1]["Session"] == first
    assert client.kv.put("lock", "b", release=second) is False
    assert client.kv.put("lock", "b", release=first) is True
    assert "Session" not in client.kv.get("lock")[1]
    assert client.kv.put("lock", "b", acquire=second) is True
    assert client.kv.get("lock")[1]["LockIndex"] == 2
    assert client.session.destroy(second) is True
    assert client.kv.put("lock", "c", acquire=first) is True, "there is no delay"
    assert client.session.destroy(first) is True


def test_a_delay_keeps_a_lock_that_was_lost(client):
    lost, next_one = client.session.create(), client.session.create()
    assert client.kv.put("delayed", "", acquire=lost) is True
    assert client.session.destroy(lost) is True
    assert client.kv.put("delayed", "", acquire=next_one) is False


def test_a_session_that_deletes_takes_its_keys_along(client):
    session = client.session.create(behavior="delete", ttl=20)
    assert client.kv.put("ephemeral", "x", acquire=session) is True
    assert client.session.info(session)[1]["TTL"] == "20s"
    assert client.session.destroy(session) is True
    assert client.kv.get("ephemeral")[1] is None


def test_a_session_ends_with_its_check(client):
    client.agent.service.register("web", service_id="web-1", check=consul.Check.ttl("10m"))
    client.agent.check.ttl_pass("service:web-1")

    def is_passing():
        checks = client.health.checks("web")[1]
        return [check["Status"] for check in checks] == ["passing"]

    eventually(is_passing, "the check does not pass")
    session = client.session.create(checks=["serfHealth", "service:web-1"], lock_delay=0)
    assert client.kv.put("leader", "web-1", acquire=session) is True
    client.agent.check.ttl_fail("service:web-1")
    eventually(lambda: client.session.info(session)[1] is None, "the session goes on")
    assert "Session" not in client.kv.get("leader")[1]
    with pytest.raises(consul.exceptions.ConsulException, match="is in critical state"):
        client.session.create(checks=["service:web-1"])
    client.agent.service.deregister("web-1")


def test_a_session_is_renewed_or_unknown(client):
    session = client.session.create(ttl=10)
    assert client.session.renew(session)["ID"] == session
    assert client.session.destroy(session) is True
    with pytest.raises(consul.NotFound):
        client.session.renew(session)


def test_a_session_that_nobody_renews_ends(client):
    session = client.session.create(ttl=10, lock_delay=0)
    assert client.kv.put("expiring", "x", acquire=session) is True
    eventually(lambda: client.session.info(session)[1] is None, "the session goes on")
    assert "Session" not in client.kv.get("expiring")[1]


def test_the_command_line_runs_a_program_under_a_lock(agent, client):
    ran = agent.hawser("lock", "-child-exit-code", "jobs/nightly", "echo $HAWSER_LOCK_HELD; exit 7")
    assert (ran.returncode, ran.stdout) == (7, "true\n"), ran
    _, lock = client.kv.get("jobs/nightly/.lock")
    assert lock["LockIndex"] == 1
    assert "Session" not in lock, "it is given up"
    holder = client.session.create(lock_delay=0)
    assert client.kv.put("jobs/nightly/.lock", "", acquire=holder) is True
    ran = agent.hawser("lock", "-try=100ms", "jobs/nightly", "echo no")
    assert ran.returncode == 1, ran
    assert "was not free" in ran.stderr
    assert client.session.destroy(holder) is True
    ran = agent.hawser("lock", "jobs/nightly", "--", "echo", "-n", "again")
    assert (ran.returncode, ran.stdout) == (0, "again"), ran


def test_a_transaction_happens_as_a_whole(client):
    done = client.txn.put(
        [
            {"KV": {"Verb": "set", "Key": "txn/a", "Value": encoded("1"), "Flags": 5}},
            {"KV": {"Verb": "get", "Key": "txn/a"}},
        ]
    )
    assert done["Errors"] is None
    stored, read = (result["KV"] for result in done["Results"])
    assert (stored["Value"], stored["Flags"]) == (None, 5)
    assert read["Value"] == encoded("1")
    with pytest.raises(consul.exceptions.ClientError, match="409"):
        client.txn.put(
            [
                {"KV": {"Verb": "delete", "Key": "txn/a"}},
                {"KV": {"Verb": "cas", "Key": "txn/a", "Index": 1, "Value": encoded("2")}},
            ]
        )
    assert client.kv.get("txn/a")[1]["Value"] == b"1"
    with pytest.raises(consul.exceptions.BadRequest):
        client.txn.put([{"KV": {"Verb": "get-or-empty", "Key": "a"}}] * 129)
