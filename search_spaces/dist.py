"""DIST, distillation from a stronger teacher.

lr, weight_decay and both strengths: as for attention transfer; the authors add no KD.
temperature 1 to 10: the authors' configurations have 4 on CIFAR-100 and 1 on ImageNet.

START: as for attention transfer. The authors' beta of 2 on CIFAR-100 is a strength of 25 to 28
(at T = 1 of 1.7), with lr 0.05.
"""

from search_spaces import at

METHOD = "dist"
SPACE, START = at.SPACE, at.START
