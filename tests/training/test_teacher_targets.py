"""The teacher's targets: one pass for all, exact enough, and new when anything changes."""

import copy
import math
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_runs import IMAGE_SIZE, small_config

from kdtune.data.decoding import decode_images
from kdtune.data.folders import find_images
from kdtune.data.transforms import normalise
from kdtune.methods import METHODS, build_method
from kdtune.methods.method import Method
from kdtune.models import build_model, probe_stage_shapes
from kdtune.storage.array_cache import ArrayCache, CacheState
from kdtune.training import teacher_targets as targets_module
from kdtune.training.loop import build_student
from kdtune.training.teacher import load_teacher
from kdtune.training.teacher_targets import (
    MAX_ROUNDING_ERROR,
    TeacherTargets,
    _max_relative_error,
    library_versions,
    model_sha256,
)

TAUGHT = [name for name in METHODS if METHODS[name].uses_teacher]
ROUNDING = 2.0**-11
"""Of float16, relative."""


@pytest.fixture(scope="module")
def pixels(folder):
    return decode_images(find_images(str(folder)).train, IMAGE_SIZE)


@pytest.fixture
def teacher(teacher_file):
    return load_teacher(teacher_file)


def opened(folder, teacher, pixels, place, methods=TAUGHT, facts=None, **settings):
    """Targets of some methods, as another process would open them; and what was told."""
    lesson, told = TeacherTargets(teacher, IMAGE_SIZE), []
    for method in methods:
        config = small_config(folder, method=method, **settings)
        lesson.request(
            config, probe_stage_shapes(build_model(config.model, 10, IMAGE_SIZE), IMAGE_SIZE)
        )
    facts = facts or {"kind": "pixels", "made_by": 1}
    return lesson.load_or_compute(
        ArrayCache(place), pixels, facts, "images", config, told.append
    ), told


def live(folder, teacher, pixels, method, **settings):
    """Compute targets with a live teacher, in float32 and in one batch."""
    config = small_config(folder, method=method, **settings)
    student = probe_stage_shapes(build_model(config.model, 10, IMAGE_SIZE), IMAGE_SIZE)
    method = build_method(config, student, probe_stage_shapes(teacher, IMAGE_SIZE))
    with torch.no_grad():
        return method, method.targets(*teacher(normalise(torch.from_numpy(pixels))))


@pytest.mark.parametrize("method", TAUGHT)
def test_kept_targets_are_the_live_ones(folder, teacher, pixels, tmp_path, method):
    kept, _ = opened(folder, teacher, pixels, tmp_path, [method], precision="float32")
    built, expected = live(folder, teacher, pixels, method)
    assert kept.keys() == expected.keys()
    for name, value in expected.items():
        rounding = ROUNDING if name in built.float16_targets else 1e-5
        error = (torch.from_numpy(kept[name]).float() - value).abs()
        assert (error <= rounding * value.abs() + 1e-5 * value.abs().max()).all()


@pytest.mark.parametrize("method", TAUGHT)
def test_the_loss_does_not_feel_float16(folder, teacher, pixels, teacher_file, method):
    """Gradients of a student, fresh and half-trained, move by less than a thousandth."""
    images = normalise(torch.from_numpy(pixels))
    labels = torch.tensor(find_images(str(folder)).train.labels)
    fresh = build_student(small_config(folder, seed=1), 10)
    learned = load_teacher(teacher_file).requires_grad_(True)
    with torch.no_grad():  # as far from the teacher as a good student ends up
        for parameter in learned.parameters():
            parameter += 0.2 * parameter.std(correction=0) * torch.randn_like(parameter)
    for student in (fresh, learned):
        built, exact = live(folder, teacher, pixels, method, alpha=1.0, beta=100.0)
        rounded = {
            k: v.half().float() if k in built.float16_targets else v for k, v in exact.items()
        }
        gradients = []
        for targets in (exact, rounded):
            student.zero_grad()
            built(*student.train()(images), targets, labels)["loss"].backward()
            gradients.append(torch.cat([p.grad.flatten() for p in student.parameters()]))
        assert (gradients[1] - gradients[0]).norm() <= 1e-3 * gradients[0].norm()


