"""The leaderboard, and any other table, as text."""

from collections.abc import Sequence
from pathlib import Path

from kdtune.log.folder import Snapshot
from kdtune.reports.tables.all_tables import about_of, every_table, named_table, tables_of
from kdtune.reports.tables.notes import bad_images_note, result_notes
from kdtune.reports.tables.rungs import grace_advice
from kdtune.reports.tables.several_sweeps import join_sweeps, kept_apart
from kdtune.reports.text.render import render, render_table


def table_text(path: Path, name: str, form: str) -> str:
    """A table of a sweep by its name.

    Args:
        path: the sweep's folder.
        name: of `every_table`.
        form: see `kdtune.reports.text.render.render`.

    Raises:
        UserError: there is no such table.
    """
    folder = Snapshot(path)
    known = every_table(folder, tables_of(folder))
    return render_table(named_table(known, name, path), form)


def leaderboard_text(folders: Sequence[Path], form: str) -> str:
    """The leaderboards of sweeps, of comparable ones in one table, and what they say.

    Args:
        folders: of the sweeps.
        form: see `kdtune.reports.text.render.render`.
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
