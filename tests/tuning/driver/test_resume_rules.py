"""Settings that a log may not choose when a sweep is resumed or confirmed."""

import pytest
from event_logs import sweep_opening, write_log

from kdtune.errors import UserError
from kdtune.log.folder import SweepFolder
from kdtune.tuning.cluster.session import ADDRESS_VARIABLE
from kdtune.tuning.driver.resume_rules import (
    build_confirm_config,
    build_resume_config,
    confirm_flags,
    resume_flags,
)
from kdtune.tuning.search.space import load_spaces


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
    assert resume_flags(sweep, {}) == ["--address", "evil:6379", "--storage", "s3://evil/x"]
    assert resume_flags(build_resume_config(sweep_opening(), {}), load_spaces()) == []


def test_the_command_that_resumes_names_the_code_that_a_log_may_not(tmp_path):
    file = tmp_path / "my space.py"
    file.write_text("METHOD, START = 'at', []\ndef SPACE(trial):\n    return {'lr': 0.1}\n")
    code = {"sampler": "mine.Sampler", "spaces": (str(file), "kd.lr=0.1:1")}
    with pytest.raises(UserError, match="give --sampler mine.Sampler"):
        build_resume_config(sweep_opening(**code), {})
    sweep = build_resume_config(sweep_opening(**code), {"sampler": "mine.Sampler"})
    flags = resume_flags(sweep, load_spaces((str(file),)))
    assert flags == ["--sampler", "mine.Sampler", "--space", str(file)]
    assert confirm_flags(sweep) == []
    changes = {"seeds": 9, "until_decided": False, "trackers": ("mlflow",)}
    assert confirm_flags(sweep, changes) == ["--seeds", "9", "--no-until-decided"]
    command = SweepFolder("results/x").command("resume", *flags)
    assert command.endswith(f"resume results/x --sampler mine.Sampler --space '{file}'")


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
