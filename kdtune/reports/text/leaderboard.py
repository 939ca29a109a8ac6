"""The leaderboard, and any other table, as text."""

from collections.abc import Sequence
from pathlib import Path

from kdtune.log.folder import SweepSnapshot
from kdtune.reports.tables.all_tables import (
    collect_tables,
    comparison_conditions,
    load_sweep_tables,
    select_table,
)
from kdtune.reports.tables.notes import bad_images_note, result_notes
from kdtune.reports.tables.rungs import grace_period_advice
from kdtune.reports.tables.several_sweeps import explain_separate_tables, join_leaderboards
from kdtune.reports.text.render import render_leaderboards, render_table


def table_text(path: Path, name: str, output_format: str) -> str:
    """A table of a sweep by its name.

    Args:
        path: the sweep's folder.
        name: of `collect_tables`.
        output_format: see `kdtune.reports.text.render.render_leaderboards`.

    Raises:
        UserError: there is no such table.
    """
    folder = SweepSnapshot(path)
    tables = collect_tables(folder, load_sweep_tables(folder))
    return render_table(select_table(tables, name, path), output_format)


def leaderboard_text(folders: Sequence[Path], output_format: str) -> str:
    """The leaderboards of sweeps, of comparable ones in one table, and what they say.

    Args:
        folders: of the sweeps.
        output_format: see `kdtune.reports.text.render.render_leaderboards`.
    """
    sweeps = {str(path): SweepSnapshot(path) for path in folders}
    tables = {name: load_sweep_tables(folder) for name, folder in sweeps.items()}
    conditions = {name: comparison_conditions(folder) for name, folder in sweeps.items()}
    notes = explain_separate_tables(conditions)
    for name, folder in sweeps.items():
        events, sweep_tables = folder.load_events(), tables[name]
        sweep_notes = result_notes(
            sweep_tables.leaderboard, sweep_tables.comparison, sweep_tables.runs
        )
        sweep_notes += [
            note for note in (bad_images_note(events), grace_period_advice(events)) if note
        ]
        notes += [f"{name}: {note}" for note in sweep_notes] if len(sweeps) > 1 else sweep_notes
    return render_leaderboards(join_leaderboards(tables, conditions), output_format, notes)
