"""How good the cells of a sweep are, from its folder; of a running one, too."""

from collections.abc import Sequence
from pathlib import Path

from kdtune.reports.leaderboard import SweepTables, join_sweeps, kept_apart, sweep_tables
from kdtune.reports.render import render, result_notes
from kdtune.reports.rungs import grace_advice
from kdtune.reports.tables import bad_images_note
from kdtune.results import Snapshot, SweepFolder


def tables_of(folder: SweepFolder) -> SweepTables:
    """The tables that say how good each cell is.

    Raises:
        UserError: this is no sweep's folder, or a log is damaged.
    """
    settings, (right, groups) = folder.settings(), folder.right()
    logs = folder.events(), folder.confirm_events()
    return sweep_tables(*logs, right, groups, settings.min_difference)


def leaderboard_text(folders: Sequence[Path], form: str) -> str:
    """The leaderboards of sweeps, of comparable ones in one table, and what they say.

    Args:
        folders: of the sweeps.
        form: see `kdtune.reports.render.render`.
    """
    sweeps = {str(path): Snapshot(path) for path in folders}
    tables = {name: tables_of(folder) for name, folder in sweeps.items()}
    abouts = {name: about_of(folder) for name, folder in sweeps.items()}
    notes = kept_apart(abouts)
    for name, folder in sweeps.items():
        events, own = folder.events(), tables[name]
        said = result_notes(own.leaderboard, own.comparison, own.runs)
        said += [words for words in (bad_images_note(events), grace_advice(events)) if words]
        notes += [f"{name}: {words}" for words in said] if len(sweeps) > 1 else said
    return render(join_sweeps(tables, abouts), form, notes)


def about_of(folder: SweepFolder) -> dict[str, object]:
    """What sweeps must have in common to stand in one table."""
    opened = folder.opened()[0]
    judged = [opened, *(e for e in folder.confirm_events() if e["event"] == "confirm")][-1]
    return {
        "data": [opened["data"]["fingerprint"], judged["data"].get("test_fingerprint")],
        "teacher": (opened["teacher"] or {}).get("sha256"),
        "image size": opened["config"]["image_size"],
        "epochs": opened["config"]["epochs"],
    }
