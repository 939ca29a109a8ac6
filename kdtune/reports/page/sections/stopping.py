"""The section on early stopping."""

from kdtune.reports.loaded_sweep import LoadedSweep
from kdtune.reports.page.blocks import Block, Paragraph, TableBlock
from kdtune.reports.tables.columns import RUNGS
from kdtune.reports.tables.rungs import advise_grace_period
from kdtune.reports.tables.sentences import display_name


def stopping_section(sweep: LoadedSweep) -> list[Block]:
    """Whether the order of trials at a rung told that at the next."""
    if sweep.config.get("scheduler") == "none":
        return [
            Paragraph("No trial was stopped early: the sweep had --scheduler none.", "missing")
        ]
    rungs = sweep.named_tables["rungs"]
    if rungs.empty:
        return [Paragraph("No trial has reached a rung yet.", "missing")]
    means = (
        rungs.groupby(["method", "rung_epoch", "next_epoch"], sort=False)
        .agg(
            trials_reached=("trials_reached", "sum"),
            trials_promoted=("trials_promoted", "sum"),
            correlation_all=("correlation_all", "mean"),
            winner_rank_at_rung=("winner_rank_at_rung", "max"),
        )
        .reset_index()
    )
    return [
        Paragraph(advise_grace_period(rungs, sweep.opening_events[0].config["grace_period"])),
        TableBlock(
            "Rank correlation of the scores after one epoch with those after the next one, mean "
            "over students; 1 is the same order, 0 none. Empty where fewer than 10 trials of a "
            "cell were promoted.",
            RUNGS.to_texts(
                means.assign(method=[display_name(method) for method in means["method"]]),
                *means.columns,
            ),
        ),
    ]
