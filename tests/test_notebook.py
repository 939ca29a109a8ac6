"""The pieces of the loop that a notebook may put together by itself."""

import gc

import pytest
import torch
from conftest import SIZE, small_config
from torch.nn import functional as F

from kdtune import evaluate_model, load_model, prepare_dataloaders
from kdtune.at import compute_at_loss, create_at_config, load_teacher_model, train_epoch, validate
from kdtune.checkpoints import save_model
from kdtune.errors import UserError
from kdtune.fitnets import compute_fitnets_loss, create_fitnets_config, train_fitnets
from kdtune.models import build_model
from kdtune.notebook import _LESSONS
from kdtune.run import run_training
from kdtune.training import build_optimizer, build_student, learning_rate

CREATE = {"at": create_at_config, "fitnets": create_fitnets_config}
COMPUTE = {"at": compute_at_loss, "fitnets": compute_fitnets_loss}


@pytest.fixture(autouse=True)
def in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def wide_teacher(folder, tmp_path):
    """A ResNet18, whose channels differ from MultiBranchNet's: FitNets need a regressor."""
    torch.manual_seed(0)
    classes = sorted(p.name for p in folder.iterdir())
    config = small_config(folder, model="ResNet18", method="student")
    path = tmp_path / "wide.pth"
    save_model(
        path, build_model("ResNet18", 10, SIZE), config=config.model_dump(), classes=classes
    )
    return path


@pytest.fixture
def networks(wide_teacher):
    """A student and its teacher."""
    return build_model("MultiBranchNet", 10, SIZE), load_teacher_model(wide_teacher, 10)


@pytest.mark.parametrize("hint_epochs", [0, 1])
@pytest.mark.parametrize("method", CREATE)
def test_a_loop_of_ones_own_gives_the_numbers_of_a_run(folder, wide_teacher, method, hint_epochs):
    config = small_config(
        folder, method=method, teacher_model=str(wide_teacher), epochs=3, step_size=1, beta=1.0,
        alpha=0.5, hint_epochs=hint_epochs if method == "fitnets" else 0, augment=True,
    )  # fmt: skip
    whole = run_training(config)
    train, validation, test = prepare_dataloaders(
        str(folder), batch_size=16, num_workers=0, augment=True, image_size=SIZE
    )
    student = build_student(config, 10)
    teacher = load_teacher_model(wide_teacher, 10, "cpu")
    optimizer = build_optimizer(config, list(student.parameters()))
    settings = config.model_dump()
    best = 0.0
    for epoch, row in enumerate(whole["training_history"], start=1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, epoch)
        trained = train_epoch(student, teacher, train, optimizer, "cpu", settings)
        measured = validate(student, teacher, validation, "cpu", settings)
        assert trained["loss"] == row["train_loss"]
        assert trained["accuracy"] == row["train_accuracy"]
        assert measured["accuracy"] == row["validation_accuracy"]
        assert measured["classification"] == pytest.approx(row["validation_loss"], rel=1e-6)
        if measured["accuracy"] > best:
            best = measured["accuracy"]
            tested = evaluate_model(student, test, config=settings)
    assert best == whole["best_accuracy"]
    assert tested == whole["test_results"]


@pytest.mark.parametrize("method", CREATE)
def test_the_loss_of_a_batch_adds_up_and_can_be_learned_from(networks, method):
    config = CREATE[method](image_size=SIZE, alpha=0.5, beta=2.0)
    student, teacher = networks
    x, y = torch.rand(4, 3, SIZE, SIZE), torch.tensor([0, 3, 9, 1])
    before = torch.get_rng_state()
    parts = COMPUTE[method](student, teacher, x, y, config)
    assert torch.equal(torch.get_rng_state(), before)
    weighted = sum(v for k, v in parts.items() if k.endswith("_weighted"))
    assert torch.allclose(parts["loss"], parts["classification"] + weighted)
    parts["loss"].backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    alone = COMPUTE[method](student.eval(), None, x, y, config)
    assert torch.allclose(alone["loss"], F.cross_entropy(student(x)[0], y))


def test_the_regressor_is_the_students_and_is_trained_along(wide_teacher):
    student = build_model("MultiBranchNet", 10, SIZE)
    teacher = load_teacher_model(wide_teacher, 10)
    loader = [(torch.rand(4, 3, SIZE, SIZE), torch.tensor([0, 3, 9, 1]))]
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    config = create_fitnets_config(image_size=SIZE)
    known = len(_LESSONS)
    compute_fitnets_loss(student, teacher, *loader[0], {**config, "print_freq": 7})
    regressor = _LESSONS[student].method.regressor
    before = regressor[0].weight.clone()
    for _ in range(2):
        train_epoch(student, teacher, loader, optimizer, "cpu", config)
    assert _LESSONS[student].method.regressor is regressor
    assert not torch.equal(before, regressor[0].weight)
    assert len(optimizer.param_groups) == 2  # added once
    del student, optimizer, regressor
    gc.collect()
    assert len(_LESSONS) == known


def test_validating_changes_nothing(networks):
    student, teacher = networks
    loader = [(torch.rand(4, 3, SIZE, SIZE), torch.tensor([0, 3, 9, 1]))]
    before = {k: v.clone() for k, v in student.state_dict().items()}
    config = create_fitnets_config(image_size=SIZE)
    first = validate(student, teacher, loader, "cpu", config)
    assert first == validate(student, teacher, loader, "cpu", config)
    assert {"loss", "accuracy", "classification", "kd", "feature"} <= set(first)
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())


def test_a_model_is_evaluated_as_its_run_did(folder):
    _, _, test = prepare_dataloaders(str(folder), num_workers=0, image_size=SIZE)
    run = train_fitnets(
        small_config(folder, method="fitnets", experiment_name="x").model_dump(), None, None, test
    )
    loaded = load_model("checkpoints/x_best.pth")
    assert evaluate_model(loaded["model"], test, config=loaded["config"]) == run["test_results"]
    assert evaluate_model(loaded["model"], test, device="cpu") == run["test_results"]


def test_mistakes_are_sentences(wide_teacher):
    student = build_model("MultiBranchNet", 10, SIZE)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
    with pytest.raises(UserError, match="does not name its method; make it with create_at_config"):
        train_epoch(student, None, [], optimizer, "cpu", {"lr": 0.1})
    with pytest.raises(UserError, match="the loader gave no batch"):
        train_epoch(student, None, [], optimizer, "cpu", create_at_config())
    with pytest.raises(UserError, match="knows 10 classes, but the data have 7"):
        load_teacher_model(wide_teacher, 7, "cpu")
    with pytest.raises(UserError, match="The device 'gpu' cannot be used"):
        load_teacher_model(wide_teacher, 10, "gpu")
    with pytest.raises(UserError, match="settings of the method 'fitnets', not of 'at'"):
        compute_at_loss(student, None, None, None, create_fitnets_config())
