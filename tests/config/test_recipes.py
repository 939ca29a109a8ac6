"""Recipes: settings that are not given, by name."""

import pytest

from kdtune.config.recipes import RECIPES, load_recipe
from kdtune.config.train import TrainConfig
from kdtune.errors import UserError


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_for_any_number_of_epochs_and_wins_over_defaults(name):
    config = TrainConfig.parse({"recipe": name, "epochs": 1}).model_dump()
    assert load_recipe(name).items() <= config.items()
    assert "#" in RECIPES[name].read_text()  # where it comes from


def test_the_default_recipe_is_that_of_the_defaults():
    assert TrainConfig().recipe == "seed" and load_recipe("seed") == {}
    assert TrainConfig(recipe="seed") == TrainConfig()


def test_given_settings_win_over_the_recipe():
    config = TrainConfig.parse({"method": "at", "recipe": "transformer", "lr": 0.05})
    assert (config.lr, config.optimizer, config.temperature) == (0.05, "adamw", 4.0)


def test_complete_settings_are_read_as_they_are():
    config = TrainConfig.parse({"recipe": "strong", "augment": "none", "lr_scheduler": "cosine"})
    assert TrainConfig.parse(config.model_dump()) == config


def test_an_unknown_recipe_is_one_sentence():
    with pytest.raises(UserError, match="There is no recipe 'strongest'; did you mean 'strong'"):
        TrainConfig.parse({"recipe": "strongest"})
