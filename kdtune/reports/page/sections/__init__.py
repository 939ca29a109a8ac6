"""Sections of a report; one without data is a sentence that says which command adds it."""

from collections.abc import Callable, Iterator

from kdtune.reports.loaded_sweep import LoadedSweep
from kdtune.reports.page.blocks import Block
from kdtune.reports.page.sections.failures import failures_section
from kdtune.reports.page.sections.reading import reading_section
from kdtune.reports.page.sections.search import search_section
from kdtune.reports.page.sections.settings import settings_section
from kdtune.reports.page.sections.stopping import stopping_section

SECTIONS: dict[str, tuple[str, str, Callable[[LoadedSweep], Iterator[Block]]]] = {
    "search": ("Search", "Was the search fair and long enough?", search_section),
    "settings": ("Settings", "Which settings matter, and do they carry over?", settings_section),
    "stopping": ("Early stopping", "Could the rungs be trusted?", stopping_section),
    "failures": ("Failures", "What failed?", failures_section),
    "reading": ("How to read this", "What do the numbers cover?", reading_section),
}
"""Heading, question and function of the sections after the leaderboard, by anchor."""
