"""FitNets in the joint form: one stage of training, hint on the last feature map.

lr 0.001 to 0.3: the literature's 0.05 (RepDistiller) and, below it, 0.01, as it uses for light
networks.
weight_decay 1e-5 to 1e-2: around RepDistiller's 5e-4.
temperature 1 to 10: as for attention transfer; Romero et al. 2015 use T = 3.
alpha_strength: as for attention transfer. beta_strength 0.01 to 300: RepDistiller's beta of 100 is
a strength of 90 to 160, and was the best that a search found (results/reference/README.md). The
loss has the scale of the teacher's activations, squared, which a strength makes up for.

START: as for attention transfer.
"""

from ray import tune

from search_spaces import at

METHOD = "fitnets"
SPACE = {**at.SPACE, "beta_strength": tune.loguniform(0.01, 300.0)}
START = at.START
