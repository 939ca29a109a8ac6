"""Students above the limits of a sweep."""

import pytest
from sweep_harness import sweep_config

from kdtune.errors import UserError
from kdtune.models import build_model
from kdtune.tuning.driver import student_limits
from kdtune.tuning.driver.student_limits import drop_large_students

MODELS = ["MultiBranchNet", "ResNet18", "ResNet50"]


def parameters(model):
    return sum(p.numel() for p in build_model(model, 10, 8).parameters())


def limited(kept=(), **settings):
    sweep = sweep_config(data="digits", models=MODELS, methods="student", **settings)
    return drop_large_students(sweep, 10, 8, kept)


def test_without_limits_all_stay_and_nothing_is_built(monkeypatch):
    monkeypatch.setattr(student_limits, "build_model", None)
    sweep, left_out = limited()
    assert sweep.models == tuple(MODELS) and left_out == []


def test_a_limit_is_what_a_student_may_have(monkeypatch):
    exact = parameters("ResNet18")
    shares = {"ResNet50": 0.5, "ResNet18": 0.25}
    sweep, left_out = limited(max_parameters=exact, gpus_per_trial=shares, cpus_per_trial=2)
    assert sweep.models == ("MultiBranchNet", "ResNet18")
    assert (sweep.gpus_per_trial, sweep.cpus_per_trial) == ({"ResNet18": 0.25}, 2)
    count = f"{parameters('ResNet50'):,}"
    assert left_out == [
        f"ResNet50 is left out: it has {count} parameters, where {exact:,} are allowed"
    ]
    assert limited(max_parameters=exact - 1)[0].models == ("MultiBranchNet",)


def test_if_none_is_left_the_least_is_named():
    least = f"{parameters('MultiBranchNet'):,}"
    sentence = f"^No student has at most 1,000 parameters; the least is {least}, of MultiBranchNet"
    with pytest.raises(UserError, match=sentence):
        limited(max_parameters="1k")


def test_students_that_have_trials_stay():
    sweep, left_out = limited(["ResNet50"], max_parameters="1M")
    assert sweep.models == ("MultiBranchNet", "ResNet50") and len(left_out) == 1
    assert limited(MODELS, max_parameters=1)[1] == []


def test_a_latency_is_measured_with_the_settings_of_the_runs(monkeypatch):
    configs = []

    def measure(config, num_classes):
        configs.append((config.model, config.image_size, config.precision, num_classes))
        milliseconds = {"MultiBranchNet": 2.0, "ResNet18": 5.0, "ResNet50": 5.1}[config.model]
        return {"parameters": 7, "latency_ms": milliseconds, "latency_device": "cpu, 1 thread"}

    monkeypatch.setattr(student_limits, "measure_network_costs", measure)
    sweep, left_out = limited(max_latency_ms=5, settings={"precision": "float32", "lr": 0.1})
    assert configs == [(model, 8, "float32", 10) for model in MODELS]
    assert sweep.models == ("MultiBranchNet", "ResNet18")
    assert left_out == [
        "ResNet50 is left out: an image takes 5.1 ms, where 5 ms are allowed on cpu, 1 thread"
    ]
    with pytest.raises(
        UserError, match="takes at most 1 ms; the least is 2 ms, of MultiBranchNet"
    ):
        limited(max_latency_ms=1)
