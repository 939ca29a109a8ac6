"""Training without a teacher, the baseline that a method must beat.

lr and weight_decay: as for attention transfer.

START: the recipe of RepDistiller, lr 0.05.
"""

from ray import tune

METHOD = "student"
SPACE = {"lr": tune.loguniform(1e-3, 0.3), "weight_decay": tune.loguniform(1e-5, 1e-2)}
START = [{"lr": 0.05, "weight_decay": 5e-4}]
