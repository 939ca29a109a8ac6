"""The pieces of the loop that a notebook may put together by itself."""

import gc
from weakref import ref

import pytest
import torch
import torchvision
from small_runs import IMAGE_SIZE, small_config
from torch.nn import functional as F

import kdtune.at
import kdtune.fitnets
from kdtune import evaluate_model, load_model, prepare_dataloaders
from kdtune.at import compute_at_loss, create_at_config, load_teacher_model, train_epoch, validate
from kdtune.config.train import TrainConfig
from kdtune.data.transforms import normalise
from kdtune.errors import UserError
from kdtune.fitnets import (
    compute_fitnets_loss,
    create_fitnets_config,
    regressor_parameters,
    train_fitnets,
)
from kdtune.models import build_model
from kdtune.models.checkpoints import save_model
from kdtune.notebook.steps import _find_or_build_method
from kdtune.training.loop import build_student
from kdtune.training.optimizer import build_optimizer, learning_rate
from kdtune.training.run import run_training

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
        path, build_model("ResNet18", 10, IMAGE_SIZE), config=config.model_dump(), classes=classes
    )
    return path


@pytest.fixture
def networks(wide_teacher):
    """A student and its teacher."""
    return build_model("MultiBranchNet", 10, IMAGE_SIZE), load_teacher_model(wide_teacher, 10)


@pytest.mark.parametrize(("method", "hint_epochs"), [("at", 0), ("fitnets", 1)])
def test_a_loop_of_ones_own_gives_the_numbers_of_a_run(folder, wide_teacher, method, hint_epochs):
    config = small_config(
        folder, method=method, teacher_model=str(wide_teacher), epochs=3, step_size=1, beta=1.0,
        alpha=0.5, hint_epochs=hint_epochs, augment=True,
    )  # fmt: skip
    whole = run_training(config)
    train, validation, test = prepare_dataloaders(
        str(folder), batch_size=16, num_workers=0, augment=True, image_size=IMAGE_SIZE
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
        if epoch > config.hint_epochs and measured["accuracy"] > best:
            best = measured["accuracy"]
            tested = evaluate_model(student, test, config=settings)
    assert best == whole["best_accuracy"]
    assert tested == whole["test_results"]


@pytest.mark.parametrize("method", CREATE)
def test_the_loss_of_a_batch_adds_up_and_can_be_learned_from(networks, method):
    config = CREATE[method](image_size=IMAGE_SIZE, alpha=0.5, beta=2.0)
    student, teacher = networks
    x, y = torch.rand(4, 3, IMAGE_SIZE, IMAGE_SIZE), torch.tensor([0, 3, 9, 1])
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


class TestRegressor:
    config = create_fitnets_config(image_size=IMAGE_SIZE)
    loader = [(torch.rand(4, 3, IMAGE_SIZE, IMAGE_SIZE), torch.tensor([0, 3, 9, 1]))]

    def test_an_optimizer_that_lacks_it_gets_it_with_the_settings_of_the_first_group(
        self, networks
    ):
        student, teacher = networks
        groups = [{"params": student.parameters(), "lr": 0.1, "weight_decay": 0.5}]
        optimizer = torch.optim.SGD(groups)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        regressor = regressor_parameters(student, teacher, self.config)
        before = [p.clone() for p in regressor]
        for _ in range(2):
            train_epoch(student, teacher, self.loader, optimizer, "cpu", self.config)
            schedule.step()
        first, second = optimizer.param_groups
        assert all(a is b for a, b in zip(second["params"], regressor, strict=True))
        assert first["lr"] == second["lr"] == pytest.approx(0.001)
        assert second["weight_decay"] == 0.5
        assert all(not torch.equal(a, b) for a, b in zip(before, regressor, strict=True))

    def test_it_outlives_other_settings_and_calls_without_a_teacher(self, networks):
        student, teacher = networks
        regressor = regressor_parameters(student, teacher, self.config)
        optimizer = torch.optim.SGD([*student.parameters(), *regressor], lr=0.1)
        for settings in ({}, {"lr": 0.5, "alpha": 0.9}, {"hint_layer": 3}):
            train_epoch(student, teacher, self.loader, optimizer, "cpu", self.config | settings)
            validate(student, None, self.loader, "cpu", self.config)
        now = regressor_parameters(student, teacher, self.config)
        assert all(a is b for a, b in zip(regressor, now, strict=True))
        assert len(optimizer.param_groups) == 1
        other = regressor_parameters(student, teacher, self.config | {"hint_layer": 1})
        assert other[0].shape != regressor[0].shape

    def test_its_mode_follows_the_students(self, networks):
        student, teacher = networks
        [regressor] = _find_or_build_method(
            student, teacher, TrainConfig.parse(self.config)
        ).children()
        norm = regressor.norm
        compute_fitnets_loss(student.eval(), teacher, *self.loader[0], self.config)
        assert norm.num_batches_tracked == 0
        compute_fitnets_loss(student.train(), teacher, *self.loader[0], self.config)
        validate(student, teacher, self.loader, "cpu", self.config)
        compute_fitnets_loss(student.train(), teacher, *self.loader[0], self.config)
        assert norm.num_batches_tracked == 2

    def test_a_loop_around_the_loss_trains_it(self, networks):
        student, teacher = networks
        regressor = regressor_parameters(student, teacher, self.config)
        optimizer = torch.optim.SGD([*student.parameters(), *regressor], lr=0.1)
        before = regressor[0].clone()
        compute_fitnets_loss(student, teacher, *self.loader[0], self.config)["loss"].backward()
        optimizer.step()
        assert not torch.equal(before, regressor[0])

    def test_it_goes_with_its_student(self, wide_teacher):
        student = build_model("MultiBranchNet", 10, IMAGE_SIZE)
        teacher = load_teacher_model(wide_teacher, 10)
        gone = ref(regressor_parameters(student, teacher, self.config)[0])
        del student
        gc.collect()
        assert gone() is None


def test_epochs_of_a_student_are_counted_without_a_teacher_too(folder):
    train, *_ = prepare_dataloaders(str(folder), num_workers=0, image_size=IMAGE_SIZE)
    student = build_model("MultiBranchNet", 10, IMAGE_SIZE)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
    config = create_at_config(image_size=IMAGE_SIZE, momentum=0)
    student.eval()
    losses = [train_epoch(student, None, train, optimizer, "cpu", config)["loss"] for _ in "ab"]
    assert losses[0] != losses[1]  # other batches, since the order is another


def test_fused_optimizers_follow_the_networks_memory(folder):
    """Laid out anew, a convolution's momentum must not be applied to other weights."""
    loader = prepare_dataloaders(str(folder), 16, num_workers=0, image_size=IMAGE_SIZE)[0]
    after = []
    for fused in (True, False):
        student = build_student(small_config(folder), 10)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, fused=fused)
        torch.manual_seed(0)
        student(torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE))[0].logsumexp(1).sum().backward()
        optimizer.step()  # momentum from before, in torch's own memory format
        settings = create_at_config(image_size=IMAGE_SIZE, batch_size=16)
        train_epoch(student, None, loader, optimizer, "cpu", settings)
        after.append(torch.cat([p.flatten() for p in student.parameters()]))
    assert torch.allclose(*after, atol=1e-5)


