"""Plug-ins: what they add, what is refused, and that no code runs which the user did not give."""

import json
import os
import pickle
import subprocess
import sys
import sysconfig
import venv
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from event_logs import OPENING_FIELDS
from small_runs import IMAGE_SIZE, small_config

from kdtune.config.data import DataSource
from kdtune.config.same_settings import hash_settings
from kdtune.config.sweep import SweepConfig
from kdtune.config.train import METHOD_DEFAULTS, TrainConfig
from kdtune.data.datasets import samples_of
from kdtune.data.decoding import decode_images
from kdtune.data.folders import find_images
from kdtune.errors import UserError
from kdtune.log.events import PluginRecord, SweepStarted, TrialEnded
from kdtune.log.folder import SweepFolder
from kdtune.methods import METHODS, build_method
from kdtune.models import MODELS, build_model, probe_stage_shapes
from kdtune.models.checkpoints import load_model, save_model
from kdtune.plugins import PLUGINS, Plugin, load_plugins
from kdtune.training.rerun import train_from_file
from kdtune.training.run import run_training
from kdtune.training.teacher_targets import TeacherTargets, model_sha256, source_sha256
from kdtune.training.train_teacher import train_teacher
from kdtune.tuning.cluster.admission import NodeRequirements, inspect_node
from kdtune.tuning.cluster.pack_plugins import pack_plugins
from kdtune.tuning.driver.preflight import prepare_sweep
from kdtune.tuning.driver.resume_rules import build_resume_config, resume_flags
from kdtune.tuning.search.space import load_spaces
from kdtune.tuning.trials.results import EpochReported, Failure, TrialFailed
from kdtune.tuning.trials.trial_process import run_trial

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"

METHOD = """
from kdtune.methods.kd import KnowledgeDistillation

class Mine(KnowledgeDistillation):
    SETTINGS = {"alpha": 2.0, "margin": 0.5, "steps": 3, "deep": False}

METHODS = {"mine": Mine}
"""

MODEL = """
from torch import nn

class Small(nn.Module):
    def __init__(self, num_classes, image_size):
        super().__init__()
        self.stage, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, num_classes)

    def forward(self, images):
        features = [self.stage(images)]
        return self.head(features[-1].mean((2, 3))), features

MODELS = {"Small": Small}
"""


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch):
    monkeypatch.setattr(PLUGINS, "broken", {})
    yield
    for plugin in list(PLUGINS.loaded.values()):
        PLUGINS._remove(plugin)


