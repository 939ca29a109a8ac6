"""Part of a section: the plan of a sweep against what it took."""

from collections.abc import Iterator

from kdtune.log.events import Completed
from kdtune.log.folder import SweepFolder
from kdtune.reports.page.blocks import Block, Paragraph, TableBlock
from kdtune.reports.tables.columns import PLAN
from kdtune.reports.tables.plan import is_changed_since_plan, plan_vs_actual, read_plan
from kdtune.units import format_duration


def plan_section(folder: SweepFolder) -> Iterator[Block]:
    """Yield a table of the plan and what the sweep took, if there is a plan."""
    if (plan := read_plan(folder)) is None:
        return
    events = folder.load_events()
    table = plan_vs_actual(plan, events)
    columns = {
        column: [
            format_duration(value) if quantity.endswith("seconds") else f"{value:,.0f}"
            for quantity, value in zip(table["what"], table[column], strict=True)
        ]
        for column in ("planned", "actual")
    }
    caption = f"The plan, and what the sweep took with {plan['slots']} slots."
    caption += "" if isinstance(events[-1], Completed) else " The sweep is not complete."
    caption += " The sweep was changed after the plan." if is_changed_since_plan(events) else ""
    quantities = [str(quantity).removesuffix(" seconds") for quantity in table["what"]]
    ratios = PLAN.to_texts(table, "actual_over_planned")
    yield TableBlock(caption, {"": quantities, **columns, **ratios})
    yield from map(Paragraph, plan["notes"][1:2])
