"""VID, variational information distillation, on the last feature map.

lr, weight_decay, temperature and alpha_strength: as for attention transfer.
beta 0.01 to 10: around the 1 of RepDistiller and mdistiller. It has no strength: most of the loss
is a constant before training, its logarithm of the variance, and it can become negative; and it
adapts to the scale of the teacher's activations by itself.

START: RepDistiller's beta, and KD of strength 3, about SimKD's alpha of 1; lr 0.02.
"""

from ray import tune

METHOD = "vid"
SPACE = {
    "lr": tune.loguniform(1e-3, 0.3),
    "weight_decay": tune.loguniform(1e-5, 1e-2),
    "temperature": tune.uniform(1.0, 10.0),
    "alpha_strength": tune.loguniform(0.01, 100.0),
    "beta": tune.loguniform(0.01, 10.0),
}
START = [
    {"lr": 0.02, "weight_decay": 5e-4, "temperature": 4.0, "alpha_strength": 3.0, "beta": 1.0}
]
