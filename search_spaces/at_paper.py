"""Attention transfer with the loss of the paper, equation 2.

lr, weight_decay, temperature and both strengths: as for attention transfer.

START: as for attention transfer. The paper's beta of "about 0.1" is a strength of 0.02 to 0.04,
with lr 0.1.
"""

from search_spaces import at

METHOD = "at_paper"
SPACE, START = at.SPACE, at.START
