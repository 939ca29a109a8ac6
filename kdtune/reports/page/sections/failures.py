"""The section on failed trials."""

from kdtune.reports.loaded_sweep import LoadedSweep
from kdtune.reports.page.blocks import Block, FigureBlock, Paragraph, TableBlock
from kdtune.reports.page.figures import plot_outcomes
from kdtune.reports.tables.columns import BAD_IMAGES, DIVERGED_SETTINGS, ERRORS
from kdtune.reports.tables.failures import diverged_settings, errors_table
from kdtune.reports.tables.figure_data import count_outcomes
from kdtune.reports.tables.notes import NO_TRIAL_NOTE, bad_images_note
from kdtune.reports.tables.sentences import display_name


def failures_section(sweep: LoadedSweep) -> list[Block]:
    """How trials ended, the most frequent errors, and the settings of what diverged."""
    leaderboard = sweep.tables.leaderboard
    if leaderboard.empty:
        return [Paragraph(NO_TRIAL_NOTE, "missing", "failures")]
    counts = count_outcomes(leaderboard)
    diverged, crashed = int(counts["diverged"].sum()), int(counts["crashed"].sum())
    total = int(leaderboard["trials_started"].sum())
    caption = f"{diverged + crashed} of {total} trials failed"
    caption += f": {diverged} diverged, {crashed} crashed." if diverged + crashed else "."
    blocks: list[Block] = [FigureBlock("failures", plot_outcomes(counts), caption)]
    errors = errors_table(sweep.tables.trials, sweep.tables.runs)
    if len(errors):
        blocks.append(
            TableBlock(
                "The most frequent errors; those that differ in numbers only are counted as one.",
                ERRORS.to_texts(errors, *ERRORS.names),
            )
        )
    setting_medians = diverged_settings(sweep.tables.trials, sweep.spaces)
    if len(setting_medians):
        blocks.append(
            TableBlock(
                "Settings of the trials that diverged, where they are furthest from the others.",
                DIVERGED_SETTINGS.to_texts(
                    setting_medians.assign(
                        method=[display_name(method) for method in setting_medians["method"]]
                    ),
                    *DIVERGED_SETTINGS.names[:-1],
                ),
            )
        )
    if note := bad_images_note(sweep.events):
        blocks.append(Paragraph(note))
        bad_images = sweep.named_tables["bad_images"].head(20)
        blocks.append(
            TableBlock(
                "The first of them.",
                BAD_IMAGES.to_texts(bad_images, *BAD_IMAGES.names),
                collapsed=True,
            )
        )
    return blocks
