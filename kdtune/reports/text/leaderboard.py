"""Leaderboards and other tables of sweeps, as text."""

from collections.abc import Sequence
from pathlib import Path

from kdtune.log.folder import SweepSnapshot
from kdtune.reports.tables import all_tables
from kdtune.reports.tables.learning import describe_chance, learning_sentences
from kdtune.reports.tables.notes import bad_images_note, result_notes
from kdtune.reports.tables.rungs import advise_grace_period, rungs_table
from kdtune.reports.tables.settings import collect_distributions, range_end_note
from kdtune.reports.tables.several_sweeps import explain_separate_tables, join_leaderboards
from kdtune.reports.text.render import render_leaderboards, render_table


def table_text(path: Path, name: str, output_format: str) -> str:
    """Return a table of a sweep.

    Args:
        path: folder of the sweep.
        name: name of the table in `collect_tables`.
        output_format: see `kdtune.reports.text.render.render_table`.
    """
    folder = SweepSnapshot(path)
    tables = all_tables.collect_tables(folder, all_tables.load_sweep_tables(folder))
    return render_table(all_tables.select_table(tables, name, path), output_format)


def leaderboard_text(folders: Sequence[Path], output_format: str) -> str:
    """Return the leaderboards of sweeps and their notes; comparable sweeps share a table.

    Args:
        folders: folders of the sweeps.
        output_format: see `kdtune.reports.text.render.render_leaderboards`.
    """
    sweeps = {str(path): SweepSnapshot(path) for path in folders}
    tables = {name: all_tables.load_sweep_tables(folder) for name, folder in sweeps.items()}
    conditions = {
        name: all_tables.comparison_conditions(folder) for name, folder in sweeps.items()
    }
    notes = explain_separate_tables(conditions)
    for name, folder in sweeps.items():
        events, own = folder.load_events(), tables[name]
        sweep_notes = [
            *learning_sentences(events),
            describe_chance(folder.load_opening_events()[0]),
        ]
        sweep_notes += result_notes(own.leaderboard, own.comparison, own.runs)
        if note := bad_images_note(events):
            sweep_notes.append(note)
        if note := range_end_note(own.trials, collect_distributions(events)):
            sweep_notes.append(note)
        grace_period = folder.load_opening_events()[0].config["grace_period"]
        sweep_notes.append(advise_grace_period(rungs_table(events), grace_period))
        notes += [f"{name}: {note}" for note in sweep_notes] if len(sweeps) > 1 else sweep_notes
    return render_leaderboards(join_leaderboards(tables, conditions), output_format, notes)
