"""Section: failed trials."""

from collections.abc import Iterator

from kdtune.reports.loaded_sweep import LoadedSweep
from kdtune.reports.page.blocks import Block, FigureBlock, Paragraph, TableBlock
from kdtune.reports.page.figures import plot_outcomes
from kdtune.reports.tables.columns import BAD_IMAGES, DIVERGED_SETTINGS, FAILURES
from kdtune.reports.tables.failures import diverged_settings, failures_table
from kdtune.reports.tables.figure_data import count_outcomes
from kdtune.reports.tables.notes import NO_TRIAL_NOTE, bad_images_note
from kdtune.reports.tables.sentences import display_name


def failures_section(sweep: LoadedSweep) -> Iterator[Block]:
    """Yield trials by state, the most frequent reasons, diverged settings, bad images."""
    leaderboard = sweep.tables.leaderboard
    if leaderboard.empty:
        yield Paragraph(NO_TRIAL_NOTE, "missing", "failures")
        return
    counts = count_outcomes(leaderboard)
    diverged, crashed = int(counts["diverged"].sum()), int(counts["crashed"].sum())
    caption = f"{diverged + crashed} of {int(leaderboard['trials_started'].sum())} trials failed"
    caption += f": {diverged} diverged, {crashed} crashed." if diverged + crashed else "."
    yield FigureBlock("failures", plot_outcomes(counts), caption)
    if len(failures := failures_table(sweep.tables.trials, sweep.tables.runs)):
        caption = "The most frequent reasons; those that differ only in numbers count as one."
        yield TableBlock(caption, FAILURES.to_texts(failures, *FAILURES.names))
    if len(medians := diverged_settings(sweep.tables.trials, sweep.spaces)):
        medians = medians.assign(method=medians["method"].map(display_name))
        caption = "Settings in which diverged trials differ most from the others."
        columns = DIVERGED_SETTINGS.to_texts(medians, *DIVERGED_SETTINGS.names[:-1])
        yield TableBlock(caption, columns)
    if note := bad_images_note(sweep.events):
        yield Paragraph(note)
        columns = BAD_IMAGES.to_texts(sweep.named_tables["bad_images"].head(20), *BAD_IMAGES.names)
        yield TableBlock("The first of them.", columns, collapsed=True)
