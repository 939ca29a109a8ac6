"""Sweeps and confirmations with `until_decided`, for real, whole and resumed."""

import shutil
from contextlib import chdir

import pandas as pd
import pytest
from small_runs import write_digits

from kdtune.log.events import (
    CellModelled,
    Completed,
    RunTested,
    SeedsAdded,
    TrialEnded,
    TrialProposed,
    TrialsAdded,
)
from kdtune.log.folder import SweepFolder
from kdtune.reports.tables import looks
from kdtune.reports.text.leaderboard import leaderboard_text
from kdtune.tuning import sweep as sweep_module
from kdtune.tuning.confirm import confirm_sweep
from kdtune.tuning.scheduling import until_decided
from kdtune.tuning.sweep import resume_sweep, run_sweep

pytestmark = pytest.mark.slow

CELLS = (("at", "MultiBranchNet"), ("fitnets", "MultiBranchNet"))


@pytest.fixture(scope="module")
def patched():
    """Looks at 3, 4 and 5 seeds, after which what is open gets the next; trials are added once."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (until_decided, looks):
            patch.setattr(module, "SCHEDULE", (3, 4, 5))
            patch.setattr(module, "LAST_LOOK", 5)
        patch.setattr(until_decided, "MIN_CHANCE", 0.0)

        def add_trials(sweep, trials, *others):
            if max(trials.values()) > 2:
                return None
            return TrialsAdded(cells=CELLS, trials=3, reason="luck")

        patch.setattr(sweep_module, "add_trials", add_trials)
        yield


@pytest.fixture(scope="module")
def decided(patched, ray_session, teacher_file, tmp_path_factory):
    """A sweep of two methods with one trial at a time, and its confirmation."""
    place, data = tmp_path_factory.mktemp("decided"), tmp_path_factory.mktemp("data")
    for name, count, first in (("train", 10, 0), ("val", 5, 10), ("test", 10, 15)):
        write_digits(data / name, count, first)
    with chdir(place):
        sweep = run_sweep(
            {
                "name": "x", "data": str(data), "teacher": str(teacher_file),
                "methods": ["at", "fitnets"], "models": ["MultiBranchNet"], "baselines": False,
                "trials": 2, "epochs": 2, "scheduler": "none", "cpus_per_trial": 2,
                "settings": {"batch_size": 16}, "top": 1, "seeds": 3, "until_decided": True,
            }
        )  # fmt: skip
    return SweepFolder(place / sweep.path)


@pytest.fixture
def copy(decided, tmp_path):
    return SweepFolder(shutil.copytree(decided.path, tmp_path / "results" / "x"))


def tables_of(sweep):
    """Return trials and runs of a sweep, without times and processes."""
    times = ["device_seconds", "restarts"]
    tables = [pd.read_csv(sweep.path / f"{name}.csv") for name in ("trials", "runs")]
    return [table.drop(columns=[c for c in times if c in table]) for table in tables]


def test_trials_are_added_before_any_test_image_is_read(decided):
    events = decided.load_events()
    [added] = [event for event in events if isinstance(event, TrialsAdded)]
    assert [event.cell for event in events if isinstance(event, TrialProposed)].count(
        CELLS[0]
    ) == 3
    assert added.time < min(
        event.time for event in decided.load_confirm_events() if isinstance(event, RunTested)
    )
    later = events[events.index(added) :]
    assert {e.cell for e in later if isinstance(e, TrialProposed)} == {*CELLS}
    assert {e.cell for e in later if isinstance(e, CellModelled)} == {*CELLS}


def test_seeds_are_added_look_by_look_until_the_last(decided):
    events = decided.load_confirm_events()
    added = [event for event in events if isinstance(event, SeedsAdded)]
    assert [event.seeds for event in added] == [4, 5] and isinstance(events[-1], Completed)
    for event in added:  # all runs of the look before are tested first
        before = events[: events.index(event)]
        tested = {e.trial_id for e in before if isinstance(e, RunTested)}
        assert tested == {e.trial_id for e in before if isinstance(e, TrialEnded)}
    row = pd.read_csv(decided.path / "comparison.csv").iloc[0]
    assert (row["look"], row["looks"], row["seeds"]) == (3, 3, 5)
    assert "Ship " in leaderboard_text([decided.path], "table")


@pytest.mark.parametrize("last", [TrialsAdded, CellModelled])
def test_a_search_that_was_cut_off_ends_with_the_same_trials(decided, copy, last, monkeypatch):
    """And so it has the same runs; those of the first look are enough to see it."""
    monkeypatch.setattr(until_decided, "SCHEDULE", (3,))
    lines = copy.log_path.read_bytes().splitlines(keepends=True)
    kinds = [type(event) for event in copy.load_events()]
    copy.log_path.write_bytes(b"".join(lines[: kinds.index(last) + 1]))
    shutil.rmtree(copy.confirm_folder)
    copy.confirm_log_path.unlink()
    resume_sweep(copy.path)
    (trials, runs), (whole_trials, whole_runs) = tables_of(copy), tables_of(decided)
    pd.testing.assert_frame_equal(trials, whole_trials)
    pd.testing.assert_frame_equal(runs, whole_runs[whole_runs.seed <= 3])


@pytest.mark.parametrize("last", [RunTested, SeedsAdded])
def test_a_confirmation_that_was_cut_off_ends_with_the_same_runs(decided, copy, last):
    """It was cut off amid the tests of the second look, or when the third one got its seeds."""
    lines = copy.confirm_log_path.read_bytes().splitlines(keepends=True)
    kinds = [type(event) for event in copy.load_confirm_events()]
    cut = kinds.index(last, kinds.index(SeedsAdded) + 1) + 1
    copy.confirm_log_path.write_bytes(b"".join(lines[:cut]))
    confirm_sweep(copy.path)
    for now, then in zip(tables_of(copy), tables_of(decided), strict=True):
        pd.testing.assert_frame_equal(now, then)


def test_what_the_budget_does_not_allow_is_said_and_not_run(decided, copy, capsys):
    lines = copy.confirm_log_path.read_bytes().splitlines(keepends=True)
    kinds = [type(event) for event in copy.load_confirm_events()]
    copy.confirm_log_path.write_bytes(b"".join(lines[: kinds.index(SeedsAdded)]))
    confirm_sweep(copy.path, {"budget": 0.001})
    assert SeedsAdded not in [type(event) for event in copy.load_confirm_events()]
    assert "and the budget is 0 s" in capsys.readouterr().err
