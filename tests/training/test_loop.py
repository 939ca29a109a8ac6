"""The loop: reproducible, resumable, and fair to teacher and student."""

import math
from copy import deepcopy
from dataclasses import replace
from itertools import islice

import pytest
import torch
from small_runs import make_epoch_data, small_config

from kdtune.config.train import TrainConfig
from kdtune.data.folders import find_images
from kdtune.errors import DivergedError, UserError
from kdtune.methods import METHODS
from kdtune.methods.student import StudentOnly
from kdtune.models.on_device import DeviceModel, pick_device, pick_precision
from kdtune.training.epoch import evaluate, evaluate_epoch
from kdtune.training.loop import build_student, fit
from kdtune.training.teacher import load_teacher


@pytest.fixture(scope="module")
def data(folder):
    return find_images(str(folder))


@pytest.fixture
def run(folder, data, teacher_file):
    """Run the loop with the small settings and the settings given; results as a list."""

    def start(resume=None, stop_after=None, with_teacher=True, **settings):
        config = small_config(folder, **settings)
        teacher = load_teacher(teacher_file, data.classes, 8) if with_teacher else None
        inputs = make_epoch_data(config, data)
        results = fit(
            config,
            inputs.train_batches,
            inputs.evaluation_batches("validation"),
            num_classes=10,
            class_counts=inputs.class_counts,
            teacher=teacher,
            resume=resume,
        )
        return list(islice(results, stop_after))

    return start


def one_batch(num_images=40, num_classes=4):
    """Random images in one batch, with classes of unequal sizes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num_images, 3, 8, 8, generator=generator)
    labels = torch.arange(num_images) ** 2 % num_classes
    return [(images, labels, None)]


def train_on(batches, **settings):
    """Train a small network on batches of one's own; results as a list, with copies of states."""
    config = TrainConfig.parse(
        {"method": "student", "image_size": 8, "epochs": 3, "device": "cpu", **settings}
    )
    counts = torch.bincount(batches[0][1], minlength=4).tolist()
    results = fit(config, batches, batches, num_classes=4, class_counts=counts)
    return [replace(result, state=deepcopy(result.state)) for result in results]


def rows(results):
    return [{k: v for k, v in r.metrics().items() if k != "seconds"} for r in results]


def test_the_same_seed_gives_the_same_numbers(run):
    settings = {"method": "fitnets", "augment": True}  # FitNets has a regressor to initialise
    first, again = run(**settings), run(**settings)
    assert rows(first) == rows(again)
    assert rows(first) != rows(run(**settings, seed=1))


RECIPES = {
    "fitnets-hint-stage": {"method": "fitnets", "hint_epochs": 2},
    "adamw": {"method": "fitnets", "optimizer": "adamw", "lr_scheduler": "cosine"},
    "nesterov": {"nesterov": True, "lr_scheduler": "one_cycle"},
    "ema": {"ema_decay": 0.9, "gradient_clip_val": 1.0, "label_smoothing": 0.1},
    "balanced": {"class_weights": "balanced", "balanced_sampling": True, "ema_decay": 0.9},
}
"""Settings of runs whose state has more than weights and momentum."""


@pytest.mark.parametrize("settings", RECIPES.values(), ids=RECIPES)
def test_a_run_that_goes_on_is_the_run_that_never_stopped(run, settings, tmp_path):
    settings = {**settings, "epochs": 3, "step_size": 1, "augment": True}
    whole = run(**settings)
    part = run(stop_after=1, **settings)
    torch.save(part[0].state, tmp_path / "state.pth")
    torch.rand(7)  # the global random state is of no account
    rest = run(resume=torch.load(tmp_path / "state.pth", weights_only=True), **settings)
    assert rows(part) + rows(rest) == rows(whole)
    for key, value in whole[-1].student.state_dict().items():
        assert torch.equal(value, rest[-1].student.state_dict()[key])


