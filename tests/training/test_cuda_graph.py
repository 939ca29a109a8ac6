"""Steps that are recorded and repeated, with a stand-in for CUDA graphs."""

import copy

import pytest
import torch
from small_runs import small_config

from kdtune.models import build_model
from kdtune.models.on_device import DeviceModel
from kdtune.training.cuda_graph import GraphedStep, Recorder
from kdtune.training.ema import ModelEma
from kdtune.training.epoch import train_epoch
from kdtune.training.loop import build_method_for_models, build_student, fit
from kdtune.training.optimizer import build_optimizer
from kdtune.training.step import TrainingStep

CPU = torch.device("cpu")


class RecordingOnCpu(Recorder):
    """Repeats a recorded step by running it again, on the buffers that it was recorded with."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def record(self, run_step):
        self.recorded += 1
        loss = torch.zeros(())

        def replay():
            self.replayed += 1
            loss.copy_(run_step())

        return replay, loss


def make_parts(folder, method="at", **settings):
    """A student, a teacher, a method and an optimizer, the same in each call."""
    weights = {"alpha": 0.5, "beta": 0.0 if method == "student" else 2.0, "lr": 0.01}
    config = small_config(folder, method=method, **{**weights, **settings})
    torch.manual_seed(1)
    teacher = build_model("ResNet18", 10, 8).eval().requires_grad_(False)
    network = build_student(config, 10)
    method = build_method_for_models(config, network, teacher)
    student = DeviceModel(network, CPU, config)
    optimizer = build_optimizer(config, [*network.parameters(), *method.parameters()])
    return student, DeviceModel(teacher, CPU, config), method, optimizer


def make_batches(teacher, method, sizes=(4, 4, 4, 3), with_targets=True):
    torch.manual_seed(2)
    batches = []
    for size in sizes:
        images = torch.randint(0, 256, (size, 3, 8, 8), dtype=torch.uint8)
        with torch.no_grad():
            targets = method.targets(*teacher(images)) if with_targets else None
        batches.append((images, torch.arange(size) % 10, targets))
    return batches


def train(parts, recorder, epochs=1, with_targets=True):
    """Train, and return the metrics of each epoch, the losses of all steps, and all numbers."""
    student, teacher, method, optimizer = parts
    batches, losses = make_batches(teacher, method, with_targets=with_targets), []
    step = GraphedStep(*parts, recorder) if recorder else TrainingStep(*parts)
    metrics = []
    for epoch in range(1, epochs + 1):
        method.epoch = epoch
        optimizer.param_groups[0]["lr"] = 0.01 / epoch
        on_step = lambda e, n, loss: losses.append((e, n, loss.item()))  # noqa: E731
        metrics.append(train_epoch(step, batches, on_step))
    state = [copy.deepcopy(p.state_dict()) for p in (student.model, method)]
    momentum = [optimizer.state[p]["momentum_buffer"] for p in student.model.parameters()]
    return metrics, losses, state, momentum


def assert_same(first, second):
    assert first[:2] == second[:2]
    for a, b in zip(first[2], second[2], strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert all(torch.equal(a, b) for a, b in zip(first[3], second[3], strict=True))


@pytest.mark.parametrize("method", ["student", "at", "rkd"])  # without targets, of maps, of images
def test_repeating_a_recorded_step_is_the_loop(folder, method):
    recorder = RecordingOnCpu()
    recorded = train(make_parts(folder, method), recorder)
    assert_same(recorded, train(make_parts(folder, method), None))
    assert (recorder.recorded, recorder.replayed) == (1, 2)  # not the first and the smaller


@pytest.mark.parametrize("method", ["fitnets", "vid"])
def test_each_epoch_is_recorded_anew(folder, method):
    """The learning rate and the hint stage change between the epochs."""
    settings = {"method": method, "epochs": 3, "hint_epochs": 1 if method == "fitnets" else 0}
    recorder = RecordingOnCpu()
    recorded = train(make_parts(folder, **settings), recorder, epochs=3)
    assert_same(recorded, train(make_parts(folder, **settings), None, epochs=3))
    assert (recorder.recorded, recorder.replayed) == (3, 6)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_average_of_weights_and_clipping_are_recorded_with_the_step(folder, optimizer):
    ends = []
    for recorder in (RecordingOnCpu(), None):
        parts = make_parts(folder, optimizer=optimizer, gradient_clip_val=0.1)
        batches = make_batches(*parts[1:3])
        step = GraphedStep(*parts, recorder) if recorder else TrainingStep(*parts)
        step.ema = ModelEma(parts[0].model, 0.9)
        for _ in range(2):
            train_epoch(step, batches)
        assert step.ema.steps == 8
        ends.append(step.ema.model.state_dict())
        assert recorder is None or recorder.replayed == 4
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


def test_a_live_teacher_is_recorded_with_the_step(folder):
    recorder = RecordingOnCpu()
    recorded = train(make_parts(folder), recorder, with_targets=False)
    assert_same(recorded, train(make_parts(folder), None, with_targets=False))
    assert recorder.replayed == 2


def test_a_step_that_cannot_be_recorded_runs_as_usual_and_says_so_once(folder):
    class Refusing(Recorder):
        def record(self, run_step):
            raise RuntimeError("not permitted when stream is capturing\nmore")

    with pytest.warns(RuntimeWarning) as warned:
        recorded = train(make_parts(folder), Refusing(), epochs=2)
    assert [str(w.message) for w in warned] == [
        "Training steps run without a CUDA graph: not permitted when stream is capturing."
    ]
    assert_same(recorded, train(make_parts(folder), None, epochs=2))


def test_a_method_that_counts_its_steps_is_not_recorded(folder):
    def counting(parts):
        method = parts[2]
        terms, method.steps = method.terms, 0

        def grow(*arguments):
            method.steps += 1
            return {k: (w * method.steps, v) for k, (w, v) in terms(*arguments).items()}

        method.terms = grow
        return parts

    recorder = RecordingOnCpu()
    with pytest.warns(RuntimeWarning, match="without a CUDA graph: .* changes an attribute"):
        recorded = train(counting(make_parts(folder)), recorder)
    assert recorder.recorded == 0
    assert_same(recorded, train(counting(make_parts(folder)), None))


@pytest.mark.parametrize("enabled", [False, True])
def test_a_gradient_scaler_survives_a_step_that_cannot_be_recorded(folder, enabled):
    """The scaler is in the middle of its step when the recording ends."""

    class FailingAfterTheStep(Recorder):
        def record(self, run_step):
            step.optimizer.step = fail
            try:
                run_step()
            finally:
                del step.optimizer.step

    def fail():
        raise RuntimeError("cannot be recorded")

    student, teacher, method, optimizer = make_parts(folder)
    step = GraphedStep(student, teacher, method, optimizer, FailingAfterTheStep())
    step.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=enabled)
    with pytest.warns(RuntimeWarning, match="without a CUDA graph: cannot be recorded."):
        metrics = train_epoch(step, make_batches(teacher, method))
    assert metrics["loss"] > 0


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_a_run_on_a_gpu_records_its_steps_unless_a_setting_says_no(
    folder, monkeypatch, cuda_graph
):
    _, teacher, method, _ = make_parts(folder, epochs=2)
    batches, recorder = make_batches(teacher, method), RecordingOnCpu()
    settings = {"method": "at", "alpha": 0.5, "beta": 2.0, "epochs": 2}

    def train_losses(**more):
        config = small_config(folder, **settings, **more)
        results = fit(config, batches, None, num_classes=10, teacher=teacher.model)
        return [result.train_loss for result in results]

    on_cpu = train_losses()
    monkeypatch.setattr("kdtune.training.loop.is_gpu", lambda device: True)
    monkeypatch.setattr("kdtune.training.loop.CudaGraphRecorder", lambda device: recorder)
    assert train_losses(cuda_graph=cuda_graph) == on_cpu
    assert (recorder.recorded, recorder.replayed) == ((2, 4) if cuda_graph else (0, 0))
