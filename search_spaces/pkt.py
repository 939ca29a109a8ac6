"""PKT, probabilistic knowledge transfer.

lr, weight_decay, temperature and both strengths: as for attention transfer. The loss
gets smaller with larger batches, which a strength makes up for.

START: as for attention transfer. RepDistiller's beta of 30,000 is a strength of 0.2 to 1.8, with
lr 0.05.
"""

from search_spaces import at

METHOD = "pkt"
SPACE, START = at.SPACE, at.START
