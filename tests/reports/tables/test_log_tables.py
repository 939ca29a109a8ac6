"""Tables made from events, against what a person would count."""

import json

import pandas as pd
import pytest
from optuna.distributions import FloatDistribution, distribution_to_json
from report_sweeps import (
    CONFIRM_EVENTS,
    EVENTS,
    PROFILE,
    STARTED,
    Sweep,
    ended,
    epoch,
    proposed,
    restarted,
    run_tested,
    sweep_started,
)

from kdtune.errors import UserError
from kdtune.log.events import UnreadableImage
from kdtune.reports.tables.columns import EPOCHS, MODELS, RUNS, TRIALS
from kdtune.reports.tables.log_tables import (
    bad_images_table,
    epochs_table,
    loss_scales_table,
    models_table,
    runs_table,
    trials_table,
)
from kdtune.reports.tables.notes import bad_images_note


def test_trials():
    table = trials_table(EVENTS).set_index("trial_id")
    at = table.loc["at-A-000"]
    assert (at.state, at.epochs, at.best_epoch, at.device_seconds) == ("finished", 4, 2, 8.0)
    assert (at.best_validation_accuracy, at.last_validation_accuracy) == (0.75, 0.625)
    assert (at.lr, at.beta) == (0.1, 10.0)
    assert pd.isna(table.loc["kd-A-000"].beta)
    assert table.loc["kd-A-002"].state == "running"
    crashed = table.loc["at-B-000"]
    assert crashed.epochs == 0 and pd.isna(crashed.best_validation_accuracy)
    values = {"method": "at", "model": "A", "lr": 0.1, "beta": 10.0}
    assert json.loads(at.configuration) == values


def test_repeats_have_a_candidate_and_their_settings_one_score():
    sweep = Sweep().search("at", "A", 0.75, 0.5, "diverged", 0.625).repeat("at", "A", 0, 0.25)
    columns = ["candidate", "mean_validation_accuracy", "expected_validation_accuracy"]
    columns.append("rank_in_cell")
    table = sweep.tables.trials.set_index("trial_id")[columns].astype(object)
    assert table.where(table.notna(), None).values.tolist() == [
        [None, 0.5, None, 2],
        [None, 0.5, None, 3],
        [None, None, None, None],
        [None, 0.625, None, 1],
        ["at-A-000", None, None, None],
    ]
    sweep.model("at", "A", t1=0.5625, t0=0.375)
    table = sweep.tables.trials
    assert table["rank_in_cell"].dropna().tolist() == [2, 1, 3]
    assert table["expected_validation_accuracy"].dropna().tolist() == [0.375, 0.5625]
    assert table["origin"].tolist() == ["sampler"] * 4 + ["repeat"]


def with_strength(trial_id, strength, scale, number=0):
    event = proposed(trial_id, number, lr=0.1, beta_strength=strength)
    distribution = FloatDistribution(0.01, 100, log=True)
    return event.model_copy(
        update={
            "loss_scales": {"beta": scale},
            "config": {**event.config, "beta": strength / scale},
            "distributions": {
                **event.distributions,
                "beta_strength": json.loads(distribution_to_json(distribution)),
            },
        }
    )


def test_the_weight_stands_beside_its_strength():
    trials = trials_table([STARTED, with_strength("at-A-000", 2.0, 0.5), proposed("kd-A-000")])
    assert trials[["lr", "beta_strength", "beta"]].values.tolist()[0] == [0.1, 2.0, 4.0]
    assert pd.isna(trials.beta[1])


def test_the_scales_of_a_cell_are_medians_and_give_weights():
    events = [
        STARTED,
        proposed("kd-A-000", lr=0.1),
        *(with_strength(f"at-A-{n:03d}", 1.0, scale, n) for n, scale in enumerate((4, 1, 2))),
        proposed("at-B-000").model_copy(update={"loss_scales": {"alpha": 0.5}}),
    ]
    first, second = loss_scales_table(events).to_dict("records")
    assert first == {
        "method": "at", "model": "A", "weight": "beta", "scale": 2.0, "weight_at_one": 0.5,
        "weight_low": 0.005, "weight_high": 50.0,
    }  # fmt: skip
    assert second["weight_at_one"] == 2.0 and pd.isna(second["weight_low"])


