"""Attention transfer with the loss of the paper, equation 2.

lr, weight_decay, temperature and both strengths: as for attention transfer.

START: a term as large as the classification loss, and KD of strength 3, about SimKD's alpha of
1; lr 0.02. The paper's beta of "about 0.1" is a strength of 0.02 to 0.04, with lr 0.1.
"""

from ray import tune

METHOD = "at_paper"
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
