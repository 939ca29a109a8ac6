"""SP, similarity-preserving distillation, on the last feature map.

lr, weight_decay, temperature and both strengths: as for attention transfer. The loss
gets smaller with larger batches, which a strength makes up for.

START: as for attention transfer. RepDistiller's beta of 3,000 is a strength of 1.9 to 5.3, with
lr 0.05.
"""

from search_spaces import at

METHOD = "sp"
SPACE, START = at.SPACE, at.START
