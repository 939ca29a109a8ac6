"""Recipes: settings of a run by name, each a YAML file in kdtune/recipes/."""

from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml

from kdtune.errors import UserError, did_you_mean

RECIPES = {
    path.name.removesuffix(".yaml"): path
    for path in sorted(files("kdtune").joinpath("recipes").iterdir(), key=lambda path: path.name)
    if path.name.endswith(".yaml")
}
"""Files of the recipes, by name."""

DEFAULT_RECIPE = "seed"

_SEPARATOR = "@"


def join_student(model: str, recipe: str) -> str:
    """Return the name of a student that is trained under one of several recipes.

    Args:
        model: name of its network.
        recipe: name of the recipe.

    >>> join_student("ResNet18", "strong"), split_student("ResNet18@strong")
    ('ResNet18@strong', ('ResNet18', 'strong'))
    """
    return f"{model}{_SEPARATOR}{recipe}"


def split_student(student: str) -> tuple[str, str | None]:
    """Return model and recipe of a student; no recipe if its sweep has only one."""
    model, _, recipe = student.partition(_SEPARATOR)
    return model, recipe or None


@lru_cache
def load_recipe(name: str) -> dict[str, Any]:
    """Return the settings of a recipe, which a user's own settings override."""
    if name not in RECIPES:
        raise UserError(f"There is no recipe '{name}'; {did_you_mean(name, RECIPES)}")
    settings: dict[str, Any] = yaml.safe_load(RECIPES[name].read_text(encoding="utf-8"))
    return settings
