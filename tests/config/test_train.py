"""Settings of a run: defaults, and what a user is told who errs."""

import pytest

from kdtune.config.train import TrainConfig
from kdtune.errors import UserError


@pytest.mark.parametrize(
    ("method", "temperature", "alpha", "beta"),
    [
        ("at", 4.0, 0.0, 1e3),
        ("fitnets", 3.0, 0.1, 1e-3),
        ("kd", 4.0, 1.0, 0),
        ("student", 4.0, 0, 0),
    ],
)
def test_defaults_follow_the_method(method, temperature, alpha, beta):
    config = TrainConfig(method=method)
    assert (config.temperature, config.alpha, config.beta) == (temperature, alpha, beta)


def test_given_settings_win_over_the_methods_defaults():
    assert TrainConfig.parse({"method": "fitnets", "beta": 2}).beta == 2


@pytest.mark.parametrize(
    ("value", "name"), [(True, "standard"), (False, "none"), ("randaugment", "randaugment")]
)
def test_augmentation_is_a_name_or_on_and_off(value, name):
    config = TrainConfig.parse({"augment": value})
    assert config.augment == name and config.augments == (name != "none")


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        TrainConfig().lr = 1.0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"aplha": 1}, "There is no setting 'aplha'; did you mean 'alpha'?"),
        ({"lr": -1}, "The setting lr cannot be -1: it must be greater than 0."),
        ({"lr": float("nan")}, "lr cannot be nan"),
        ({"augment": "mixup"}, "augment cannot be 'mixup': it must be 'none', 'standard'"),
        ({"epochs": "many"}, "epochs cannot be 'many': it must be a valid integer"),
        ({"precision": "bf61"}, "precision cannot be 'bf61': it must be 'auto', 'bf16'"),
        ({1: 2}, "1 is not the name of a setting"),
        ({"method": ["at"]}, "method cannot be ['at']"),
        ({"epochs": 3, "hint_epochs": 3}, "hint_epochs (3) must leave some of the 3 epochs"),
    ],
)
def test_a_bad_run_setting_is_one_sentence(settings, sentence):
    with pytest.raises(UserError) as error:
        TrainConfig.parse(settings)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_another_methods_settings_are_refused():
    with pytest.raises(UserError, match="settings of the method 'fitnets', not of 'at'"):
        TrainConfig.for_method("at", {"method": "fitnets"})
