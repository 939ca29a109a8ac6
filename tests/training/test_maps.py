"""Maps to look at."""

import pytest
import torch
import torchvision
from matplotlib.figure import Figure
from small_runs import IMAGE_SIZE

from kdtune.at import draw_attention_maps, extract_attention_maps, visualize_attention_maps
from kdtune.errors import UserError
from kdtune.fitnets import (
    create_fitnets_config,
    draw_feature_maps,
    extract_student_features,
    extract_teacher_features,
    visualize_feature_maps,
)
from kdtune.methods.at import attention_map
from kdtune.models import build_model

X = torch.rand(6, 3, IMAGE_SIZE, IMAGE_SIZE)


@pytest.fixture
def student():
    return build_model("MultiBranchNet", 3, IMAGE_SIZE).train()


@pytest.fixture
def teacher():
    return build_model("ResNet18", 3, IMAGE_SIZE).train()


def test_attention_maps_are_those_of_the_loss(student):
    maps = extract_attention_maps(student, X)
    _, features = student.eval()(X)
    assert len(maps) == 4
    assert all(torch.equal(m, attention_map(f)) for m, f in zip(maps, features, strict=True))
    for layer in (0, 3, -1):
        shown = visualize_attention_maps(student, X, layer_idx=layer)
        assert torch.equal(shown.flatten(1), maps[layer])
        assert shown.shape == (6, *features[layer].shape[2:])


def test_feature_maps_are_the_stages(student):
    shown = [visualize_feature_maps(student, X, None, layer) for layer in range(4)]
    _, features = student.eval()(X)
    assert all(torch.equal(a, b) for a, b in zip(shown, features, strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_looking_changes_nothing(student, training):
    student.train(training)
    student.stem[1].eval()  # as one who fine-tunes may have it
    before = {k: v.clone() for k, v in student.state_dict().items()}
    for shown in (visualize_attention_maps(student, X), visualize_feature_maps(student, X)):
        assert not shown.requires_grad
    draw_attention_maps({"student": student}, X)
    assert student.training == training and not student.stem[1].training
    assert student.classifier.training == training
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())


def test_pixels_are_as_good_as_normalised_images(student):
    pixels = (X * 255).to(torch.uint8)
    assert visualize_attention_maps(student, pixels).shape == (6, IMAGE_SIZE, IMAGE_SIZE)


def test_hints_are_the_stage_that_fitnets_compares(student, teacher):
    config = create_fitnets_config(hint_layer=1)
    hint = extract_teacher_features(teacher, X, config)
    assert hint.shape[1] == 128 and not hint.requires_grad and teacher.training
    own = extract_student_features(student, X, config)
    assert own.shape[1] == 64 and own.requires_grad
    last = extract_teacher_features(teacher, X, create_fitnets_config())
    assert torch.equal(last, visualize_feature_maps(teacher, X, layer_idx=-1))


@pytest.mark.parametrize("draw", [draw_attention_maps, draw_feature_maps])
def test_a_figure_has_a_row_an_image_and_a_column_a_stage_and_network(student, teacher, draw):
    figure = draw({"student": student, "teacher": teacher}, X)
    assert isinstance(figure, Figure) and figure._repr_png_().startswith(b"\x89PNG")
    assert len(figure.axes) == 4 * (1 + 4 * 2)  # of six images the first four
    titles = [place.get_title() for place in figure.axes[:9]]
    assert titles[:3] == ["image", "student\nstage 0", "teacher\nstage 0"]
    drawn = draw({"epoch 1": student, "epoch 2": student}, X[:1], layers=[-1])
    assert [p.get_title() for p in drawn.axes] == [
        "image", "epoch 1\nstage 3", "epoch 2\nstage 3",
    ]  # fmt: skip
    assert all(len(place.images) == 1 for place in drawn.axes)


def test_a_figure_shows_the_maps(student):
    figure = draw_attention_maps({"student": student}, X[:1], layers=[2])
    shown = torch.from_numpy(figure.axes[1].images[0].get_array().data)
    assert torch.equal(shown, visualize_attention_maps(student, X[:1], layer_idx=2)[0])


@pytest.mark.parametrize(
    ("look", "sentence"),
    [
        (lambda m: visualize_attention_maps(m, X, layer_idx=4), "no stage 4: the network has 4"),
        (lambda m: visualize_feature_maps(m, X, layer_idx=-5), "no stage -5"),
        (lambda m: visualize_attention_maps(m, X[0]), r"not \[3, 8, 8\]"),
        (
            lambda m: visualize_attention_maps(torchvision.models.resnet18(), X),
            r"A ResNet does not return \(logits",
        ),
    ],
)
def test_what_cannot_be_looked_at_is_a_sentence(student, look, sentence):
    with pytest.raises(UserError, match=sentence):
        look(student)
