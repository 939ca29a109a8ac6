"""The commands of kdtune; each imports what it needs when it runs."""

import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click
from click import Choice, argument, option

from kdtune.cli import options
from kdtune.cli.options import EXISTING_FILE, EXISTING_FOLDER, NEW_PATH, SettingsCommand
from kdtune.errors import RunError, UserError
from kdtune.runtime.console import say
from kdtune.runtime.signals import Terminated


@click.group(context_settings={"max_content_width": 100, "show_default": True})
@click.version_option(package_name="kdtune")
@option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Find out which distillation method, with which settings, makes your student best."""
    if debug:
        ctx.ensure_object(dict)["debug"] = True


def _provided_flags(flags: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flags.items() if value not in (None, ())}


@cli.command(cls=SettingsCommand, make_options=options.teacher_options)
@options.plugin
@option("--model", default="ResNet50", help="Architecture of the teacher.")
@option("--epochs", type=int, default=30, help="Passes over the training images.")
@option("--out", type=NEW_PATH, required=True, help="File to write.")
@options.setting
@options.threads
@option("--quiet", is_flag=True, help="Print only warnings and errors.")
def teacher(
    out: Path, settings: dict[str, Any] | None, threads: int | None, quiet: bool, **flags: Any
) -> None:
    """Train a teacher on your data."""
    from kdtune.config.data_forms import require_data
    from kdtune.config.names import require_model_name
    from kdtune.config.train import TrainConfig, check_searchable

    check_searchable(settings or {}, ["student"])
    config = TrainConfig.for_method("student", {**(settings or {}), **_provided_flags(flags)})
    require_model_name(config.model)
    require_data(config.data_dir)

    from kdtune.training.train_teacher import train_teacher

    result = train_teacher(config, out, (lambda line: None) if quiet else say, threads)
    test_accuracy = result["test_accuracy"]
    test_text = "no test images" if test_accuracy is None else f"test {100 * test_accuracy:.2f} %"
    print(f"{out}: validation {100 * result['validation_accuracy']:.2f} %, {test_text}")


@cli.command(cls=SettingsCommand, make_options=options.data_options)
@argument("data")
@options.plugin
@option("--sheet", type=NEW_PATH, help="File for some images of each class: .png.")
@option("--format", "output_format", type=Choice(["table", "json", "markdown"]), default="table")
def data(data: str, sheet: Path | None, output_format: str, **source: Any) -> None:
    """Show what DATA hold: classes, splits, sizes, and what is left out, damaged or double.

    DATA are what --data takes: a folder, a table, tar shards, hf:NAME, or the name of a data set.
    """
    from kdtune.config.data_forms import require_data

    require_data(data)

    from kdtune.config.train import TrainConfig
    from kdtune.data.folders import find_images
    from kdtune.data.overview import inspect_images, write_contact_sheet
    from kdtune.reports.text.data import data_text

    config = TrainConfig.parse({"data_dir": data, **_provided_flags(source)})
    images = find_images(*config.data_source)
    print(data_text(inspect_images(images, say), output_format), end="")
    if sheet is not None:
        write_contact_sheet(images, sheet)


def _sweep_settings(file: Path | None, flags: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """Return the settings of a sweep's file and flags; check what needs neither torch nor Ray."""
    from kdtune.config.sweep import SweepConfig
    from kdtune.plugins import load_plugins
    from kdtune.storage.files import read_yaml

    from_file = read_yaml(file) if file else {}
    run_settings = from_file.get("settings") or {}
    if isinstance(run_settings, dict):  # else `SweepConfig` refuses it
        run_settings = {**run_settings, **(flags["settings"] or {})}
    settings = {**defaults, **from_file, **_provided_flags(flags), "settings": run_settings}
    requested = SweepConfig.parse(settings)
    load_plugins(requested.plugins)
    requested.check_names_and_files()
    return settings


@cli.command(cls=SettingsCommand, make_options=options.sweep_options)
@argument("file", required=False, type=EXISTING_FILE)
@options.show
@option("--plan", is_flag=True, help="Plan it first, see 'kdtune plan'; the report compares.")
def sweep(file: Path | None, show: str, plan: bool, **flags: Any) -> None:
    """Search every method on every model, and show the leaderboard.

    FILE is a YAML file with the settings as keys; flags override it.
    """
    settings = _sweep_settings(file, flags)

    from kdtune.log.folder import RESULTS_FOLDER, SweepFolder

    SweepFolder(RESULTS_FOLDER / settings["name"]).raise_if_exists()

    from kdtune.tuning.sweep import run_sweep

    _print_results(run_sweep(settings, show, plan).path)


