"""The section on early stopping."""

from kdtune.reports.loaded_sweep import Sweep
from kdtune.reports.page.blocks import Block, Grid, Words, each
from kdtune.reports.tables.rungs import advise
from kdtune.reports.tables.sentences import name_of


def stopping(sweep: Sweep) -> list[Block]:
    """Whether the order of trials at a rung told that at the next."""
    if sweep.config.get("scheduler") == "none":
        return [Words("No trial was stopped early: the sweep had --scheduler none.", "missing")]
    rungs = sweep.known["rungs"]
    if rungs.empty:
        return [Words("No trial has reached a rung yet.", "missing")]
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
        Words(advise(rungs, sweep.opened[0]["config"]["grace_period"])),
        Grid(
            "Rank correlation of the scores after one epoch with those after the next one, mean "
            "over students; 1 is the same order, 0 none. Empty where fewer than 10 trials of a "
            "cell went on.",
            {
                "method": [name_of(method) for method in means["method"]],
                "after epoch": each(means["rung_epoch"], "d"),
                "next epoch": each(means["next_epoch"], "d"),
                "trials that got there": each(means["reached"], "d"),
                "went on": each(means["promoted"], "d"),
                "rank correlation": each(means["correlation"], ".2f"),
                "worst place of a later winner": each(means["winner"], "d"),
            },
        ),
    ]
