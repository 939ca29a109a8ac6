"""RKD, relational knowledge distillation: distances, and angles with twice the weight.

lr, weight_decay, temperature and alpha: as for attention transfer.
beta 0.25 to 250: around the 25 for distances (and 50 for angles) of RepDistiller and mdistiller.

START: the defaults, with RepDistiller's beta; its recipe, lr 0.05.
"""

from ray import tune

METHOD = "rkd"
SPACE = {
    "lr": tune.loguniform(1e-3, 0.3),
    "weight_decay": tune.loguniform(1e-5, 1e-2),
    "temperature": tune.uniform(1.0, 10.0),
    "alpha": tune.uniform(0.0, 1.0),
    "beta": tune.loguniform(0.25, 250.0),
}
START = [
    {"lr": 0.01, "weight_decay": 5e-4, "temperature": 4.0, "alpha": 0.0, "beta": 25.0},
    {"lr": 0.05, "weight_decay": 5e-4, "temperature": 4.0, "alpha": 0.0, "beta": 25.0},
]
