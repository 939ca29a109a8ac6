"""Sweeps in a notebook: their report, tables, figures, best settings and networks.

All of it is of the moment at which they were loaded; of a sweep that runs, load it again. Tables
and figures need neither torch nor Ray.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from kdtune.errors import UserError, did_you_mean
from kdtune.reports.loaded_sweep import LoadedSweep
from kdtune.reports.page.blocks import Block, FigureBlock, Paragraph
from kdtune.reports.page.page import build_sections, render_excerpt
from kdtune.reports.tables.all_tables import select_table
from kdtune.reports.tables.notes import NO_TRIAL_NOTE
from kdtune.runtime.console import printable


def load_sweep(*folders: str | Path) -> "SweepGroup":
    """Load a sweep, or several, at any moment: running, stopped, confirmed or not.

    Args:
        folders: of the sweeps, as ``results/flowers``.

    Raises:
        UserError: a folder is no sweep's, or a log is damaged.
    """
    if not folders:
        raise UserError("load_sweep wants the folder of a sweep, as in load_sweep('results/x').")
    return SweepGroup([LoadedSweep(Path(folder)) for folder in folders])


class SweepGroup:
    """One sweep or several as they were when they were loaded; a notebook shows their verdict.

    Tables of several have a first column ``sweep``. What columns mean is said in
    `kdtune.reports`.
    """

    def __init__(self, sweeps: list[LoadedSweep]):
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
        tables = [select_table(sweep.named_tables, name, sweep.path) for sweep in self._sweeps]
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
        blocks_by_name = {
            b.name: b for b in blocks if isinstance(b, FigureBlock | Paragraph) and b.name
        }
        if name not in blocks_by_name:
            raise UserError(f"There is no figure '{name}'; known are {', '.join(blocks_by_name)}.")
        block = blocks_by_name[name]
        if isinstance(block, Paragraph):
            raise UserError(block.text)
        return block.figure

    def best(self, method: str, model: str) -> dict[str, Any]:
        """The best settings of a cell, complete, as `best/<method>-<model>.yaml` has them.

        Of a confirmed cell those of the best run of what was chosen, else of the search's best
        trial. ``train_at`` and ``train_fitnets`` take them.

        Raises:
            UserError: there is no such cell, or it has no sound trial.
        """
        from kdtune.export.selected_runs import config_with_provenance

        sweep, selected = self._select_run(method, model)
        settings = config_with_provenance(sweep.folder, selected)
        del settings["provenance"]
        return settings

    def model(self, method: str, model: str) -> Any:
        """The network that was trained with these settings, in eval mode, on the CPU.

        Raises:
            UserError: as `best`; or there is no network yet, or its file is damaged.
        """
        from kdtune.export.selected_runs import load_run_network

        sweep, selected = self._select_run(method, model)
        if (loaded := load_run_network(sweep.folder, selected)) is None:
            raise UserError(
                f"{sweep.name} has no network of {selected.name}, the best of {method} on {model}: "
                f"it is written when the sweep ends or is interrupted. best('{method}', "
                f"'{model}') has its settings."
            )
        return loaded["model"]

    def _select_run(self, method: str, model: str) -> tuple[LoadedSweep, Any]:
        """A cell's sweep, and what stands for it: see `kdtune.export.selected_runs.SelectedRun`."""
        from kdtune.export.selected_runs import select_best_runs

        cells = [cell for sweep in self._sweeps for cell in sweep.tables.cell_results]
        if not cells:
            raise UserError(NO_TRIAL_NOTE)
        for label, name, known in zip(
            ("method", "model"), (method, model), zip(*cells, strict=True), strict=True
        ):
            if name not in known:
                raise UserError(
                    f"No trial has the {label} '{name}'; {did_you_mean(name, dict.fromkeys(known))}"
                )
        matching = [
            sweep for sweep in self._sweeps if (method, model) in sweep.tables.cell_results
        ]
        if len(matching) != 1:
            sweep_names = " and ".join(sweep.name for sweep in matching) or "no sweep"
            raise UserError(
                f"{method} on {model} is in {sweep_names}; load the one that is meant."
            )
        selected = select_best_runs(matching[0].tables).get((method, model))
        if selected is None:
            raise UserError(f"{matching[0].name} has no sound trial of {method} on {model} yet.")
        return matching[0], selected

    @cached_property
    def _sections(self) -> list[dict[str, Any]]:
        return build_sections(self._sweeps)

    def __repr__(self) -> str:
        summaries = {sweep.name: sweep.summary() for sweep in self._sweeps}
        lines = [*summaries.values()] if len(summaries) == 1 else []
        for block in self._sections[0]["blocks"]:
            if block.kind in ("sweep", "lead"):
                lines.append(summaries.get(block.text, block.text))
        return "\n".join(map(printable, lines))

    def _repr_html_(self) -> str:
        return render_excerpt(self._sweeps, self._sections)
