"""Search spaces: the built-in ones, and those of users."""

import json

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from sweep_harness import sweep_config

from kdtune.config.ranges import parse_range
from kdtune.config.train import TrainConfig
from kdtune.errors import UserError
from kdtune.methods import METHODS
from kdtune.tuning.search.space import (
    describe_space,
    load_space,
    load_spaces,
    serialize_distributions,
)
from kdtune.tuning.search.studies import CellStudies


@pytest.fixture
def write(tmp_path):
    def start(text):
        path = tmp_path / "mine.py"
        path.write_text(f'"""Mine."""\nfrom ray import tune\n{text}\n')
        return path

    return start


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_space_with_sources_and_a_start_point(method):
    space = load_spaces()[method]
    assert len(space.docstring.splitlines()) > 3
    defaults = TrainConfig(method=method).model_dump()
    [start] = space.start_points
    assert {"lr", "weight_decay"} <= start.keys() & defaults.keys()
    assert start.keys() == space.distributions.keys()
    assert describe_space(space).startswith(method)


def test_strengths_have_one_range_but_for_fitnets_whose_published_weight_is_larger():
    """RepDistiller's beta of 100 is a strength of 90 to 160."""
    for method, space in load_spaces().items():
        strengths = {name: d for name, d in space.distributions.items() if "strength" in name}
        highest = {"alpha_strength": 100, "beta_strength": 300 if method == "fitnets" else 30}
        assert {name: (d.low, d.high, d.log) for name, d in strengths.items()} == {
            name: (0.01, highest[name], True) for name in strengths
        }


def test_vid_whose_loss_is_mostly_a_constant_at_first_searches_its_weight():
    searched = load_spaces()["vid"].distributions
    assert {"alpha_strength", "beta"} < searched.keys() and "beta_strength" not in searched


def test_a_users_space_replaces_the_built_in_one(write):
    path = write("METHOD='at'; SPACE={'lr': tune.uniform(0.1, 0.2), 'beta': 5.0}; START=[]")
    space = load_spaces((str(path),))["at"]
    trial, settings = space.ask_study(optuna.create_study())
    assert set(trial.params) == {"lr"} and settings == {"lr": trial.params["lr"], "beta": 5.0}
    assert 0.1 <= settings["lr"] <= 0.2


def test_a_fixed_setting_is_not_searched():
    space = load_spaces()["at"].with_constants({"lr": 0.2, "batch_size": 8})
    trial, settings = space.ask_study(optuna.create_study())
    assert (settings["lr"], settings["batch_size"]) == (0.2, 8)
    assert set(trial.params) == {"weight_decay", "temperature", "alpha_strength", "beta_strength"}
    assert [point["beta_strength"] for point in space.start_points] == [1.0]
    assert all("lr" not in point for point in space.start_points)


def test_a_weight_takes_the_place_of_its_strength_and_a_strength_that_of_its_weight(write):
    space = load_spaces()["at"].with_constants({"beta": 5.0})
    _, settings = space.ask_study(optuna.create_study())
    assert settings["beta"] == 5.0 and not {"beta_strength", "alpha"} & settings.keys()
    assert all("beta_strength" not in point for point in space.start_points)
    path = write(
        "METHOD='at'; SPACE={'beta': tune.uniform(1, 2), 'alpha': 0.5}; START=[{'beta': 1}]"
    )
    space = load_space(path).with_constants({"beta_strength": 3.0, "alpha_strength": 2.0})
    _, settings = space.ask_study(optuna.create_study())
    assert settings == {"beta_strength": 3.0, "alpha_strength": 2.0} and not space.start_points


def test_a_functions_constant_strength_gives_way_to_a_weight(write):
    path = write("METHOD='at'; START=[]\ndef SPACE(trial): return {'beta_strength': 3.0}")
    space = load_space(path)
    assert space.has_strengths
    fixed = space.with_constants({"beta": 5.0})
    assert fixed.ask_study(optuna.create_study())[1] == {"beta": 5.0} and not fixed.has_strengths


def test_strengths_are_told_where_they_are_shown():
    spaces = load_spaces()
    assert "strength: weight · term / classification loss" in describe_space(spaces["kd"])
    assert "strength:" not in describe_space(spaces["student"])


