"""Behaviour on a GPU; `python -m pytest -m gpu tests/test_gpu.py` takes minutes.

The parts that import Ray are skipped where it is missing.
"""

import copy
import json
import subprocess
import sys
import textwrap
import warnings
from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdtune.config.train import TrainConfig
from kdtune.data.batches import Batches
from kdtune.data.transforms import augment_images
from kdtune.methods import METHODS
from kdtune.models import build_model, probe_stage_shapes
from kdtune.models.on_device import DeviceModel
from kdtune.storage.array_cache import ArrayCache
from kdtune.training.cuda_graph import CudaGraphRecorder, GraphedStep, use_stream
from kdtune.training.ema import ModelEma
from kdtune.training.epoch import evaluate, train_epoch
from kdtune.training.loop import build_method_for_models, build_student, fit
from kdtune.training.optimizer import build_optimizer
from kdtune.training.step import TrainingStep
from kdtune.training.teacher_targets import TeacherTargets

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
MODELS = ("MultiBranchNet", "ResNet18")


def make_config(method, model="MultiBranchNet", device=GPU, **settings):
    weights = {"alpha": 0.5, "beta": 0.0 if method == "student" else 1.0, "lr": 1e-3}
    shape = {"image_size": 32, "batch_size": 16, "precision": "float32", "seed": 1}
    settings = {"model": model, "device": str(device), **weights, **shape, **settings}
    return TrainConfig.parse({"method": method, **settings})


@pytest.fixture
def deterministic(monkeypatch):
    """Use algorithms that add in a fixed order, so that only mistakes make two runs differ."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


@cache
def make_teacher():
    torch.manual_seed(0)
    return build_model("ResNet18", 10, 32).eval().requires_grad_(False)


def make_step(config, device, graph=False):
    network = build_student(config, 10)
    method = build_method_for_models(config, network, make_teacher()).to(device)
    student = DeviceModel(network, device, config)
    optimizer = build_optimizer(config, [*network.parameters(), *method.parameters()])
    parts = student, None, method, optimizer
    step = GraphedStep(*parts, CudaGraphRecorder(device)) if graph else TrainingStep(*parts)
    if config.ema_decay:
        step.ema = ModelEma(student.model, config.ema_decay)
    return step


@cache
def make_images(num_images):
    """Noise, and the teacher's outputs for it."""
    generator = torch.Generator().manual_seed(3)
    shape = num_images, 3, 32, 32
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    with torch.no_grad():
        return images, make_teacher()(images.float() / 255)


def make_batches(config, num_images=88, device=GPU, **settings):
    """Noise with targets; the last batch is a smaller one."""
    images, outputs = make_images(num_images)
    method = build_method_for_models(config, build_student(config, 10), make_teacher())
    with torch.no_grad():
        targets = method.targets(*outputs)
    arrays = {name: value.numpy() for name, value in targets.items()}
    labels = [i % 10 for i in range(num_images)]
    settings = {"shuffle": True, "targets": arrays, "device": device, **settings}
    return Batches(images.numpy(), labels, config.batch_size, **settings)


def all_numbers(step):
    parts = [step.student.model, step.method, *([step.ema.model] if step.ema else [])]
    return torch.cat(
        [v.detach().double().cpu().flatten() for p in parts for v in p.state_dict().values()]
    )


def all_parameters(step):
    parameters = [*step.student.model.parameters(), *step.method.parameters()]
    return torch.cat([value.detach().double().cpu().flatten() for value in parameters])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_computes_what_a_cpu_computes(method, model):
    config = make_config(method, model)
    found = {}
    for device in (CPU, GPU):
        step = make_step(config, device)
        start = all_parameters(step)
        torch.manual_seed(5)
        metrics = train_epoch(step, make_batches(config, 64, device))
        found[device] = metrics, all_parameters(step) - start
    (on_cpu, moved), (on_gpu, moved_on_gpu) = found[CPU], found[GPU]
    assert (moved_on_gpu - moved).norm() < 1e-2 * moved.norm()
    accuracies = [metrics.pop("accuracy") for metrics in (on_cpu, on_gpu)]
    assert abs(accuracies[0] - accuracies[1]) < 1.5 / 64
    assert on_gpu == pytest.approx(on_cpu, rel=1e-3, abs=1e-5)


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0), reason="needs TF32"
)
@pytest.mark.parametrize(
    ("precision", "is_rough"),
    [("float32", [False, False]), ("tf32", [True, True]), ("bf16", [True, False])],
)
def test_float32_is_ieee_or_tf32_as_the_precision_says(precision, is_rough):
    """Compare convolutions and matrix products; TF32 rounds to one part in 2,048."""
    DeviceModel(build_model("MultiBranchNet", 10, 32), GPU, make_config("kd", precision=precision))
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(64, 64, 16, 16, generator=generator)
    weights = torch.randn(64, 64, 3, 3, generator=generator)
    matrix = torch.randn(512, 512, generator=generator)
    errors = []
    for function, values in ((F.conv2d, (images, weights)), (torch.mm, (matrix, matrix))):
        exact = function(*(value.double() for value in values))
        found = function(*(value.to(GPU) for value in values)).cpu()
        errors.append(float((found - exact).norm() / exact.norm()))
    assert [error > 2e-5 for error in errors] == is_rough, errors


