"""Plans as text."""

import json
from typing import Any

import pandas as pd

from kdtune.reports.text.render import render_table
from kdtune.units import format_bytes, format_duration


def plan_text(plan: dict[str, Any], output_format: str) -> str:
    """Return a plan as text.

    Args:
        plan: see `kdtune.tuning.planning.plan.Plan`.
        output_format: ``json``; ``csv`` has only its rows; ``table`` or ``markdown``.
    """
    if output_format == "json":
        return json.dumps(plan, indent=2) + "\n"
    if output_format == "csv":
        return render_table(pd.DataFrame(plan["rows"]), output_format)
    table = pd.DataFrame([_format_row(row) for row in plan["rows"]])
    table.loc[0, "slots"] += " (here)"
    limits = [f"{row['slots']:,}: {row['limit']}." for row in plan["rows"]]
    return f"{render_table(table, output_format)}\n" + "\n".join([*limits, *plan["notes"]]) + "\n"


def _format_row(row: dict[str, Any]) -> dict[str, str]:
    disk_bytes = row["cache_bytes"] + row["checkpoint_bytes"] + row["log_bytes"]
    return {
        "slots": f"{row['slots']:,}",
        "wall time": format_duration(row["wall_seconds"]),
        "device hours": f"{row['training_seconds'] / 3600:.2f}",
        "trials": f"{row['trials']:,}",
        "epochs": f"{row['epochs']:,}",
        "saved by stopping": f"{row['saved_epochs']:,}",
        "idle %": f"{100 * row['idle_share']:.0f}",
        "driver busy %": f"{100 * row['driver_share']:.0f}",
        "disk": format_bytes(disk_bytes),
        "memory of a node": format_bytes(row["node_memory_bytes"]),
    }