def test_the_teacher_is_unchanged(folder, data, teacher_file):
    teacher = load_teacher(teacher_file, data.classes, 8)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    config = small_config(folder, method="fitnets", epochs=1)
    teacher.train()  # even a teacher that is handed over in training mode
    inputs = make_epoch_data(config, data)
    list(fit(config, inputs.train_batches, None, num_classes=10, teacher=teacher))
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_every_method_starts_from_the_same_student(folder):
    students = [build_student(small_config(folder, method=m, seed=3), 10) for m in METHODS]
    for key, value in students[0].state_dict().items():
        assert all(torch.equal(value, other.state_dict()[key]) for other in students)


@pytest.mark.parametrize("settings", [{"with_teacher": False}, {"alpha": 0.0, "beta": 0.0}])
def test_without_a_teacher_or_with_weights_of_zero_every_method_is_plain_training(run, settings):
    plain, distilled = run(method="student"), run(method="at", **settings)
    assert [r.validation_accuracy for r in plain] == [r.validation_accuracy for r in distilled]
    assert [r.train_loss for r in plain] == [r.train_loss for r in distilled]


def test_training_learns_and_reports_what_it_did(run):
    results = run(method="at", epochs=6, lr=0.05, alpha=0.5, beta=50.0)
    assert results[-1].train_loss < results[0].train_loss
    assert results[-1].validation_accuracy > 0.5
    assert [r.epoch for r in results] == list(range(1, 7))
    best = [r.best_validation_accuracy for r in results]
    assert best == [max(r.validation_accuracy for r in results[: i + 1]) for i in range(6)]
    figures = results[0].metrics()
    weighted = figures["loss_kd_weighted"] + figures["loss_at_weighted"]
    assert figures["loss_classification"] + weighted == pytest.approx(
        figures["train_loss"], rel=1e-5
    )


def test_the_first_of_equal_epochs_is_the_best(folder):
    config = small_config(folder, method="student", epochs=3, lr=0.1)
    batches = [(torch.randn(8, 3, 8, 8), torch.zeros(8, dtype=torch.int64), None)] * 9
    results = list(fit(config, batches, batches, num_classes=2))
    assert [r.validation_accuracy for r in results] == [1.0, 1.0, 1.0]
    assert [r.is_best for r in results] == [True, False, False]


class Answers(torch.nn.Module):
    """A network whose answers stand in the first pixel of its images."""

    def forward(self, images):
        answers = images[:, 0, 0, 0].long()
        return torch.nn.functional.one_hot(answers, 4).float(), [images]


def batches_of(answers, labels, size=3):
    images = torch.zeros(len(answers), 3, 8, 8)
    images[:, 0, 0, 0] = torch.tensor(answers)
    labels = torch.tensor(labels)
    starts = range(0, len(answers), size)
    return [(images[i : i + size], labels[i : i + size], None) for i in starts]


def test_balanced_accuracy_is_the_mean_recall_of_the_classes_that_occur(folder):
    config = small_config(folder, method="student")
    labels = [0, 0, 0, 0, 0, 0, 1, 1, 2, 2]  # and none of class 3
    answers = [0, 0, 0, 0, 0, 3, 1, 0, 0, 0]
    measured = evaluate(Answers(), batches_of(answers, labels), config)
    assert measured["accuracy"] == 0.6
    assert measured["balanced_accuracy"] == pytest.approx((5 / 6 + 1 / 2 + 0) / 3)
    student = DeviceModel(Answers(), torch.device("cpu"), config)
    method = StudentOnly(config, [], None)
    values = evaluate_epoch(student, None, method, batches_of(answers, labels))
    assert values["top_class_share"] == 0.8
    same = evaluate_epoch(student, None, method, batches_of([2] * 10, labels))
    assert (same["top_class_share"], same["balanced_accuracy"]) == (1, pytest.approx(1 / 3))


