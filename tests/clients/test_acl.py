"""Access control as py-consul's users have it: bootstrap, policies, tokens, login and logout."""

import base64
import json
import os
import subprocess
import time

import consul
import pytest
from conftest import Agent, eventually


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """An agent with access control on, and the secret of its first token."""
    acl = {"enabled": True, "default_policy": "deny"}
    running = Agent(tmp_path_factory.mktemp("guarded"), acl=acl)
    try:
        with consul.Consul(host="127.0.0.1", port=running.port) as client:
            eventually(client.status.leader, "no leader")
            made = eventually(client.acl.bootstrap, "no first token")
        yield running, made["SecretID"]
    finally:
        running.stop()


@pytest.fixture
def root(guarded) -> consul.Consul:
    running, secret = guarded
    with consul.Consul(host="127.0.0.1", port=running.port, token=secret) as client:
        yield client


def holder(guarded, secret) -> consul.Consul:
    return consul.Consul(host="127.0.0.1", port=guarded[0].port, token=secret)


def test_the_first_token_is_made_once(guarded):
    with holder(guarded, None) as client, pytest.raises(consul.ACLPermissionDenied):
        client.acl.bootstrap()


def test_a_token_may_do_what_its_policy_says_and_no_more(guarded, root):
    rules = {"key_prefix": {"app/": {"policy": "write"}}}
    policy = root.acl.policy.create("app", rules=rules, description="keys of app")
    assert json.loads(root.acl.policy.read(policy["ID"])["Rules"]) == rules
    assert "app" in [row["Name"] for row in root.acl.policy.list()]
    role = root.acl.role.create("clerk", policies_id=[policy["ID"]])
    assert root.acl.role.read_by_name("clerk")["ID"] == role["ID"]
    token = root.acl.token.create(roles_name=["clerk"], description="of app")
    assert root.acl.token.read(token["AccessorID"])["Roles"][0]["Name"] == "clerk"
    assert token["AccessorID"] in [row["AccessorID"] for row in root.acl.token.list()]
    with holder(guarded, token["SecretID"]) as client:
        assert client.kv.put("app/a", "1") is True
        with pytest.raises(consul.ACLPermissionDenied):
            client.kv.put("other/a", "1")
        assert client.acl.token.read_self()["AccessorID"] == token["AccessorID"]
        with pytest.raises(consul.ACLPermissionDenied):
            client.acl.token.list()
    clone = root.acl.token.clone(token["AccessorID"], description="another")
    assert clone["SecretID"] != token["SecretID"]
    root.acl.token.delete(token["AccessorID"])
    with holder(guarded, token["SecretID"]) as client, pytest.raises(consul.ACLPermissionDenied):
        client.acl.token.read_self()


@pytest.fixture(scope="module")
def issuer(tmp_path_factory):
    """A public key, and what signs tokens with the other half."""
    folder = tmp_path_factory.mktemp("issuer")
    key, public = folder / "key.pem", folder / "public.pem"
    for command in (["genrsa", "-out", key, "2048"], ["rsa", "-in", key, "-pubout", "-out", public]):
        subprocess.run(["openssl", *command], check=True, capture_output=True)

    def coded(octets: bytes) -> str:
        return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()

    def sign(**claims) -> str:
        parts = [{"alg": "RS256"}, {"exp": int(time.time()) + 300} | claims]
        signed = ".".join(coded(json.dumps(part).encode()) for part in parts)
        command = ["openssl", "dgst", "-sha256", "-sign", key]
        made = subprocess.run(command, input=signed.encode(), check=True, capture_output=True)
        return f"{signed}.{coded(made.stdout)}"

    return public.read_text(), sign


def test_who_proves_who_they_are_gets_a_token(guarded, root, issuer, tmp_path):
    public, sign = issuer
    config = {
        "JWTValidationPubKeys": [public],
        "BoundAudiences": ["mesh"],
        "ClaimMappings": {"sub": "user"},
    }
    root.acl.auth_method.create("ci", "jwt", config=config, max_token_ttl="5m")
    assert root.acl.auth_method.read("ci")["Config"] == config
    rule = root.acl.binding_rule.create(
        "ci", "service", "${value.user}", selector='value.user != "mallory"'
    )
    assert root.acl.binding_rule.list("ci")[0]["ID"] == rule["ID"]
    with holder(guarded, None) as client:
        for refused in (sign(sub="web", aud="other"), sign(sub="mallory", aud="mesh")):
            with pytest.raises(consul.ACLPermissionDenied):
                client.acl.login("ci", refused)
        token = client.acl.login("ci", sign(sub="web", aud="mesh"), meta={"run": "7"})
    assert token["ServiceIdentities"] == [{"ServiceName": "web"}]
    with holder(guarded, token["SecretID"]) as client:
        assert client.acl.token.read_self()["AuthMethod"] == "ci"
        with pytest.raises(consul.ACLPermissionDenied):
            client.kv.put("a", "1")
        assert client.acl.logout(token["SecretID"]) is True
        with pytest.raises(consul.ACLPermissionDenied):
            client.acl.token.read_self()

    proof, sink = tmp_path / "jwt", tmp_path / "token"
    proof.write_text(sign(sub="web", aud="mesh"))
    done = guarded[0].hawser(
        "login", "-method=ci", f"-bearer-token-file={proof}", f"-token-sink-file={sink}"
    )
    assert done.returncode == 0, done.stderr
    assert os.stat(sink).st_mode & 0o777 == 0o600
    with holder(guarded, sink.read_text()) as client:
        assert client.acl.token.read_self()["ExpirationTime"]
        done = guarded[0].hawser("logout", f"-token-file={sink}")
        assert done.returncode == 0, done.stderr
        with pytest.raises(consul.ACLPermissionDenied):
            client.acl.token.read_self()
    root.acl.auth_method.delete("ci")
    assert root.acl.binding_rule.list() == []