@pytest.fixture
def give(tmp_path):
    """Write a plug-in, and load it."""

    def write(text, name="own.py"):
        path = tmp_path / name
        path.write_text(text)
        load_plugins([path])
        return path

    return write


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Have a package with an entry point on the path."""

    def write(text, name="ours"):
        site = tmp_path / "site"
        about = site / f"{name}-1.dist-info"
        about.mkdir(parents=True)
        (site / f"installed_{name}.py").write_text(text)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (about / "entry_points.txt").write_text(f"[kdtune.plugins]\n{name} = installed_{name}\n")
        monkeypatch.syspath_prepend(str(site))
        return site

    yield write
    for name in [name for name in sys.modules if name.startswith("installed_")]:
        del sys.modules[name]


def test_what_a_file_defines_has_a_name(give):
    path = give(METHOD + MODEL)
    assert METHODS.find("mine") and MODELS.find("Small")
    network = build_model("Small", 10, IMAGE_SIZE)
    assert network(torch.zeros(2, 3, IMAGE_SIZE, IMAGE_SIZE))[0].shape == (2, 10)
    assert list(PLUGINS.loaded) == [str(path)]
    (record,) = PLUGINS.records(METHODS=["mine", "at"], MODELS=["Small", "Small"])
    assert record["provides"] == ["mine", "Small"] and not record["installed"]


def test_the_examples_are_short_and_sound(folder):
    files = sorted(EXAMPLES.glob("own_*.py"))
    assert len(files) == 3
    load_plugins(files)
    for file in files:
        text = file.read_text()
        assert len(text.splitlines()) < 40 and f"--plugin {file.name}" in text
    assert load_spaces()["angle"].start_points == [{"beta": 1.0, "margin": 0.1}]
    for name in ("Thin", "Plain"):
        assert len(probe_stage_shapes(build_model(name, 10, IMAGE_SIZE), IMAGE_SIZE)) == 3
    data = find_images("stripes")
    assert (len(data.classes), len(data.test)) == (4, 200)
    assert len(data.train) + len(data.validation) == 800
    assert find_images("stripes").fingerprint == data.fingerprint


class TestSettings:
    def test_those_of_a_method_are_settings_as_others(self, give):
        give(METHOD)
        config = TrainConfig.parse({"method": "mine", "margin": 1})
        assert (config.margin, config.steps, config.deep, config.alpha) == (1.0, 3, False, 2.0)
        assert isinstance(config.margin, float)
        again = TrainConfig.parse(json.loads(json.dumps(config.model_dump())))
        assert again == config
        assert config.model_copy(update={"epochs": 3}).margin == 1.0
        assert build_method(config, [(4, 1, 1)], [(4, 1, 1)]).config.margin == 1.0
        other = config.model_copy(update={"margin": 0.25})
        assert hash_settings(other.model_dump()) != hash_settings(config.model_dump())

    def test_no_other_method_has_them(self, give):
        give(METHOD)
        with pytest.raises(UserError, match="There is no setting 'margin'"):
            TrainConfig.parse({"method": "kd", "margin": 1})
        assert "margin" not in TrainConfig.parse({"method": "kd"}).model_dump()

    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({"marign": 1}, "There is no setting 'marign'; did you mean 'margin'?"),
            ({"margin": "wide"}, "The setting margin cannot be 'wide': it must be a valid number"),
            ({"margin": float("nan")}, "The setting margin cannot be nan"),
            ({"steps": 1.5}, "The setting steps cannot be 1.5: it must be a valid integer"),
        ],
    )
    def test_a_mistake_is_a_sentence(self, give, settings, sentence):
        give(METHOD)
        with pytest.raises(UserError) as error:
            TrainConfig.parse({"method": "mine", **settings})
        assert sentence in str(error.value) and "\n" not in str(error.value)

    def test_a_method_that_is_not_there_is_named_before_its_settings(self):
        with pytest.raises(UserError, match="There is no method 'mine'"):
            TrainConfig.parse({"method": "mine", "margin": 1})

    def test_types_are_those_of_the_defaults_also_of_equal_ones(self, give):
        text = METHOD + "class Other(Mine):\n    SETTINGS = {'margin': 1}\n"
        give(text + "class Third(Mine):\n    SETTINGS = {'margin': 1.0}\n"
             "METHODS |= {'other': Other, 'third': Third}\n")  # fmt: skip
        assert type(TrainConfig.parse({"method": "other"}).margin) is int
        assert type(TrainConfig.parse({"method": "third"}).margin) is float

    def test_a_sweep_fixes_them_for_their_method_alone(self, give, folder, teacher_file):
        give((EXAMPLES / "own_method.py").read_text())
        checked = prepare_sweep(sweep_of(folder, teacher_file, settings={"margin": 0.3}), ())
        assert checked.spaces["angle"].constants == {"margin": 0.3}
        assert checked.spaces["angle"].start_points == [{"beta": 1.0}]
        assert checked.configure_trial(
            ("angle", "MultiBranchNet"), 0, {"beta": 1, "margin": 0.3}
        ).margin
        assert "margin" not in checked.spaces["kd"].constants

    def test_a_sweep_refuses_those_of_no_method_of_its(self, give, folder, teacher_file):
        give(METHOD)
        given = {"methods": ["at"], "settings": {"margin": 0.3}}
        with pytest.raises(UserError, match="There is no setting 'margin'"):
            prepare_sweep(sweep_of(folder, teacher_file, **given), ())

    def test_a_log_can_be_read_without_the_plugin(self):
        config = SweepConfig.parse(
            {"name": "x", "data": "d", "methods": ["gone"], "settings": {"margin": 1}}
        )
        assert config.settings == {"margin": 1}
        with pytest.raises(UserError, match="flag of its own"):
            SweepConfig.parse({"name": "x", "data": "d", "settings": {"epochs": 1}})


def sweep_of(folder, teacher, **given):
    return SweepConfig.parse(
        {
            "name": "x", "data": str(folder), "teacher": teacher and str(teacher),
            "methods": ["angle"], "models": ["MultiBranchNet"],
            "trials": 1, "epochs": 1, "image_size": IMAGE_SIZE, **given,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("METHODS = {'at': 1}", "kdtune itself already has a method 'at'"),
        ("MODELS = {'ResNet18': len}", "kdtune itself already has a model 'ResNet18'"),
        ("DATA = {'digits': len}", "kdtune itself already has a data set 'digits'"),
        ("METHODS = {'x': int}", "the method 'x' must be a subclass of kdtune.methods.method"),
        ("MODELS = {'x': 3}", "the model 'x' must be a function, or class, of the number of cla"),
        ("MODELS = {'a/b': len}", "'a/b' is not a valid name"),
        ("MODELS = [len]", "MODELS must be a dict"),
        ("raise RuntimeError('no\\nluck')", "cannot be loaded: RuntimeError: no"),
        ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
        ("def (", "SyntaxError"),
        (METHOD.replace('"margin"', '"epochs"'), "the method 'mine' must be a class whose SETT"),
        (METHOD.replace('"margin"', '"copy"'), "the method 'mine' must be a class whose SETTINGS"),
        (METHOD.replace("0.5", "[]"), "the method 'mine' must be a class whose SETTINGS"),
    ],
)
def test_a_bad_file_is_a_sentence_and_leaves_nothing(give, text, sentence):
    with pytest.raises(UserError) as error:
        give(text)
    assert sentence in str(error.value) and "own.py" in str(error.value)
    assert "\n" not in str(error.value)
    assert not PLUGINS.loaded and "mine" not in METHOD_DEFAULTS


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(UserError, match="There is no plug-in"):
        load_plugins([tmp_path / "nowhere.py"])


def test_a_plugin_cannot_hide_another_ones_names(give, tmp_path):
    first = give(MODEL)
    with pytest.raises(UserError, match=f"the plug-in {first} already has a model 'Small'"):
        give(MODEL + "\nMODELS['Fresh'] = Small", "second.py")
    assert "Fresh" not in MODELS and len(PLUGINS.loaded) == 1


def test_a_file_that_was_changed_is_loaded_anew(give):
    give(METHOD)
    before = METHODS["mine"]
    give(METHOD)
    assert METHODS["mine"] is before
    give(METHOD.replace("0.5", "0.75"))
    assert METHOD_DEFAULTS["mine"]["margin"] == 0.75 and len(PLUGINS.loaded) == 1


def test_unknown_names_meet_those_of_plugins(give):
    give(METHOD + MODEL + "DATA = {'stripes': len}")
    with pytest.raises(UserError, match="did you mean 'mine'"):
        METHODS.require("mien")
    with pytest.raises(UserError, match="did you mean 'Small'"):
        MODELS.require("Smal")
    with pytest.raises(UserError, match="stripes"):
        find_images("strips")


class TestInstalled:
    def test_they_are_found_once_a_name_is_not_known(self, install):
        install(METHOD)
        build_model("MultiBranchNet", 10, IMAGE_SIZE)
        assert not PLUGINS.loaded
        assert TrainConfig.parse({"method": "mine"}).margin == 0.5
        assert list(PLUGINS.loaded) == ["ours"]
        assert PLUGINS.records(METHODS=["mine"])[0]["installed"]

    def test_a_broken_one_is_named_when_something_is_missing(self, install, folder):
        install("raise ValueError('out of order')", "broken")
        build_model("MultiBranchNet", 10, IMAGE_SIZE)
        with pytest.raises(UserError) as error:
            build_model("Smal", 10, IMAGE_SIZE)
        assert "the installed plug-in broken cannot be loaded: ValueError: out of order" in str(
            error.value
        )

    def test_a_broken_one_does_not_harm_another(self, install):
        install("raise ValueError('out of order')", "broken")
        install(MODEL)
        assert build_model("Small", 10, IMAGE_SIZE)

    def test_another_version_on_a_node_is_refused(self, install):
        install(MODEL)
        PLUGINS.load_installed()
        (plugin,) = pack_plugins()
        PLUGINS.sync([plugin])
        with pytest.raises(UserError, match="ours has other code on this node"):
            PLUGINS.sync([replace(plugin, sha256="0")])
        with pytest.raises(UserError, match="theirs is missing on this node: it is not installed"):
            PLUGINS.sync([replace(plugin, name="theirs")])

    def test_a_node_is_asked_for_them(self, install, folder):
        install(MODEL)
        PLUGINS.load_installed()
        question = NodeRequirements(DataSource(str(folder)), None, None, pack_plugins())
        assert "problem" not in inspect_node(question)
        other = Plugin("theirs", "0", True, b"")
        found = inspect_node(NodeRequirements(DataSource(str(folder)), None, None, (other,)))
        assert "theirs is missing on this node" in found["problem"]


def test_a_process_without_the_file_loads_what_it_is_sent(give, tmp_path):
    """Another node has nothing but what is sent."""
    path = give(METHOD)
    travelling = pack_plugins()
    path.unlink()
    code = (
        "import pickle, sys; from kdtune.plugins import PLUGINS;"
        "PLUGINS.sync(pickle.loads(sys.stdin.buffer.read()));"
        "from kdtune.methods import METHODS;"
        "from kdtune.training.teacher_targets import source_sha256;"
        "print(source_sha256([METHODS['mine']])); PLUGINS.sync([]); print('mine' in METHODS)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(travelling),
        capture_output=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.decode().split() == [source_sha256([METHODS["mine"]]), "False"]


def test_what_cannot_be_pickled_is_refused_before_a_sweep_starts(give):
    path = give(
        "from functools import lru_cache\ncached = lru_cache(lambda n: n)\n"
        "MODELS = {'Odd': lambda classes, size: cached(size)}\n"
    )
    with pytest.raises(UserError, match=f"The plug-in {path} cannot be sent to other processes"):
        pack_plugins()


def test_targets_and_weights_are_others_where_the_code_is(give, folder):
    """Keys of the cache."""
    keys = []
    for text in (METHOD + MODEL, METHOD + MODEL, METHOD + MODEL + "# other"):
        give(text)
        torch.manual_seed(0)
        teacher = build_model("Small", 10, IMAGE_SIZE).eval()
        keys.append(model_sha256(teacher))
    assert keys[0] == keys[1] != keys[2]
    text, kept = (EXAMPLES / "own_method.py").read_text(), []
    teacher = build_model("MultiBranchNet", 10, IMAGE_SIZE).eval()
    for more in ("", "# other"):
        give(text + more, "angle.py")
        lesson = TeacherTargets(teacher, IMAGE_SIZE)
        own = lesson.request(
            TrainConfig.parse({"method": "angle"}), probe_stage_shapes(teacher, IMAGE_SIZE)
        )
        kept.append(own["mean_-1"].method_sha256)
    assert kept[0] != kept[1]


@pytest.mark.parametrize(
    ("targets", "terms", "sentence"),
    [
        ("{'x': logits.mean()}", None, "first dimension of the target 'x' must be that of the ba"),
        ("logits", None, "targets must return a dict of tensors"),
        ("logits.nowhere", None, "of the plug-in .*own.py fails: AttributeError"),
        (None, "logits.sum()", r"terms must return a dict of \(weight, tensor\)"),
        (None, "{'x': logits.sum()}", r"the term 'x' must be \(weight, scalar tensor\)"),
        (None, "{'x': (1.0, logits)}", r"the term 'x' must be \(weight, scalar tensor\)"),
        (None, "{'x': (1.0, targets['x'].sum())}", "the term 'x' does not depend on the student"),
        (None, "{'x': (1 / 0, logits.sum())}", "of the plug-in .*own.py fails: ZeroDivisionError"),
    ],
)
def test_a_method_without_its_contract_is_refused_before_anything_is_trained(
    give, folder, teacher_file, targets, terms, sentence
):
    give(
        f"""
