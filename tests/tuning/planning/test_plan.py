"""`kdtune plan` and `kdtune sweep --plan`, on real digits."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from optuna.distributions import CategoricalDistribution
from report_pages import render_report
from sweep_harness import sweep_config

from kdtune.cli.commands import cli
from kdtune.errors import UserError
from kdtune.log.events import EpochFinished
from kdtune.log.folder import SweepFolder
from kdtune.reports.tables.plan import plan_vs_actual, read_plan
from kdtune.tuning.planning.plan import Planner, plan_sweep
from kdtune.tuning.planning.recorded_curves import RecordedCurves
from kdtune.tuning.planning.synthetic_curves import SyntheticCurves
from kdtune.tuning.search.space import load_spaces
from kdtune.tuning.sweep import run_sweep

SMALL = {"data": "digits", "methods": "student", "models": "MultiBranchNet", "baselines": False}
SMALL |= {"image_size": 8, "settings": {"batch_size": 256}, "trials": 3, "epochs": 2}


def test_a_plan_refuses_what_a_sweep_refuses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="There is no folder nowhere|nowhere"):
        plan_sweep({**SMALL, "name": "p", "data": "nowhere"})
    with pytest.raises(UserError, match="0 slots"):
        plan_sweep({**SMALL, "name": "p"}, (0,))
    with pytest.raises(UserError, match="no recorded curves"):
        # It is read before the data, which take longer.
        plan_sweep({**SMALL, "name": "p", "data": "nowhere"}, (), tmp_path / "nothing.jsonl")
    with pytest.raises(UserError, match="on this machine alone: leave --address out"):
        plan_sweep({**SMALL, "name": "p", "address": "10.0.0.1:6379"})
    with pytest.raises(UserError, match="on this machine alone"):
        run_sweep({**SMALL, "name": "p", "address": "10.0.0.1:6379"}, plan=True)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(UserError, match="on this machine alone"):
        plan_sweep({**SMALL, "name": "p"})
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(UserError, match="give a plan a number"):
        plan_sweep({**SMALL, "name": "p", "gpus_per_trial": "auto"})
    assert not list(tmp_path.iterdir())


def test_notes_of_a_plan_name_its_limits(tmp_path):
    path = tmp_path / "curves.jsonl"
    path.write_text('{"method": "at", "model": "A", "validation_accuracy": [0.5], "settings": {}}')
    spaces, batches = load_spaces(), CategoricalDistribution([32, 64])
    ranges = {**spaces["kd"].distributions, "batch_size": batches}
    searched = {**spaces, "kd": replace(spaces["kd"], distributions=ranges)}
    sweep = sweep_config(methods="at,kd", models="A")
    imagined = SyntheticCurves(sweep.epochs, 0)

    def notes(spaces, curves, part=1.0):
        inputs = SimpleNamespace(cache_plan_lines=["the cache takes 200 GB"])
        checked = SimpleNamespace(sweep=sweep, spaces=spaces, shared_inputs=inputs)
        return " ".join(Planner(checked, curves).describe_limits(sweep.sampler, part))

    plain = notes(spaces, imagined)
    assert plain.startswith("Cache: the cache takes 200 GB. ")
    assert "curves are synthetic" in plain and "batch_size" not in plain
    assert "One part in" not in plain
    assert "One part in 1.4 of" in notes(spaces, imagined, 1.4)
    assert "The search varies batch_size, which" in notes(searched, imagined)
    recorded = notes(spaces, RecordedCurves(path, sweep.epochs, imagined))
    assert "which no rule stopped" in recorded
    assert "No curves were recorded of kd-A: " in recorded


@pytest.mark.slow
def test_a_planned_sweep_compares_the_plan_with_what_it_took(
    ray_session, tmp_path, monkeypatch, capsys, pytestconfig
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kdtune.tuning.planning.trial_costs.MAX_CELL_SECONDS", 0.2)
    words = "--data digits --methods student --models MultiBranchNet --no-baselines --quiet "
    words += "--image-size 8 --setting batch_size=256 --trials 3 --epochs 2"
    cli.main(["sweep", *words.split(), "--name", "s", "--plan"], standalone_mode=False)
    folder = SweepFolder(tmp_path / "results" / "s")
    plan = read_plan(folder)
    [row] = plan["rows"]
    assert row["slots"] == plan["slots"] == 2
    assert row["trials"] == 3 and 3 <= row["epochs"] <= 6
    assert row["epochs"] + row["saved_epochs"] == 6
    assert row["wall_seconds"] > row["training_seconds"] / 2 > 0
    costs = plan["costs"]
    assert 0 < costs["epoch_seconds"]["student-MultiBranchNet"] < 60
    assert 0 < costs["proposal_seconds"] < 60 and 0 < costs["process_start_seconds"] < 600
    assert row["cache_bytes"] == pytest.approx((1259 + 269) * 3 * 8 * 8, rel=0.1)
    assert row["checkpoint_bytes"] > 1e6 and row["node_memory_bytes"] > 1e8

    table = plan_vs_actual(plan, folder.load_events()).set_index("what")
    assert table.loc["trials", "actual"] == 3
    assert table.loc["epochs", "actual"] == sum(
        isinstance(event, EpochFinished) for event in folder.load_events()
    )
    assert 0 < table.loc["device seconds", "actual"]
    assert "The plan, and what the sweep took" in render_report([folder.path])
    capsys.readouterr()
    cli.main(["table", str(folder.path), "plan", "--format", "json"], standalone_mode=False)
    assert {r["what"] for r in json.loads(capsys.readouterr().out)} >= {"epochs", "wall seconds"}
    here = pytestconfig.invocation_params.dir  # where processes of Ray's are
    assert not [path for place in (tmp_path, here) for path in place.glob(".plan-*")]