def test_one_pass_of_the_teacher_serves_all_methods(folder, teacher, pixels, tmp_path):
    seen = []
    teacher.stem.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    kept, told = opened(folder, teacher, pixels, tmp_path, precision="float32")
    assert sum(seen) == len(pixels) + 2  # a batch of 2 finds shapes
    assert [event.state for event in told] == [CacheState.BUILDING, CacheState.BUILT]
    assert told[1].num_bytes == sum(array.nbytes for array in kept.values())
    seen.clear()
    for methods in (TAUGHT, TAUGHT[:1]):
        assert opened(folder, teacher, pixels, tmp_path, methods)[1][0].state is CacheState.CACHED
    assert max(seen) <= 2


def test_a_target_that_is_missing_is_added(folder, teacher, pixels, tmp_path):
    opened(folder, teacher, pixels, tmp_path, ["at"], precision="float32")
    before = {entry.folder for entry in ArrayCache(tmp_path).list_entries()}
    kept, told = opened(folder, teacher, pixels, tmp_path, ["at", "fitnets"], precision="float32")
    assert told[-1].state is CacheState.BUILT
    after = {entry.folder for entry in ArrayCache(tmp_path).list_entries()}
    assert before < after and len(after - before) == 1
    assert any(name.startswith("hint") for name in kept)


def test_everything_that_makes_targets_is_in_their_key(
    folder, teacher, pixels, tmp_path, monkeypatch
):
    def state(teacher=teacher, **given):
        told = opened(folder, teacher, pixels, tmp_path, ["kd"], **given)[1]
        return told[-1].state

    assert [state(precision="float32") for _ in range(2)] == [CacheState.BUILT, CacheState.CACHED]
    assert state(precision="bf16") is CacheState.BUILT
    assert state(precision="tf32") is CacheState.BUILT
    assert state(precision="float32", facts={"kind": "pixels", "made_by": 2}) is CacheState.BUILT
    other = copy.deepcopy(teacher)
    other.state_dict()["stem.1.running_mean"][0] += 1e-3
    assert state(teacher=other, precision="float32") is CacheState.BUILT
    monkeypatch.setattr(targets_module, "version", lambda name: f"another {name}")
    assert state(precision="float32") is CacheState.BUILT


def test_a_changed_method_makes_new_targets_but_for_the_logits(
    folder, teacher, pixels, tmp_path, monkeypatch
):
    opened(folder, teacher, pixels, tmp_path, ["at"])
    before = len(ArrayCache(tmp_path).list_entries())
    of_files = targets_module.source_sha256
    monkeypatch.setattr(
        targets_module,
        "source_sha256",
        lambda classes: "edited" if Method in classes else of_files(classes),
    )
    kept, told = opened(folder, teacher, pixels, tmp_path, ["at"])
    assert told[-1].state is CacheState.BUILT
    assert len(ArrayCache(tmp_path).list_entries()) == before + len(kept) - 1


def test_of_a_teacher_of_a_library_its_version_counts():
    assert library_versions(build_model("MultiBranchNet", 10, 64)).keys() == {"torchvision"}
    pytest.importorskip("timm")
    assert "timm" in library_versions(build_model("timm:resnet18", 10, 64))


def test_numbers_do_not_depend_on_the_cores(folder, teacher, pixels, tmp_path, monkeypatch):
    found = []
    for cores in (1, 3):
        monkeypatch.setattr(targets_module, "limit_workers", lambda n=cores: n)
        found.append(opened(folder, teacher, pixels, tmp_path / str(cores))[0])
    assert all((found[0][name] == found[1][name]).all() for name in found[0])


