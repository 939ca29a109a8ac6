r"""A plug-in with a method: the angle to the teacher's embedding, beyond a margin.

    kdtune sweep --plugin own_method.py --methods angle --data digits --teacher teacher.pth \
        --models MultiBranchNet --trials 1 --epochs 1 --name own-method

The embedding is the mean of the last map over its positions. `margin` is a setting of the method.
"""

from ray import tune
from torch import nn
from torch.nn.functional import cosine_similarity

from kdtune.methods.kd import add_kd_term
from kdtune.methods.method import Method


class Angle(Method):
    """classification + alpha·KD + beta·max(0, 1 − cos − margin), after a learned projection."""

    SETTINGS = {"beta": 1.0, "margin": 0.1}  # beta's default, and a further setting

    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        self.project = nn.Linear(student[-1][0], teacher[-1][0]) if teacher else None

    def targets(self, logits, features):
        return {"logits": logits.float(), "mean_-1": features[-1].float().mean((2, 3))}

    def terms(self, logits, features, targets, labels):
        own = self.project(features[-1].float().mean((2, 3)))
        gap = 1 - cosine_similarity(own, targets["mean_-1"]) - self.config.margin
        return add_kd_term(self.config, logits, targets, angle=gap.clamp(min=0).mean())


METHODS, METHOD = {"angle": Angle}, "angle"
SPACE = {"beta": tune.loguniform(0.1, 10), "margin": tune.uniform(0, 0.5)}
START = [{"beta": 1.0, "margin": 0.1}]
