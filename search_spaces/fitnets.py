"""FitNets in the joint form: one stage of training, hint on the last feature map.

lr 0.001 to 0.3: the literature's 0.05 (RepDistiller) and, below it, 0.01, as it uses for light
networks.
weight_decay 1e-5 to 1e-2: around RepDistiller's 5e-4.
temperature 1 to 10: as for attention transfer; Romero et al. 2015 use T = 3.
alpha_strength: as for attention transfer. beta_strength 0.01 to 300: RepDistiller's beta of 100 is
a strength of 90 to 160, and was the best of one search (results/reference/README.md). The
loss has the scale of the teacher's activations, squared, which a strength makes up for.

START: a term as large as the classification loss, and KD of strength 3, about SimKD's alpha of
1; lr 0.02.
"""

from ray import tune

METHOD = "fitnets"
SPACE = {
    "lr": tune.loguniform(1e-3, 0.3),
    "weight_decay": tune.loguniform(1e-5, 1e-2),
    "temperature": tune.uniform(1.0, 10.0),
    "alpha_strength": tune.loguniform(0.01, 100.0),
    "beta_strength": tune.loguniform(0.01, 300.0),
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
