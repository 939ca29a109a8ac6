"""Sweeps in a notebook: tables, figures, best settings and networks, as of loading.

Tables and figures need neither torch nor Ray.
"""

from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.figure import Figure

from kdtune.errors import UserError, did_you_mean
from kdtune.reports.loaded_sweep import LoadedSweep
from kdtune.reports.page.blocks import Block, FigureBlock, Paragraph
from kdtune.reports.page.page import build_sections, render_excerpt
from kdtune.reports.tables.all_tables import select_table
from kdtune.reports.tables.notes import NO_TRIAL_NOTE, answer_sentences
from kdtune.reports.tables.ship import ShipLimits
from kdtune.runtime.console import printable

if TYPE_CHECKING:  # tables and figures are to need no torch
    from torch import nn

    from kdtune.export.selected_runs import SelectedRun


def load_sweep(*folders: str | Path, **limits: Any) -> "SweepGroup":
    """Load one or more sweeps, running or complete, from folders as ``results/flowers``.

    Args:
        folders: folders of the sweeps.
        limits: fields of `kdtune.reports.tables.ship.ShipLimits`, such as ``max_parameters``.
    """
    if not folders:
        raise UserError("load_sweep needs the folder of a sweep, as in load_sweep('results/x').")
    ship_limits = ShipLimits(**limits)
    return SweepGroup([LoadedSweep(Path(folder), ship_limits) for folder in folders])


class SweepGroup:
    """One or more sweeps as of loading; a notebook shows which student to ship, and the verdict.

    Tables of several sweeps have a first column ``sweep``. docs/reference.md explains all columns.
    """

    def __init__(self, sweeps: list[LoadedSweep]):
        self._sweeps = sweeps

    def leaderboard(self) -> pd.DataFrame:
        """Return one row per cell; ranks are those within a sweep."""
        return self.table("leaderboard")

    def comparison(self) -> pd.DataFrame:
        """Return one row per pair of methods and student: difference, interval, verdict."""
        return self.table("comparison")

    @property
    def trials(self) -> pd.DataFrame:
        """One row per trial."""
        return self.table("trials")

    @property
    def epochs(self) -> pd.DataFrame:
        """One row per epoch of a trial."""
        return self.table("epochs")

    def table(self, name: str) -> pd.DataFrame:
        """Return a copy of any table of ``kdtune table``, with all columns, unrounded."""
        tables = [select_table(sweep.named_tables, name, sweep.path) for sweep in self._sweeps]
        if len(tables) == 1:
            return tables[0].copy()
        joined = pd.concat(tables, keys=[sweep.name for sweep in self._sweeps], names=["sweep"])
        return joined.reset_index("sweep", allow_duplicates=True).reset_index(drop=True)

    def plot(self, name: str) -> Figure:
        """Return a figure of the report; ``kdtune report --figures`` saves it by the same name.

        Args:
            name: ``ship``, ``verdict``, ``search``, ``settings-<method>`` or ``failures``; with
                several sweeps a number comes first, as in ``2-verdict``.
        """
        blocks: list[Block] = [b for section in self._sections for b in section["blocks"]]
        by_name = {b.name: b for b in blocks if isinstance(b, FigureBlock | Paragraph) and b.name}
        if name not in by_name:
            raise UserError(f"There is no figure '{name}'; known are {', '.join(by_name)}.")
        block = by_name[name]
        if isinstance(block, Paragraph):
            raise UserError(block.text)
        return block.figure

    def best(self, method: str, model: str) -> dict[str, Any]:
        """Return the complete best settings of a cell, as `best/<method>-<model>.yaml` has them.

        They are those of the best run of the chosen candidate if the cell is confirmed, else of
        the best settings of the search. ``train_at`` and ``train_fitnets`` accept them.

        Args:
            method: of the cell.
            model: of the cell.
        """
        from kdtune.export.selected_runs import config_with_provenance

        sweep, selected = self._select_run(method, model)
        settings = config_with_provenance(sweep.folder, selected)
        del settings["provenance"]
        return settings

    def model(self, method: str, model: str) -> "nn.Module":
        """Return the network with the best settings of a cell, in eval mode, on the CPU.

        Args:
            method: of the cell.
            model: of the cell.
        """
        from kdtune.export.selected_runs import load_run_network

        sweep, selected = self._select_run(method, model)
        if (loaded := load_run_network(sweep.folder, selected)) is None:
            raise UserError(
                f"{sweep.name} has no network of {selected.name}, the best of {method} on "
                f"{model}: it is written when the sweep ends or is interrupted. "
                f"best('{method}', '{model}') has its settings."
            )
        network: nn.Module = loaded["model"]
        return network

    def _select_run(self, method: str, model: str) -> tuple[LoadedSweep, "SelectedRun"]:
        from kdtune.export.selected_runs import select_best_runs

        cells = [cell for sweep in self._sweeps for cell in sweep.tables.cell_results]
        if not cells:
            raise UserError(NO_TRIAL_NOTE)
        known_methods, known_models = zip(*cells, strict=True)
        requested = ("method", method, known_methods), ("model", model, known_models)
        for label, name, known in requested:
            if name not in known:
                suggestion = did_you_mean(name, dict.fromkeys(known))
                raise UserError(f"No trial has the {label} '{name}'; {suggestion}")
        matching = [s for s in self._sweeps if (method, model) in s.tables.cell_results]
        if len(matching) != 1:
            sweep_names = " and ".join(sweep.name for sweep in matching) or "no sweep"
            text = f"{method} on {model} is in {sweep_names}; load the one that is meant."
            raise UserError(text)
        [sweep] = matching
        if (selected := select_best_runs(sweep.tables).get((method, model))) is None:
            raise UserError(f"{sweep.name} has no successful trial of {method} on {model} yet.")
        return sweep, selected

    @cached_property
    def _sections(self) -> list[dict[str, Any]]:
        return build_sections(self._sweeps)

    def __repr__(self) -> str:
        lines = [
            (sweep.summary(), *answer_sentences(sweep.tables, sweep.name))
            for sweep in self._sweeps
        ]
        return "\n".join(map(printable, chain.from_iterable(lines)))

    def _repr_html_(self) -> str:
        return render_excerpt(self._sweeps, self._sections)
