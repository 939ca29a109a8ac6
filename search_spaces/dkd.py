"""Decoupled knowledge distillation.

lr and weight_decay: as for attention transfer.
temperature 1 to 10: mdistiller, the authors' code, has 4 on CIFAR-100 and 1 on ImageNet.
alpha 0.1 to 10, on a log scale: 1 in all of their configurations; the range is that of kd.
beta 0.1 to 10, on a log scale: mdistiller has 0.5 on ImageNet, 2 to 8 on CIFAR-100.

START: the defaults, which are mdistiller's; its recipe with lr 0.05.
"""

from ray import tune

METHOD = "dkd"
SPACE = {
    "lr": tune.loguniform(1e-3, 0.3),
    "weight_decay": tune.loguniform(1e-5, 1e-2),
    "temperature": tune.uniform(1.0, 10.0),
    "alpha": tune.loguniform(0.1, 10.0),
    "beta": tune.loguniform(0.1, 10.0),
}
START = [
    {"lr": 0.01, "weight_decay": 5e-4, "temperature": 4.0, "alpha": 1.0, "beta": 8.0},
    {"lr": 0.05, "weight_decay": 5e-4, "temperature": 4.0, "alpha": 1.0, "beta": 8.0},
]