@pytest.mark.parametrize("batch_size", [64, 256])
def test_the_teachers_targets_are_those_of_a_cpu(tmp_path, monkeypatch, batch_size):
    monkeypatch.setattr("kdtune.training.teacher_targets.GPU_BATCH_SIZE", batch_size)
    pixels = np.random.default_rng(0).integers(0, 256, (300, 3, 32, 32), dtype=np.uint8)
    found = []
    for device in (CPU, GPU):
        config = make_config("fitnets", device=device)
        targets = TeacherTargets(copy.deepcopy(make_teacher()), 32)
        targets.request(config, probe_stage_shapes(build_student(config, 10), 32))
        cache = ArrayCache(tmp_path / device.type)
        found.append(targets.load_or_compute(cache, pixels, {"kind": "x"}, "images", config))
    on_cpu, on_gpu = found
    assert on_cpu.keys() == on_gpu.keys() and len(on_cpu) == 2
    for name, value in on_cpu.items():
        assert on_gpu[name].dtype == value.dtype
        assert np.allclose(on_gpu[name], value, rtol=2e-3, atol=1e-4 * abs(value).max())


STRONG = {
    "optimizer": "adamw", "gradient_clip_val": 0.5, "label_smoothing": 0.1, "ema_decay": 0.9,
}  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", ["at", "fitnets", "student"])
def test_the_same_seed_gives_the_same_numbers_to_the_last_bit(method, model):
    """With the algorithms that runs use: if this fails, docs must not promise it for GPUs."""
    config = make_config(method, model, precision="bf16")
    found = []
    for _ in range(2):
        step = make_step(config, GPU, graph=True)
        torch.manual_seed(5)
        metrics = train_epoch(step, make_batches(config))
        found.append((metrics, all_numbers(step)))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("settings", [{"precision": p} for p in ("float32", "bf16", "float16")])
@pytest.mark.parametrize("method", METHODS)
def test_replaying_a_graph_is_the_loop_to_the_last_bit(method, model, settings):
    config = make_config(method, model, **settings)
    batches, found = make_batches(config), []
    for graph in (False, True, True):
        step = make_step(config, GPU, graph)
        torch.manual_seed(5)
        with warnings.catch_warnings(action="error"):  # a graph that cannot be recorded warns
            metrics = [train_epoch(step, batches) for _ in range(2)]
        found.append((metrics, all_numbers(step)))
    eager, first, again = found
    assert first[0] == again[0] and torch.equal(first[1], again[1]), "two runs of the same differ"
    assert first[0] == eager[0] and torch.equal(first[1], eager[1])


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("precision", ["float32", "bf16", "float16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_replaying_a_strong_recipe_is_the_loop_to_the_last_bit(optimizer, precision):
    settings = STRONG | {"optimizer": optimizer, "precision": precision}
    test_replaying_a_graph_is_the_loop_to_the_last_bit("at", "MultiBranchNet", settings)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("settings", [{}, STRONG], ids=["seed", "strong"])
def test_no_step_waits_for_the_gpu(method, settings):
    config = make_config(method, **{"precision": "bf16", **settings})
    for graph in (False, True):
        step, batches = make_step(config, GPU, graph), iter(make_batches(config, 160))
        step.start_epoch()
        with use_stream(step.stream):
            for _ in range(3):
                step(*next(batches))
            torch.cuda.synchronize()
            try:
                with warnings.catch_warnings(action="ignore"):  # that it is a prototype
                    torch.cuda.set_sync_debug_mode("error")
                for _ in range(5):
                    step(*next(batches))
            finally:
                torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("method", ["student", "at", "fitnets", "vid"])
def test_a_run_that_resumes_ends_with_the_same_losses(method, tmp_path):
    config = make_config(method, epochs=3, precision="bf16")

    def train(resume=None):
        batches = make_batches(config)
        return fit(config, batches, None, num_classes=10, teacher=make_teacher(), resume=resume)

    whole = [result.train_loss for result in train()]
    torch.save(next(train()).state, tmp_path / "state.pth")
    state = torch.load(tmp_path / "state.pth", weights_only=True, map_location="cpu")
    assert [result.train_loss for result in train(state)] == whole[1:]


@pytest.mark.usefixtures("deterministic")
def test_batches_that_are_copied_ahead_are_those_that_are_on_the_gpu(monkeypatch):
    config = make_config("at")
    found = []
    for fits in (True, False):
        if not fits:
            monkeypatch.setattr("kdtune.data.batches.gpu_memory_share", lambda device: 0.0)
        torch.manual_seed(5)
        batches = make_batches(config, 600)
        assert (batches._pixels.device.type == "cuda") == fits
        step = make_step(config, GPU, graph=True)
        for _ in range(31):  # streams are handed out in turns: the next usual one is the step's
            torch.cuda.Stream(GPU)
        found.append((train_epoch(step, batches), all_numbers(step)))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])


