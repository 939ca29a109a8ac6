"""Attention transfer.

A strength is a weighted term over the classification loss, both of the untrained student; the
weight follows from it. So the ranges are the same for all teachers, students and image sizes.

lr 0.001 to 0.3: the literature's 0.05 and 0.1 (RepDistiller; Zagoruyko & Komodakis 2017) and,
below them, 0.01, as RepDistiller uses for light networks.
weight_decay 1e-5 to 1e-2: around the 5e-4 of both.
temperature 1 to 10 and alpha_strength 0.01 to 100, as that of kd: KD beside AT raised
ResNet32x4 -> ResNet8x4 on CIFAR-100 from 73.4 to 75.1 % (SimKD's README against RepDistiller's),
so it is searched along; T is 4 there. Its alpha of 1 has a strength of 0.8 to 9, larger for more
confident teachers.
beta_strength 0.01 to 30, for all methods but FitNets: in 16 cells of four methods the best were
0.1 to 5, and 100 was worse than no term at all (`make bench-strengths`; benchmarks/README.md).

START: a term as large as the classification loss, and KD of strength 3, about SimKD's alpha of
1; lr 0.02. The authors' beta of 1,000 is a strength of 3 to 18, with lr 0.1.
"""

from ray import tune

METHOD = "at"
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