def test_the_metric_chooses_the_best_epoch(folder):
    """On validation images of which three in four are of one class, and which are noise."""
    torch.manual_seed(0)
    images, labels = torch.randn(80, 3, 8, 8), (torch.arange(80) % 4 == 0).long()
    train, validation = (
        [(images[i : i + 10], labels[i : i + 10], None) for i in range(start, start + 40, 10)]
        for start in (0, 40)
    )
    found = {}
    for metric in ("accuracy", "balanced_accuracy"):
        settings = {"method": "student", "epochs": 8, "lr": 0.05, "seed": 1}
        config = small_config(folder, metric=metric, **settings)
        results = found[metric] = list(fit(config, train, validation, num_classes=2))
        scores = [getattr(result, f"validation_{metric}") for result in results]
        assert results[-1].best_validation_accuracy == max(scores)
        assert results[-1].state["best_epoch"] == 1 + scores.index(max(scores))
        best = [result.epoch for result in results if result.is_best]
        assert best[-1] == results[-1].state["best_epoch"]
        label = {"accuracy": ", validation"}.get(metric, ", balanced validation")
        assert f"{label} {100 * scores[0]:.2f} % *" in results[0].describe(config)
    first, second = ([r.validation_accuracy for r in results] for results in found.values())
    assert first == second  # training is the same
    assert len({results[-1].state["best_epoch"] for results in found.values()}) == 2


def test_a_loss_that_is_not_finite_ends_the_run(run):
    with pytest.raises(DivergedError, match="epoch 1: the training loss became (nan|inf)"):
        run(method="student", lr=1e20)


def test_a_loader_of_pairs_with_none_and_floats_will_do(folder):
    config = small_config(folder, method="student", epochs=1)
    images, labels = torch.randn(20, 3, 8, 8), torch.arange(20) % 2
    batches = [(images[i : i + 5], labels[i : i + 5], None) for i in range(0, 20, 5)]
    (result,) = fit(config, batches, batches, num_classes=2)
    measured = evaluate(result.student, batches, config)
    assert measured["accuracy"] == result.validation_accuracy
    assert measured["loss"] == pytest.approx(result.validation_loss)


def test_targets_that_come_with_a_batch_spare_the_teacher(folder, data, teacher_file):
    config = small_config(folder, method="kd", epochs=1, precision="float32")
    teacher = load_teacher(teacher_file, data.classes, 8)
    live = list(make_epoch_data(config, data).train_batches(1))
    logits = {i: 30 * torch.randn(len(y), 10) for i, (_, y, _) in enumerate(live)}
    cached = [(x, y, {"logits": logits[i]}) for i, (x, y, _) in enumerate(live)]
    runs = [
        list(fit(config, batches, None, num_classes=10, teacher=teacher))
        for batches in (live, cached)
    ]
    assert runs[0][0].losses["kd"] != runs[1][0].losses["kd"]
    assert runs[1][0].losses["kd"] > 10  # random targets, not the teacher's


@pytest.mark.parametrize("are_cached", [True, False])
def test_a_teacher_whose_targets_are_cached_is_not_placed(
    folder, data, teacher_file, monkeypatch, are_cached
):
    placed = []

    class Recording(DeviceModel):
        def __init__(self, model, *arguments):
            placed.append(model)
            super().__init__(model, *arguments)

    monkeypatch.setattr("kdtune.training.loop.DeviceModel", Recording)
    config = small_config(folder, method="kd", epochs=1)
    teacher = load_teacher(teacher_file, data.classes, 8)
    batches = [
        (x, y, {"logits": torch.randn(len(y), 10)} if are_cached else None)
        for x, y, _ in make_epoch_data(config, data).train_batches(1)
    ]
    list(fit(config, batches, None, num_classes=10, teacher=teacher))
    assert any(model is teacher for model in placed) != are_cached


def test_an_empty_loader_is_refused(folder):
    config = small_config(folder, method="student")
    with pytest.raises(UserError, match="There are no images"):
        next(fit(config, [], [], num_classes=2))


def first_logits(batches):
    """The untrained student's logits in train mode, as in the first step."""
    student = build_student(TrainConfig.parse({"method": "student", "image_size": 8}), 4)
    return student.train()(batches[0][0])[0]


def test_label_smoothing_is_torchs_and_of_the_training_loss_alone():
    batches = one_batch()
    labels = batches[0][1]
    plain, smooth = (train_on(batches, label_smoothing=share) for share in (0.0, 0.2))
    logits = first_logits(batches)
    for results, share in ((plain, 0.0), (smooth, 0.2)):
        expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=share)
        assert results[0].train_loss == pytest.approx(expected.item(), rel=1e-5)
        measured = evaluate_epoch(
            DeviceModel(results[-1].student, torch.device("cpu"), TrainConfig()),
            None,
            StudentOnly(TrainConfig(), [], None),
            batches,
        )
        assert results[-1].validation_loss == pytest.approx(measured["loss"])


