"""A teacher is checked before any trial."""

import numpy as np
import pytest
import torch
from small_runs import small_config
from torch import nn

from kdtune.errors import UserError
from kdtune.training.teacher_check import check_teacher


class Brightness(nn.Module):
    """Says class 1 where the first pixel is not black; spoils images of the brightness 255."""

    def __init__(self):
        super().__init__()
        self.spoils = False
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images):
        bright = images[:, 0, 0, 0] * self.weight + 2  # black is -2.1 after normalisation
        logits = torch.stack([-bright, bright], dim=1)
        if self.spoils:
            logits = torch.where((bright > 4).unsqueeze(1), torch.nan, logits)
        return logits, [images]


def batch(*levels):
    return torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)


CONFIG = small_config("data", method="kd", teacher_model="t.pth", device="cpu")
VALIDATION = [
    (batch(0, 200, 200), torch.tensor([0, 1, 0]), None), (batch(0), torch.tensor([1]), None)
]  # fmt: skip


def test_accuracies_are_those_of_the_logits():
    # training: argmax 1, 0, 1 of labels 1, 0, 0; validation: 0, 1, 1 and 0 of 0, 1, 0 and 1
    logits = np.array([[0, 1], [2, 1], [-1, 0]], np.float16)
    check = check_teacher(Brightness(), CONFIG, VALIDATION, [1, 0, 0], {"logits": logits})
    assert check == (pytest.approx(2 / 3), 0.5)
    assert (
        check.describe() == "accuracy 66.67 % on training images and 50.00 % on validation images"
    )
    live = check_teacher(Brightness(), CONFIG, VALIDATION, [1, 0, 0], {})
    assert live == (None, 0.5) and live.describe() == "accuracy 50.00 % on validation images"


def test_values_that_are_not_finite_are_refused_with_the_number_of_images():
    logits, hint = np.zeros((5, 2), np.float32), np.zeros((5, 3, 4), np.float16)
    logits[1, 0], hint[1, 2, 3], hint[4, 0, 0] = np.nan, np.inf, -np.inf
    sentence = (
        r"^The teacher t.pth gives values that are not finite \(for 2 of 5 images\): train or"
    )
    with pytest.raises(UserError, match=sentence):
        targets = {"logits": logits, "hint": hint}
        check_teacher(Brightness(), CONFIG, VALIDATION, [0] * 5, targets)
    spoilt = Brightness()
    spoilt.spoils = True
    bright = [*VALIDATION, (batch(255), torch.tensor([1]), None)]
    with pytest.raises(UserError, match=r"not finite \(for 1 of 5 images\)"):
        check_teacher(spoilt, CONFIG, bright, [0] * 5, {})
