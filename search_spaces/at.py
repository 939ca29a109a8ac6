"""Attention transfer.

lr 0.001 to 0.3: the literature's 0.05 and 0.1 (RepDistiller; Zagoruyko & Komodakis 2017) and,
below them, 0.01, as RepDistiller uses for light networks.
weight_decay 1e-5 to 1e-2: around the 5e-4 of both.
temperature 1 to 10 and alpha 0 to 1: KD beside AT raised ResNet32x4 -> ResNet8x4 on CIFAR-100
from 73.4 to 75.1 % (SimKD's README against RepDistiller's), so it is searched along; T is 4 there.
beta 10 to 10,000: the authors' code has 1,000, for three maps of 32 to 8 px and long training; the
range extends further down because a stage has the weight beta / (H·W), larger for smaller maps.

START: the defaults of `kdtune.at`; the settings of the authors' code, lr 0.1, beta 1,000, no KD.
"""

from ray import tune

METHOD = "at"
SPACE = {
    "lr": tune.loguniform(1e-3, 0.3),
    "weight_decay": tune.loguniform(1e-5, 1e-2),
    "temperature": tune.uniform(1.0, 10.0),
    "alpha": tune.uniform(0.0, 1.0),
    "beta": tune.loguniform(10.0, 1e4),
}
START = [
    {"lr": 0.01, "weight_decay": 5e-4, "temperature": 4.0, "alpha": 0.0, "beta": 1e3},
    {"lr": 0.1, "weight_decay": 5e-4, "temperature": 4.0, "alpha": 0.0, "beta": 1e3},
]