@cli.command(cls=SettingsCommand, make_options=options.sweep_options)
@argument("file", required=False, type=EXISTING_FILE)
@options.show
@options.slots
@option(
    "--curves",
    type=NEW_PATH,
    help="Recorded learning curves: a sweep's folder, or a file.  [default: synthetic ones]",
)
@options.output_format
def plan(
    file: Path | None,
    slot_counts: tuple[int, ...],
    curves: Path | None,
    output_format: str,
    show: str,
    **flags: Any,
) -> None:
    """Estimate the time, device hours, disk and memory of a sweep.

    The sweep is checked as by 'kdtune sweep', measured on this machine for about a minute, and
    simulated for any number of slots.
    """
    settings = _sweep_settings(file, flags, name="plan")

    from kdtune.reports.text.plan import plan_text
    from kdtune.tuning.planning.plan import plan_sweep

    print(plan_text(plan_sweep(settings, slot_counts, curves, show), output_format), end="")


def _check_sweep_folder(folder: Path, flags: dict[str, Any]) -> None:
    if flags["storage"] is None:  # a storage may have the sweep of a missing folder
        from kdtune.log.folder import SweepFolder

        SweepFolder(folder).require_log()


@cli.command(cls=SettingsCommand, make_options=options.resume_options)
@argument("folder", type=NEW_PATH)
@options.show
def resume(folder: Path, show: str, **flags: Any) -> None:
    """Resume a sweep that was interrupted, or that gets more trials, cells or resources.

    Flags change its settings from now on; methods and models can only be added.
    """
    _check_sweep_folder(folder, flags)

    from kdtune.tuning.sweep import resume_sweep

    _print_results(resume_sweep(folder, _provided_flags(flags), show).path)


@cli.command(cls=SettingsCommand, make_options=partial(options.resume_options, confirm=True))
@argument("folder", type=NEW_PATH)
@options.show
def confirm(folder: Path, show: str, **flags: Any) -> None:
    """Train the best trials of every cell again with fresh seeds, test once, and give the verdict.

    An interrupted confirmation resumes; further seeds and new cells add the missing runs.
    """
    _check_sweep_folder(folder, flags)

    from kdtune.tuning.confirm import confirm_sweep

    _print_results(confirm_sweep(folder, _provided_flags(flags), show).path)


def _print_results(folder: Path) -> None:
    from kdtune.reports.text.leaderboard import leaderboard_text

    print(leaderboard_text([folder], "table"))
    print(f"Log, tables and the best configurations and networks: {folder}")


@cli.command()
@argument("folder", type=EXISTING_FOLDER)
def status(folder: Path) -> None:
    """Show the progress of a sweep, whether it runs or not."""
    from kdtune.log.folder import SweepSnapshot
    from kdtune.reports.text.leaderboard import leaderboard_text
    from kdtune.reports.text.status import status_lines

    print("\n".join(status_lines(SweepSnapshot(folder))))
    print(f"\n{leaderboard_text([folder], 'table')}", end="")


@cli.command()
@argument("folders", nargs=-1, required=True, type=EXISTING_FOLDER)
@options.limits
@options.output_format
def leaderboard(folders: tuple[Path, ...], output_format: str, **limits: Any) -> None:
    """Print which student to ship, which method is better, and the leaderboard of sweeps.

    A cell of a sweep that is not confirmed shows its best trial.
    """
    from kdtune.reports.tables.ship import ShipLimits
    from kdtune.reports.text.leaderboard import leaderboard_text

    print(leaderboard_text(folders, output_format, ShipLimits(**limits)), end="")


@cli.command()
@argument("folder", type=EXISTING_FOLDER)
@argument("name")
@options.output_format
def table(folder: Path, name: str, output_format: str) -> None:
    """Print a table of a sweep, e.g. ship, comparison, settings, rungs, search_curve."""
    from kdtune.reports.text.leaderboard import table_text

    print(table_text(folder, name, output_format), end="")


