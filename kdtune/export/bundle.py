"""Export of a sweep's students: settings, weights, and a card with origin and accuracy."""

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from torch import Tensor

from kdtune.config.names import file_stem
from kdtune.config.train import TrainConfig
from kdtune.data.decoding import decode_images
from kdtune.data.transforms import normalise
from kdtune.errors import DiskFullError, RunError, UserError, did_you_mean, first_line
from kdtune.export import formats as file_formats
from kdtune.export.formats import LoadedModel
from kdtune.export.selected_runs import (
    SelectedRun,
    config_with_provenance,
    load_run_network,
    select_top_runs,
)
from kdtune.log.folder import SweepFolder, SweepSnapshot
from kdtune.models.costs import count_parameters
from kdtune.reports.tables.all_tables import load_sweep_tables
from kdtune.runtime.console import printable, printable_path
from kdtune.storage.files import atomic_write, make_folder, write_text, write_yaml
from kdtune.training.epoch_data import find_data


class _Student(NamedTuple):
    stem: str  # of the names of its files
    selected: SelectedRun
    config: dict[str, Any]  # content of its YAML file
    network: LoadedModel | None  # None if the sweep keeps no weights of it


WrittenFiles = dict[str, tuple[int, float]]
"""By format: bytes, and the largest difference of a logit as a share of the largest logit."""


def export_sweep(
    path: Path,
    out: Path,
    formats: Sequence[str],
    method: str | None = None,
    model: str | None = None,
    top: int = 1,
) -> list[str]:
    """Write the best of each of a sweep's cells: confirmed runs where there are any.

    Args:
        path: the sweep's folder.
        out: folder for the files; it must be empty or missing.
        formats: names of `FORMATS`.
        method: export only this method.
        model: export only this student.
        top: trials of each cell; those without weights get only a YAML file.

    Returns:
        A line per student.

    Raises:
        RunError: a network could not be written in a format; all others are written.
    """
    if not formats:
        raise UserError(f"Name at least one format: {', '.join(file_formats.FORMATS)}.")
    file_formats.require_formats(formats)
    folder = SweepSnapshot(path)
    students = _collect_students(folder, method, model, top)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{printable_path(out)} is not an empty folder; remove it, or give another --out."
        )
    make_folder(out)
    images, images_label = _load_comparison_images(folder)
    lines, failures = [], []
    for student in students:
        write_yaml(out / f"{student.stem}.yaml", student.config)
        written: WrittenFiles = {}
        if student.network is not None:
            for name in formats:
                file = out / f"{student.stem}.{name}"
                try:
                    written[name] = _write_network(file, student.network, images)
                except DiskFullError:
                    raise
                except Exception as error:  # exporters raise anything
                    failures.append(f"{printable_path(file)} is not written: {first_line(error)}")
            _write_sidecars(out, student, student.network, written, images_label)
        lines.append(_summary_line(student, written))
    if failures:
        raise RunError(f"{'; '.join(failures)}. Everything else is in {printable_path(out)}.")
    return lines


def _collect_students(
    folder: SweepFolder, method: str | None, model: str | None, top: int
) -> list[_Student]:
    runs_by_cell = select_top_runs(load_sweep_tables(folder), top)
    if not runs_by_cell:
        raise UserError(f"{folder.path} has no trial that finished.")
    for position, requested in enumerate((method, model)):
        if requested is None:
            continue
        known = dict.fromkeys(cell[position] for cell in runs_by_cell)
        if requested not in known:
            names = " on ".join(f"'{name}'" for name in (method, model)[: position + 1] if name)
            suggestion = did_you_mean(requested, known)
            raise UserError(f"{folder.path} has no trial of {names}; {suggestion}")
        runs_by_cell = {c: r for c, r in runs_by_cell.items() if c[position] == requested}
    students = []
    for cell, selected_runs in runs_by_cell.items():
        for rank, selected in enumerate(selected_runs, start=1):
            stem = file_stem(*cell) + (f"-{rank}" if rank > 1 else "")
            config = config_with_provenance(folder, selected)
            students.append(_Student(stem, selected, config, load_run_network(folder, selected)))
    return students


def _load_comparison_images(folder: SweepFolder) -> tuple[Tensor, str]:
    """Return the images on which networks are compared, and a label for them."""
    sweep, count = folder.load_config(), max(file_formats.COMPARED_BATCH_SIZES)
    size = sweep.image_size
    assert size is not None
    try:
        data, _ = find_data(sweep)
        if data.fingerprint != folder.load_opening_events()[-1].data.fingerprint:
            raise UserError("The data have changed.")
        indices = np.linspace(0, len(data.validation) - 1, count).astype(int).tolist()
        pixels = decode_images(data.validation.select(indices), size, None)
    except UserError:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(count, 3, size, size, generator=generator)
        return noise, f"{count} images of random noise, since the sweep's data are not at hand"
    label = f"{len(set(indices))} validation images of the sweep"
    return normalise(torch.from_numpy(pixels)), label


def _write_network(file: Path, network: LoadedModel, images: Tensor) -> tuple[int, float]:
    """Write a network, and compare what is written with it before the file gets its name."""
    with atomic_write(file) as temporary:
        file_formats.FORMATS[file.suffix[1:]].write(temporary, network)
        difference = file_formats.measure_logit_difference(network, temporary, images)
        return temporary.stat().st_size, difference


def _write_sidecars(
    out: Path, student: _Student, network: LoadedModel, written: WrittenFiles, images_label: str
) -> None:
    """Write the files beside the weights: description, scripts that load them, card."""
    description, config = file_formats.describe_network(network), student.config
    write_text(out / f"{student.stem}.json", description.model_dump_json(indent=2) + "\n")
    scripts = [name for name in ("pt2", "onnx") if name in written]
    templates = files("kdtune").joinpath("export", "templates")
    for name in scripts:
        script = templates.joinpath(f"load_{name}.txt").read_text(encoding="utf-8")
        write_text(out / f"{student.stem}.{name}.py", script)
    environment = Environment(
        undefined=StrictUndefined, finalize=_escape_markdown, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(templates.joinpath("card.md").read_text(encoding="utf-8"))
    card = template.render(
        stem=Markup(student.stem),
        selected=student.selected,
        seeds=student.selected.seed_summary,
        settings=config,
        metric=config.get("metric", "accuracy").replace("_", " "),
        provenance=config["provenance"],
        network=description,
        parameters=count_parameters(network["model"]),
        written=written,
        scripts=scripts,
        images_label=images_label,
        method_settings=sorted(config.keys() - TrainConfig.model_fields.keys() - {"provenance"}),
        batch_sizes=file_formats.COMPARED_BATCH_SIZES,
        max_difference=file_formats.MAX_LOGIT_DIFFERENCE,
    )
    write_text(out / f"{student.stem}.md", card + "\n")


def _escape_markdown(value: object) -> object:
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return re.sub(r"([\\`*_\[\]<>|!&~#$])", r"\\\1", printable(value))


def _summary_line(student: _Student, written: WrittenFiles) -> str:
    selected = student.selected
    kind = "confirmed run" if selected.confirmed else "trial of the search"
    score = f"validation {100 * selected.validation_accuracy:.2f} %"
    if selected.test_accuracy is not None:
        score += f", test {100 * selected.test_accuracy:.2f} %"
    settings_only = "settings only, since the sweep keeps no weights of it"
    contents = ", ".join(written) if student.network is not None else settings_only
    return f"{student.stem}: {kind} {selected.name}, {score}: {contents}"
