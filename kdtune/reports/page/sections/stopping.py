"""Section: early stopping."""

from collections.abc import Iterator

from kdtune.reports.loaded_sweep import LoadedSweep
from kdtune.reports.page.blocks import Block, Paragraph, TableBlock
from kdtune.reports.tables.columns import MIN_PROMOTED_TRIALS, RUNGS
from kdtune.reports.tables.rungs import advise_grace_period
from kdtune.reports.tables.sentences import display_name

CAPTION = (
    "Rank correlation of the scores at one rung with those at the next, mean over students; 1 is "
    f"the same order, 0 none. Empty if fewer than {MIN_PROMOTED_TRIALS} trials of a cell were "
    "promoted."
)


def stopping_section(sweep: LoadedSweep) -> Iterator[Block]:
    """Yield how well the order of trials at a rung predicts that at the next."""
    rungs = sweep.named_tables["rungs"]
    if sweep.config.get("scheduler") == "none":
        yield Paragraph("No trial was stopped early: the sweep had --scheduler none.", "missing")
        return
    if rungs.empty:
        yield Paragraph("No trial has reached a rung yet.", "missing")
        return
    groups = rungs.groupby(["method", "rung_epoch", "next_epoch"], sort=False)
    sums = {"trials_reached": "sum", "trials_promoted": "sum"}
    means = groups.agg({**sums, "correlation_all": "mean", "winner_rank_at_rung": "max"})
    means = means.reset_index()
    shown = means.assign(method=means["method"].map(display_name))
    yield Paragraph(advise_grace_period(rungs, sweep.opening_events[0].config["grace_period"]))
    yield TableBlock(CAPTION, RUNGS.to_texts(shown, *means.columns))
