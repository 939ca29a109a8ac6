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
from kdtune.data.transforms import decode_images, normalise
from kdtune.errors import DiskFullError, RunError, UserError, did_you_mean, first_line
from kdtune.export.formats import (
    COMPARED_BATCH_SIZES,
    FORMATS,
    MAX_LOGIT_DIFFERENCE,
    LoadedModel,
    describe_network,
    measure_logit_difference,
    require_formats,
)
from kdtune.export.selected_runs import (
    SelectedRun,
    config_with_provenance,
    load_run_network,
    select_top_runs,
)
from kdtune.log.folder import SweepFolder, SweepSnapshot
from kdtune.reports.tables.all_tables import load_sweep_tables
from kdtune.runtime.console import printable, printable_path
from kdtune.storage.files import atomic_write, make_folder, write_text, write_yaml
from kdtune.training.epoch_data import find_data

LOADER_SCRIPTS = {
    "pt2": "torch, and Pillow to read images",
    "onnx": "onnxruntime, and Pillow to read images",
}
"""Formats with a program beside them that loads them, and what it needs."""

CARD_SETTINGS = (
    "epochs", "batch_size", "augment", "lr", "momentum", "weight_decay", "step_size", "gamma",
    "temperature", "alpha", "beta", "hint_epochs", "hint_layer", "precision", "seed",
)  # fmt: skip
"""Settings that a card names, beside those that the method alone has."""

MAX_CARD_CLASSES = 20
"""Classes that a card names."""


@dataclass(frozen=True)
class ExportedStudent:
    """What is exported of a trial or run.

    Attributes:
        stem: of its files.
        found: which it is.
        content: its YAML.
        loaded: its network; None where the sweep keeps none of it.
    """

    stem: str
    selected: SelectedRun
    config: dict[str, Any]
    loaded_model: LoadedModel | None


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
    require_formats(formats)
    folder = SweepSnapshot(path)
    students = _collect_students(folder, method, model, top)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{printable_path(out)} is not an empty folder; remove it, or give another --out."
        )
    make_folder(out)
    images, images_label = _load_comparison_images(folder)
    lines, failed = [], []
    for student in students:
        write_yaml(out / f"{student.stem}.yaml", student.config)
        written = {}
        if student.loaded_model is not None:
            for name in formats:
                file = out / f"{student.stem}.{name}"
                try:
                    written[name] = _write_network(file, student.loaded_model, images)
                except DiskFullError:
                    raise
                except Exception as error:  # exporters raise what they like
                    reason = first_line(error)
                    failed.append(f"{printable_path(file)} is not written: {reason}")
            _write_sidecars(out, student, written, images_label)
        lines.append(_summary_line(student, written))
    if failed:
        raise RunError(f"{'; '.join(failed)}. All else is in {printable_path(out)}.")
    return lines


def _collect_students(
    folder: SweepFolder, method: str | None, model: str | None, top: int
) -> list[ExportedStudent]:
    runs_by_cell = select_top_runs(load_sweep_tables(folder), top)
    if not runs_by_cell:
        raise UserError(f"{folder.path} has no trial that came to an end.")
    for requested, position in ((method, 0), (model, 1)):
        known = dict.fromkeys(cell[position] for cell in runs_by_cell)
        if requested is not None and requested not in known:
            raise UserError(
                f"{folder.path} has no trial of '{requested}'; {did_you_mean(requested, known)}"
            )
    students = [
        ExportedStudent(
            file_stem(*cell) + (f"-{rank}" if rank > 1 else ""),
            selected,
            config_with_provenance(folder, selected),
            load_run_network(folder, cell, selected),
        )
        for cell, selected_runs in runs_by_cell.items()
        if method in (None, cell[0]) and model in (None, cell[1])
        for rank, selected in enumerate(selected_runs, start=1)
    ]
    if not students:
        raise UserError(f"{folder.path} has no trial of '{method}' on '{model}'.")
    return students


def _load_comparison_images(folder: SweepFolder) -> tuple[Tensor, str]:
    """Images with which networks are compared, and what they are: real ones, or else noise."""
    sweep, count = folder.load_config(), max(COMPARED_BATCH_SIZES)
    size = sweep.image_size
    assert size is not None
    try:
        data, _ = find_data(sweep.data_source, sweep.skip_bad_images, sweep.cache_gb)
        if data.fingerprint != folder.load_opening_events()[-1].data.fingerprint:
            raise UserError("These are other data.")
        indices = np.linspace(0, len(data.validation) - 1, count).astype(int)
        split = Split([data.validation.images[i] for i in indices], [0] * count)
        pixels = torch.from_numpy(decode_images(split, size, None))
        return normalise(pixels), f"{len(set(indices))} validation images of the sweep"
    except UserError:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(count, 3, size, size, generator=generator)
        return noise, f"{count} images of random noise, since the sweep's data are not at hand"


