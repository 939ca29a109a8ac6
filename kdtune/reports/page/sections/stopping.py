"""The section on early stopping."""

from kdtune.reports.loaded_sweep import LoadedSweep
from kdtune.reports.page.blocks import Block, Paragraph, TableBlock, format_each
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
            reached=("trials_reached", "sum"),
            promoted=("trials_promoted", "sum"),
            correlation=("correlation_all", "mean"),
            winner=("winner_rank_at_rung", "max"),
        )
        .reset_index()
    )
    return [
        Paragraph(advise_grace_period(rungs, sweep.opening_events[0].config["grace_period"])),
        TableBlock(
            "Rank correlation of the scores after one epoch with those after the next one, mean "
            "over students; 1 is the same order, 0 none. Empty where fewer than 10 trials of a "
            "cell went on.",
            {
                "method": [display_name(method) for method in means["method"]],
                "after epoch": format_each(means["rung_epoch"], "d"),
                "next epoch": format_each(means["next_epoch"], "d"),
                "trials that got there": format_each(means["reached"], "d"),
                "went on": format_each(means["promoted"], "d"),
                "rank correlation": format_each(means["correlation"], ".2f"),
                "worst place of a later winner": format_each(means["winner"], "d"),
            },
        ),
    ]
