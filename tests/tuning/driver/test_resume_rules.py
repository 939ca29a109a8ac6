"""What a log may not choose when a sweep goes on."""

import pytest
from logs import opened as logged
from logs import write_log

from kdtune.config.sweep import SweepConfig
from kdtune.errors import UserError
from kdtune.tuning.cluster.join import ADDRESS
from kdtune.tuning.driver.resume_rules import confirm_settings, named_again, resume_settings


def opened(**given):
    config = SweepConfig.check({"name": "x", "data": "d", **given})
    return {"config": config.model_dump(mode="json")}


def test_a_log_chooses_neither_a_cluster_nor_a_storage(monkeypatch):
    monkeypatch.delenv(ADDRESS, raising=False)
    there = {"address": "evil:6379", "storage": "s3://evil/x"}
    with pytest.raises(UserError, match="names is not joined: give --address again, or --addr"):
        resume_settings(opened(**there), {"storage": "none"})
    with pytest.raises(UserError, match="is not written to: give --storage again, or --storag"):
        resume_settings(opened(**there), {"address": "local"})
    sweep = resume_settings(opened(**there), {"address": "local", "storage": "none"})
    assert (sweep.address, sweep.storage) == ("local", None)
    sweep = resume_settings(opened(**there), there)
    assert named_again(sweep) == " --address evil:6379 --storage s3://evil/x"
    assert named_again(resume_settings(opened(), {})) == ""


def test_a_cluster_of_the_environment_is_not_another_one_of_a_log(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "mine:6379")
    there = opened(address="evil:6379")
    assert resume_settings(there, {}).address is None
    assert resume_settings(there, {"address": "mine:1"}).address == "mine:1"
    assert resume_settings(opened(address="local"), {}).address == "local"


def test_nor_is_it_when_a_sweep_is_confirmed(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "mine:6379")
    folder = write_log(tmp_path / "s", [logged(address="evil:6379")])
    assert confirm_settings(folder, {}).address is None
    assert confirm_settings(folder, {"address": "mine:1"}).address == "mine:1"
