"""Every table that a sweep's folder holds."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from kdtune.errors import UserError
from kdtune.reports.curves import search_curve_table
from kdtune.reports.leaderboard import SweepTables
from kdtune.reports.planned import compared, read_plan
from kdtune.reports.points import ship_points
from kdtune.reports.render import render_table
from kdtune.reports.rungs import rungs_table
from kdtune.reports.settings import distributions, settings_table
from kdtune.reports.sweep import tables_of
from kdtune.reports.tables import bad_images_table, epochs_table
from kdtune.results import Snapshot, SweepFolder


def every_table(folder: SweepFolder, tables: SweepTables) -> dict[str, pd.DataFrame]:
    """All tables that a sweep's folder holds, by name; those without a row left out."""
    events = folder.events()
    opened = folder.opened()[0]
    epochs = epochs_table(events)
    chance = 1 / len(opened["data"]["classes"])
    first_rung = opened["config"]["grace_period"]
    known = {
        "trials": tables.trials,
        "epochs": epochs,
        "leaderboard": tables.leaderboard,
        "comparison": tables.comparison,
        "search_curve": search_curve_table(tables.trials, epochs, chance),
        "rungs": rungs_table(events),
        "settings": settings_table(
            tables.trials, epochs, distributions(events), first_rung, chance
        ),
        "confirm": tables.runs,
        "models": tables.models,
        "students": ship_points(tables.leaderboard).dropna(subset="parameters"),
        "bad_images": bad_images_table(events),
    }
    if (plan := read_plan(folder)) is not None:
        known["plan"] = compared(plan, events)
    always = ("trials", "epochs", "leaderboard", "comparison", "rungs")
    return {name: table for name, table in known.items() if len(table) or name in always}


def named_table(known: Mapping[str, pd.DataFrame], name: str, path: Path) -> pd.DataFrame:
    """One of `every_table`, by its name.

    Raises:
        UserError: the sweep in `path` has no such table.
    """
    if name not in known:
        raise UserError(f"{path} has no table '{name}'; there are {', '.join(known)}.")
    return known[name]


def table_text(path: Path, name: str, form: str) -> str:
    """A table of a sweep by its name.

    Args:
        path: the sweep's folder.
        name: of `every_table`.
        form: see `kdtune.reports.render.render`.

    Raises:
        UserError: there is no such table.
    """
    folder = Snapshot(path)
    known = every_table(folder, tables_of(folder))
    return render_table(named_table(known, name, path), form)