@cli.command()
@argument("folders", nargs=-1, required=True, type=EXISTING_FOLDER)
@option("--out", type=NEW_PATH, help="File to write.  [default: report.html in the first folder]")
@option("--figures", type=NEW_PATH, help="Folder for the figures, as SVG and PNG.")
@options.limits
def report(
    folders: tuple[Path, ...], out: Path | None, figures: Path | None, **limits: Any
) -> None:
    """Write one HTML page about one or more sweeps, also while they run; it needs no network."""
    from kdtune.reports.page.page import write_report
    from kdtune.reports.tables.ship import ShipLimits

    print(write_report(folders, out, figures, ShipLimits(**limits)))


@cli.command()
@argument("folders", nargs=-1, required=True, type=EXISTING_FOLDER)
@option("--port", type=click.IntRange(0, 65535), default=8080)
def dashboard(folders: tuple[Path, ...], port: int) -> None:
    """Show sweeps in a browser of this machine, also while they run, until Ctrl-C.

    The dashboard is optuna-dashboard; it has a study for each cell, and no confirmations.
    """
    from kdtune.trackers.dashboard import Dashboard

    Dashboard(folders).serve(port)


@cli.command()
@argument("file", type=EXISTING_FILE)
@options.plugin
@options.threads
@option("--recipe", help="Settings that FILE leaves out, by name: seed, strong, transformer.")
def train(file: Path, threads: int | None, recipe: str | None) -> None:
    """Train once with the settings of a YAML FILE, e.g. one that a sweep wrote."""
    from kdtune.training.rerun import train_from_file

    result = train_from_file(file, threads, recipe)
    best, recorded = result["best_accuracy"], result["recorded_accuracy"]
    label = result["config"]["metric"].replace("_", " ")
    print(f"best validation {label} {100 * best:.2f} %")
    if recorded is not None:
        difference = "the same" if best == recorded else f"{100 * (best - recorded):+.2f} points"
        print(f"recorded in {file}: {100 * recorded:.2f} % ({difference})")
    for cause in result["causes"]:
        print(f"likely cause: {cause}")


@cli.command()
@argument("folder", type=EXISTING_FOLDER)
@options.plugin
@option("--out", type=NEW_PATH, required=True, help="An empty folder.")
@option("--method", help="Export only this method.")
@option("--model", help="Export only this student.")
@option(
    "--top",
    type=click.IntRange(min=1),
    default=1,
    help="Trials of each cell; only settings are kept for most of them.",
)
@option(
    "--format",
    "formats",
    multiple=True,
    default=["pth,safetensors,pt2"],
    help="Formats of the networks: pth, safetensors, pt2, onnx.",
)
def export(folder: Path, formats: tuple[str, ...], **selection: Any) -> None:
    """Export the best student of every cell for other projects, each with a card.

    In a confirmed sweep, that is the best run of the chosen trial.
    """
    from kdtune.export.bundle import export_sweep

    words = (name.strip() for name in ",".join(formats).split(","))
    names = tuple(dict.fromkeys(filter(None, words)))
    print("\n".join(export_sweep(folder, formats=names, **selection)))


@cli.command(cls=SettingsCommand, make_options=options.train_options)
@argument("file", type=EXISTING_FILE)
@options.plugin
@option("--split", type=Choice(["train", "validation", "test"]), default="test")
@option("--figure", type=NEW_PATH, help="File for the confusion matrix: .png, .svg.")
@option("--format", "output_format", type=Choice(["table", "json", "markdown"]), default="table")
@options.trust
def evaluate(file: Path, figure: Path | None, output_format: str, **flags: Any) -> None:
    """Evaluate a network, FILE.pth, .safetensors, .pt2 or .onnx, on labelled images."""
    from kdtune.export.evaluation import evaluate_file, render_evaluation, write_confusion_figure

    evaluation = evaluate_file(file, **_provided_flags(flags))
    print(render_evaluation(evaluation, output_format), end="")
    if figure is not None:
        write_confusion_figure(evaluation, figure)


@cli.command()
@argument("file", type=EXISTING_FILE)
@argument("images", nargs=-1, required=True, type=NEW_PATH)
@options.plugin
@option("--top", type=click.IntRange(min=1), default=3)
@options.output_format
@options.trust
def predict(
    file: Path, images: tuple[Path, ...], top: int, output_format: str, trust: bool
) -> None:
    """Classify images with a network, FILE as in 'kdtune evaluate'."""
    from kdtune.export.evaluation import predict_images
    from kdtune.reports.text.render import render_table

    print(render_table(predict_images(file, images, top, trust), output_format), end="")


