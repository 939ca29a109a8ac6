"""Decoupled knowledge distillation.

lr and weight_decay: as for attention transfer.
temperature 1 to 10: mdistiller, the authors' code, has 4 on CIFAR-100 and 1 on ImageNet.
alpha_strength 0.01 to 100, as that of kd, and beta_strength 0.01 to 30: mdistiller has alpha 1,
which is a strength of 0.1 to 9, and beta 0.5 on ImageNet, 2 to 8 on CIFAR-100; 8 is a strength of
6 to 13.

START: both terms as large as the classification loss; lr 0.02. mdistiller's recipe is alpha 1,
beta 8 and lr 0.05.
"""

from ray import tune

METHOD = "dkd"
SPACE = {
    "lr": tune.loguniform(1e-3, 0.3),
    "weight_decay": tune.loguniform(1e-5, 1e-2),
    "temperature": tune.uniform(1.0, 10.0),
    "alpha_strength": tune.loguniform(0.01, 100.0),
    "beta_strength": tune.loguniform(0.01, 30.0),
}
START = [
    {
        "lr": 0.02,
        "weight_decay": 5e-4,
        "temperature": 4.0,
        "alpha_strength": 1.0,
        "beta_strength": 1.0,
    }
]
