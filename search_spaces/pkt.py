"""PKT, probabilistic knowledge transfer.

lr, weight_decay, temperature and both strengths: as for attention transfer. The loss
gets smaller with larger batches, which a strength makes up for.

START: a term as large as the classification loss, and KD of strength 3, about SimKD's alpha of
1; lr 0.02. RepDistiller's beta of 30,000 is a strength of 0.2 to 1.8, with lr 0.05.
"""

from search_spaces import at

METHOD = "pkt"
SPACE, START = at.SPACE, at.START
