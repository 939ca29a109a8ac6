"""What is said of a cluster that cannot be joined, before anything is begun."""

import socket

import pytest
from logs import opened as logged
from logs import write_log

from kdtune.errors import UserError
from kdtune.sweep_config import SweepConfig
from kdtune.tuning.check import changed, confirm_settings, named_again
from kdtune.tuning.join import ADDRESS, LOCAL, joined, wanted_address


def refusal(address):
    with pytest.raises(UserError) as refused, joined(address, False, print):
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
    monkeypatch.setattr("kdtune.tuning.join.is_token_auth_enabled", lambda: True)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    said = refusal("127.0.0.1:6379")
    assert "RAY_AUTH_MODE is token, but there is no token: set RAY_AUTH_TOKEN" in said


def test_who_names_the_cluster(monkeypatch):
    monkeypatch.delenv(ADDRESS, raising=False)
    assert wanted_address(None) == LOCAL and wanted_address("auto") == "auto"
    monkeypatch.setenv(ADDRESS, "head:6379")
    assert wanted_address(None) == "head:6379" and wanted_address(LOCAL) == LOCAL


def opened(**given):
    config = SweepConfig.check({"name": "x", "data": "d", **given})
    return {"config": config.model_dump(mode="json")}


def test_a_log_chooses_neither_a_cluster_nor_a_storage(monkeypatch):
    monkeypatch.delenv(ADDRESS, raising=False)
    there = {"address": "evil:6379", "storage": "s3://evil/x"}
    with pytest.raises(UserError, match="names is not joined: give --address again, or --addr"):
        changed(opened(**there), {"storage": "none"})
    with pytest.raises(UserError, match="is not written to: give --storage again, or --storag"):
        changed(opened(**there), {"address": "local"})
    sweep = changed(opened(**there), {"address": "local", "storage": "none"})
    assert (sweep.address, sweep.storage) == ("local", None)
    sweep = changed(opened(**there), there)
    assert named_again(sweep) == " --address evil:6379 --storage s3://evil/x"
    assert named_again(changed(opened(), {})) == ""


def test_a_cluster_of_the_environment_is_not_another_one_of_a_log(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "mine:6379")
    there = opened(address="evil:6379")
    assert changed(there, {}).address is None
    assert changed(there, {"address": "mine:1"}).address == "mine:1"
    assert changed(opened(address="local"), {}).address == "local"


def test_nor_is_it_when_a_sweep_is_confirmed(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "mine:6379")
    folder = write_log(tmp_path / "s", [logged(address="evil:6379")])
    assert confirm_settings(folder, {}).address is None
    assert confirm_settings(folder, {"address": "mine:1"}).address == "mine:1"
