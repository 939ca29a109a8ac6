"""Students of a sweep as files for other projects: settings, weights, and a card that says what
each is and how good.

Every format is opened again and compared with the checkpoint before its file gets its name. What
a network costs elsewhere, in other runtimes or in lower precision, is not measured here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from torch import Tensor

from kdtune.config.train import TrainConfig, file_stem
from kdtune.data.splits import Split
from kdtune.data.transforms import decode, normalise
from kdtune.errors import DiskFullError, RunError, UserError, nearest
from kdtune.export.best import Best, configuration, network_of, top_of_cells
from kdtune.export.formats import (
    BATCHES,
    FORMATS,
    TOLERANCE,
    Loaded,
    check_formats,
    describe,
    difference,
)
from kdtune.log.folder import Snapshot, SweepFolder
from kdtune.reports.tables.all_tables import tables_of
from kdtune.runtime.console import printable, shown
from kdtune.storage.files import make_folder, replacing, write_text, write_yaml
from kdtune.training.inputs import find_data

SNIPPETS = {
    "pt2": "torch, and Pillow to read images",
    "onnx": "onnxruntime, and Pillow to read images",
}
"""Formats with a program beside them that loads them, and what it needs."""

SHOWN = (
    "epochs", "batch_size", "augment", "lr", "momentum", "weight_decay", "step_size", "gamma",
    "temperature", "alpha", "beta", "hint_epochs", "hint_layer", "precision", "seed",
)  # fmt: skip
"""Settings that a card names, beside those that the method alone has."""

MOST = 20
"""Classes that a card names."""


@dataclass(frozen=True)
class Student:
    """What is exported of a trial or run.

    Attributes:
        stem: of its files.
        found: which it is.
        content: its YAML.
        loaded: its network; None where the sweep keeps none of it.
    """

    stem: str
    found: Best
    content: dict[str, Any]
    loaded: Loaded | None


def export_sweep(
    path: Path,
    out: Path,
    formats: Sequence[str],
    method: str | None = None,
    model: str | None = None,
    top: int = 1,
) -> list[str]:
    """Write the best of a sweep's cells, confirmed runs where there are any.

    Args:
        path: the sweep's folder.
        out: folder for the files; it must be empty, or not there.
        formats: of `FORMATS`.
        method, model: cells to take; all if not given.
        top: trials of each cell; of those whose network the sweep does not keep, the YAML alone.

    Returns:
        What was written, a line a student.

    Raises:
        UserError: there is nothing such to export, `out` is not empty, or a package is missing.
        RunError: a format does not give the checkpoint's logits; all else is written.
    """
    if not formats:
        raise UserError(f"Name at least one format: {', '.join(FORMATS)}.")
    check_formats(formats)
    folder = Snapshot(path)
    students = _students(folder, method, model, top)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{shown(out)} is not an empty folder; remove it, or give another --out.")
    make_folder(out)
    pictures, what = _pictures(folder)
    lines, failed = [], []
    for student in students:
        write_yaml(out / f"{student.stem}.yaml", student.content)
        written = {}
        if student.loaded is not None:
            for name in formats:
                file = out / f"{student.stem}.{name}"
                try:
                    written[name] = _write(file, student.loaded, pictures)
                except DiskFullError:
                    raise
                except Exception as error:  # exporters raise what they like
                    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                    failed.append(f"{shown(file)} is not written: {reason}")
            _write_beside(out, student, written, what)
        lines.append(_line(student, written))
    if failed:
        raise RunError(f"{'; '.join(failed)}. All else is in {shown(out)}.")
    return lines


def _students(
    folder: SweepFolder, method: str | None, model: str | None, top: int
) -> list[Student]:
    found = top_of_cells(tables_of(folder), top)
    if not found:
        raise UserError(f"{folder.path} has no trial that came to an end.")
    for given, place in ((method, 0), (model, 1)):
        known = dict.fromkeys(cell[place] for cell in found)
        if given is not None and given not in known:
            raise UserError(f"{folder.path} has no trial of '{given}'; {nearest(given, known)}")
    students = [
        Student(
            file_stem(*cell) + (f"-{place}" if place > 1 else ""),
            best,
            configuration(folder, best),
            network_of(folder, cell, best),
        )
        for cell, bests in found.items()
        if method in (None, cell[0]) and model in (None, cell[1])
        for place, best in enumerate(bests, start=1)
    ]
    if not students:
        raise UserError(f"{folder.path} has no trial of '{method}' on '{model}'.")
    return students


def _pictures(folder: SweepFolder) -> tuple[Tensor, str]:
    """Images with which networks are compared, and what they are: real ones, or else noise."""
    sweep, count = folder.settings(), max(BATCHES)
    size = sweep.image_size
    assert size is not None
    try:
        data, _ = find_data(sweep.source, sweep.skip_bad_images, sweep.cache_gb)
        if data.fingerprint != folder.opened()[-1]["data"].get("fingerprint"):
            raise UserError("These are other data.")
        places = np.linspace(0, len(data.validation) - 1, count).astype(int)
        split = Split([data.validation.images[i] for i in places], [0] * count)
        pixels = torch.from_numpy(decode(split, size, None))
        return normalise(pixels), f"{len(set(places))} validation images of the sweep"
    except UserError:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(count, 3, size, size, generator=generator)
        return noise, f"{count} images of random noise, since the sweep's data are not at hand"


def _write(file: Path, loaded: Loaded, pictures: Tensor) -> tuple[int, float]:
    """Write a network; gives the file's bytes, and how far its logits are from the network's."""
    with replacing(file) as temporary:
        FORMATS[file.suffix[1:]].write(temporary, loaded)
        return temporary.stat().st_size, difference(loaded, temporary, pictures)


def _write_beside(
    out: Path, student: Student, written: dict[str, tuple[int, float]], pictures: str
) -> None:
    """Write what belongs to the weights: description, programs that load them, card."""
    assert student.loaded is not None
    about = describe(student.loaded)
    write_text(out / f"{student.stem}.json", about.model_dump_json(indent=2) + "\n")
    snippets = {name: needs for name, needs in SNIPPETS.items() if name in written}
    for name in snippets:
        write_text(out / f"{student.stem}.{name}.py", _source(f"load_{name}.txt"))
    reached = student.content["provenance"]
    own = student.content.keys() - TrainConfig.model_fields.keys() - {"provenance"}
    environment = Environment(
        undefined=StrictUndefined, finalize=_plain, trim_blocks=True, lstrip_blocks=True
    )
    card = environment.from_string(_source("card.md")).render(
        stem=Markup(student.stem),
        name=student.found.name,
        confirmed=student.found.confirmed,
        about=about,
        parameters=sum(p.numel() for p in student.loaded["model"].parameters()),
        settings=student.content,
        reached=reached,
        written=written,
        snippets=snippets,
        pictures=pictures,
        versions=[f"{key} {value}" for key, value in reached.get("environment", {}).items()],
        classes=about.classes[:MOST],
        figures=_figures(student),
        shown=[f"{key} {student.content[key]}" for key in (*SHOWN, *sorted(own))],
        batches=BATCHES,
        tolerance=TOLERANCE,
    )
    write_text(out / f"{student.stem}.md", card + "\n")


def _figures(student: Student) -> list[tuple[str, str, str, str]]:
    """Rows of a card's first table: figure, percent, 95 % interval, what that is of."""
    reached, seeds = student.content["provenance"], student.found.over_seeds
    kind = "run" if student.found.confirmed else "trial"
    rows = []
    for key, name, covers in (
        (
            "best_validation_accuracy",
            "validation",
            f"epoch and {kind} were chosen by them, so it is too high on the whole",
        ),
        ("test_accuracy", "test", "read once; nothing was chosen by them"),
    ):
        if key in reached:
            interval = " to ".join(f"{100 * x:.2f}" for x in reached.get(f"{name}_interval", ()))
            images = f"{reached.get(f'{name}_images', 0):,} images; {covers}"
            figure = f"{name} accuracy of this network"
            rows.append((figure, f"{100 * reached[key]:.2f}", interval, images))
    for name, width, covers in (
        ("validation", None, "by which they were chosen"),
        ("test", "test_half_width_points", "and new images of the same kind"),
    ):
        if (accuracy := seeds.get(f"{name}_accuracy_percent")) is not None:
            interval = f"± {seeds[width]:.2f}" if width in seeds else ""
            diverged = f" ({seeds['seeds_diverged']} more diverged)" * bool(
                seeds.get("seeds_diverged")
            )
            images = f"mean over {seeds['seeds_ok']} seeds{diverged}, {covers}"
            rows.append((f"{name} accuracy of its settings", f"{accuracy:.2f}", interval, images))
    return rows


def _source(name: str) -> str:
    return files("kdtune").joinpath("export", "templates", name).read_text(encoding="utf-8")


def _plain(value: Any) -> Any:
    """Text as Markdown shows it, whatever is in it."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return re.sub(r"([\\`*_\[\]<>|!&~#$])", r"\\\1", printable(value))


def _line(student: Student, written: dict[str, tuple[int, float]]) -> str:
    kind = "confirmed run" if student.found.confirmed else "trial of the search"
    score = f"validation {100 * student.found.validation_accuracy:.2f} %"
    if student.found.test_accuracy is not None:
        score += f", test {100 * student.found.test_accuracy:.2f} %"
    got = ", ".join(written) if student.loaded else "its settings alone; no network is kept of it"
    return f"{student.stem}: {kind} {student.found.name}, {score}: {got}"
