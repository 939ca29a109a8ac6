"""Samplers by name, by path, and grids."""

import sys

import optuna
import pytest

from kdtune.errors import UserError
from kdtune.tuning.search.samplers import (
    AUTO_GP_MAX_TRIALS,
    STATEFUL_SAMPLERS,
    STATELESS_SAMPLERS,
    choose_sampler,
    make_grid_points,
    make_sampler,
)
from kdtune.tuning.search.space import load_space, load_spaces


def write_space(folder, text):
    path = folder / "space.py"
    path.write_text(f'"""Mine."""\nfrom ray import tune\n{text}\n')
    return load_space(path)


@pytest.mark.parametrize(
    "name", [*STATELESS_SAMPLERS, *STATEFUL_SAMPLERS, "optuna.samplers.NSGAIISampler"]
)
def test_a_sampler_proposes_what_its_seed_says(name):
    def proposals(seed):
        study = optuna.create_study(sampler=make_sampler(name, seed))
        space = load_spaces()["at"].distributions
        for value in range(3):
            study.tell(study.ask(space), value)
        return [trial.params for trial in study.trials]

    assert proposals(1) == proposals(1) != proposals(2)


def test_a_sampler_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from optuna.samplers import RandomSampler\n"
        "def plain(): return RandomSampler(0)\n"
        "class Seeded(RandomSampler): pass\n"
        "def wrong(seed): return seed\n"
        "1 / len(__name__)\n"
    )
    (tmp_path / "broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    assert type(make_sampler("mine.plain", 1)).__name__ == "RandomSampler"
    assert type(make_sampler("mine.Seeded", 1)).__name__ == "Seeded"
    for name, sentence in {
        "mine.wrong": "'mine.wrong' gives no sampler of Optuna's, but a int",
        "mine.gone": "cannot be imported: module 'mine' has no attribute 'gone'",
        "broken.x": "cannot be imported: division by zero",
        "nowhere.x": "cannot be imported: No module named 'nowhere'",
        "tpee": "no sampler 'tpee'; did you mean 'tpe'?",
    }.items():
        with pytest.raises(UserError, match=sentence.replace("?", r"\?")):
            make_sampler(name, 1)
    sys.modules.pop("mine")


def test_a_grid_has_every_value_that_is_listed_and_divides_the_rest(tmp_path):
    space = write_space(
        tmp_path,
        "METHOD='at'; START=[]\n"
        "SPACE={'lr': tune.loguniform(0.01, 1), 'temperature': tune.quniform(1, 3, 1),"
        " 'augment': tune.choice([True, False]), 'beta': 5.0}",
    )
    points = make_grid_points(space, 18, 0)
    assert len(points) == 3 * 3 * 2
    assert sorted({p["lr"] for p in points}) == [0.01, pytest.approx(0.1), 1.0]
    assert {p["temperature"] for p in points} == {1.0, 2.0, 3.0}
    assert make_grid_points(space, 18, 0) == points != make_grid_points(space, 18, 1)
    assert all(space.restrict_point(point) == point for point in points)


@pytest.mark.parametrize(("trials", "values"), [(3, 2), (None, 10), (9, 3), (10_000, 10)])
def test_a_grid_is_about_as_large_as_the_budget(tmp_path, trials, values):
    searched = "{'lr': tune.uniform(0.1, 1), 'step_size': tune.randint(1, 30)}"
    space = write_space(tmp_path, f"METHOD='at'; SPACE={searched}; START=[]")
    points = make_grid_points(space, trials, 0)
    assert len({p["lr"] for p in points}) == len({p["step_size"] for p in points}) == values
    assert all(isinstance(p["step_size"], int) for p in points)


def test_a_function_has_no_grid(tmp_path):
    space = write_space(
        tmp_path, "METHOD='at'; START=[]\ndef SPACE(trial): trial.suggest_float('lr', 0.1, 1)"
    )
    with pytest.raises(UserError, match="'grid' needs a SPACE that is a dict"):
        make_grid_points(space, 9, 0)


def test_auto_is_gp_for_few_trials_of_a_space_that_is_a_dict(tmp_path):
    function = "METHOD='at'; START=[]\ndef SPACE(trial): trial.suggest_float('lr', 0.1, 1)"
    assert choose_sampler(load_spaces()["at"], 0) == "gp"
    assert choose_sampler(load_spaces()["at"], AUTO_GP_MAX_TRIALS + 1) == "tpe"
    assert choose_sampler(write_space(tmp_path, function), 0) == "tpe"
