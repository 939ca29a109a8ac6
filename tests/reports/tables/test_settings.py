"""Importance, good ranges and what carries over, on searches whose answer is known."""

import json

import numpy as np
import pandas as pd
import pytest
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from report_sweeps import ended, epoch, proposed, repeated, sweep_started

from kdtune.errors import UserError
from kdtune.log.events import SpaceRecord, TrialProposed
from kdtune.reports.tables.columns import MIN_IMPORTANCE_TRIALS, SETTINGS
from kdtune.reports.tables.log_tables import epochs_table, trials_table
from kdtune.reports.tables.settings import (
    collect_distributions,
    overlapping_ranges,
    range_end_note,
    settings_table,
)

SCORE = "best_validation_accuracy"
SPACE = {
    "lr": FloatDistribution(1e-3, 1, log=True),
    "alpha": FloatDistribution(0, 1),
    "steps": IntDistribution(1, 10),
    "augment": CategoricalDistribution([False, True]),
}


def searched(count, score, seed=0, model="A", states=None):
    """Yield events of random search: the score at the second epoch, half of it at the first."""
    random = np.random.default_rng(seed)
    for number in range(count):
        settings = {
            "lr": float(10 ** random.uniform(-3, 0)),
            "alpha": float(random.uniform()),
            "steps": int(random.integers(1, 11)),
            "augment": bool(random.integers(2)),
        }
        trial = f"at-{model}-{number:03d}"
        yield proposed(trial, number, **settings)
        for step in (1, 2):
            yield epoch(trial, step, score(settings) * step / 2)
        yield ended(trial, states[number] if states else "finished")


def by_lr(settings):
    return 0.8 - 0.1 * abs(np.log10(settings["lr"]) + 1.5)


def by_steps(settings):
    return 0.5 + 0.001 * settings["steps"]


def table_of(events, space=None):
    events = list(events)
    spaces = {"at": space or SPACE}
    table = settings_table(trials_table(events), epochs_table(events), spaces, 1, 0.1)
    assert table.columns.tolist() == SETTINGS.names
    return table.set_index("hyperparameter")


def test_the_setting_that_matters_is_found_with_its_range():
    events = list(searched(100, by_lr))
    table = table_of(events)
    assert table.index.tolist() == list(SPACE)
    assert table.importance.sum() == pytest.approx(1)
    assert table.importance["lr"] > 0.7
    low, high = table.good_low["lr"], table.good_high["lr"]
    assert 0.015 < low < 10**-1.5 < high < 0.06
    trials = trials_table(events)
    best = trials.loc[trials.best_validation_accuracy.idxmax()]
    assert table.best.tolist() == [best.lr, best.alpha, best.steps, best.augment]
    top = trials.nlargest(20, "best_validation_accuracy")
    exact = np.exp(np.quantile(np.log(top.lr), [0.1, 0.9]))
    assert [low, high] == pytest.approx(exact)
    assert table.good_low["steps"] == np.quantile(top.steps, 0.1)
    assert pd.isna(table.good_low["augment"])


def test_repeats_are_no_further_settings_but_change_which_are_the_best():
    events = list(searched(40, by_lr))
    trials = trials_table(events).sort_values(SCORE, ascending=False)
    best, second = trials.iloc[0], trials.iloc[1]
    params = next(e.params for e in events if e.trial_id == best.trial_id)
    repeats = []
    for number in range(40, 60):
        trial = f"at-A-{number:03d}"
        repeats.append(repeated(trial, number, best.trial_id, **params))
        repeats += [epoch(trial, step, 0.1) for step in (1, 2)]
        repeats.append(ended(trial, "finished"))
    before, after = table_of(events), table_of([*events, *repeats])
    pd.testing.assert_series_equal(before.importance, after.importance)
    assert (before.best["lr"], after.best["lr"]) == (best.lr, second.lr)
    exact = np.exp(np.quantile(np.log(trials.lr.iloc[1:9]), 0.1))  # a fifth of 40 settings
    assert after.good_low["lr"] == pytest.approx(exact)


def test_few_trials_have_no_importance_and_fewer_no_range():
    assert table_of(searched(MIN_IMPORTANCE_TRIALS, by_lr)).importance.notna().all()
    few = table_of(searched(MIN_IMPORTANCE_TRIALS - 1, by_lr))
    assert few.importance.isna().all() and few.good_low.drop("augment").notna().all()
    fewer = table_of(searched(4, by_lr))
    assert fewer[["good_low", "good_high"]].isna().to_numpy().all()
    assert fewer.best.notna().all()
    assert table_of([]).empty


