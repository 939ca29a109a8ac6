"""PKT, probabilistic knowledge transfer.

lr, weight_decay, temperature and alpha: as for attention transfer.
beta 300 to 300,000: around the 30,000 of RepDistiller and mdistiller, for batches of 64. The loss
gets smaller with larger batches, so good values differ with batch_size.

START: the defaults, with RepDistiller's beta; its recipe, lr 0.05.
"""

from ray import tune

METHOD = "pkt"
SPACE = {
    "lr": tune.loguniform(1e-3, 0.3),
    "weight_decay": tune.loguniform(1e-5, 1e-2),
    "temperature": tune.uniform(1.0, 10.0),
    "alpha": tune.uniform(0.0, 1.0),
    "beta": tune.loguniform(300.0, 3e5),
}
START = [
    {"lr": 0.01, "weight_decay": 5e-4, "temperature": 4.0, "alpha": 0.0, "beta": 3e4},
    {"lr": 0.05, "weight_decay": 5e-4, "temperature": 4.0, "alpha": 0.0, "beta": 3e4},
]