def _write_network(file: Path, loaded: LoadedModel, images: Tensor) -> tuple[int, float]:
    """Write a network; gives the file's bytes, and how far its logits are from the network's."""
    with atomic_write(file) as temporary:
        FORMATS[file.suffix[1:]].write(temporary, loaded)
        return temporary.stat().st_size, measure_logit_difference(loaded, temporary, images)


def _write_sidecars(
    out: Path, student: ExportedStudent, written: dict[str, tuple[int, float]], images_label: str
) -> None:
    """Write what belongs to the weights: description, programs that load them, card."""
    assert student.loaded_model is not None
    description = describe_network(student.loaded_model)
    write_text(out / f"{student.stem}.json", description.model_dump_json(indent=2) + "\n")
    scripts = {name: needs for name, needs in LOADER_SCRIPTS.items() if name in written}
    for name in scripts:
        write_text(out / f"{student.stem}.{name}.py", _read_template(f"load_{name}.txt"))
    provenance = student.config["provenance"]
    method_settings = student.config.keys() - TrainConfig.model_fields.keys() - {"provenance"}
    environment = Environment(
        undefined=StrictUndefined, finalize=_escape_markdown, trim_blocks=True, lstrip_blocks=True
    )
    card = environment.from_string(_read_template("card.md")).render(
        stem=Markup(student.stem),
        name=student.selected.name,
        confirmed=student.selected.confirmed,
        about=description,
        parameters=sum(p.numel() for p in student.loaded_model["model"].parameters()),
        settings=student.config,
        reached=provenance,
        written=written,
        snippets=scripts,
        pictures=images_label,
        versions=[f"{key} {value}" for key, value in provenance.get("environment", {}).items()],
        classes=description.classes[:MAX_CARD_CLASSES],
        figures=_accuracy_rows(student),
        shown=[
            f"{key} {student.config[key]}" for key in (*CARD_SETTINGS, *sorted(method_settings))
        ],
        batches=COMPARED_BATCH_SIZES,
        tolerance=MAX_LOGIT_DIFFERENCE,
    )
    write_text(out / f"{student.stem}.md", card + "\n")


def _accuracy_rows(student: ExportedStudent) -> list[tuple[str, str, str, str]]:
    """Rows of a card's first table: figure, percent, 95 % interval, what that is of."""
    provenance, seed_summary = student.config["provenance"], student.selected.seed_summary
    kind = "run" if student.selected.confirmed else "trial"
    rows = []
    for key, name, covers in (
        (
            "best_validation_accuracy",
            "validation",
            f"epoch and {kind} were chosen by them, so it is too high on the whole",
        ),
        ("test_accuracy", "test", "read once; nothing was chosen by them"),
    ):
        if key in provenance:
            interval = " to ".join(
                f"{100 * x:.2f}" for x in provenance.get(f"{name}_interval", ())
            )
            images = f"{provenance.get(f'{name}_images', 0):,} images; {covers}"
            figure = f"{name} accuracy of this network"
            rows.append((figure, f"{100 * provenance[key]:.2f}", interval, images))
    for name, width, covers in (
        ("validation", None, "by which they were chosen"),
        ("test", "test_half_width_points", "and new images of the same kind"),
    ):
        if (accuracy := seed_summary.get(f"{name}_accuracy_percent")) is not None:
            interval = f"± {seed_summary[width]:.2f}" if width in seed_summary else ""
            diverged = f" ({seed_summary['seeds_diverged']} more diverged)" * bool(
                seed_summary.get("seeds_diverged")
            )
            images = f"mean over {seed_summary['seeds_ok']} seeds{diverged}, {covers}"
            rows.append((f"{name} accuracy of its settings", f"{accuracy:.2f}", interval, images))
    return rows


def _read_template(name: str) -> str:
    return files("kdtune").joinpath("export", "templates", name).read_text(encoding="utf-8")


def _escape_markdown(value: Any) -> Any:
    """Text as Markdown shows it, whatever is in it."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return re.sub(r"([\\`*_\[\]<>|!&~#$])", r"\\\1", printable(value))


def _summary_line(student: ExportedStudent, written: dict[str, tuple[int, float]]) -> str:
    kind = "confirmed run" if student.selected.confirmed else "trial of the search"
    score = f"validation {100 * student.selected.validation_accuracy:.2f} %"
    if student.selected.test_accuracy is not None:
        score += f", test {100 * student.selected.test_accuracy:.2f} %"
    contents = (
        ", ".join(written)
        if student.loaded_model
        else "its settings alone; no network is kept of it"
    )
    return f"{student.stem}: {kind} {student.selected.name}, {score}: {contents}"
