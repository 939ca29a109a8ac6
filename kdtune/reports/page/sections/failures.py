"""The section on failed trials."""

from kdtune.reports.loaded_sweep import Sweep
from kdtune.reports.page.blocks import Block, Grid, Picture, Words, each, texts
from kdtune.reports.page.figures import (
    outcomes_figure,
)
from kdtune.reports.tables.failures import diverged_settings, errors_table
from kdtune.reports.tables.figure_data import (
    outcomes,
)
from kdtune.reports.tables.notes import (
    NOT_BEGUN,
    bad_images_note,
)
from kdtune.reports.tables.sentences import name_of


def failures(sweep: Sweep) -> list[Block]:
    """How trials ended, the most frequent errors, and the settings of what diverged."""
    board = sweep.tables.leaderboard
    if board.empty:
        return [Words(NOT_BEGUN, "missing", "failures")]
    counts = outcomes(board)
    diverged, crashed = int(counts["diverged"].sum()), int(counts["crashed"].sum())
    total = int(board["trials_started"].sum())
    caption = f"{diverged + crashed} of {total} trials failed"
    caption += f": {diverged} diverged, {crashed} crashed." if diverged + crashed else "."
    blocks: list[Block] = [Picture("failures", outcomes_figure(counts), caption)]
    errors = errors_table(sweep.tables.trials, sweep.tables.runs)
    if len(errors):
        blocks.append(
            Grid(
                "The most frequent errors; those that differ in numbers only are counted as one.",
                {
                    "status": texts(errors["state"]),
                    "in words": texts(errors["reason"]),
                    "trials": each(errors["trials"], "d"),
                    "confirming runs": each(errors["runs"], "d"),
                },
            )
        )
    apart = diverged_settings(sweep.tables.trials, sweep.spaces)
    if len(apart):
        blocks.append(
            Grid(
                "Settings of the trials that diverged, where they are furthest from the others.",
                {
                    "method": [name_of(method) for method in apart["method"]],
                    "setting": texts(apart["hyperparameter"]),
                    "median of diverged": each(apart["diverged_median"], ".3g"),
                    "median of the others": each(apart["other_median"], ".3g"),
                },
            )
        )
    if note := bad_images_note(sweep.events):
        blocks.append(Words(note))
        bad = sweep.known["bad_images"].head(20)
        blocks.append(
            Grid("The first of them.", {name: texts(bad[name]) for name in bad}, folded=True)
        )
    return blocks
