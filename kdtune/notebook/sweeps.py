"""Sweeps in a notebook: their report, tables, figures, best settings and networks.

All of it is of the moment at which they were loaded; of a sweep that runs, load it again. Tables
and figures need neither torch nor Ray.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from kdtune.errors import UserError, nearest
from kdtune.reports.loaded_sweep import Sweep
from kdtune.reports.page.blocks import Block, Picture, Words
from kdtune.reports.page.page import excerpt, sections_of
from kdtune.reports.tables.all_tables import named_table
from kdtune.reports.tables.notes import NOT_BEGUN
from kdtune.runtime.console import printable


def load_sweep(*folders: str | Path) -> "Sweeps":
    """Load a sweep, or several, at any moment: running, stopped, confirmed or not.

    Args:
        folders: of the sweeps, as ``results/flowers``.

    Raises:
        UserError: a folder is no sweep's, or a log is damaged.
    """
    if not folders:
        raise UserError("load_sweep wants the folder of a sweep, as in load_sweep('results/x').")
    return Sweeps([Sweep(Path(folder)) for folder in folders])


class Sweeps:
    """One sweep or several as they were when they were loaded; a notebook shows their verdict.

    Tables of several have a first column ``sweep``. What columns mean is said in
    `kdtune.reports`.
    """

    def __init__(self, sweeps: list[Sweep]):
        self._sweeps = sweeps

    def leaderboard(self) -> pd.DataFrame:
        """One row a cell; ranks are those within a sweep."""
        return self.table("leaderboard")

    def comparison(self) -> pd.DataFrame:
        """One row a pair of methods and student: difference, interval, verdict."""
        return self.table("comparison")

    @property
    def trials(self) -> pd.DataFrame:
        """One row a trial."""
        return self.table("trials")

    @property
    def epochs(self) -> pd.DataFrame:
        """One row an epoch of a trial."""
        return self.table("epochs")

    def table(self, name: str) -> pd.DataFrame:
        """Any table that ``kdtune table`` shows: a copy, all columns, unrounded.

        Raises:
            UserError: there is no such table; the text lists those that there are.
        """
        tables = [named_table(sweep.known, name, sweep.path) for sweep in self._sweeps]
        if len(tables) == 1:
            return tables[0].copy()
        joined = pd.concat(tables, keys=[sweep.name for sweep in self._sweeps], names=["sweep"])
        return joined.reset_index("sweep", allow_duplicates=True).reset_index(drop=True)

    def plot(self, name: str) -> Figure:
        """A figure of the report; ``kdtune report --figures`` saves it under the same name.

        Args:
            name: ``verdict``, ``ship``, ``search``, ``settings-<method>`` or ``failures``; of
                several sweeps with a number in front, as in ``2-verdict``.

        Raises:
            UserError: there is no such figure, or what it draws is not known yet.
        """
        blocks: list[Block] = [b for section in self._sections for b in section["blocks"]]
        named = {b.name: b for b in blocks if isinstance(b, Picture | Words) and b.name}
        if name not in named:
            raise UserError(f"There is no figure '{name}'; known are {', '.join(named)}.")
        found = named[name]
        if isinstance(found, Words):
            raise UserError(found.text)
        return found.figure

    def best(self, method: str, model: str) -> dict[str, Any]:
        """The best settings of a cell, complete, as `best/<method>-<model>.yaml` has them.

        Of a confirmed cell those of the best run of what was chosen, else of the search's best
        trial. ``train_at`` and ``train_fitnets`` take them.

        Raises:
            UserError: there is no such cell, or it has no sound trial.
        """
        from kdtune.export.best import configuration

        sweep, found = self._best(method, model)
        settings = configuration(sweep.folder, found)
        del settings["provenance"]
        return settings

    def model(self, method: str, model: str) -> Any:
        """The network that was trained with these settings, in eval mode, on the CPU.

        Raises:
            UserError: as `best`; or there is no network yet, or its file is damaged.
        """
        from kdtune.export.best import network_of

        sweep, found = self._best(method, model)
        if (loaded := network_of(sweep.folder, (method, model), found)) is None:
            raise UserError(
                f"{sweep.name} has no network of {found.name}, the best of {method} on {model}: "
                f"it is written when the sweep ends or is interrupted. best('{method}', "
                f"'{model}') has its settings."
            )
        return loaded["model"]

    def _best(self, method: str, model: str) -> tuple[Sweep, Any]:
        """A cell's sweep, and what stands for it: see `kdtune.export.best.Best`."""
        from kdtune.export.best import best_of_cells

        cells = [cell for sweep in self._sweeps for cell in sweep.tables.cells]
        if not cells:
            raise UserError(NOT_BEGUN)
        for what, name, known in zip(
            ("method", "model"), (method, model), zip(*cells, strict=True), strict=True
        ):
            if name not in known:
                raise UserError(
                    f"No trial has the {what} '{name}'; {nearest(name, dict.fromkeys(known))}"
                )
        own = [sweep for sweep in self._sweeps if (method, model) in sweep.tables.cells]
        if len(own) != 1:
            where = " and ".join(sweep.name for sweep in own) or "no sweep"
            raise UserError(f"{method} on {model} is in {where}; load the one that is meant.")
        found = best_of_cells(own[0].tables).get((method, model))
        if found is None:
            raise UserError(f"{own[0].name} has no sound trial of {method} on {model} yet.")
        return own[0], found

    @cached_property
    def _sections(self) -> list[dict[str, Any]]:
        return sections_of(self._sweeps)

    def __repr__(self) -> str:
        shorts = {sweep.name: sweep.in_short() for sweep in self._sweeps}
        lines = [*shorts.values()] if len(shorts) == 1 else []
        for block in self._sections[0]["blocks"]:
            if block.kind in ("sweep", "lead"):
                lines.append(shorts.get(block.text, block.text))
        return "\n".join(map(printable, lines))

    def _repr_html_(self) -> str:
        return excerpt(self._sweeps, self._sections)
