"""Learning curves that were recorded: of a sweep's whole trials, or of a file.

A file has one JSON object a line with ``method``, ``model``, the searched ``settings``, ``seed``,
``step_size``, ``seconds`` of an epoch and ``validation_accuracy`` after each.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdtune.errors import UserError
from kdtune.log.distributions import read_distributions
from kdtune.log.events import Cell, Event, cell_of
from kdtune.log.folder import SweepFolder
from kdtune.tuning.planning.simulation import Curves
from kdtune.tuning.planning.synthetic_curves import units

OTHER_NAMES = {"wd": "weight_decay", "T": "temperature"}
"""Keys of files that were not written by this program."""


@dataclass(frozen=True)
class Run:
    """A recorded run; ``late`` if its learning rate decays later than that of most others."""

    settings: dict[str, Any]
    accuracies: list[float]
    late: bool = False


def condense(folder: SweepFolder) -> Iterator[dict[str, Any]]:
    """The trials of a sweep that went all the way, as plain values."""
    asked: dict[str, Any] = {}
    epochs: dict[str, list[Any]] = defaultdict(list)
    for event in folder.events():
        if event["event"] == "asked":
            asked[event["trial_id"]] = event
        elif event["event"] == "epoch":
            epochs[event["trial_id"]].append(event)
        elif event["event"] == "ended" and event["state"] == "finished":
            trial, own = asked[event["trial_id"]], epochs[event["trial_id"]]
            yield {
                "method": trial["method"],
                "model": trial["model"],
                "settings": {
                    k: float(f"{v:.6g}") if isinstance(v, float) else v
                    for k, v in trial["parameters"].items()
                },
                "seed": trial["config"]["seed"],
                "step_size": trial["config"]["step_size"],
                "seconds": round(sum(e["seconds"] for e in own) / len(own), 3),
                "validation_accuracy": [e["validation_accuracy"] for e in own],
            }


def read_runs(path: Path) -> dict[Cell, list[Run]]:
    """Read recorded runs, by cell: of a file, or of a sweep's folder."""
    if path.is_dir():
        rows = list(condense(SweepFolder(path)))
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    usual, _ = max(Counter(row.get("step_size") for row in rows).items(), key=lambda of: of[1])
    runs: dict[Cell, list[Run]] = defaultdict(list)
    for row in rows:
        settings = row.get("settings")
        if settings is None:
            settings = {
                OTHER_NAMES.get(key, key): row[key]
                for key in ("lr", "wd", "T", "alpha", "beta")
                if row[key] is not None
            }
        late = row.get("step_size") != usual
        run = Run(settings, row["validation_accuracy"], late)
        runs[row["method"], row.get("model", path.stem)].append(run)
    return runs


class Recorded:
    """Gives a trial the curve of the recorded run of its cell whose settings are nearest.

    Curves of another length are stretched to that of the trial.

    Args:
        path: see `read_runs`.
        epochs: of a trial that is not stopped.
        others: curves of cells of which nothing was recorded.

    Raises:
        UserError: nothing can be read there, or no run.
    """

    def __init__(self, path: Path, epochs: int, others: Curves):
        self.epochs, self.others = epochs, others
        try:
            self.runs: Mapping[Cell, list[Run]] = read_runs(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{path} has no recorded curves: give a sweep's folder with whole trials, or a "
                "file with a JSON object a line."
            ) from None

    def draw(self, asked: Event) -> Sequence[float]:
        """Validation accuracies of a trial by epoch, from the event that asked for it."""
        runs = self.runs.get(cell_of(asked))
        if not runs:
            return self.others.draw(asked)
        known = read_distributions(asked["distributions"])
        place = units(asked["parameters"], known)

        def apart(name: str, value: Any) -> float:
            try:
                [there] = units({name: value}, known).values()
            except (TypeError, ValueError):  # no choice of today's
                return 1.0
            return (place[name] - there) ** 2

        def distance(run: Run) -> float:
            shared = place.keys() & run.settings.keys()
            return sum(apart(name, run.settings[name]) for name in sorted(shared))

        accuracies = min(runs, key=distance).accuracies
        return np.interp(
            np.linspace(0, 1, self.epochs), np.linspace(0, 1, len(accuracies)), accuracies
        ).tolist()
