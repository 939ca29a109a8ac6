"""What a report says of a sweep after its verdict, section by section.

A section without data is one sentence that says why, and what would add it.
"""

from collections.abc import Callable

from kdtune.reports.loaded_sweep import Sweep
from kdtune.reports.page.blocks import Block
from kdtune.reports.page.sections.failures import failures
from kdtune.reports.page.sections.reading import reading
from kdtune.reports.page.sections.search import search
from kdtune.reports.page.sections.settings import settings
from kdtune.reports.page.sections.ship import ship
from kdtune.reports.page.sections.stopping import stopping

SECTIONS: dict[str, tuple[str, str, Callable[[Sweep], list[Block]]]] = {
    "ship": ("What to ship", "Which student and method fit my speed limit?", ship),
    "search": ("Search", "Was the search fair and long enough?", search),
    "settings": ("Settings", "Which settings matter, and do they carry over?", settings),
    "stopping": ("Early stopping", "Could the rungs be trusted?", stopping),
    "failures": ("Failures", "What failed?", failures),
    "reading": ("How to read this", "What do the numbers cover?", reading),
}
"""Heading, question and content of the sections after verdict and leaderboard, by anchor."""
