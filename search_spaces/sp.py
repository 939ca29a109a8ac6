"""SP, similarity-preserving distillation, on the last feature map.

lr, weight_decay, temperature and both strengths: as for attention transfer. The loss
gets smaller with larger batches, which a strength makes up for.

START: a term as large as the classification loss, and KD of strength 3, about SimKD's alpha of
1; lr 0.02. RepDistiller's beta of 3,000 is a strength of 1.9 to 5.3, with lr 0.05.
"""

from search_spaces import at

METHOD = "sp"
SPACE, START = at.SPACE, at.START