from kdtune.methods.method import Method

class Mine(Method):
    def targets(self, logits, features):
        return {targets or "{'x': logits}"}

    def terms(self, logits, features, targets, labels):
        return {terms or "{'x': (1.0, logits.sum())}"}

METHODS, METHOD, SPACE, START = {{"mine": Mine}}, "mine", {{"beta": 1.0}}, []
"""
    )
    sweep = sweep_of(folder, teacher_file, methods=["mine"], baselines=False)
    with pytest.raises(UserError, match=sentence) as error:
        prepare_sweep(sweep, ())
    assert "'mine'" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("{'loss': logits.sum()}", None),
        ("logits.sum()", "forward must return a dict with 'loss'"),
        ("{'loss': logits}", "'loss' of forward must be a scalar tensor"),
        ("{'loss': targets['x'].sum()}", "'loss' does not depend on the student"),
    ],
)
def test_a_loss_that_is_no_weighted_sum_has_a_forward(give, folder, teacher_file, given, sentence):
    give(
        f"""
from kdtune.methods.method import Method

class Mine(Method):
    def targets(self, logits, features):
        return {{'x': logits}}

    def forward(self, logits, features, targets, labels):
        return {given}

METHODS, METHOD, SPACE, START = {{"mine": Mine}}, "mine", {{"beta": 1.0}}, []
"""
    )
    sweep = sweep_of(folder, teacher_file, methods=["mine"], baselines=False)
    with pytest.raises(UserError, match=sentence) if sentence else nullcontext():
        prepare_sweep(sweep, ())


@pytest.mark.parametrize(
    ("forward", "sentence"),
    [
        (
            "self.head(features[-1].mean((2, 3)))",
            r"does not return \(logits, \[a map per stage\]\)",
        ),
        ("self.nothing", "The model 'Small' of the plug-in .*own.py fails: AttributeError"),
    ],
)
def test_a_model_without_its_contract_is_refused(give, folder, forward, sentence):
    give(MODEL.replace("self.head(features[-1].mean((2, 3))), features", forward))
    sweep = sweep_of(folder, None, methods=["student"], models=["Small"], baselines=False)
    with pytest.raises(UserError, match=sentence):
        prepare_sweep(sweep, ())


def test_a_model_may_return_its_maps_beside_the_logits(
    give, folder, teacher_file, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    give(MODEL.replace(", features\n", ", features[0], features[0]\n"))
    config = small_config(
        folder, model="Small", method="fitnets", teacher_model=str(teacher_file), epochs=1
    )
    result = run_training(config)
    assert result["training_history"][0]["train_loss"] > 0
    assert 0 <= result["test_results"]["accuracy"] <= 1


def test_a_data_set_without_its_contract_is_refused(give):
    give("DATA = {'odd': lambda name, root: ([], [])}")
    with pytest.raises(UserError, match="data set 'odd' of the plug-in .* fails: TypeError: it r"):
        find_images("odd")


ARRAYS = """
import numpy as np
from kdtune.data.datasets import NamedDataset