def test_mixed_labels_are_a_soft_cross_entropy_and_count_by_their_larger_part():
    batches = one_batch()
    images, labels, _ = batches[0]
    shares = 0.7 * torch.nn.functional.one_hot(labels, 4) + 0.3 * torch.eye(4)[3]
    for smoothing in (0.0, 0.2):
        config = TrainConfig.parse(
            {"method": "student", "image_size": 8, "epochs": 1, "label_smoothing": smoothing}
        )
        (first,) = fit(config, [(images, shares, None)], batches, num_classes=4)
        logits = first_logits(batches)
        smooth = shares * (1 - smoothing) + smoothing / 4
        expected = -(smooth * logits.log_softmax(1)).sum(1).mean()
        assert first.train_loss == pytest.approx(expected.item(), rel=1e-5)
        correct = (logits.argmax(1) == labels).float().mean()
        assert first.train_accuracy == pytest.approx(correct.item())


def test_class_weights_give_all_classes_the_same_share_of_the_loss():
    batches = one_batch()
    labels = batches[0][1]
    assert torch.bincount(labels, minlength=4).tolist() == [20, 20, 0, 0]
    labels[:7] = torch.tensor([2, 2, 2, 2, 2, 3, 3])
    (first, *_) = train_on(batches, class_weights="balanced", epochs=1)
    losses = torch.nn.functional.cross_entropy(first_logits(batches), labels, reduction="none")
    means = [losses[labels == label].mean().item() for label in range(4)]
    assert first.train_loss == pytest.approx(sum(means) / 4, rel=1e-5)
    assert train_on(batches, epochs=1)[0].train_loss == pytest.approx(losses.mean().item())


def test_class_weights_without_counts_are_refused():
    config = TrainConfig.parse({"method": "student", "class_weights": "balanced"})
    with pytest.raises(UserError, match="class_weights balanced needs the images of data_dir"):
        fit(config, one_batch(), None, num_classes=4)


def test_a_clipped_gradient_moves_the_weights_by_its_norm():
    batches, settings = one_batch(), {"epochs": 1, "momentum": 0.0, "weight_decay": 0.0, "lr": 0.5}
    start = dict(build_student(TrainConfig.parse({"image_size": 8}), 4).named_parameters())
    moved = {}
    for norm in (0.0, 0.01):
        (result,) = train_on(batches, gradient_clip_val=norm, **settings)
        ends = result.state["student"]
        moves = torch.cat(
            [(ends[name] - value.detach()).flatten() for name, value in start.items()]
        )
        moved[norm] = moves.norm().item()
    assert moved[0.01] == pytest.approx(0.5 * 0.01, rel=1e-3) and moved[0.0] > 0.05


def test_the_average_of_weights_is_what_is_judged_and_kept():
    """With decays 0.1 after 0 steps, 2/11 after 1 and 0.25 after 2, as by the formula of timm."""
    batches = one_batch()
    plain = [result.state["student"] for result in train_on(batches, lr=0.05)]
    averaged = train_on(batches, lr=0.05, ema_decay=0.9)
    start = build_student(TrainConfig.parse({"image_size": 8}), 4).state_dict()
    for key, average in start.items():
        for step, decay in enumerate((0.1, 2 / 11, 0.25)):
            values = plain[step][key]
            average = values
            if values.is_floating_point():
                average = decay * start[key] + (1 - decay) * values
            start[key] = average
            assert torch.allclose(averaged[step].state["student"][key], average, atol=1e-6), key
            assert torch.equal(averaged[step].state["trained_student"][key], values)
    last = averaged[-1]
    measured = evaluate(last.student, batches, TrainConfig.parse({"image_size": 8}))
    assert measured["accuracy"] == last.validation_accuracy


