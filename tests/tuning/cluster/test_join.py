"""What is said of a cluster that cannot be joined, before anything is begun."""

import socket

import pytest

from kdtune.errors import UserError
from kdtune.tuning.cluster.join import (
    ADDRESS_VARIABLE,
    LOCAL_ADDRESS,
    cluster_connection,
    resolve_address,
)


def refusal(address):
    with pytest.raises(UserError) as refused, cluster_connection(address, False, print):
        pass
    return str(refused.value)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("ray://head:10001", "an address of Ray's client, which cannot run a sweep: give --addr"),
        ("head", "The address head is neither 'auto' nor host:port"),
        ("no-such-host.invalid:6379", "No Ray cluster answers at no-such-host.invalid:6379: "),
        ("127.0.0.1:99999", ":99999: "),
    ],
)
def test_an_address_that_leads_nowhere_is_a_sentence(address, sentence):
    assert sentence in refusal(address)


def test_a_port_on_which_nobody_listens_is_a_sentence():
    port = free_port()
    assert f":{port}: Connection refused." in refusal(f"127.0.0.1:{port}")


def test_a_token_that_is_missing_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("kdtune.tuning.cluster.join.is_token_auth_enabled", lambda: True)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    said = refusal("127.0.0.1:6379")
    assert "RAY_AUTH_MODE is token, but there is no token: set RAY_AUTH_TOKEN" in said


def test_who_names_the_cluster(monkeypatch):
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    assert resolve_address(None) == LOCAL_ADDRESS and resolve_address("auto") == "auto"
    monkeypatch.setenv(ADDRESS_VARIABLE, "head:6379")
    assert resolve_address(None) == "head:6379" and resolve_address(LOCAL_ADDRESS) == LOCAL_ADDRESS
