"""DIST, distillation from a stronger teacher.

lr, weight_decay and both strengths: as for attention transfer; the authors add no KD.
temperature 1 to 10: the authors' configurations have 4 on CIFAR-100 and 1 on ImageNet.

START: a term as large as the classification loss, and KD of strength 3, about SimKD's alpha of
1; lr 0.02. The authors' beta of 2 on CIFAR-100 is a strength of 25 to 28 (at T = 1 of 1.7), with
lr 0.05.
"""

from ray import tune

METHOD = "dist"
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
        "alpha_strength": 3.0,
        "beta_strength": 1.0,
    }
]
