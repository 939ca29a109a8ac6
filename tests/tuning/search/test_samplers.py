"""Samplers by name and by path, and grids."""

import itertools
import sys

import optuna
import pytest
from space_files import write_space

from kdtune.config.names import SAMPLER_NAMES
from kdtune.errors import UserError
from kdtune.tuning.search import samplers
from kdtune.tuning.search.samplers import (
    GRID_SAMPLER,
    STATEFUL_SAMPLERS,
    STATELESS_SAMPLERS,
    choose_sampler,
    make_sampler,
    require_enumerable,
)
from kdtune.tuning.search.space import load_spaces


@pytest.mark.parametrize(
    "name", sorted({*STATELESS_SAMPLERS, *STATEFUL_SAMPLERS} - {GRID_SAMPLER})
)
def test_proposals_follow_from_the_seed(name):
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
        "def raises(): raise OSError('no licence')\n"
        "1 / len(__name__)\n"
    )
    (tmp_path / "broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    assert type(make_sampler("mine.plain", 1)).__name__ == "RandomSampler"
    assert type(make_sampler("mine.Seeded", 1)).__name__ == "Seeded"
    for name, sentence in {
        "mine.wrong": "'mine.wrong' returns a int, not an Optuna sampler",
        "mine.gone": "cannot be imported: module 'mine' has no attribute 'gone'",
        "broken.x": "cannot be imported: division by zero",
        "nowhere.x": "cannot be imported: No module named 'nowhere'",
        "optuna.samplers.GridSampler": "cannot be created: .*missing 1 required positional "
        "argument: 'search_space'; give a function of your own that creates it",
        "optuna.samplers.BaseSampler": "cannot be created: Can't instantiate abstract class",
        "mine.raises": "'mine.raises' cannot be created: no licence; give a function",
        "tpee": "no sampler 'tpee'; did you mean 'tpe'?",
    }.items():
        with pytest.raises(UserError, match=sentence.replace("?", r"\?")):
            make_sampler(name, 1)
    sys.modules.pop("mine")


FINITE = (
    "METHOD='at'; START=[]\n"
    "SPACE={'lr': tune.choice([0.1, 0.2]), 'temperature': tune.quniform(1, 3, 1),"
    " 'step_size': tune.randint(1, 4), 'beta': 5.0}"
)


def test_a_grid_has_every_point_once_in_an_order_that_its_seed_decides(tmp_path):
    space = write_space(tmp_path, FINITE)

    def points(seed):
        study = optuna.create_study()
        for number in range(2 * 3 * 3):
            study.sampler = make_sampler(GRID_SAMPLER, seed + number)
            study.tell(study.ask(space.distributions), number)
        return [tuple(trial.params.values()) for trial in study.trials]

    expected = itertools.product([0.1, 0.2], [1.0, 2.0, 3.0], [1, 2, 3])
    assert sorted(points(0)) == list(expected)
    assert points(0) == points(0) != points(99)


@pytest.mark.parametrize(
    "text",
    [
        "METHOD='at'; START=[]; SPACE={'lr': tune.uniform(0.1, 1), 'beta': 5.0}",
        "METHOD='at'; START=[]\ndef SPACE(trial): trial.suggest_float('lr', 0.1, 1)",
    ],
)
def test_a_continuous_range_has_no_grid(tmp_path, text):
    require_enumerable(write_space(tmp_path, FINITE))
    with pytest.raises(UserError, match="tries every point, but 'lr' of .* has a continuous ran"):
        require_enumerable(write_space(tmp_path, text))


def test_auto_is_gp_for_a_space_that_is_a_dict(tmp_path):
    function = "METHOD='at'; START=[]\ndef SPACE(trial): trial.suggest_float('lr', 0.1, 1)"
    assert choose_sampler(load_spaces()["at"]) == "gp"
    assert choose_sampler(write_space(tmp_path, function)) == "tpe"


def test_the_names_that_are_known_without_optuna_are_those_of_all_samplers():
    made = samplers.STATELESS_SAMPLERS.keys() | samplers.STATEFUL_SAMPLERS
    assert {*SAMPLER_NAMES} == {samplers.AUTO_SAMPLER, *made}
