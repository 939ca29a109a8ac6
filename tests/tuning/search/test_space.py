"""Search spaces: the built-in ones, and those of users."""

import optuna
import pytest

from kdtune.config.train import TrainConfig
from kdtune.errors import UserError
from kdtune.methods import METHODS
from kdtune.tuning.search.space import describe_space, load_space, load_spaces


@pytest.fixture
def write(tmp_path):
    def start(text):
        path = tmp_path / "mine.py"
        path.write_text(f'"""Mine."""\nfrom ray import tune\n{text}\n')
        return path

    return start


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_space_with_sources_and_its_defaults_first(method):
    space = load_spaces()[method]
    assert len(space.docstring.splitlines()) > 3
    defaults = TrainConfig(method=method).model_dump()
    assert all(defaults[key] == value for key, value in space.start_points[0].items())
    assert set(space.start_points[0]) == set(space.distributions)
    assert describe_space(space).startswith(method)


@pytest.mark.parametrize("method", METHODS)
def test_a_space_gives_legal_settings(method):
    space = load_spaces()[method]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(50):
        _, settings = space.ask_study(study)
        TrainConfig.parse({"method": method, **settings})


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
    assert set(trial.params) == {"weight_decay", "temperature", "alpha", "beta"}
    assert space.start_points == [
        {"weight_decay": 5e-4, "temperature": 4.0, "alpha": 0.0, "beta": 1e3}
    ]


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
    with pytest.raises(UserError, match="searches 'alpha' by itself; fix it there"):
        space.with_constants({"alpha": 2.0})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("METHOD='at'; SPACE={}", "lacks START"),
        ("METHOD='att'; SPACE={}; START=[]", "no method 'att'; did you mean 'at'"),
        (
            "METHOD='at'; SPACE={'lrr': 1}; START=[]",
            "is bad: There is no setting 'lrr'; did you mean 'lr'",
        ),
        ("METHOD='at'; SPACE={'seed': 1}; START=[]", "'seed' has a flag of its own"),
        (
            "METHOD='at'; SPACE={'lr': tune.loguniform(1, .1)}; START=[]",
            "must be less|lower|cannot be|bad",
        ),
        (
            "METHOD='at'; SPACE={'lr': tune.uniform(-1, 1)}; START=[]",
            "is bad: .*lr cannot be -1.0",
        ),
        (
            "METHOD='at'; SPACE={'lr': tune.uniform(0.1, 1)}; START=[{'lr': 2}]",
            "lr = 2 in START is not a point of the space",
        ),
        ("METHOD='at'; SPACE={'lr': tune.randn(0, 1)}; START=[]", "the range of lr is bad"),
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
        ("1 / 0", "cannot be loaded: division by zero"),
    ],
)
def test_a_bad_space_is_one_sentence(write, text, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        load_space(write(text))
    assert "\n" not in str(error.value)


def test_a_missing_space_is_named():
    with pytest.raises(UserError, match=r"There is no search space nowhere\.py"):
        load_spaces(("nowhere.py",))