def test_hint_epochs_are_not_the_best(run):
    results = run(method="fitnets", hint_epochs=2, epochs=4, lr=0.05)
    assert [r.best_validation_accuracy for r in results[:2]] == [0, 0]
    assert all(r.validation_accuracy > 0 for r in results)
    best = max(results[2:], key=lambda r: r.validation_accuracy)
    assert results[-1].state["best_epoch"] == best.epoch > 2
    assert results[-1].best_validation_accuracy == best.validation_accuracy
    plain = run(method="at", hint_epochs=2, epochs=3)
    assert plain[0].best_validation_accuracy == plain[0].validation_accuracy


def test_patience_ends_a_run_after_epochs_without_a_better_one(run):
    whole = run(method="student", epochs=8, lr=1e-6)
    best = max(whole, key=lambda r: r.validation_accuracy).epoch
    assert best < 6  # at this learning rate, nothing gets better for long
    short = run(method="student", epochs=8, lr=1e-6, patience=2)
    assert rows(short) == rows(whole)[: len(short)]
    assert short[-1].epoch < 8 and short[-1].epoch - short[-1].state["best_epoch"] == 2
    config = TrainConfig.parse({"epochs": 8, "patience": 2})
    assert "no better one came for 2 epochs" in short[-1].describe(config)


def test_dropout_is_a_setting_of_the_student():
    settings = {"model": "torchvision:mobilenet_v3_small", "image_size": 32, "drop_rate": 0.75}
    student = build_student(TrainConfig.parse(settings), 4)
    rates = [m.p for m in student.modules() if isinstance(m, torch.nn.Dropout)]
    assert rates == [0.75]


def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(UserError, match="device 'cuda:99' cannot be used on this machine; there"):
        pick_device("cuda:99")
    with pytest.raises(UserError, match="The device 'toaster' cannot be used"):
        pick_device("toaster")


def test_a_gpu_is_picked_without_touching_it(monkeypatch):
    """There is none here, so anything placed on it would fail."""
    monkeypatch.setattr("kdtune.models.on_device.has_gpu", lambda: True)
    monkeypatch.setattr("kdtune.models.on_device.visible_gpus", lambda: range(2))
    picked = [str(pick_device(name)) for name in ("auto", "cuda", "cuda:1", "cpu")]
    assert picked == ["cuda:0", "cuda:0", "cuda:1", "cpu"]
    with pytest.raises(UserError, match="'cuda:2' cannot be used on this machine; there are auto"):
        pick_device("cuda:2")


def test_compiled_networks_give_the_same(run, monkeypatch):
    plain = run(method="fitnets")
    # The eager backend traces as every backend does, and computes what was traced as it stands.
    compile_, traced = torch.compile, []

    def compile_eagerly(model):
        traced.append(type(model).__name__)
        return compile_(model, backend="eager")

    monkeypatch.setattr("kdtune.models.on_device.torch.compile", compile_eagerly)
    compiled = run(method="fitnets", compile=True)
    assert rows(compiled) == rows(plain)
    assert traced == ["MultiBranchNet", "MultiBranchNet"]  # student and teacher
    assert compiled[-1].state["student"].keys() == plain[-1].state["student"].keys()


def test_precision_is_float32_where_bf16_would_be_slower(folder):
    student = build_student(small_config(folder, model="MultiBranchNet"), 10)
    cpu = torch.device("cpu")
    assert pick_precision("auto", student, cpu) == torch.float32
    assert pick_precision("bf16", student, cpu) == torch.bfloat16
    assert pick_precision("float32", student, cpu) == torch.float32


@pytest.mark.parametrize("precision", ["bf16", "float16"])
@pytest.mark.parametrize("method", ["at", "fitnets"])
def test_half_precision_gives_finite_float32_losses(run, method, precision):
    (result,) = run(method=method, precision=precision, epochs=1)
    assert all(math.isfinite(v) for v in result.losses.values())


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_epochs_name_the_gpu_and_the_precision_that_was_used(run, monkeypatch, precision):
    [epoch] = run(method="student", precision=precision, epochs=1)
    assert epoch.device == "cpu"
    monkeypatch.setattr("kdtune.models.on_device.gpu_name", lambda device: f"GPU of {device}")
    [epoch] = run(method="student", precision=precision, epochs=1)
    used = {"float32": "float32", "bf16": "bfloat16"}[precision]
    assert epoch.device == f"GPU of cpu, {used}"