def test_augmented_images_are_those_of_a_cpu():
    config = make_config("student")
    batches = make_batches(
        config, targets=None, shuffle=False, augment="standard", augment_seed=70
    )
    pixels = torch.cat([images.cpu() for images, _, _ in batches])
    expected = augment_images(torch.from_numpy(np.asarray(batches.pixels)), range(70, 158))
    assert torch.equal(pixels, expected)


def test_an_accuracy_is_that_of_a_cpu_within_one_image():
    config = make_config("student", lr=0.05, epochs=3)
    (*_, result) = fit(config, make_batches(config), None, num_classes=10)
    model = copy.deepcopy(result.student)
    measured = [
        evaluate(
            copy.deepcopy(model),
            make_batches(config, device=device, shuffle=False),
            make_config("student", device=device),
        )["accuracy"]
        for device in (CPU, GPU)
    ]
    assert abs(measured[0] - measured[1]) <= 1 / 88


def run_python(code, timeout=120):
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def test_a_process_that_takes_too_much_fails_and_not_its_neighbour():
    ended = run_python(
        """
        import torch
        from kdtune.runtime.device import limit_gpu_memory
        limit_gpu_memory(0.1)
        total = torch.cuda.mem_get_info()[1]
        torch.empty(int(0.05 * total), dtype=torch.uint8, device="cuda")
        try:
            torch.empty(int(0.2 * total), dtype=torch.uint8, device="cuda")
        except torch.OutOfMemoryError:
            print("out of memory")
        """
    )
    assert ended.stdout.strip() == "out of memory", ended.stderr
    assert torch.ones(1000, device=GPU).sum().item() == 1000


def test_a_lost_gpu_is_noticed_and_other_processes_keep_theirs():
    ended = run_python(
        """
        import torch
        from kdtune.runtime.device import is_gpu_lost
        print(is_gpu_lost())
        values = torch.zeros(4, device="cuda")
        print(is_gpu_lost())
        try:
            values[torch.tensor([10_000_000], device="cuda")].sum().item()
        except RuntimeError:
            print(is_gpu_lost())
        """
    )
    assert ended.stdout.split() == ["False", "False", "True"], ended.stderr
    assert torch.ones(1000, device=GPU).sum().item() == 1000


@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray")
def test_two_trials_share_a_gpu(folder, teacher_file, tmp_path):
    sweep = (
        f"{sys.executable} -m kdtune sweep --data {folder} --teacher {teacher_file} --name shared "
        "--methods at,fitnets --models MultiBranchNet --no-baselines --epochs 3 --grace-period 1 "
        "--trials 2 --gpus-per-trial 0.5 --cpus-per-trial 1 --setting batch_size=16"
    )
    ended = subprocess.run(sweep.split(), cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    log = (tmp_path / "results" / "shared" / "log.jsonl").read_text().splitlines()
    devices = {event["device"] for event in map(json.loads, log) if "device" in event}
    assert len(devices) == 1 and torch.cuda.get_device_name() in devices.pop()
