"""Commands about single runs, their data and their networks, and the cache."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click import Choice, argument, option

from kdtune.cli import options, setting_options
from kdtune.cli.options import EXISTING_FILE, NEW_PATH, NewFile
from kdtune.cli.setting_options import SettingsCommand, parse_settings
from kdtune.errors import UserError
from kdtune.runtime.console import say, waiting

if TYPE_CHECKING:
    from kdtune.cli.run_display import RunDisplay


def _run_display(epochs: int, output_mode: str) -> "RunDisplay":
    from kdtune.cli.run_display import RunDisplay
    from kdtune.tuning.display.screen import Screen

    return RunDisplay(epochs, Screen(output_mode))


@click.command(cls=SettingsCommand, make_options=setting_options.teacher_options)
@options.plugin
@option("--model", default="ResNet50", help="Architecture of the teacher.")
@option("--epochs", type=int, default=30, help="Passes over the training images.")
@option("--out", type=NEW_PATH, required=True, help="File to write.")
@option(
    "--setting",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    callback=parse_settings,
    help="Other settings of the run; repeatable.",
)
@options.threads
@options.dry_run
@options.output_mode
def teacher(
    out: Path,
    settings: dict[str, Any] | None,
    threads: int | None,
    dry_run: bool,
    output_mode: str,
    **flags: Any,
) -> None:
    """Train a teacher on your data."""
    from kdtune.config.data_forms import require_data
    from kdtune.config.names import require_model_name
    from kdtune.config.train import TrainConfig, check_searchable

    settings = settings or {}
    check_searchable(settings, ["student"])
    config = TrainConfig.for_method("student", settings | options.provided_flags(flags))
    require_model_name(config.model)
    require_data(config.data_dir)
    if out.exists():
        raise UserError(f"{out} already exists; remove it, or choose another --out.")

    with waiting("loading PyTorch", options.make_say(output_mode)):
        from kdtune.training.run import check_run
        from kdtune.training.train_teacher import train_teacher

    if dry_run:
        check_run(config)
        print(options.DRY_RUN_PASSED)
        return

    display = _run_display(config.epochs, output_mode)
    with display.shown():
        result = train_teacher(config, out, display.screen.say, threads, display.on_step)
    test_accuracy = result["test_accuracy"]
    test_text = "no test images" if test_accuracy is None else f"test {100 * test_accuracy:.2f} %"
    print(f"{out}: validation {100 * result['validation_accuracy']:.2f} %, {test_text}")


@click.command()
@argument("file", type=EXISTING_FILE)
@options.plugin
@options.threads
@option("--recipe", help="Settings that FILE leaves out, by name: seed, strong, transformer.")
@options.dry_run
@options.output_mode
def train(
    file: Path, threads: int | None, recipe: str | None, dry_run: bool, output_mode: str
) -> None:
    """Train once with the settings of a YAML FILE, e.g. one that a sweep wrote."""
    from kdtune.config.train import TrainConfig
    from kdtune.storage.files import read_yaml

    settings = read_yaml(file)
    if {"methods", "models"} & settings.keys():
        raise UserError(f"{file} has the settings of a sweep: kdtune sweep {file}")
    epochs = settings.get("epochs", TrainConfig.model_fields["epochs"].default)
    with waiting("loading PyTorch", options.make_say(output_mode)):
        from kdtune.training.rerun import train_from_file
        from kdtune.training.run import RunWatch

    if dry_run:
        train_from_file(file, threads, recipe, dry_run)
        print(options.DRY_RUN_PASSED)
        return
    display = _run_display(epochs, output_mode)
    with display.shown():
        watch = RunWatch(display.screen.say, display.on_step)
        result = train_from_file(file, threads, recipe, watch=watch)
    best, recorded = result["best_accuracy"], result["recorded_accuracy"]
    label = result["config"]["metric"].replace("_", " ")
    print(f"best validation {label} {100 * best:.2f} %")
    if recorded is not None:
        difference = "the same" if best == recorded else f"{100 * (best - recorded):+.2f} points"
        print(f"recorded in {file}: {100 * recorded:.2f} % ({difference})")
    for cause in result["causes"]:
        print(f"likely cause: {cause}")


@click.command(cls=SettingsCommand, make_options=setting_options.train_options)
@argument("file", type=EXISTING_FILE)
@options.plugin
@option("--split", type=Choice(["train", "validation", "test", "all"]), default="test")
@option(
    "--figure", type=NewFile(".png", ".svg"), help="File for the confusion matrix: .png, .svg."
)
@option("--format", "output_format", type=Choice(["table", "json", "markdown"]), default="table")
@options.trust
@waiting("evaluating")
def evaluate(file: Path, figure: Path | None, output_format: str, **flags: Any) -> None:
    """Evaluate a network, FILE.pth, .safetensors, .pt2 or .onnx, on labelled images."""
    from kdtune.export.evaluation import evaluate_file, render_evaluation, write_confusion_figure

    evaluation = evaluate_file(file, **options.provided_flags(flags))
    print(render_evaluation(evaluation, output_format), end="")
    if figure is not None:
        write_confusion_figure(evaluation, figure)
        say(f"wrote {figure}")


@click.command()
@argument("file", type=EXISTING_FILE)
@argument("images", nargs=-1, required=True, type=NEW_PATH)
@options.plugin
@option("--top", type=click.IntRange(min=1), default=3)
@options.output_format
@options.trust
@waiting("classifying the images")
def predict(
    file: Path, images: tuple[Path, ...], top: int, output_format: str, trust: bool
) -> None:
    """Classify images, files or folders of them, with a network, FILE as in 'kdtune evaluate'."""
    from kdtune.export.evaluation import predict_images
    from kdtune.reports.text.render import render_table

    print(render_table(predict_images(file, images, top, trust), output_format), end="")


@click.command(cls=SettingsCommand, make_options=setting_options.data_options)
@argument("data")
@options.plugin
@option("--sheet", type=NewFile(".png"), help="File for some images of each class: .png.")
@option("--format", "output_format", type=Choice(["table", "json", "markdown"]), default="table")
@waiting("looking at the images")
def data(data: str, sheet: Path | None, output_format: str, **source: Any) -> None:
    """Show what DATA hold: classes, splits, sizes, and what is left out, unreadable or duplicated.

    DATA are what --data takes: a folder, a table, tar shards, hf:NAME, or the name of a data set.
    """
    from kdtune.config.data_forms import require_data

    require_data(data)

    from kdtune.config.train import TrainConfig
    from kdtune.data.folders import find_images
    from kdtune.data.overview import inspect_images, write_contact_sheet
    from kdtune.reports.text.data import data_text

    config = TrainConfig.parse({"data_dir": data, **options.provided_flags(source)})
    images = find_images(config.data_source)
    print(data_text(inspect_images(images, say), output_format), end="")
    if sheet is not None:
        write_contact_sheet(images, sheet)
        say(f"wrote {sheet}")


@click.command()
@option(
    "--prune",
    metavar="GB",
    type=click.FloatRange(min=0),
    help="Remove entries, the oldest first, until at most this is left.",
)
@option("--verify", is_flag=True, help="Read all arrays and remove those that are damaged.")
def cache(prune: float | None, verify: bool) -> None:
    """List the cached images and teacher targets of this machine, and remove unused ones.

    The folder is ~/.cache/kdtune, or that of the environment variable KDTUNE_CACHE.
    """
    from datetime import datetime

    from kdtune.storage.array_cache import ArrayCache, cache_folder
    from kdtune.units import BYTES_PER_GB, format_bytes

    array_cache = ArrayCache(cache_folder())
    if array_cache.folder.exists() and not array_cache.folder.is_dir():
        raise UserError(f"The cache {array_cache.folder} is not a folder; see KDTUNE_CACHE.")
    if prune is not None and not math.isfinite(prune):
        raise UserError("--prune must be a finite number of GB.")
    for entry in array_cache.remove_damaged() if verify else ():
        say(f"removed because it was damaged: {entry.label}")
    for entry in array_cache.prune(prune * BYTES_PER_GB) if prune is not None else ():
        say(f"removed {format_bytes(entry.size_bytes)}: {entry.label}")
    entries = array_cache.list_entries()
    for entry in entries:
        last_used = datetime.fromtimestamp(entry.last_used).strftime("%Y-%m-%d %H:%M")
        print(f"{format_bytes(entry.size_bytes):>10}  last used {last_used}  {entry.label}")
    total = sum(entry.size_bytes for entry in entries)
    print(f"{format_bytes(total):>10}  in {len(entries)} arrays in {array_cache.folder}")
