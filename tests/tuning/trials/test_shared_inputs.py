"""Place and resources of the first epoch's build, with stand-ins for tasks of Ray and for GPUs."""

import os
from types import SimpleNamespace

import pytest
from ray.exceptions import RayError
from small_runs import IMAGE_SIZE, small_config
from sweep_harness import sweep_config

from kdtune.data.folders import find_images
from kdtune.errors import RunError, UserError
from kdtune.models.checkpoints import read_checkpoint, write_checkpoint
from kdtune.training.teacher import load_teacher
from kdtune.tuning.cluster.placement import Node, ResourceRequest, Slots
from kdtune.tuning.planning.training_worker import TrainingWorker
from kdtune.tuning.trials import shared_inputs
from kdtune.tuning.trials.shared_inputs import SharedInputs
from kdtune.tuning.trials.trial_process import ProcessMemory

MODEL = "MultiBranchNet"
HERE, THERE = "a" * 56, "b" * 56  # Ray's ids of nodes


@pytest.fixture
def tasks(monkeypatch):
    """The options of each task of Ray, which runs in this process, and the GPUs that it saw."""
    submitted, assigned = [], []

    def remote(**options):
        def submit(function, *arguments):
            assigned[:] = ["0"] if options["num_gpus"] else []
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
            result = function(*arguments)
            node = options["scheduling_strategy"].node_id
            gpus = os.environ["CUDA_VISIBLE_DEVICES"]
            submitted.append((node, options["num_cpus"], options["num_gpus"], gpus))
            return result

        return lambda function: SimpleNamespace(remote=lambda *given: submit(function, *given))

    context = SimpleNamespace(
        get_node_id=lambda: HERE, get_accelerator_ids=lambda: {"GPU": assigned}
    )
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    monkeypatch.setattr("ray.remote", remote)
    monkeypatch.setattr("ray.get", lambda result: result)
    return submitted


@pytest.mark.parametrize(
    ("gpus_per_trial", "nodes", "driver_has_gpu", "expected"),
    [
        (0.0, [Node(HERE, 4)], False, []),
        (0.0, [Node(THERE, 4)], False, [(THERE, 1, 0.0, "")]),
        # The head has CPUs, but trials need GPUs, which workers have.
        (0.5, [Node(HERE, 4), Node(THERE, 4, 1)], False, [(THERE, 2, 0.5, "0")]),
        # Trials look for targets that their device computed, and the driver's is another one.
        (0.0, [Node(HERE, 4, 1)], True, [(HERE, 1, 0.0, "")]),
        # The driver takes no memory of a GPU.
        (1.0, [Node(HERE, 4, 1)], True, [(HERE, 4, 1.0, "0")]),
    ],
)
def test_inputs_are_built_where_and_with_what_trials_have(
    folder, tmp_path, monkeypatch, tasks, gpus_per_trial, nodes, driver_has_gpu, expected
):
    monkeypatch.setenv("KDTUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(shared_inputs, "has_gpu", lambda: driver_has_gpu)
    sweep = sweep_config(data=str(folder), models=MODEL, methods="student", image_size=IMAGE_SIZE)
    inputs, said = SharedInputs(sweep, find_images(str(folder)), None), []
    inputs.register_runs(MODEL, [small_config(folder, method="student")])
    inputs.plan_cache()
    slots = Slots({MODEL: ResourceRequest(gpus=gpus_per_trial)}, lambda: nodes)
    built = inputs.warm_cache(slots, said.append)
    assert tasks == expected
    assert [array.state for array in built] == ["built", "built"]
    assert any("built with the resources of a trial" in line for line in said) == bool(expected)


def test_a_node_that_is_lost_while_it_builds_is_replaced_by_another(
    folder, tmp_path, monkeypatch, tasks
):
    monkeypatch.setenv("KDTUNE_CACHE", str(tmp_path))
    sweep = sweep_config(data=str(folder), models=MODEL, methods="student", image_size=IMAGE_SIZE)
    inputs, said = SharedInputs(sweep, find_images(str(folder)), None), []
    inputs.register_runs(MODEL, [small_config(folder, method="student")])
    inputs.plan_cache()
    names = [letter * 56 for letter in "bcd"]
    lost = set(names[:2])

    def get(result):
        if tasks[-1][0] in lost:
            raise RayError("the node died")
        return result

    monkeypatch.setattr("ray.get", get)
    monkeypatch.setattr(shared_inputs, "is_node_lost", lost.__contains__)
    slots = Slots({MODEL: ResourceRequest()}, lambda: [Node(name, 4) for name in names])
    inputs.warm_cache(slots, said.append)
    assert [node for node, *_ in tasks] == names
    assert sum("another one builds them" in line for line in said) == 2
    del names[2]
    with pytest.raises(RunError, match="No node has room"):
        inputs.warm_cache(slots, said.append)


def test_images_that_do_not_fit_are_refused_with_views_and_targets(folder, teacher_file):
    sweep = sweep_config(
        data=str(folder), models=MODEL, methods="kd", image_size=IMAGE_SIZE, cache_gb=1e-9
    )
    inputs = SharedInputs(sweep, find_images(str(folder)), load_teacher(teacher_file))
    inputs.register_runs(MODEL, [small_config(folder, method="kd", augment=True)])
    with pytest.raises(UserError, match="for a view of augmented ones and 0.0 MB for the teacher"):
        inputs.plan_cache()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mix": "cutmix"}, "Mixed images need their views in the cache, which has room for none"),
        ({"drop_rate": 0.1}, "MultiBranchNet has no drop_rate"),
    ],
)
def test_what_trials_could_not_do_is_refused_before_them(folder, settings, sentence):
    sweep = sweep_config(
        data=str(folder), models=MODEL, methods="student", image_size=IMAGE_SIZE, cache_gb=0
    )
    inputs = SharedInputs(sweep, find_images(str(folder)), None)
    with pytest.raises(UserError, match=sentence):
        inputs.register_runs(MODEL, [small_config(folder, method="student", **settings)])
        inputs.plan_cache()


