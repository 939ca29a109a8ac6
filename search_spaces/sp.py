"""SP, similarity-preserving distillation, on the last feature map.

lr, weight_decay, temperature and both strengths: as for attention transfer. The loss
gets smaller with larger batches, which a strength makes up for.

START: a term as large as the classification loss, and KD of strength 3, about SimKD's alpha of
1; lr 0.02. RepDistiller's beta of 3,000 is a strength of 1.9 to 5.3, with lr 0.05.
"""

from ray import tune

METHOD = "sp"
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
