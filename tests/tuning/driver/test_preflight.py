"""Checks before a sweep, and the settings of its trials."""

from pathlib import Path

import numpy as np
import pytest
import torch
from packed_images import png, write_tar
from PIL import Image

from kdtune.config.sweep import SweepConfig
from kdtune.data.folders import find_images
from kdtune.data.splits import Rendering
from kdtune.errors import UserError
from kdtune.models import build_model
from kdtune.training.loss_scales import LossScales
from kdtune.training.teacher_check import TeacherCheck
from kdtune.tuning.driver.preflight import prepare_sweep
from kdtune.tuning.planning.driver_costs import measure_proposal_seconds

RAW_SPACE = '''"""Weights."""
from ray import tune
METHOD = "at"
SPACE = {"lr": tune.loguniform(1e-3, 0.3), "beta": tune.loguniform(10, 1e4)}
START = []
'''


@pytest.fixture
def prepare(folder, teacher_file):
    def prepared(spaces=(), methods="at", top_level=None, **settings):
        sweep = {
            "name": "n", "data": str(folder), "teacher": str(teacher_file), "epochs": 2,
            "methods": methods, "models": "MultiBranchNet", "baselines": False,
            "settings": settings, "spaces": tuple(map(str, spaces)), **(top_level or {}),
        }  # fmt: skip
        requested = SweepConfig.parse(sweep)
        return prepare_sweep(requested, requested.spaces)

    return prepared


def first_settings(prepared, method="at"):
    return prepared.spaces[method].example_settings()


def test_scales_are_measured_where_strengths_are_searched(prepare):
    prepared = prepare(methods="at,student")
    settings = first_settings(prepared)
    scales = prepared.measure_scales(("at", "MultiBranchNet"), settings)
    assert scales.keys() == {"alpha", "beta"}
    assert prepare().measure_scales(("at", "MultiBranchNet"), settings) == scales
    student = first_settings(prepared, "student")
    assert prepared.measure_scales(("student", "MultiBranchNet"), student) == {}
    assert list(prepared.describe_unscaled_strengths()) == []


def test_a_fixed_strength_is_measured_too_also_for_spaces_of_weights(prepare, tmp_path):
    (tmp_path / "space.py").write_text(RAW_SPACE)
    prepared = prepare([tmp_path / "space.py"], beta_strength=1.0)
    settings = first_settings(prepared)
    assert settings["beta_strength"] == 1.0 and "beta" not in settings
    assert "beta" in prepared.measure_scales(("at", "MultiBranchNet"), settings)


def test_weights_alone_cost_nothing(prepare, tmp_path, monkeypatch):
    monkeypatch.setattr(LossScales, "measure", None)
    (tmp_path / "space.py").write_text(RAW_SPACE)
    prepared = prepare([tmp_path / "space.py"])
    settings = first_settings(prepared)
    assert prepared.measure_scales(("at", "MultiBranchNet"), settings) == {}
    assert list(prepared.describe_unscaled_strengths()) == []
    config = prepare(alpha=0.5, beta=5.0).configure_trial(("at", "MultiBranchNet"), 0, settings)
    assert config.beta == settings["beta"]


def test_the_metric_is_a_setting_of_the_sweep_and_of_its_trials_alone(prepare, folder):
    prepared = prepare(methods="at", top_level={"metric": "balanced_accuracy"})
    assert prepared.opening_event.metric == "balanced_accuracy"
    config = prepared.configure_trial(("at", "MultiBranchNet"), 0, first_settings(prepared))
    assert config.metric == "balanced_accuracy"
    data = prepared.opening_event.data
    assert data.classes == tuple(sorted(path.name for path in folder.iterdir()))
    assert sum(data.validation_class_counts) == data.validation_images
    assert sum(data.train_class_counts) == data.train_images
    with pytest.raises(UserError, match="'metric' has a flag of its own"):
        prepare(metric="accuracy")


