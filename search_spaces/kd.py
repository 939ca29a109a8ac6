"""Knowledge distillation from logits, the baseline (Hinton et al. 2015).

lr and weight_decay: as for attention transfer.
temperature 1 to 10: RepDistiller and mdistiller use 4, values up to 8 are common.
alpha 0.1 to 10, on a log scale: the weight beside a classification loss of weight 1. The usual
0.1 / 0.9 split is alpha = 9 with a tenth of the learning rate; SimKD's 1 / 1 is alpha = 1.

START: the defaults; the 0.1 / 0.9 recipe of RepDistiller and mdistiller (lr 0.05, so 0.005 here).
"""

from ray import tune

METHOD = "kd"
SPACE = {
    "lr": tune.loguniform(1e-3, 0.3),
    "weight_decay": tune.loguniform(1e-5, 1e-2),
    "temperature": tune.uniform(1.0, 10.0),
    "alpha": tune.loguniform(0.1, 10.0),
}
START = [
    {"lr": 0.01, "weight_decay": 5e-4, "temperature": 4.0, "alpha": 1.0},
    {"lr": 0.005, "weight_decay": 5e-4, "temperature": 4.0, "alpha": 9.0},
]
