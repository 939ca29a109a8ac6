"""Knowledge distillation from logits, the baseline (Hinton et al. 2015).

lr and weight_decay: as for attention transfer.
temperature 1 to 10: RepDistiller and mdistiller use 4, values up to 8 are common.
alpha_strength 0.01 to 100: the term over the classification loss, both of the untrained student;
alpha follows from it. SimKD's alpha of 1 has a strength of 0.8 to 9, larger for more confident
teachers; the usual 0.1 / 0.9 split is alpha = 9 with a tenth of the learning rate, 7 to 80.

START: the 0.1 / 0.9 recipe of RepDistiller and mdistiller (lr 0.05, so 0.005 here).
"""

from ray import tune

METHOD = "kd"
SPACE = {
    "lr": tune.loguniform(1e-3, 0.3),
    "weight_decay": tune.loguniform(1e-5, 1e-2),
    "temperature": tune.uniform(1.0, 10.0),
    "alpha_strength": tune.loguniform(0.01, 100.0),
}
START = [{"lr": 0.005, "weight_decay": 5e-4, "temperature": 4.0, "alpha_strength": 25.0}]