def test_a_conditional_space(write):
    path = write(
        "METHOD='kd'\n"
        "def SPACE(trial):\n"
        "    alpha = trial.suggest_categorical('alpha', [0.0, 1.0])\n"
        "    if alpha:\n"
        "        trial.suggest_float('temperature', 2, 3)\n"
        "    return {'lr': 0.5}\n"
        "START=[{'alpha': 0.0}]"
    )
    space = load_space(path)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    seen = [space.ask_study(study)[1] for _ in range(20)]
    assert {("temperature" in s, s["alpha"] > 0) for s in seen} == {(True, True), (False, False)}
    assert all(s["lr"] == 0.5 for s in seen)
    assert space.with_constants({"batch_size": 8}).ask_study(study)[1]["batch_size"] == 8
    for name in ("alpha", "alpha_strength"):
        with pytest.raises(UserError, match="searches 'alpha' by itself; fix it there"):
            space.with_constants({name: 2.0})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("METHOD='at'; SPACE={}", "lacks START"),
        ("METHOD='att'; SPACE={}; START=[]", "no method 'att'; did you mean 'at'"),
        (
            "METHOD='at'; SPACE={'lrr': 1}; START=[]",
            "is invalid: There is no setting 'lrr'; did you mean 'lr'",
        ),
        ("METHOD='at'; SPACE={'seed': 1}; START=[]", "'seed' has a flag of its own"),
        (
            "METHOD='at'; SPACE={'lr': tune.loguniform(1, .1)}; START=[]",
            "must be less|lower|cannot be|bad",
        ),
        (
            "METHOD='at'; SPACE={'lr': tune.uniform(-1, 1)}; START=[]",
            "is invalid: .*lr cannot be -1.0",
        ),
        (
            "METHOD='at'; SPACE={'lr': tune.uniform(0.1, 1)}; START=[{'lr': 2}]",
            "lr = 2 in START is not a point of the space",
        ),
        ("METHOD='at'; SPACE={'lr': tune.randn(0, 1)}; START=[]", "the range of lr is invalid"),
        ("METHOD='at'; SPACE={'augment': tune.choice(['x'])}; START=[]", "augment cannot be 'x'"),
        ("METHOD='at'; SPACE=[1]; START=[]", "SPACE must be a dict, or a function"),
        ("METHOD='at'; SPACE={}; START=None", "START must be a list of dicts"),
        ("METHOD='at'; START=[]\ndef SPACE(trial): return {'lrr': 1}", "no setting 'lrr'"),
        ("METHOD='at'; START=[]\ndef SPACE(trial): return 1 / 0", "gives no point: division"),
        (
            "METHOD='at'; START=[{'alpha': 5.0}]\n"
            "def SPACE(trial): trial.suggest_float('alpha', 0, 1)",
            "alpha = 5.0 in START is not a point",
        ),
        (
            "METHOD='at'; SPACE={'beta': 5.0, 'beta_strength': tune.uniform(1, 2)}; START=[]",
            "is invalid: 'beta_strength' decides 'beta': give only one of them",
        ),
        (
            "METHOD='at'; START=[]\n"
            "def SPACE(trial): return {'alpha': 1.0, 'alpha_strength': 1.0}",
            "'alpha_strength' decides 'alpha': give only one",
        ),
        (
            "METHOD='at'; SPACE={'beta_strength': tune.uniform(-1, 1)}; START=[]",
            "is invalid: .*beta cannot be -1.0",
        ),
        ("1 / 0", "cannot be loaded: division by zero"),
        (
            "METHOD='at'; SPACE={'lr': tune.grid_search([0.1, 0.01])}; START=[]",
            "lr is a tune.grid_search: use tune.choice, and --sampler grid",
        ),
        (
            "METHOD='at'; SPACE={'lr': tune.sample_from(lambda s: 0.1)}; START=[]",
            "lr is a tune.sample_from: make SPACE a function of a trial",
        ),
        (
            "METHOD='at'; START=[]; import numpy as np\n"
            "def SPACE(trial): trial.suggest_categorical('batch_size', list(np.array([8, 16])))",
            "batch_size has numpy's int64 as choices: use .tolist",
        ),
        (
            "METHOD='at'; START=[]; import optuna\ndef SPACE(trial): raise optuna.TrialPruned()",
            "gives no point: it raises TrialPruned for all",
        ),
        (
            "METHOD='at'; START=[{'alpha': 0.9}]; import optuna\n"
            "def SPACE(trial):\n"
            "    if trial.suggest_float('alpha', 0, 1) > 0.5: raise optuna.TrialPruned()",
            "raises TrialPruned for the point {'alpha': 0.9} of START",
        ),
    ],
)
def test_a_bad_space_is_one_sentence(write, text, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        load_space(write(text))
    assert "\n" not in str(error.value)


def test_numpys_numbers_become_pythons(write):
    path = write(
        "METHOD='at'; import numpy as np\n"
        "SPACE={'batch_size': tune.choice(list(np.array([8, 16]))),"
        " 'step_size': tune.randint(np.int64(1), np.int64(4)), 'lr': np.float32(0.5)}\n"
        "START=[{'batch_size': np.int64(8), 'step_size': np.int64(2)}]"
    )
    space = load_space(path)
    assert json.dumps(space.start_points) == '[{"batch_size": 8, "step_size": 2}]'
    assert json.dumps(space.constants) == '{"lr": 0.5}'
    written = serialize_distributions(space)
    assert written["batch_size"]["attributes"]["choices"] == [8, 16]
    assert written["step_size"]["attributes"]["high"] == 3


def test_what_a_function_suggests_under_other_names_is_its_own(write):
    path = write(
        "METHOD='at'; START=[{'log_lr': -2.0}]\n"
        "def SPACE(trial): return {'lr': 10 ** trial.suggest_float('log_lr', -4, -1)}"
    )
    trial, settings = load_space(path).trial_at({"log_lr": -2.0})
    assert trial.params == {"log_lr": -2.0} and settings == {"lr": 0.01}
    path = write("METHOD='at'; START=[]\ndef SPACE(trial): trial.suggest_float('log_lr', -4, -1)")
    with pytest.raises(UserError, match="There is no setting 'log_lr'"):
        load_space(path)


def test_points_that_a_function_prunes_are_not_of_the_space(write):
    path = write(
        "METHOD='at'; START=[]; import optuna\n"
        "def SPACE(trial):\n"
        "    if trial.suggest_float('alpha', 0, 1) + trial.suggest_float('beta', 0, 1) > 1:\n"
        "        raise optuna.TrialPruned()"
    )
    space = load_space(path)
    seen = [settings for _, settings in space.probe_points()]
    assert seen and all(s["alpha"] + s["beta"] <= 1 for s in seen)
    sweep = sweep_config(methods="at", models="A", baselines=False, sampler="tpe")
    studies = CellStudies(sweep, {"at": space})
    proposed = [studies.propose(("at", "A"), str(i)).settings for i in range(10)]
    assert all(s["alpha"] + s["beta"] <= 1 for s in proposed)


@pytest.mark.parametrize("sampler", ["auto", "tpe", "grid", "random", "qmc", "cmaes"])
def test_a_point_of_a_stepped_range_is_tried_once(write, sampler):
    path = write(
        "METHOD='at'; SPACE={'alpha': tune.quniform(0.1, 0.5, 0.1)}; START=[{'alpha': 0.3}]"
    )
    sweep = sweep_config(methods="at", models="A", baselines=False, sampler=sampler)
    studies = CellStudies(sweep, {"at": load_space(path)})
    found = []
    while (proposal := studies.propose(("at", "A"), str(len(found)))) is not None:
        found.append(proposal.settings["alpha"])
        assert len(found) <= 5
    assert sorted(found) == [0.1, 0.2, 0.3, 0.4, 0.5]


def test_a_missing_space_is_named():
    with pytest.raises(UserError, match=r"There is no search space nowhere\.py"):
        load_spaces(("nowhere.py",))


def test_a_range_takes_the_place_of_the_spaces_own():
    space = load_spaces()["at"]
    wide = space.with_range(parse_range("at.beta=1:1000:log"))
    assert wide.distributions["beta"] == FloatDistribution(1, 1000, log=True)
    assert "beta_strength" not in wide.distributions and "beta_strength" not in wide.constants
    assert all("beta_strength" not in point for point in wide.start_points)
    others = space.distributions.keys() - {"beta_strength"}
    assert all(wide.distributions[key] == space.distributions[key] for key in others)
    batches = space.with_range(parse_range("at.batch_size=8:64:log"))
    assert batches.distributions["batch_size"] == IntDistribution(8, 64, log=True)
    choices = space.with_range(parse_range("at.batch_size=8,64"))
    assert choices.distributions["batch_size"] == CategoricalDistribution((8, 64))
    fixed = space.with_range(parse_range("at.lr=0.5"))
    assert fixed.constants["lr"] == 0.5 and "lr" not in fixed.distributions


def test_a_start_point_outside_a_range_leaves_the_setting_to_the_sampler():
    space = load_spaces()["at"].with_range(parse_range("at.lr=0.011:0.012"))
    assert space.start_points and all("lr" not in point for point in space.start_points)
    first, *others = space.with_start({"lr": 0.0115}).start_points
    assert first == {"lr": 0.0115} and others == space.start_points


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("at.lr=-1:1", "The range of at.lr is invalid: .*lr cannot be -"),
        ("at.batch_size=0.5:2", "batch_size is a whole number"),
        ("at.optimizer=adamw,adamww", "The range of at.optimizer is invalid: .*adamww"),
    ],
)
def test_a_range_outside_what_a_setting_can_be_is_one_sentence(text, sentence):
    with pytest.raises(UserError, match=sentence):
        load_spaces()["at"].with_range(parse_range(text))


def test_the_range_of_a_function_is_in_the_function(write):
    space = load_space(
        write("METHOD='at'; START=[]\ndef SPACE(trial): trial.suggest_float('alpha', 0, 1)")
    )
    with pytest.raises(UserError, match="is a function: change the range of 'alpha' there"):
        space.with_range(parse_range("at.alpha=0:2"))