def make(name, root):
    split = lambda n: ([IMAGE] * len(LABELS) * n, list(LABELS) * n)
    classes = tuple(f"c{i:03d}" for i in range(CLASSES))
    return NamedDataset(classes, root, split(8), split(4), split(2))

DATA = {"arrays": make}
"""


def arrays(image, labels="range(2)", classes=2):
    text = ARRAYS.replace("IMAGE", image).replace("LABELS", labels)
    return text.replace("CLASSES", str(classes))


def test_arrays_of_more_than_256_classes_are_a_data_set(give):
    give(arrays("np.zeros((8, 8, 3), 'uint8')", "range(300)", 300))
    data = find_images("arrays")
    assert len(data.classes) == 300 and len(data.train) == 2400
    give(arrays("np.zeros((8, 8, 3), 'uint8')", "[*range(299), 43]", 300))  # 299 is 256 + 43
    assert find_images("arrays").fingerprint != data.fingerprint


@pytest.mark.parametrize("shape", ["(8, 8)", "(8, 8, 1)", "(8, 8, 3)"])
def test_grey_arrays_may_have_a_channel(give, shape):
    give(arrays(f"np.full({shape}, 90, 'uint8')", "np.arange(2)"))  # labels of NumPy's type
    data = find_images("arrays")
    assert (decode_images(data.test, 8) == 90).all() and data.fingerprint


@pytest.mark.parametrize(
    ("image", "labels", "sentence"),
    [
        ("np.zeros((8, 8, 2), 'uint8')", "range(2)", r"uint8 \[8, 8, 2\]; give uint8 \[H, W\], "),
        ("np.zeros((3, 8, 8), 'uint8')", "range(2)", r"uint8 \[3, 8, 8\]; give uint8"),
        ("np.zeros((8, 8), 'float32')", "range(2)", r"float32 \[8, 8\]; give uint8"),
        ("np.zeros((8,), 'uint8')", "range(2)", r"uint8 \[8\]; give uint8"),
        ("np.zeros((8, 8), 'uint8')", "[0, 2]", "a label is 2, but there are 2 classes, from 0"),
        ("np.zeros((8, 8), 'uint8')", "[0, -1]", "a label is -1, but there are 2 classes"),
    ],
)
def test_arrays_that_are_no_images_are_an_error_in_one_sentence(give, image, labels, sentence):
    give(arrays(image, labels))
    with pytest.raises(
        UserError, match=f"data set 'arrays' of the plug-in .* fails: .*{sentence}"
    ):
        find_images("arrays")


def test_pictures_of_a_data_set_like_torchvisions():
    class Pairs:
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return np.full((2, 2), i, np.uint8), np.int64(i)

    images, labels = samples_of(Pairs())
    assert labels == [0, 1, 2] and images[2].tolist() == [[2, 2], [2, 2]]


def test_spaces_come_with_their_methods(give):
    give(METHOD + "METHOD, SPACE, START = 'mine', {'margin': 0.25}, []")
    assert load_spaces()["mine"].constants == {"margin": 0.25}
    give(METHOD + "METHOD, SPACE, START = 'at', {'beta': 1.0}, []")
    with pytest.raises(UserError, match="which is not one of its METHODS"):
        load_spaces()
    give(METHOD + "METHOD, SPACE, START = 'mine', {'marign': 0.25}, []")
    with pytest.raises(UserError, match="did you mean 'margin'"):
        load_spaces()


class TestNothingRunsUnasked:
    def test_a_log_wants_them_again(self, give, tmp_path):
        kept = PluginRecord(name="/a/own.py", sha256="0", installed=False, provides=("mine",))
        config = {"name": "x", "data": "d", "plugins": ["/a/own.py"], "methods": ["mine"]}
        earlier = SweepStarted(config=config, spaces={}, plugins=(kept,), **OPENING_FIELDS)
        with pytest.raises(UserError, match="if you trust it, give --plugin /a/own.py"):
            build_resume_config(earlier, {})
        path = give(METHOD)
        with pytest.raises(UserError, match="own.py has changed since"):
            build_resume_config(earlier, {"plugins": (str(path),)})
        [record] = PLUGINS.records(METHODS=["mine"])
        earlier = earlier.model_copy(update={"plugins": (PluginRecord(**record),)})
        sweep = build_resume_config(earlier, {"plugins": (str(path),)})
        assert sweep.plugins == (str(path),)
        assert resume_flags(sweep, {}) == ["--plugin", str(path)]

    def test_a_checkpoint_wants_its_networks(self, give, tmp_path):
        path, marker = tmp_path / "net.pth", tmp_path / "ran"
        file = give(MODEL + f"open({str(marker)!r}, 'w').close()\n")
        config = small_config(tmp_path, model="Small").model_dump()
        network = build_model("Small", 2, IMAGE_SIZE)
        for form in (path, tmp_path / "net.safetensors"):
            save_model(form, network, config=config, classes=["a", "b"])
            PLUGINS.sync([])
            marker.unlink(missing_ok=True)
            with pytest.raises(UserError, match=f"if you trust it, give --plugin {file}"):
                load_model(form)
            assert not marker.exists()
            load_plugins([file])
            loaded_again = load_model(form)["model"].state_dict()
            assert all(torch.equal(x, loaded_again[k]) for k, x in network.state_dict().items())

    def test_an_exported_configuration_wants_its_method(self, give, tmp_path, folder, monkeypatch):
        monkeypatch.chdir(tmp_path)
        file = give(METHOD)
        settings = small_config(folder, method="mine", epochs=1, margin=0.25).model_dump()
        provenance = {
            "plugins": PLUGINS.records(METHODS=["mine"]),
            "best_validation_accuracy": 2.0,  # which no run reaches
            "settings_sha256": hash_settings(settings),
        }
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({**settings, "provenance": provenance}))
        PLUGINS.sync([])
        with pytest.raises(UserError, match=f"mine.yaml needs the plug-in {file}"):
            train_from_file(path)
        load_plugins([file])
        assert train_from_file(path)["config"]["margin"] == 0.25
        give(METHOD + "# other")
        assert f"the plug-in {file} has other code" in train_from_file(path)["causes"]

    @pytest.mark.parametrize("kept", ["own.py", [1], [{"name": "own.py"}], {"name": 1}])
    def test_what_was_written_by_hand(self, kept):
        with pytest.raises(UserError, match="does not list the plug-ins it needs"):
            PLUGINS.require("x.yaml", kept)

    def test_an_installed_one_that_is_gone(self):
        kept = [{"name": "ours", "sha256": "0", "installed": True}]
        with pytest.raises(UserError, match="the plug-in ours is not installed"):
            PLUGINS.require("x.yaml", kept)
        assert PLUGINS.changed(kept) == ["ours"]


def test_a_method_without_a_teacher_may_have_terms(give):
    give(
        """
