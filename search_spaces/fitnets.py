"""FitNets in the joint form: one stage of training, hint on the last feature map.

lr 0.001 to 0.3: the literature's 0.05 (RepDistiller) and, below it, 0.01, as it uses for light
networks.
weight_decay 1e-5 to 1e-2: around RepDistiller's 5e-4.
temperature 1 to 10 and alpha 0 to 1: as for attention transfer; Romero et al. 2015 use T = 3.
beta 0.001 to 100: from the default of `kdtune.fitnets` to RepDistiller's 100. The loss has
the scale of the teacher's activations, squared, so good values differ from teacher to teacher.

START: the defaults of `kdtune.fitnets`; RepDistiller's recipe, lr 0.05, beta 100, no KD.
"""

from ray import tune

METHOD = "fitnets"
SPACE = {
    "lr": tune.loguniform(1e-3, 0.3),
    "weight_decay": tune.loguniform(1e-5, 1e-2),
    "temperature": tune.uniform(1.0, 10.0),
    "alpha": tune.uniform(0.0, 1.0),
    "beta": tune.loguniform(1e-3, 100.0),
}
START = [
    {"lr": 0.01, "weight_decay": 5e-4, "temperature": 3.0, "alpha": 0.1, "beta": 1e-3},
    {"lr": 0.05, "weight_decay": 5e-4, "temperature": 4.0, "alpha": 0.0, "beta": 100.0},
]
