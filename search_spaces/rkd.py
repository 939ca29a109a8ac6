"""RKD, relational knowledge distillation: distances, and angles with twice the weight.

lr, weight_decay, temperature and both strengths: as for attention transfer.

START: a term as large as the classification loss, almost no KD; RepDistiller's recipe, lr 0.05,
beta 25, which is a strength of 1.4 to 3.1.
"""

from ray import tune

METHOD = "rkd"
SPACE = {
    "lr": tune.loguniform(1e-3, 0.3),
    "weight_decay": tune.loguniform(1e-5, 1e-2),
    "temperature": tune.uniform(1.0, 10.0),
    "alpha_strength": tune.loguniform(0.01, 10.0),
    "beta_strength": tune.loguniform(0.01, 100.0),
}
START = [
    {
        "lr": 0.01,
        "weight_decay": 5e-4,
        "temperature": 4.0,
        "alpha_strength": 0.01,
        "beta_strength": 1.0,
    },
    {
        "lr": 0.05,
        "weight_decay": 5e-4,
        "temperature": 4.0,
        "alpha_strength": 0.01,
        "beta_strength": 2.0,
    },
]