def test_a_strength_without_a_scale_is_told(prepare):
    prepared = prepare(methods="kd,student", beta_strength=1.0)
    assert list(prepared.describe_unscaled_strengths()) == [
        "kd-MultiBranchNet: beta_strength is taken as beta, since its term is not above 0 before "
        "training"
    ]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"beta": 1.0, "beta_strength": 1.0}, "'beta_strength' decides 'beta'"),
        ({"beta_strenght": 1.0}, "no setting 'beta_strenght'; did you mean 'beta_strength'"),
        ({"beta_strength": "strong"}, "beta cannot be 'strong'"),
    ],
)
def test_a_bad_strength_is_one_sentence(prepare, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        prepare(**settings)


def test_a_teacher_is_given_with_its_network_and_layers(folder, prepare, tmp_path):
    torch.save(build_model("MultiBranchNet", 10, 16).state_dict(), tmp_path / "w.pth")
    teacher = {"teacher": f"MultiBranchNet={tmp_path / 'w.pth'}", "image_size": 16}
    prepared = prepare(top_level={**teacher, "teacher_layers": "stages.1,stages.2.mix"})
    summary = prepared.opening_event.teacher
    assert (summary.model, summary.validation_accuracy) == ("MultiBranchNet", None)
    configs = [prepared.configure_trial((m, "MultiBranchNet"), 0, {}) for m in ("at", "student")]
    assert [config.teacher_model for config in configs] == [teacher["teacher"], None]
    assert [config.teacher_layers for config in configs] == ["stages.1,stages.2.mix", None]
    targets = prepared.shared_inputs.teacher_targets
    assert targets.stage_shapes == [(64, 8, 8), (128, 4, 4)]
    [line] = prepared.shared_inputs.pooling_lines
    assert line == (
        "MultiBranchNet has maps of 16, 8, 4, 2 px, the teacher of 8, 4 px: compared at 4, 2 px, "
        "from the last stage back"
    )


def test_a_measured_accuracy_of_the_teacher_is_logged_once(prepare, tmp_path):
    torch.save(build_model("MultiBranchNet", 10, 16).state_dict(), tmp_path / "w.pth")
    teacher = {"teacher": f"MultiBranchNet={tmp_path / 'w.pth'}", "image_size": 16}
    prepared = prepare(top_level=teacher)
    prepared.shared_inputs.teacher_check = TeacherCheck(0.75, 0.5)
    summary = prepared.opening_after([]).teacher
    assert (summary.train_accuracy, summary.validation_accuracy) == (0.75, 0.5)
    resumed = prepare_sweep(prepared.sweep, (), prepared.opening_after([]))
    assert resumed.opening_event.teacher == summary
    of_file = prepare()
    recorded = of_file.opening_event.teacher.validation_accuracy
    of_file.shared_inputs.teacher_check = TeacherCheck(0.75, 0.5)
    assert of_file.opening_after([]).teacher.validation_accuracy == recorded != 0.5


def test_students_above_the_limits_are_left_out(prepare):
    students = {"models": "MultiBranchNet,ResNet18", "max_parameters": "1M"}
    prepared = prepare(top_level=students)
    assert prepared.sweep.models == ("MultiBranchNet",) and len(prepared.left_out) == 1
    assert prepared.opening_event.config["models"] == ["MultiBranchNet"]


def test_how_images_are_read_is_decided_once_and_recorded(tmp_path, monkeypatch, teacher_file):
    monkeypatch.chdir(tmp_path)
    for name in range(10):
        Path("data", f"digit-{name}").mkdir(parents=True)
        for i in range(4):
            values = np.full((8, 8), 4000, np.uint16)
            Image.fromarray(values).save(f"data/digit-{name}/{i}.png")
    sweep = {"name": "n", "data": "data", "background": "black", "teacher": str(teacher_file)}
    prepared = prepare_sweep(SweepConfig.parse({**sweep, "methods": "at", "epochs": 2}), ())
    recorded = prepared.opening_event.config
    assert (recorded["bit_depth"], recorded["background"]) == (12, "black")
    assert recorded["data"] == str(tmp_path / "data")
    trial = prepared.configure_trial(("at", "ResNet18"), 0, {})
    assert trial.data_source.bit_depth == 12 and trial.data_source.background == "black"
    assert find_images(trial.data_source).rendering == Rendering("black", 12)


def test_shards_of_a_relative_pattern_are_found_by_trials(tmp_path, monkeypatch, teacher_file):
    monkeypatch.chdir(tmp_path)
    for shard in range(2):
        members = [
            member
            for i in range(40)
            for member in ((f"{i}.png", png((i, shard, 0))), (f"{i}.cls", b"digit-%d" % (i % 10)))
        ]
        write_tar(Path(f"t-{shard}.tar"), members)
    sweep = {"name": "n", "data": "t-{0..1}.tar", "teacher": str(teacher_file), "methods": "at"}
    prepared = prepare_sweep(SweepConfig.parse({**sweep, "epochs": 2}), ())
    trial = prepared.configure_trial(("at", "ResNet18"), 0, {})
    monkeypatch.chdir("/")
    data = find_images(trial.data_source)
    assert data.fingerprint == prepared.opening_event.data.fingerprint
    assert sum(map(len, data.splits.values())) == 80


def test_a_space_for_sgd_is_not_searched_with_adamw(prepare):
    recipe = {"recipe": "transformer"}
    with pytest.raises(UserError, match="too large for adamw: fix it, as with --setting lr=0.001"):
        prepare(top_level=recipe)
    prepared = prepare(top_level=recipe, lr=0.001)
    config = prepared.configure_trial(("at", "MultiBranchNet"), 0, first_settings(prepared))
    assert (config.optimizer, config.lr) == ("adamw", 0.001)


def test_a_trial_has_the_recipe_of_its_cell_below_its_space_and_the_settings(prepare):
    prepared = prepare(top_level={"recipe": "seed,strong"}, label_smoothing=0.3)
    cells = [("at", "MultiBranchNet@seed"), ("at", "MultiBranchNet@strong")]
    assert prepared.sweep.cells() == cells
    seed, strong = (prepared.configure_trial(cell, 0, first_settings(prepared)) for cell in cells)
    assert (seed.model, seed.recipe, seed.nesterov) == ("MultiBranchNet", "seed", False)
    assert (strong.model, strong.recipe, strong.nesterov) == ("MultiBranchNet", "strong", True)
    assert strong.augment == "trivialaugment" and strong.augment_views == 2  # one for each epoch
    assert seed.lr == strong.lr == 0.02  # where the space starts
    assert seed.label_smoothing == strong.label_smoothing == 0.3
    assert seed.seed != strong.seed
    assert list(prepared.example_configs()) == [model for _, model in cells]
    assert measure_proposal_seconds(prepared, 1) > 0