def test_validating_changes_nothing(networks):
    student, teacher = networks
    loader = [(torch.rand(4, 3, IMAGE_SIZE, IMAGE_SIZE), torch.tensor([0, 3, 9, 1]))]
    before = {k: v.clone() for k, v in student.state_dict().items()}
    config = create_fitnets_config(image_size=IMAGE_SIZE)
    first = validate(student, teacher, loader, "cpu", config)
    assert first == validate(student, teacher, loader, "cpu", config)
    assert {"loss", "accuracy", "classification", "kd", "feature"} <= set(first)
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())


def test_a_model_is_evaluated_as_its_run_did(folder):
    _, _, test = prepare_dataloaders(str(folder), num_workers=0, image_size=IMAGE_SIZE)
    run = train_fitnets(
        small_config(folder, method="fitnets", experiment_name="x").model_dump(), None, None, test
    )
    loaded = load_model("checkpoints/x_best.pth")
    assert evaluate_model(loaded["model"], test, config=loaded["config"]) == run["test_results"]
    assert evaluate_model(loaded["model"], test, device="cpu") == run["test_results"]


def test_a_model_of_one_image_size_is_evaluated_without_a_config():
    student = build_model("MultiBranchNet", 10, IMAGE_SIZE)
    student.register_forward_pre_hook(lambda _, inputs: check_size(*inputs))

    def check_size(images):
        assert images.shape[2:] == (IMAGE_SIZE, IMAGE_SIZE)

    images = torch.randint(256, (4, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
    labels = student.eval()(normalise(images))[0].argmax(1)
    assert evaluate_model(student, [(images, labels)])["accuracy"] == 1


def test_mistakes_are_sentences(wide_teacher):
    student = build_model("MultiBranchNet", 10, IMAGE_SIZE)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
    with pytest.raises(UserError, match="train_loader has no batch with more than one image"):
        train_epoch(student, None, [], optimizer, "cpu", create_at_config())
    for setting in ({"ema_decay": 0.9}, {"mix": "cutmix"}):
        with pytest.raises(
            UserError, match=f"{[*setting][0]} has no effect on a loop of your own"
        ):
            train_epoch(student, None, [], optimizer, "cpu", create_at_config(**setting))
    wide = [(torch.rand(2, 3, 16, 16), torch.tensor([0, 1]))]
    with pytest.raises(UserError, match=r"val_loader are \(16, 16\), but image_size is 8"):
        validate(student, None, wide, "cpu", create_at_config(image_size=8))
    with pytest.raises(UserError, match=r"of \(x, y\) are \(16, 16\), but image_size is 128"):
        compute_at_loss(student, None, *wide[0], create_at_config())
    with pytest.raises(UserError, match="test_loader has the label 10, but there are 10 classes"):
        evaluate_model(student, [(torch.rand(1, 3, 8, 8), torch.tensor([10]))])
    with pytest.raises(UserError, match="A ResNet does not return"):
        evaluate_model(torchvision.models.resnet18(), wide)
    with pytest.raises(UserError, match="cannot be its own teacher"):
        validate(student, student, wide, "cpu", create_at_config())
    other = build_model("MultiBranchNet", 7, IMAGE_SIZE)
    with pytest.raises(UserError, match="The teacher knows 7 classes, but the student has 10"):
        validate(student, other, wide, "cpu", create_at_config())
    with pytest.raises(UserError, match="no model 'resnet18'; did you mean 'ResNet18'"):
        create_at_config(model="resnet18")
    with pytest.raises(UserError, match="no setting 'learning_rate'; did you mean 'lr'"):
        create_at_config(learning_rate=1)
    with pytest.raises(UserError, match="teacher_model cannot be a MultiBranchNet: it must"):
        create_at_config(teacher_model=student)
    with pytest.raises(UserError, match="knows 10 classes, but the data have 7"):
        load_teacher_model(wide_teacher, 7, "cpu")
    with pytest.raises(UserError, match="The device 'gpu' cannot be used"):
        load_teacher_model(wide_teacher, 10, "gpu")
    with pytest.raises(UserError, match="settings of the method 'fitnets', not of 'at'"):
        compute_at_loss(student, None, None, None, create_fitnets_config())


def test_the_module_gives_the_method_that_a_config_leaves_out(networks):
    x, y = torch.rand(4, 3, IMAGE_SIZE, IMAGE_SIZE), torch.tensor([0, 3, 9, 1])
    own = {"image_size": IMAGE_SIZE}
    for module, part in ((kdtune.at, "at"), (kdtune.fitnets, "feature")):
        found = module.validate(*networks, [(x, y)], "cpu", own)
        assert part in found
        named = {**own, "method": module.__name__.removeprefix("kdtune.")}
        assert found == module.validate(*networks, [(x, y)], "cpu", named)
    named = kdtune.at.validate(*networks, [(x, y)], "cpu", {**own, "method": "kd", "alpha": 1.0})
    assert "kd" in named and "at" not in named


@pytest.mark.parametrize(
    ("module", "create"), [(kdtune.at, create_at_config), (kdtune.fitnets, create_fitnets_config)]
)
def test_a_changed_default_counts(module, create, networks, monkeypatch):
    untouched = create()
    monkeypatch.setitem(module.DEFAULT_CONFIG, "beta", 7.0)
    monkeypatch.setitem(module.DEFAULT_CONFIG, "image_size", IMAGE_SIZE)
    assert create() == {**untouched, "beta": 7.0, "image_size": IMAGE_SIZE}
    assert create(beta=2.0)["beta"] == 2.0
    x, y = torch.rand(4, 3, IMAGE_SIZE, IMAGE_SIZE), torch.tensor([0, 3, 9, 1])
    found = module.validate(*networks, [(x, y)], "cpu", {})
    [part] = {"at", "feature"} & found.keys()
    assert found[f"{part}_weighted"] == pytest.approx(7 * found[part])
    # A recipe decides what the user has not changed.
    assert create(recipe="strong")["lr_scheduler"] != untouched["lr_scheduler"]


def test_a_misspelt_default_is_refused(monkeypatch):
    monkeypatch.setitem(kdtune.at.DEFAULT_CONFIG, "epoch", 1)
    with pytest.raises(UserError, match="There is no setting 'epoch'; did you mean 'epochs'"):
        kdtune.at.train_at()
