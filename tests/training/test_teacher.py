"""A teacher is loaded only if it fits the data."""

import pytest
import torch
import torchvision
from small_runs import IMAGE_SIZE

from kdtune.errors import UserError
from kdtune.models import build_model, probe_stage_shapes
from kdtune.notebook.steps import load_teacher_model
from kdtune.training.teacher import describe_teacher, load_teacher, teacher_sha256

CLASSES = tuple(f"digit-{i}" for i in range(10))


def test_a_teacher_is_frozen_and_in_eval_mode(teacher_file):
    teacher = load_teacher(teacher_file, CLASSES, IMAGE_SIZE)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize(
    ("classes", "size", "sentence"),
    [
        (CLASSES[:9], IMAGE_SIZE, "knows 10 classes, but the data have 9"),
        ((*CLASSES[:9], "zebra"), IMAGE_SIZE, "not trained on the class 'zebra' of the data"),
        (CLASSES, 32, "was trained at 8 px, but image_size is 32; use image_size 8, or train"),
    ],
)
def test_a_teacher_of_other_data_is_refused(teacher_file, classes, size, sentence):
    with pytest.raises(UserError, match=sentence):
        load_teacher(teacher_file, classes, size)


def test_a_summary_is_plain_values(teacher_file):
    summary = describe_teacher(teacher_file)
    assert summary["model"] == "MultiBranchNet" and summary["image_size"] == IMAGE_SIZE
    assert 0 < summary["validation_accuracy"] <= 1
    assert len(summary["sha256"]) == 64


@pytest.fixture
def weights_file(tmp_path):
    """The state_dict of a network that is none of torchvision's ResNets."""
    path = tmp_path / "a=b.pth"
    torch.save({"model_state_dict": build_model("MultiBranchNet", 10, 16).state_dict()}, path)
    return path


def test_a_state_dict_is_a_teacher_under_the_name_of_its_network(weights_file):
    teacher = f"MultiBranchNet={weights_file}"
    model = load_teacher(teacher, CLASSES, 16)
    assert type(model).__name__ == "MultiBranchNet" and not model.training
    summary = describe_teacher(teacher, 16)
    assert (summary["model"], summary["path"]) == ("MultiBranchNet", teacher)
    assert summary["image_size"] is None and summary["validation_accuracy"] is None
    assert summary["sha256"] == teacher_sha256(weights_file) == teacher_sha256(teacher)
    with pytest.raises(UserError, match="knows 10 classes, but the data have 9"):
        load_teacher(teacher, CLASSES[:9], 16)
    with pytest.raises(UserError, match="There is no file nowhere.pth"):
        load_teacher("MultiBranchNet=nowhere.pth", CLASSES, 16)
    with pytest.raises(UserError, match="There is no file nowhere.pth"):
        teacher_sha256("MultiBranchNet=nowhere.pth")


def test_layers_of_a_teacher_give_its_maps(teacher_file):
    teacher = load_teacher(teacher_file, CLASSES, IMAGE_SIZE, layers=["stages.2.mix", "stem"])
    assert probe_stage_shapes(teacher, IMAGE_SIZE) == [(128, 2, 2), (32, 8, 8)]


def test_what_is_said_of_a_file_with_two_networks_is_said_once(tmp_path):
    weights = torchvision.models.resnet18(num_classes=10).state_dict()
    torch.save({"student": weights, "teacher": weights}, tmp_path / "both.pth")
    said = []
    load_teacher(tmp_path / "both.pth", CLASSES, 64, say=said.append)
    assert said == [
        f"{tmp_path / 'both.pth'} holds student and teacher: the network teacher is used"
    ]


def test_a_notebook_takes_a_network_itself(teacher_file):
    own = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.Flatten(), torch.nn.LazyLinear(10)
    )
    own(torch.rand(2, 3, 8, 8))
    teacher = load_teacher_model(own, device="cpu", layers=["0"])
    assert probe_stage_shapes(teacher, 8) == [(4, 4, 4)]
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    of_file = load_teacher_model(teacher_file, device="cpu", layers=["stages.3"])
    assert probe_stage_shapes(of_file, 8) == [(256, 1, 1)]
