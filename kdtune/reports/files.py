"""Every table that a sweep's folder holds."""

import pandas as pd

from kdtune.reports.curves import search_curve_table
from kdtune.reports.leaderboard import SweepTables
from kdtune.reports.rungs import rungs_table
from kdtune.reports.settings import distributions, settings_table
from kdtune.reports.tables import bad_images_table, epochs_table
from kdtune.results import SweepFolder


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
        "bad_images": bad_images_table(events),
    }
    always = ("trials", "epochs", "leaderboard", "comparison", "rungs")
    return {name: table for name, table in known.items() if len(table) or name in always}
