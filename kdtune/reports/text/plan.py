"""A plan as text."""

import json
from typing import Any

import pandas as pd

from kdtune.reports.text.render import render_table
from kdtune.units import amount, duration


def plan_text(plan: dict[str, Any], form: str) -> str:
    """A plan for people or programs.

    Args:
        plan: see `kdtune.tuning.planning.plan.Plan`.
        form: ``json``, all of it; ``csv``, its rows unrounded; ``table`` or ``markdown``, its rows
            with what keeps each from being faster, and its notes.
    """
    if form == "json":
        return json.dumps(plan, indent=2) + "\n"
    if form == "csv":
        return render_table(pd.DataFrame(plan["rows"]), form)
    shown = pd.DataFrame([_shown(row) for row in plan["rows"]])
    shown.loc[0, "slots"] += " (here)"
    limits = [f"{row['slots']:,}: {row['limit']}." for row in plan["rows"]]
    return f"{render_table(shown, form)}\n" + "\n".join([*limits, *plan["notes"]]) + "\n"


def _shown(row: dict[str, Any]) -> dict[str, str]:
    disk = row["cache_bytes"] + row["checkpoint_bytes"] + row["log_bytes"]
    return {
        "slots": f"{row['slots']:,}",
        "wall time": duration(row["wall"]),
        "device hours": f"{row['training'] / 3600:.2f}",
        "trials": f"{row['trials']:,}",
        "epochs": f"{row['epochs']:,}",
        "saved by stopping": f"{row['saved']:,}",
        "idle %": f"{100 * row['idle_share']:.0f}",
        "driver busy %": f"{100 * row['driver_share']:.0f}",
        "disk": amount(disk),
        "memory of a node": amount(row["node_memory_bytes"]),
    }
