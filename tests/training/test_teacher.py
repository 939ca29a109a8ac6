"""A teacher is loaded only if it fits the data."""

import pytest
from small_runs import IMAGE_SIZE

from kdtune.errors import UserError
from kdtune.training.teacher import describe_teacher, load_teacher

CLASSES = tuple(f"digit-{i}" for i in range(10))


def test_a_teacher_is_frozen_and_in_eval_mode(teacher_file):
    teacher = load_teacher(teacher_file, CLASSES, IMAGE_SIZE)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize(
    ("classes", "size", "sentence"),
    [
        (CLASSES[:9], IMAGE_SIZE, "knows 10 classes, but the data have 9"),
        ((*CLASSES[:9], "zebra"), IMAGE_SIZE, "does not know the class 'zebra' of the data"),
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