def test_what_float16_cannot_hold_is_kept_in_float32(folder, teacher, pixels, tmp_path):
    with torch.no_grad():
        for norm in (m for m in teacher.stages[-1].modules() if hasattr(m, "running_var")):
            norm.weight *= 1e4
    kept, _ = opened(folder, teacher, pixels, tmp_path, precision="float32")
    types = {name.split("_")[0]: array.dtype.name for name, array in kept.items()}
    assert types == dict.fromkeys(("logits", "attention", "hint", "embedding"), "float32")
    _, expected = live(folder, teacher, pixels, "fitnets")
    [hint] = [name for name in expected if name.startswith("hint")]
    assert expected[hint].max() > 65504
    error = (torch.from_numpy(kept[hint]) - expected[hint]).abs().max()
    assert error <= 1e-4 * expected[hint].max()


def test_bf16_is_used_only_within_the_tolerance(folder, teacher, pixels, tmp_path, monkeypatch):
    exact, _ = opened(folder, teacher, pixels, tmp_path / "a", precision="float32")
    fast, _ = opened(folder, teacher, pixels, tmp_path / "b", precision="bf16")
    exact, fast = ({k: torch.tensor(v).float() for k, v in x.items()} for x in (exact, fast))
    error = _max_relative_error(list(fast.values()), list(exact.values()))
    assert 1e-4 < error <= MAX_ROUNDING_ERROR
    monkeypatch.setattr(targets_module, "MAX_ROUNDING_ERROR", 0.0)
    careful, _ = opened(folder, teacher, pixels, tmp_path / "c", precision="bf16")
    assert all(torch.equal(torch.tensor(v).float(), exact[k]) for k, v in careful.items())


def test_the_teacher_and_the_number_of_threads_stay_as_they_are(folder, teacher, pixels, tmp_path):
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    torch.set_num_threads(2)
    opened(folder, teacher, pixels, tmp_path)
    assert torch.get_num_threads() == 2
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_relative_error_by_hand():
    exact = [torch.tensor([3.0, 4.0]), torch.tensor([1.0]), torch.zeros(2)]
    found = [torch.tensor([3.0, 4.5]), torch.tensor([1.05]), torch.zeros(2)]
    assert _max_relative_error(found, exact) == pytest.approx(0.1)
    for broken in (math.inf, math.nan):  # whichever output it is
        for wrong in range(3):
            values = [torch.full_like(x, broken) if i == wrong else x for i, x in enumerate(found)]
            assert not _max_relative_error(values, exact) <= 1


class StandIn:
    """CUDA whose copies to the CPU are NaN until they are waited for."""

    def __init__(self):
        self.num_batches, self.newest = 0, {}

    def start_copy(self, target, source):
        target.fill_(math.nan)
        self.newest[target.data_ptr()] = target, source

    def Stream(self, device, priority=0):
        return self

    current_stream = Stream

    def stream(self, stream):
        return nullcontext()

    def wait_stream(self, other):
        self.num_batches += 1

    def record_event(self):
        started = dict(self.newest)

        def synchronize():
            for place, (target, source) in started.items():
                if self.newest[place][1] is source:  # else a later copy goes to the same place
                    torch.add(source, 0, out=target)

        return SimpleNamespace(synchronize=synchronize)

    def is_available(self):
        return False


@pytest.fixture
def stand_in(monkeypatch):
    cuda, copy, empty = StandIn(), torch.Tensor.copy_, torch.empty

    def copy_later(target, source, non_blocking=False):
        if not non_blocking:
            return copy(target, source)
        cuda.start_copy(target, source)
        return target

    def allocate(*shape, pin_memory=False, **settings):
        return empty(*shape, **settings)

    monkeypatch.setattr("kdtune.runtime.device.cuda", cuda)
    monkeypatch.setattr("kdtune.runtime.device.torch.empty", allocate)
    monkeypatch.setattr(torch.Tensor, "copy_", copy_later)
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(targets_module, "is_gpu", lambda device: True)
    return cuda


