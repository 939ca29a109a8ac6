"""The section that compares a plan with what the sweep took."""

import pandas as pd

from kdtune.log.folder import SweepFolder
from kdtune.reports.page.blocks import Block, Grid, Words
from kdtune.reports.tables.plan import _changed, compared, read_plan
from kdtune.units import duration


def planned(folder: SweepFolder) -> list[Block]:
    """What the report says of a plan; nothing without one.

    Raises:
        UserError: it is damaged.
    """
    if (plan := read_plan(folder)) is None:
        return []
    events = folder.events()
    table = compared(plan, events)
    so_far = "" if events[-1]["event"] == "complete" else " The sweep is not complete."
    so_far += " The sweep was changed after the plan." if _changed(events) else ""
    times = ("wall seconds", "device seconds")

    def texts(column: str) -> list[str]:
        pairs = zip(table["what"], table[column], strict=True)
        return [duration(value) if what in times else f"{value:,.0f}" for what, value in pairs]

    ratios = table["actual_over_planned"]
    return [
        Grid(
            f"The plan that was made before, and what the sweep took with {plan['slots']} slots."
            f"{so_far}",
            {
                "": [str(what).removesuffix(" seconds") for what in table["what"]],
                "planned": texts("planned"),
                "actual": texts("actual"),
                "actual / planned": ["" if pd.isna(r) else f"{r:.2f}" for r in ratios],
            },
        ),
        *map(Words, plan["notes"][1:2]),
    ]
