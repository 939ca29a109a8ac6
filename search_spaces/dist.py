"""DIST, distillation from a stronger teacher.

lr and weight_decay: as for attention transfer.
temperature 1 to 10: the authors' configurations have 4 on CIFAR-100 and 1 on ImageNet.
alpha 0 to 1: KD is added, as for every method; the authors use none.
beta 0.1 to 10: around their 2, which T² multiplies.

START: the defaults, which are the authors' on CIFAR-100; their recipe with lr 0.05.
"""

from ray import tune

METHOD = "dist"
SPACE = {
    "lr": tune.loguniform(1e-3, 0.3),
    "weight_decay": tune.loguniform(1e-5, 1e-2),
    "temperature": tune.uniform(1.0, 10.0),
    "alpha": tune.uniform(0.0, 1.0),
    "beta": tune.loguniform(0.1, 10.0),
}
START = [
    {"lr": 0.01, "weight_decay": 5e-4, "temperature": 4.0, "alpha": 0.0, "beta": 2.0},
    {"lr": 0.05, "weight_decay": 5e-4, "temperature": 4.0, "alpha": 0.0, "beta": 2.0},
]