def test_each_augmentation_and_mixing_has_a_first_view(folder, tmp_path, monkeypatch, tasks):
    monkeypatch.setenv("KDTUNE_CACHE", str(tmp_path))
    sweep = sweep_config(data=str(folder), models=MODEL, methods="student", image_size=IMAGE_SIZE)
    inputs, said = SharedInputs(sweep, find_images(str(folder)), None), []
    runs = [{"augment": True}, {"augment": "crop_flip"}, {"mix": "mixup"}, {"batch_size": 137}]
    inputs.register_runs(MODEL, [small_config(folder, method="student", **run) for run in runs])
    inputs.plan_cache()
    built = inputs.warm_cache(
        Slots({MODEL: ResourceRequest()}, lambda: [Node(HERE, 4)]), said.append
    )
    labels = [array.label.partition(", view 1, ")[2] for array in built]
    assert sorted(labels) == ["", "", "crop_flip", "mixup", "standard"]
    assert "each epoch leaves out 3 of 140 training images" in said[0]


def check_of_teacher(
    folder, tmp_path, monkeypatch, teacher_file, weight=None, node=HERE, kd_runs=({},)
):
    """Build the first epoch of a sweep with a teacher, and return what was checked and said."""
    monkeypatch.setenv("KDTUNE_CACHE", str(tmp_path))
    content = read_checkpoint(teacher_file)
    if weight is not None:
        content["weights"]["stem.0.weight"][0, 0, 0, 0] = weight
    write_checkpoint(tmp_path / "t.pth", content)
    path, model = str(tmp_path / "t.pth"), "MultiBranchNet"
    sweep = sweep_config(
        data=str(folder), models=model, methods="kd,student", image_size=IMAGE_SIZE, teacher=path
    )
    inputs, said = SharedInputs(sweep, find_images(str(folder)), load_teacher(path)), []
    runs = [{"method": "kd", "teacher_model": path, **run} for run in kd_runs]
    runs.append({"method": "student", **kd_runs[-1]})
    inputs.register_runs(model, [small_config(folder, **run) for run in runs])
    inputs.plan_cache()
    slots = Slots({model: ResourceRequest()}, lambda: [Node(node, 4)])
    inputs.warm_cache(slots, said.append, check_teacher=True)
    return inputs.teacher_check


@pytest.mark.parametrize("node", [HERE, THERE])
def test_a_teachers_accuracy_is_measured_where_its_targets_are(
    folder, tmp_path, monkeypatch, tasks, teacher_file, node
):
    check = check_of_teacher(folder, tmp_path, monkeypatch, teacher_file, node=node)
    recorded = read_checkpoint(teacher_file)["validation_accuracy"]
    assert check.validation_accuracy == pytest.approx(recorded)
    assert recorded - 0.3 < check.train_accuracy <= 1


def test_a_teachers_accuracy_on_training_images_is_not_that_on_changed_ones(
    folder, tmp_path, monkeypatch, tasks, teacher_file
):
    def accuracy(*kd_runs):
        given = folder, tmp_path, monkeypatch, teacher_file
        return check_of_teacher(*given, kd_runs=kd_runs).train_accuracy

    changed = {"mix": "mixup"}, {"augment": "crop_flip"}
    assert accuracy({}, *changed) == accuracy(*changed, {}) == accuracy({})
    assert accuracy(*changed) is None


@pytest.mark.parametrize("changes", [{}, {"mix": "mixup"}])
@pytest.mark.parametrize("node", [HERE, THERE])
def test_a_teacher_that_gives_nan_is_refused_before_the_first_trial(
    folder, tmp_path, monkeypatch, tasks, teacher_file, node, changes
):
    given = folder, tmp_path, monkeypatch, teacher_file, float("nan"), node, [changes]
    with pytest.raises(
        UserError, match=r"t.pth gives values .* \(for (\d+) of \1 images\): train"
    ):
        check_of_teacher(*given)


def test_a_process_that_measures_trials_sees_no_gpu_that_they_do_not_have(monkeypatch, tasks):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    TrainingWorker([], ProcessMemory())
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