def count_batches(teacher):
    sizes = []
    teacher.stem.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    return sizes


@pytest.mark.parametrize("batch_size", [32, 256])
def test_a_gpu_computes_the_same_in_larger_batches(
    folder, teacher, pixels, tmp_path, monkeypatch, stand_in, batch_size
):
    monkeypatch.setattr(targets_module, "GPU_BATCH_SIZE", batch_size)
    sizes = count_batches(teacher)
    kept, _ = opened(folder, teacher, pixels, tmp_path / "gpu", precision="float32")
    assert max(sizes) == min(batch_size, len(pixels)) and stand_in.num_batches == len(sizes) - 1
    monkeypatch.setattr(targets_module, "is_gpu", lambda device: False)
    expected, _ = opened(folder, teacher, pixels, tmp_path / "cpu", precision="float32")
    assert kept.keys() == expected.keys()
    for name, value in expected.items():
        assert kept[name].dtype == value.dtype
        assert np.allclose(kept[name], value, rtol=2 * ROUNDING, atol=1e-6 * abs(value).max())


def test_what_overflows_on_a_gpu_is_kept_in_float32(folder, teacher, pixels, tmp_path, stand_in):
    with torch.no_grad():
        for norm in (m for m in teacher.stages[-1].modules() if hasattr(m, "running_var")):
            norm.weight *= 1e4
    kept, _ = opened(folder, teacher, pixels, tmp_path, ["fitnets"], precision="float32")
    [hint] = [array for name, array in kept.items() if name.startswith("hint")]
    assert hint.dtype == np.float32 and 65504 < hint.max() < math.inf


@pytest.mark.parametrize("most", [40, 20])
def test_a_gpu_with_little_memory_computes_smaller_batches(
    folder, teacher, pixels, tmp_path, monkeypatch, stand_in, most
):
    def refuse(module, inputs):
        if len(inputs[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(targets_module, "GPU_BATCH_SIZE", 128)
    monkeypatch.setattr(targets_module, "TEACHER_BATCH_SIZE", 32)
    sizes = count_batches(teacher)
    teacher.stem.register_forward_pre_hook(refuse)
    if most == 20:
        with pytest.raises(torch.OutOfMemoryError):
            opened(folder, teacher, pixels, tmp_path, ["kd"], precision="float32")
    else:
        kept, _ = opened(folder, teacher, pixels, tmp_path, ["kd"], precision="float32")
        assert max(sizes) == 32 and np.isfinite(kept["logits"]).all()


def test_a_hash_is_that_of_the_weights_wherever_they_lie(teacher):
    before = model_sha256(teacher)
    assert model_sha256(copy.deepcopy(teacher).to(memory_format=torch.channels_last)) == before
    for key in ("stem.0.weight", "stem.1.running_var"):
        other = copy.deepcopy(teacher)
        other.state_dict()[key].view(-1)[0] += 1
        assert model_sha256(other) != before


def test_targets_are_computed_where_the_teacher_is(folder, teacher, pixels, tmp_path, monkeypatch):
    """The device ``meta`` stands for a GPU: it refuses what lies elsewhere, and the copy back."""

    class OwnLayer(METHODS["kd"]):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.register_buffer("shift", torch.ones(1))

        def targets(self, logits, features):
            seen.add((logits.device.type, self.shift.device.type))
            return super().targets(logits, features)

    seen = set()
    monkeypatch.setattr("torch.autocast", lambda *args, **settings: nullcontext())  # unknown to it
    monkeypatch.setitem(METHODS, "kd", OwnLayer)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        opened(folder, teacher, pixels, tmp_path, ["kd"], device="meta", precision="float32")
    assert seen == {("cpu", "cpu"), ("meta", "meta")}
