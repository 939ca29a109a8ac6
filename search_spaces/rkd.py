"""RKD, relational knowledge distillation: distances, and angles with twice the weight.

lr, weight_decay, temperature and both strengths: as for attention transfer.

START: as for attention transfer. RepDistiller's beta of 25 is a strength of 1.4 to 3.1, with lr
0.05.
"""

from search_spaces import at

METHOD = "rkd"
SPACE, START = at.SPACE, at.START
