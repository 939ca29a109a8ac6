"""The section that compares a plan with what the sweep took."""

from kdtune.log.events import Completed
from kdtune.log.folder import SweepFolder
from kdtune.reports.page.blocks import Block, Paragraph, TableBlock
from kdtune.reports.tables.columns import PLAN
from kdtune.reports.tables.plan import is_changed_since_plan, plan_vs_actual, read_plan
from kdtune.units import format_duration


def plan_section(folder: SweepFolder) -> list[Block]:
    """What the report says of a plan; nothing without one.

    Raises:
        UserError: it is damaged.
    """
    if (plan := read_plan(folder)) is None:
        return []
    events = folder.load_events()
    comparison = plan_vs_actual(plan, events)
    remarks = "" if isinstance(events[-1], Completed) else " The sweep is not complete."
    remarks += " The sweep was changed after the plan." if is_changed_since_plan(events) else ""
    duration_rows = ("wall seconds", "device seconds")

    def format_column(column: str) -> list[str]:
        pairs = zip(comparison["what"], comparison[column], strict=True)
        return [
            format_duration(value) if quantity in duration_rows else f"{value:,.0f}"
            for quantity, value in pairs
        ]

    return [
        TableBlock(
            f"The plan that was made before, and what the sweep took with {plan['slots']} slots."
            f"{remarks}",
            {
                "": [str(quantity).removesuffix(" seconds") for quantity in comparison["what"]],
                "planned": format_column("planned"),
                "actual": format_column("actual"),
                **PLAN.to_texts(comparison, "actual_over_planned"),
            },
        ),
        *map(Paragraph, plan["notes"][1:2]),
    ]
