"""The trials that represent a cell with repeats."""

from report_sweeps import Sweep

from kdtune.export.selected_runs import select_best_runs, select_top_runs

CELL = "at", "A"


def repeated_search():
    """Return a search whose luckiest trial is at-A-000; a repeat is luckier still."""
    return Sweep().search(*CELL, 0.80, 0.70, 0.78).repeat(*CELL, 0, 0.70).repeat(*CELL, 1, 0.84)


def names(sweep, top):
    return [run.name for run in select_top_runs(sweep.tables, top)[CELL]]


def test_settings_are_exported_by_their_mean_and_as_their_first_trial():
    sweep = repeated_search()  # means: 75, 77 and 78
    assert names(sweep, 9) == ["at-A-002", "at-A-001", "at-A-000"]
    assert names(sweep.repeat(*CELL, 2, 0.70), 2) == ["at-A-001", "at-A-000"]  # 74 now
    best = select_best_runs(sweep.tables)[CELL]
    assert (best.trial_id, best.validation_accuracy, best.settings["lr"]) == ("at-A-001", 0.7, 0.2)
    assert not best.confirmed


def test_the_incumbent_of_a_current_model_comes_first():
    sweep = repeated_search().model(*CELL, t0=0.77, t1=0.76)
    assert names(sweep, 9) == ["at-A-000", "at-A-001", "at-A-002"]
    sweep.repeat(*CELL, 2, 0.80)  # the model is stale
    assert names(sweep, 9) == ["at-A-002", "at-A-001", "at-A-000"]


def test_a_confirmed_cell_is_its_best_run_and_then_the_settings_of_the_search():
    sweep = repeated_search().confirm(*CELL, 1, [0.7] * 3)
    assert names(sweep, 9) == ["at-A-001-seed1", "at-A-002", "at-A-000"]
