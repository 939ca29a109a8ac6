"""Attention transfer with the loss of the paper, equation 2.

lr, weight_decay, temperature and alpha: as for attention transfer.
beta 0.01 to 100: Zagoruyko & Komodakis 2017 say "about 0.1". The range extends further up, since
the 1,000 of their code corresponds to about 3 (maps of 16×16) to 60 (2×2) here.

START: the defaults; the same with the lr of the paper, 0.1.
"""

from ray import tune

METHOD = "at_paper"
SPACE = {
    "lr": tune.loguniform(1e-3, 0.3),
    "weight_decay": tune.loguniform(1e-5, 1e-2),
    "temperature": tune.uniform(1.0, 10.0),
    "alpha": tune.uniform(0.0, 1.0),
    "beta": tune.loguniform(0.01, 100.0),
}
START = [
    {"lr": 0.01, "weight_decay": 5e-4, "temperature": 4.0, "alpha": 0.0, "beta": 0.1},
    {"lr": 0.1, "weight_decay": 5e-4, "temperature": 4.0, "alpha": 0.0, "beta": 0.1},
]
