"""Settings of a sweep: defaults, and what a user is told who errs."""

import json

import pytest

from kdtune.config.sweep import SweepConfig
from kdtune.errors import UserError


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "The setting 'data' is missing."),
        ({"data": "d", "trails": 3}, "There is no setting 'trails'; did you mean 'trials'?"),
        ({"data": "d", "name": "../up"}, "name cannot be '../up': use letters, digits"),
        ({"data": "d", "settings": {"resume": 1}}, "'resume' has no effect in a sweep"),
        ({"data": "d", "epochs": 3, "grace_period": 4}, "grace_period (4) cannot be above epochs"),
        ({"data": "d", "settings": {"seed": 1}}, "'seed' has a flag of its own"),
        ({"data": "d", "settings": [1]}, "settings cannot be [1]"),
        ({"data": "d", "time_budget": "1:30"}, "write it as 2h, 1h30m"),
        ({"data": "d", "name": 2024}, "name cannot be 2024: it must be a valid string, in YAML"),
        ({"data": "d", "name": False}, "name cannot be False: it must be a valid string, in YAML"),
        (
            {"data": "d", "trackers": "mlflow,comet"},
            "cannot be 'comet': it must be 'mlflow' or 'wandb'",
        ),
        ({"data": "d", "gpus_per_trial": "A=0.5,B"}, "give a number, or one for each model as"),
        ({"data": "d", "gpus_per_trial": "half"}, "cannot be 'half': give a number, or one for"),
        ({"data": "d", "gpus_per_trial": 1.5}, "a trial trains on one device: give at most 1"),
        ({"data": "d", "gpus_per_trial": "A=2"}, "a trial trains on one device: give at most 1"),
        ({"data": "d", "gpus_per_trial": 0.001}, "give 1, 0, or a part of one GPU, 0.01 or more"),
        ({"data": "d", "gpus_per_trial": {"A": -1}}, "give 1, 0, or a part of one GPU"),
        ({"data": "d", "gpus_per_trial": [1]}, "cannot be [1]: give a number, or one for each"),
        ({"data": "d", "gpus_per_trial": float("nan")}, "give 1, 0, or a part of one GPU"),
        ({"data": "d", "cpus_per_trial": "auto"}, "cannot be 'auto': give a number, or one for"),
        ({"data": "d", "cpus_per_trial": 0}, "a trial has at least one CPU, and whole ones"),
        ({"data": "d", "cpus_per_trial": "A=1.5"}, "a trial has at least one CPU, and whole"),
        (
            {"data": "d", "max_concurrent": 0},
            "The setting max_concurrent cannot be 0: it must be greater",
        ),
        ({"data": "d", "budget": "2h"}, "budget limits what until_decided adds: give until_dec"),
        ({"data": "d", "recipe": "seed,strnog"}, "no recipe 'strnog'; did you mean 'strong'?"),
        ({"data": "d", "settings": {"patience": 2}}, "'patience' has no effect in a sweep"),
        ({"data": "d", "settings": {"lrr": 1}}, "There is no setting 'lrr'; did you mean 'lr'?"),
    ],
)
def test_a_bad_sweep_setting_is_one_sentence(settings, sentence):
    with pytest.raises(UserError, match=r"\.|\?") as error:
        SweepConfig.parse({"name": "n", **settings})
    assert sentence in str(error.value)


def test_recipes_are_conditions_of_cells_only_if_there_are_several():
    settings = {"name": "n", "data": "d", "methods": "at", "models": "A,B", "baselines": False}
    one = SweepConfig.parse({**settings, "recipe": "strong"})
    assert one.cells() == [("at", "A"), ("at", "B")]
    assert one.settings_of("A") == {"model": "A", "recipe": "strong"}
    two = SweepConfig.parse({**settings, "recipe": "seed,strong"})
    students = ["A@seed", "A@strong", "B@seed", "B@strong"]
    assert two.students == students and two.cells() == [("at", student) for student in students]
    assert two.settings_of("B@strong") == {"model": "B", "recipe": "strong"}


def test_words_may_stand_in_a_list_or_between_commas():
    for methods in ("at, kd", ["at", "kd"]):
        sweep = SweepConfig.parse({"name": "n", "data": "d", "methods": methods})
        assert sweep.methods == ("at", "kd")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("1", 1.0), ("0.5", 0.5), (0.25, 0.25), ("auto", "auto"), (0, 0.0),
        ("A=1, B=0.25", {"A": 1.0, "B": 0.25}), ({"A": "1", "B": 0}, {"A": 1.0, "B": 0.0}),
    ],
)  # fmt: skip
def test_what_a_trial_gets_is_a_number_or_one_for_each_model(given, kept):
    sweep = SweepConfig.parse({"name": "n", "data": "d", "gpus_per_trial": given})
    assert sweep.gpus_per_trial == kept
    assert SweepConfig.parse(json.loads(sweep.model_dump_json())) == sweep


def test_cpus_are_whole():
    sweep = SweepConfig.parse({"name": "n", "data": "d", "cpus_per_trial": "A=4"})
    assert sweep.cpus_per_trial == {"A": 4} and isinstance(sweep.cpus_per_trial["A"], int)


def test_cells_are_methods_times_models_with_the_baselines():
    config = SweepConfig(name="n", data="d", methods=("at", "kd"), models=("A", "B"))
    assert config.cells() == [
        ("at", "A"), ("at", "B"), ("kd", "A"), ("kd", "B"), ("student", "A"), ("student", "B"),
    ]  # fmt: skip
    assert SweepConfig(
        name="n", data="d", methods=("at",), models=("A",), baselines=False
    ).cells() == [("at", "A")]


def test_the_grace_period_is_half_of_the_epochs():
    for epochs, half in ((1, 1), (3, 2), (4, 2), (5, 3), (50, 25)):
        assert SweepConfig(name="n", data="d", epochs=epochs).grace_period == half
    assert SweepConfig(name="n", data="d", epochs=9, grace_period=4).grace_period == 4
