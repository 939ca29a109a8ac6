"""VID, variational information distillation, on the last feature map.

lr, weight_decay, temperature and alpha: as for attention transfer.
beta 0.01 to 10: around the 1 of RepDistiller and mdistiller. The loss adapts to the scale of the
teacher's activations, so the range is narrower than that of FitNets.

START: the defaults, with RepDistiller's beta; its recipe, lr 0.05.
"""

from ray import tune

METHOD = "vid"
SPACE = {
    "lr": tune.loguniform(1e-3, 0.3),
    "weight_decay": tune.loguniform(1e-5, 1e-2),
    "temperature": tune.uniform(1.0, 10.0),
    "alpha": tune.uniform(0.0, 1.0),
    "beta": tune.loguniform(0.01, 10.0),
}
START = [
    {"lr": 0.01, "weight_decay": 5e-4, "temperature": 4.0, "alpha": 0.0, "beta": 1.0},
    {"lr": 0.05, "weight_decay": 5e-4, "temperature": 4.0, "alpha": 0.0, "beta": 1.0},
]
