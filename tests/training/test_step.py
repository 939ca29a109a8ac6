"""Training steps: the host never waits for the device, kernels are counted, sums are right."""

import pytest
import torch
from kernel_counter import HostCallError, KernelCounter
from small_runs import small_config
from torch import nn
from torch._subclasses import FakeTensorMode

from kdtune.data.batches import Batches
from kdtune.errors import UserError
from kdtune.methods import METHODS
from kdtune.models import build_model
from kdtune.models.on_device import DeviceModel
from kdtune.training.ema import ModelEma
from kdtune.training.loop import build_method_for_models, build_student
from kdtune.training.optimizer import build_optimizer
from kdtune.training.step import MetricSums, TrainingStep, compute_parts

CPU = torch.device("cpu")


def make_step(folder, method, model, **settings):
    config = small_config(folder, method=method, model=model, alpha=0.5, lr=0.01, **settings)
    if METHODS[method].uses_teacher:
        config = config.model_copy(update={"beta": 2.0})
    teacher = build_model("ResNet18", 10, 8).eval().requires_grad_(False)
    network = build_student(config, 10)
    method = build_method_for_models(config, network, teacher)
    optimizer = build_optimizer(config, [*network.parameters(), *method.parameters()])
    student = DeviceModel(network, CPU, config)
    return TrainingStep(student, None, method, optimizer), DeviceModel(teacher, CPU, config)


def make_batches(method, teacher, num_images=20, size=4):
    images = torch.randint(0, 256, (num_images, 3, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        targets = method.targets(*teacher(images))
    arrays = {name: value.numpy() for name, value in targets.items()}
    labels = [i % 10 for i in range(num_images)]
    return Batches(images.numpy(), labels, size, shuffle=True, targets=arrays)


@pytest.mark.parametrize(
    ("method", "model"),
    [*((method, "MultiBranchNet") for method in METHODS), ("at", "ResNet18"), ("at", "ResNet50")],
)
def test_no_step_of_an_epoch_reads_a_number_or_sends_one(folder, method, model):
    """Neither gathering its batch, nor the step itself, nor the sums of its metrics."""
    step, teacher = make_step(folder, method, model)
    batches = iter(make_batches(step.method, teacher))
    step.start_epoch()
    step(*next(batches))  # the first one makes the sums
    with KernelCounter() as counter:
        for _ in range(2):
            step(*next(batches))
    assert 50 < counter.count / 2 < 1500


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_no_step_of_a_strong_recipe_does_either(folder, optimizer):
    settings = {"optimizer": optimizer, "gradient_clip_val": 1.0, "label_smoothing": 0.1}
    step, teacher = make_step(folder, "at", "MultiBranchNet", **settings)
    step.method.class_weights = torch.ones(10)
    step.ema = ModelEma(step.student.model, 0.9)
    batches = iter(make_batches(step.method, teacher))
    step.start_epoch()
    step(*next(batches))
    with KernelCounter():
        step(*next(batches))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.sum().item(),
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: torch.tensor([1.0]) + x,
        lambda x: x.nonzero(),
        lambda x: x[x > 1],
        lambda x: bool((x > 1).any()),
    ],
)
def test_calls_that_make_the_host_wait_are_found(call):
    x = torch.arange(3.0)
    with pytest.raises(HostCallError), KernelCounter():
        call(x)


def test_kernels_are_counted_without_views():
    x = torch.ones(2, 3)
    with KernelCounter() as counter:
        (x.T.reshape(6).view(3, 2)[0] + 1).sum()
    assert counter.count == 3  # a copy of what is not contiguous, an addition, and a sum


@pytest.mark.skipif(
    torch.__version__ < (2, 10), reason="fake tensors of torch 2.9 crash the process"
)
@pytest.mark.parametrize("method", METHODS)
def test_a_step_keeps_to_its_device(folder, method):
    """On a GPU that does not exist; a tensor elsewhere, or a number that is read, is an error."""
    step, teacher = make_step(folder, method, "MultiBranchNet")
    method = step.method
    with FakeTensorMode():
        for module in (step.student.model, method, teacher.model):
            move_to_fake_gpu(module)
        images = torch.empty(4, 3, 8, 8, device="cuda:0")
        labels = torch.empty(4, dtype=torch.int64, device="cuda:0")
        targets = method.targets(*teacher.model(images))
        logits, features = step.student.model(images)
        parts = method(logits, features, targets, labels)
        assert {value.device.type for value in parts.values()} == {"cuda"}


def move_to_fake_gpu(module):
    """Give a module tensors without memory, on a device that is not here."""
    for owner in module.modules():
        parameters = {k: v for k, v in owner._parameters.items() if v is not None}
        buffers = {k: v for k, v in owner._buffers.items() if v is not None}
        for name, value in parameters.items():
            fake = torch.empty(value.shape, dtype=value.dtype, device="cuda:0")
            owner._parameters[name] = nn.Parameter(fake)
        for name, value in buffers.items():
            owner._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device="cuda:0")


def test_sums_by_hand():
    sums = MetricSums()
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    for loss, rows, labels in ((1.0, slice(0, 2), [0, 0]), (4.0, slice(2, 3), [0])):
        parts = {"loss": torch.tensor(loss), "kd": torch.tensor(2 * loss)}
        sums.add(parts, logits[rows], torch.tensor(labels))
    assert sums.means(3) == {"loss": 2.0, "kd": 4.0, "accuracy": pytest.approx(2 / 3)}


def test_parts_that_change_from_batch_to_batch_are_refused():
    sums, logits, labels = MetricSums(), torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)
    sums.add({"loss": torch.zeros(()), "kd": torch.zeros(())}, logits, labels)
    with pytest.raises(UserError, match="were loss, kd, and are now loss, at"):
        sums.add({"loss": torch.zeros(()), "at": torch.zeros(())}, logits, labels)


def test_a_teacher_computes_missing_targets_only(folder):
    step, teacher = make_step(folder, "kd", "MultiBranchNet")
    images, labels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4)
    with torch.no_grad():
        targets = step.method.targets(*teacher(images))
    live, given, other = (
        compute_parts(step.student, teacher, step.method, images, labels, t)[1]["kd"]
        for t in (None, targets, {"logits": 5 * targets["logits"] + torch.arange(10)})
    )
    assert torch.equal(live, given) and not torch.equal(live, other)