from kdtune.methods.method import Method

class Flat(Method):
    uses_teacher = False

    def targets(self, logits, features):
        return {}

    def terms(self, logits, features, targets, labels):
        return {"size": (0.5, logits.square().mean())}

METHODS = {"flat": Flat}
"""
    )
    method = build_method(TrainConfig.parse({"method": "flat"}), [(4, 1, 1)], None)
    parts = method(torch.full((2, 3), 2.0), [], None, torch.tensor([0, 1]))
    assert parts["loss"] == parts["classification"] + 2


def test_a_trial_loads_what_its_sweep_has(give, folder, teacher_file):
    give((EXAMPLES / "own_method.py").read_text())
    travelling = pack_plugins()
    config = small_config(
        folder, method="angle", epochs=1, teacher_model=str(teacher_file), margin=0.2
    ).model_dump()
    PLUGINS.sync([])
    (*_, last) = run_trial(config, plugins=travelling)
    assert isinstance(last, EpochReported) and last.metrics.epoch == 1
    bad = Plugin("/a/bad.py", "0", False, b"cnowhere_to_be_found\nx\n.")
    (last,) = run_trial(config, plugins=[bad])
    assert isinstance(last, TrialFailed) and last.failure is Failure.CRASHED
    assert "The plug-in /a/bad.py cannot be loaded" in last.reason
    assert "No module named 'nowhere_to_be_found'" in last.reason


def test_a_single_run_has_them_too(give, folder, teacher_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    give((EXAMPLES / "own_method.py").read_text())
    give(MODEL, "net.py")
    settings = dict(method="angle", model="Small", beta=2.0, teacher_model=str(teacher_file))
    result = run_training(small_config(folder, epochs=1, **settings))
    assert result["config"]["margin"] == 0.1
    [row] = result["training_history"]
    assert row["loss_angle_weighted"] == pytest.approx(2 * row["loss_angle"]) and row["loss_angle"]
    terms = row["loss_classification"] + row["loss_angle_weighted"]
    assert row["train_loss"] == pytest.approx(terms)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """kdtune as a wheel in an environment of its own, which does not see this repository."""
    place = tmp_path_factory.mktemp("elsewhere")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*build, "--no-index", "-w", str(place), str(ROOT)], check=True)
    venv.create(place / "env", symlinks=True)
    python = place / "env" / "bin" / "python"
    site = next((place / "env" / "lib").glob("python*/site-packages"))
    (site / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")  # all but kdtune
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--quiet"]
    subprocess.run([*pip, "--no-index", *map(str, place.glob("*.whl"))], check=True)
    return place, site


@pytest.mark.slow
def test_the_examples_take_part_in_a_sweep_of_an_installed_kdtune(elsewhere):
    """Give three plug-ins as files, and install a network as a package."""
    place, site = elsewhere
    about = site / "ours-1.dist-info"
    about.mkdir()
    text = (EXAMPLES / "own_model.py").read_text()
    (site / "ours.py").write_text(f'{text}\nMODELS = {{"Installed": plain}}\n')
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: ours\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[kdtune.plugins]\nours = ours\n")
    here = place / "empty"
    here.mkdir()
    files = sorted(EXAMPLES.glob("own_*.py"))
    load_plugins(files)
    teacher = TrainConfig.parse(
        {"method": "student", "data_dir": "stripes", "image_size": IMAGE_SIZE, "epochs": 1}
    )
    train_teacher(teacher, here / "teacher.pth")
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*words):
        command = [place / "env" / "bin" / words[0], *words[1:]]
        return subprocess.run(command, cwd=here, env=variables, capture_output=True, text=True)

    assert Path(
        run("python", "-c", "import kdtune as k; print(k.__file__)").stdout
    ).is_relative_to(site)
    given = [word for file in files for word in ("--plugin", file)]
    done = run(
        *"kdtune sweep --data stripes --teacher teacher.pth --methods angle,at,student".split(),
        *"--no-baselines --models Thin,Installed --trials 1 --epochs 1 --name own".split(),
        *given,
    )
    assert done.returncode == 0, done.stderr
    events = SweepFolder(here / "results" / "own").load_events()
    assert [e.state for e in events if isinstance(e, TrialEnded)] == ["finished"] * 6
    given = {Path(r.name).name: (list(r.provides), r.installed) for r in events[0].plugins}
    assert given == {
        "own_method.py": (["angle"], False),
        "own_model.py": (["Thin"], False),
        "own_data.py": (["stripes"], False),
        "ours": (["Installed"], True),
    }
    assert (here / "results" / "own" / "best" / "angle-Installed.pth").exists()