@pytest.mark.parametrize(("state", "most"), [("diverged", "alpha"), ("crashed", "lr")])
def test_diverged_trials_count_as_chance_and_crashed_ones_not_at_all(state, most):
    alphas = [e.params["alpha"] for e in searched(80, by_lr) if isinstance(e, TrialProposed)]
    states = [state if alpha > 0.6 else "finished" for alpha in alphas]
    assert MIN_IMPORTANCE_TRIALS < states.count("finished") > 40
    table = table_of(searched(80, by_lr if state == "crashed" else by_steps, states=states))
    assert table.importance.idxmax() == most
    assert table.good_high["alpha"] <= 0.6


def test_where_no_half_is_better_there_is_no_importance():
    assert table_of(searched(40, lambda settings: 0.5)).importance.isna().all()
    states = ["diverged"] * 30 + ["finished"] * 10
    assert table_of(searched(40, by_lr, states=states)).importance.isna().all()


def test_conditional_and_foreign_values_are_no_trouble():
    events = list(searched(40, by_lr))
    for event in events[::8]:
        event.params.pop("alpha")
    events[4].params["augment"] = "perhaps"
    events[8].params["lr"] = 50.0  # of a wider space
    table = table_of(events, {**SPACE, "unknown": SPACE["lr"], "device": SPACE["augment"]})
    assert table.index.tolist() == list(SPACE) and table.importance.notna().all()


def plain(space):
    return {name: json.loads(distribution_to_json(d)) for name, d in space.items()}


def test_spaces_come_from_the_log():
    def of_function(**space):
        event = proposed("mine-A-0")
        return event.model_copy(update={"distributions": plain(space)})

    def record(space):
        fixed = {"path": "space.yaml", "function": not space, "constants": {}, "start": ()}
        return SpaceRecord(**fixed, distributions=plain(space))

    events = [
        sweep_started(spaces={"at": record(SPACE), "mine": record({})}),
        of_function(lr=SPACE["lr"]),
        of_function(lr=SPACE["alpha"], beta=SPACE["steps"]),
    ]
    assert collect_distributions(events) == {
        "at": SPACE, "mine": {"lr": SPACE["lr"], "beta": SPACE["steps"]},
    }  # fmt: skip
    assert collect_distributions([]) == {}


def test_damaged_spaces_are_a_sentence():
    event = proposed("at-A-0").model_copy(update={"distributions": {"lr": {"name": "x"}}})
    with pytest.raises(UserError, match="The log is damaged: it has no search spaces"):
        collect_distributions([event])


def test_settings_carry_over_where_the_ranges_of_all_models_overlap():
    rows = [
        ("at", "A", "lr", 0.01, 0.1),
        ("at", "B", "lr", 0.05, 0.5),
        ("at", "A", "alpha", 0.1, 0.2),
        ("at", "B", "alpha", 0.3, 0.4),
        ("at", "A", "beta", 1.0, 2.0),
        ("at", "B", "beta", np.nan, np.nan),
        ("kd", "A", "lr", 0.01, 0.1),  # on one model only
    ]
    columns = ["method", "model", "hyperparameter", "good_low", "good_high"]
    table = overlapping_ranges(pd.DataFrame(rows, columns=columns))
    assert table.columns.tolist() == ["method", "hyperparameter", "low", "high"]
    assert table.hyperparameter.tolist() == ["lr", "alpha", "beta"]
    assert table[["low", "high"]].iloc[0].tolist() == [0.05, 0.1]
    assert table[["low", "high"]].iloc[1:].isna().to_numpy().all()
    assert overlapping_ranges(pd.DataFrame(columns=SETTINGS.names)).empty


@pytest.mark.parametrize(
    ("params", "note"),
    [
        ({"lr": 0.9}, "lr 0.9 of at-A (upper end, 1)"),
        ({"lr": 0.0012}, "lr 0.0012 of at-A (lower end, 0.001)"),
        ({"lr": 0.05, "alpha": 0.96}, "alpha 0.96 of at-A (upper end, 1)"),
        ({"lr": 0.05, "alpha": 0.9, "steps": 5}, None),
        ({"alpha": 0.0}, None),  # nothing lies below 0
        ({"beta_strength": 90.0}, "beta_strength 90 of at-A (upper end, 100)"),
        ({"beta_strength": 0.01}, None),  # a weaker term has no effect
    ],
)
def test_a_best_value_at_an_end_of_its_range_is_told(params, note):
    space = {**SPACE, "beta_strength": FloatDistribution(0.01, 100, log=True)}
    worse = [proposed("at-A-000", lr=1.0), epoch("at-A-000", 1, 0.5), ended("at-A-000", "stopped")]
    best = proposed("at-A-001", 1, **params).model_copy(
        update={"config": {"alpha": 0.0, "beta": 1.0}}
    )
    events = [*worse, best, epoch("at-A-001", 1, 0.6), ended("at-A-001", "finished")]
    said = range_end_note(trials_table(events), {"at": space})
    expected = f"Best settings at an end of a range, where a wider one may help: {note}."
    assert said == (expected if note else None)
