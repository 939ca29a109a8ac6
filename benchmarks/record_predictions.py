"""Predictions of confirmed runs for each test image, condensed for `verdict.py`.

    kdtune confirm results/NAME --top 1 --seeds 20
    python benchmarks/record_predictions.py results/NAME benchmarks/predictions/DATA.npz

The file has, for each cell's chosen configuration (named by its method, and its model where the
sweep has several):

* ``right_NAME``: bits, whether each test image was classified rightly; `np.packbits` of bool
  [seeds, images] along the images;
* ``validation_NAME``: validation accuracy of the same runs, share of 1, float [seeds];

and ``images``, their number. A row is the same seed in all cells; a seed that any cell lacks is
left out. Labels and predicted classes are not kept.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from kdtune.log.events import Cell, TrialState
from kdtune.log.folder import SweepFolder
from kdtune.log.trial_history import TrialHistory


def collect_predictions(folder: SweepFolder) -> dict[str, Any]:
    """Return the arrays of the file.

    Args:
        folder: of a sweep that was confirmed.
    """
    correct, _ = folder.load_image_scores()
    cells: dict[Cell, dict[int, tuple[np.ndarray, float]]] = {}
    for run_id, run in TrialHistory(folder.load_confirm_events()).trials.items():
        if run.state is TrialState.FINISHED and run_id in correct:
            best = run.epochs[-1].best_validation_accuracy
            cells.setdefault(run.cell, {})[run.proposed.number] = correct[run_id], best
    if not cells:
        raise SystemExit(f"{folder.path} has no confirmed runs.")
    shared = sorted(set.intersection(*map(set, cells.values())))
    several = len({model for _, model in cells}) > 1
    arrays: dict[str, Any] = {"images": np.array(len(next(iter(correct.values()))))}
    for (method, model), cell_runs in cells.items():
        name = f"{method}-{model}" if several else method
        arrays[f"right_{name}"] = np.packbits([cell_runs[seed][0] for seed in shared], axis=1)
        arrays[f"validation_{name}"] = np.array([cell_runs[seed][1] for seed in shared])
        print(f"{name}: {len(shared)} seeds")
    return arrays


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="See the top of this file.")
    parser.add_argument("sweep", type=Path, help="folder of a confirmed sweep")
    parser.add_argument("out", type=Path, help="the file to be written (.npz)")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(arguments.out, **collect_predictions(SweepFolder(arguments.sweep)))