def test_epochs():
    table = epochs_table(EVENTS)
    assert table.trial_id.tolist() == ["at-A-000", "kd-A-000"] + ["at-A-000"] * 3 + [
        "kd-A-001",
        "kd-A-002",
        "kd-A-003",
    ]
    assert {"kind", "time"}.isdisjoint(table.columns)


def test_runs():
    table = runs_table(CONFIRM_EVENTS)
    assert table.columns.tolist() == RUNS.names
    assert table[["run_id", "trial_id", "seed", "state", "chosen"]].values.tolist() == [
        ["at-A-000-seed1", "at-A-000", 1, "finished", True],
        ["at-A-000-seed2", "at-A-000", 2, "diverged", True],
        ["at-A-001-seed1", "at-A-001", 1, "crashed", False],
        ["at-A-001-seed2", "at-A-001", 2, "running", False],
    ]
    first = table.iloc[0]
    assert (first.epochs, first.best_epoch, first.device_seconds) == (3, 2, 6.0)
    assert (first.best_validation_accuracy, first.test_accuracy) == (0.75, 0.875)
    assert table.test_accuracy.isna().tolist() == [False, True, True, True]
    assert not runs_table(CONFIRM_EVENTS[:-2]).chosen.any()


def test_a_student_is_measured_once():
    again = PROFILE.model_copy(update={"latency_ms": 2.5, "latency_device": "cuda"})
    table = models_table([*CONFIRM_EVENTS, again])
    assert table.columns.tolist() == MODELS.names
    assert table.values.tolist() == [["A", 7, 9, 2.5, "cuda"]]


def test_empty_logs_have_tables_with_all_columns():
    assert trials_table([]).columns.tolist() == [*TRIALS.names, "configuration"]
    assert epochs_table([]).columns.tolist() == EPOCHS.names
    assert runs_table([]).columns.tolist() == RUNS.names and models_table([]).empty


@pytest.mark.parametrize(
    ("make", "events"),
    [
        (trials_table, EVENTS[4:]),
        (trials_table, [ended("at-A-0", "finished")]),
        (trials_table, [restarted("at-A-0")]),
        (runs_table, [run_tested("at-A-0", 0.5)]),
    ],
)
def test_a_damaged_log_is_a_sentence(make, events):
    with pytest.raises(UserError, match=r"^The log is damaged: .*\.$"):
        make(events)


def test_hyperparameters_that_have_the_name_of_a_column_are_in_the_configuration_only():
    trial = proposed("at-A-000", device="x", state="y", configuration="z", lr=0.5)
    [row] = trials_table([trial, epoch("at-A-000", 1, 0.5)]).itertuples()
    assert (row.device, row.state, row.lr, row.epochs) == ("cpu", "running", 0.5, 1)
    assert json.loads(row.configuration)["state"] == "y"


def test_restarts_are_counted_by_trial():
    events = [*EVENTS, restarted("kd-A-002")]
    restarts = trials_table(events).set_index("trial_id").restarts
    assert restarts["kd-A-002"] == 1 and restarts.sum() == 1


def test_images_that_were_left_out_are_told():
    bad = [
        UnreadableImage(split=split, file=f"{n}.png", reason="it is empty")
        for n, split in enumerate(("train", "train", "validation"))
    ]
    events = [sweep_started(skipped_images=bad)]
    assert bad_images_table(events).file.tolist() == ["0.png", "1.png", "2.png"]
    said = "Images that cannot be read were left out: 2 train, 1 validation (bad_images.csv)."
    assert bad_images_note(events) == said
    assert bad_images_note([sweep_started()]) is None


def test_a_value_of_a_stepped_range_is_shown_without_its_rounding_error():
    distribution = FloatDistribution(0.1, 0.5, step=0.1)
    update = {
        "params": {"alpha": 0.1 + 2 * 0.1},
        "distributions": {"alpha": json.loads(distribution_to_json(distribution))},
    }
    trial = proposed("at-A-000").model_copy(update=update)
    assert [*trials_table([STARTED, trial]).alpha] == [0.3]
