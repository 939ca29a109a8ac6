"""Settings that a log may not choose when a sweep is resumed or confirmed."""

import pytest
from event_logs import sweep_opening, write_log

from kdtune.errors import UserError
from kdtune.tuning.cluster.session import ADDRESS_VARIABLE
from kdtune.tuning.driver.resume_rules import (
    build_confirm_config,
    build_resume_config,
    resume_flags,
)


def test_a_log_chooses_neither_a_cluster_nor_a_storage(monkeypatch):
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    there = {"address": "evil:6379", "storage": "s3://evil/x"}
    with pytest.raises(UserError, match="names is not joined: give --address again, or --addr"):
        build_resume_config(sweep_opening(**there), {"storage": "none"})
    with pytest.raises(UserError, match="is not written to: give --storage again, or --storag"):
        build_resume_config(sweep_opening(**there), {"address": "local"})
    sweep = build_resume_config(sweep_opening(**there), {"address": "local", "storage": "none"})
    assert (sweep.address, sweep.storage) == ("local", None)
    sweep = build_resume_config(sweep_opening(**there), there)
    assert resume_flags(sweep) == " --address evil:6379 --storage s3://evil/x"
    assert resume_flags(build_resume_config(sweep_opening(), {})) == ""


def test_a_cluster_of_the_environment_takes_the_place_of_a_logged_one(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "mine:6379")
    there = sweep_opening(address="evil:6379")
    assert build_resume_config(there, {}).address is None
    assert build_resume_config(there, {"address": "mine:1"}).address == "mine:1"
    assert build_resume_config(sweep_opening(address="local"), {}).address == "local"


def test_it_does_so_too_when_a_sweep_is_confirmed(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "mine:6379")
    folder = write_log(tmp_path / "s", [sweep_opening(address="evil:6379")])
    assert build_confirm_config(folder, {}).address is None
    assert build_confirm_config(folder, {"address": "mine:1"}).address == "mine:1"


def test_without_until_decided_there_is_no_budget_for_it():
    there = sweep_opening(until_decided=True, budget=60.0)
    assert build_resume_config(there, {}).budget == 60
    assert build_resume_config(there, {"until_decided": False}).budget is None