@cli.command()
@option(
    "--prune",
    metavar="GB",
    type=click.FloatRange(min=0),
    help="Remove entries, the oldest first, until at most this is left.",
)
@click.option("--verify", is_flag=True, help="Read all arrays and remove those that are damaged.")
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
        print(f"removed, since it was damaged: {entry.label}", file=sys.stderr)
    for entry in array_cache.prune(prune * BYTES_PER_GB) if prune is not None else ():
        say(f"removed {format_bytes(entry.size_bytes)}: {entry.label}")
    entries = array_cache.list_entries()
    for entry in entries:
        last_used = datetime.fromtimestamp(entry.last_used).strftime("%Y-%m-%d %H:%M")
        print(f"{format_bytes(entry.size_bytes):>10}  last used {last_used}  {entry.label}")
    total = sum(entry.size_bytes for entry in entries)
    print(f"{format_bytes(total):>10}  in {len(entries)} arrays in {array_cache.folder}")


@cli.command()
@argument("folder", required=False, type=EXISTING_FOLDER)
@option("--space", "files", multiple=True, help="Files with your own search spaces; repeatable.")
@options.plugin
def spaces(folder: Path | None, files: tuple[str, ...]) -> None:
    """Show every search space: its ranges, start points, and their sources.

    With the FOLDER of a sweep, show its spaces, and the weights that its strengths stand for.
    """
    if folder is not None and files:
        raise UserError("The spaces of a sweep are in its log; leave --space out.")
    if folder is not None:
        from kdtune.reports.text.spaces import sweep_spaces_text

        print(sweep_spaces_text(folder), end="")
        return

    from kdtune.plugins import PLUGINS
    from kdtune.tuning.search.space import describe_space, load_spaces

    PLUGINS.load_installed()
    print("\n\n".join(describe_space(space) for space in load_spaces(files).values()))


@cli.command()
@option("--name", default="demo", help="The sweep's folder.")
@options.show
@click.pass_context
def demo(ctx: click.Context, name: str, show: str) -> None:
    """Compare AT and FitNets on real images that kdtune contains, in minutes on two cores.

    Runs `kdtune teacher`, then `kdtune sweep`, and prints both commands.
    """
    from kdtune.log.folder import RESULTS_FOLDER, SweepFolder

    SweepFolder(RESULTS_FOLDER / name).raise_if_exists()
    teacher_file = RESULTS_FOLDER / f"{name}-teacher.pth"
    commands = [
        f"teacher --data digits --image-size 8 --model ResNet18 --epochs 5 --out {teacher_file}"
        f"{' --quiet' if show == 'quiet' else ''}",
        f"sweep --data digits --teacher {teacher_file} --methods at,fitnets"
        f" --models MultiBranchNet,ResNet18 --trials 3 --epochs 3"
        f" --setting batch_size=64 --name {name}{'' if show == 'live' else f' --{show}'}",
    ]
    tell = say if show != "quiet" else lambda text: None
    if teacher_file.exists():
        tell(f"using {teacher_file} of an earlier demo")
        del commands[0]
    for command in commands:
        tell(f"$ kdtune {command}")
        cli.main(command.split(), standalone_mode=False, parent=ctx)


def main() -> None:
    """Run the command line; report a user's mistake in one sentence, with exit code 2."""
    global_options: dict[str, bool] = {}
    try:
        cli.main(standalone_mode=False, obj=global_options)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        say(f"kdtune: {error.format_message()}")
        sys.exit(2)
    except click.Abort as error:  # raised by click for Ctrl-C and SIGTERM
        detail = str(error.__cause__ or "")
        say(f"kdtune: interrupted{': ' if detail else ''}{detail}")
        sys.exit(143 if isinstance(error.__cause__, Terminated) else 130)
    except (UserError, RunError, OSError) as error:
        if global_options.get("debug"):
            raise
        for file, reason in getattr(error, "failures", ()):
            say(f"{file}: {reason}")
        say(f"kdtune: {error}")
        sys.exit(2 if isinstance(error, UserError) else 1)
