"""The command line: words to calls. Each command imports what it needs, so --help is instant."""

import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from kdtune.cli.options import (
    CONFIRM_OPTIONS,
    DATA_HELP,
    DISPLAY_OPTIONS,
    LOCATION_OPTIONS,
    MODELS_HELP,
    RESOURCE_OPTIONS,
    SEARCH_OPTIONS,
    SWEEP_OPTIONS,
    IntListParam,
    add_options,
    cache_options,
    data_root_option,
    format_option,
    plugin_option,
    setting_option,
    skip_bad_images_option,
    subset_options,
    trust_option,
)
from kdtune.errors import RunError, UserError


@click.group(context_settings={"max_content_width": 100})
@click.version_option(package_name="kdtune")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Find out which distillation method, with which settings, makes your student best."""


@cli.command()
@plugin_option
@click.option("--data", "data_dir", required=True, help=DATA_HELP)
@data_root_option
@subset_options
@click.option("--model", default="ResNet50", show_default=True, help=MODELS_HELP)
@click.option(
    "--weights",
    metavar="NAME|FILE",
    help="Begin with these: DEFAULT of torchvision, or a file.  [default: random weights]",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write.")
@click.option("--epochs", type=int, default=30, show_default=True)
@click.option("--image-size", type=int, default=128, show_default=True, help="Pixels.")
@click.option("--seed", type=int, default=0, show_default=True)
@cache_options
@skip_bad_images_option
@setting_option
@click.option("--quiet", is_flag=True, help="Say only what goes wrong.")
def teacher(out: Path, settings: tuple[tuple[str, Any], ...], quiet: bool, **flags: Any) -> None:
    """Train a teacher on your data."""
    from kdtune.config.train import TrainConfig, check_searchable
    from kdtune.runtime.console import say
    from kdtune.training.train_teacher import train_teacher

    check_searchable(dict(settings), ["student"])
    run_settings = {**dict(settings), **_provided_flags(flags), "method": "student"}
    result = train_teacher(
        TrainConfig.parse(run_settings), out, (lambda line: None) if quiet else say
    )
    test_accuracy = result["test_accuracy"]
    test_text = "no test images" if test_accuracy is None else f"test {100 * test_accuracy:.2f} %"
    print(f"{out}: validation {100 * result['validation_accuracy']:.2f} %, {test_text}")


def _provided_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given."""
    return {key: value for key, value in flags.items() if value not in (None, ())}


def _merge_settings(
    file: Path | None, settings: tuple[tuple[str, Any], ...], flags: dict[str, Any]
) -> dict[str, Any]:
    """The settings of a sweep, from a file and flags; flags win."""
    from kdtune.storage.files import read_yaml

    merged = read_yaml(file) if file else {}
    merged |= _provided_flags(flags)
    file_settings = merged.get("settings") or {}
    if settings and isinstance(
        file_settings, dict
    ):  # anything else is refused where settings are checked
        merged["settings"] = {**file_settings, **dict(settings)}
    return merged


@cli.command()
@add_options(SWEEP_OPTIONS, CONFIRM_OPTIONS, DISPLAY_OPTIONS)
@click.option(
    "--plan", is_flag=True, help="Plan it first, see 'kdtune plan'; the report compares."
)
def sweep(
    file: Path | None, settings: tuple[tuple[str, Any], ...], show: str, plan: bool, **flags: Any
) -> None:
    """Search every method on every model, and show the leaderboard.

    FILE is a YAML file with the same names as the flags; flags win.
    """
    from kdtune.tuning.sweep import run_sweep

    _print_results(run_sweep(_merge_settings(file, settings, flags), show, plan).path)


@cli.command()
@add_options(SWEEP_OPTIONS, DISPLAY_OPTIONS)
@click.option(
    "--gpus",
    "--slots",
    "counts",
    type=IntListParam(),
    default=(1, 8, 64, 1000),
    help="Trials at once that are planned for, besides those of this machine."
    "  [default: 1,8,64,1000]",
)
@click.option(
    "--curves",
    type=click.Path(path_type=Path),
    help="Recorded learning curves: a sweep's folder, or a file.  [default: imagined ones]",
)
@format_option
def plan(
    file: Path | None,
    settings: tuple[tuple[str, Any], ...],
    slot_counts: tuple[int, ...],
    curves: Path | None,
    output_format: str,
    show: str,
    **flags: Any,
) -> None:
    """Say what a sweep will take, before it is run: time, device hours, disk, memory.

    It is checked as by 'kdtune sweep', measured on this machine for about a minute, and simulated
    for any number of slots.
    """
    from kdtune.reports.text.plan import plan_text
    from kdtune.tuning.planning.plan import plan_sweep

    sweep_settings = {"name": "plan", **_merge_settings(file, settings, flags)}
    print(plan_text(plan_sweep(sweep_settings, slot_counts, curves, show), output_format), end="")


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@add_options(LOCATION_OPTIONS, SEARCH_OPTIONS, CONFIRM_OPTIONS, RESOURCE_OPTIONS, DISPLAY_OPTIONS)
def resume(folder: Path, show: str, **flags: Any) -> None:
    """Go on with a sweep that was interrupted, or is to have more trials, cells or resources.

    Flags change its settings from now on; methods and models can only be added.
    """
    from kdtune.tuning.sweep import resume_sweep

    _print_results(resume_sweep(folder, _provided_flags(flags), show).path)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@add_options(CONFIRM_OPTIONS, LOCATION_OPTIONS, RESOURCE_OPTIONS, DISPLAY_OPTIONS)
def confirm(folder: Path, show: str, **flags: Any) -> None:
    """Train the best trials of every cell again with fresh seeds, test once, and give the verdict.

    What was interrupted goes on; with more seeds, or new cells, what is missing is added.
    """
    from kdtune.tuning.confirm import confirm_sweep

    _print_results(confirm_sweep(folder, _provided_flags(flags), show).path)


for command in (resume, confirm):  # what is not given stays as it was
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.help:
            parameter.help = parameter.help.split("  [default")[0]


def _print_results(folder: Path) -> None:
    from kdtune.reports.text.leaderboard import leaderboard_text

    print(leaderboard_text([folder], "table"))
    print(f"Log, tables and the best configurations and networks: {folder}")


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
def status(folder: Path) -> None:
    """Show how far a sweep is, whether it runs or not."""
    from kdtune.log.folder import SweepSnapshot
    from kdtune.reports.text.leaderboard import leaderboard_text
    from kdtune.reports.text.status import status_lines

    snapshot = SweepSnapshot(folder)
    print("\n".join(status_lines(snapshot)))
    print(f"\n{leaderboard_text([folder], 'table')}", end="")


@cli.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@format_option
def leaderboard(folders: tuple[Path, ...], output_format: str) -> None:
    """Show how good every cell of one or several sweeps is, and the verdict.

    Until a sweep is confirmed, that is its best trial.
    """
    from kdtune.reports.text.leaderboard import leaderboard_text

    print(leaderboard_text(folders, output_format), end="")


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("name")
@format_option
def table(folder: Path, name: str, output_format: str) -> None:
    """Show any table of a sweep, e.g. comparison, settings, rungs, search_curve, models."""
    from kdtune.reports.text.leaderboard import table_text

    print(table_text(folder, name, output_format), end="")


@cli.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File to write.  [default: report.html in the first folder]",
)
@click.option(
    "--figures", type=click.Path(path_type=Path), help="Folder for the figures, as SVG and PNG."
)
def report(folders: tuple[Path, ...], out: Path | None, figures: Path | None) -> None:
    """Write one HTML page of a sweep, or of several, at any moment; it needs no network."""
    from kdtune.reports.page.page import write_report

    print(write_report(folders, out, figures))


@cli.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
def dashboard(folders: tuple[Path, ...], port: int) -> None:
    """Show sweeps in a browser of this machine, also while they run, until Ctrl-C.

    It is optuna-dashboard, with a study a cell, and it shows the search, not its confirmation.
    """
    from kdtune.trackers.dashboard import Dashboard

    Dashboard(folders).serve(port, partial(print, flush=True))


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@plugin_option
def train(file: Path) -> None:
    """Train once with the settings of a YAML FILE, e.g. one that a sweep wrote."""
    from kdtune.training.rerun import train_from_file

    result = train_from_file(file)
    best, recorded = result["best_accuracy"], result["recorded_accuracy"]
    print(f"best validation accuracy {100 * best:.2f} %")
    if recorded is not None:
        difference = "the same" if best == recorded else f"{100 * (best - recorded):+.2f} points"
        print(f"recorded in {file}: {100 * recorded:.2f} % ({difference})")
    for cause in result["causes"]:
        print(f"likely cause: {cause}")


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@plugin_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="An empty folder.")
@click.option("--method", help="Of this method alone.")
@click.option("--model", help="Of this student alone.")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Trials of each cell; of most of them there are settings alone.",
)
@click.option(
    "--format",
    "formats",
    default="pth,safetensors,pt2",
    show_default=True,
    help="Of the networks: pth, safetensors, pt2, onnx.",
)
def export(folder: Path, formats: str, **selection: Any) -> None:
    """Write the best of every cell as files for other projects, each with a card.

    Of a confirmed sweep, that is the best run of what was chosen.
    """
    from kdtune.export.bundle import export_sweep

    names = tuple(name.strip() for name in formats.split(",") if name.strip())
    print("\n".join(export_sweep(folder, formats=names, **selection)))


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@plugin_option
@click.option("--data", "data_dir", required=True, help=DATA_HELP)
@data_root_option
@subset_options
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test"]),
    default="test",
    show_default=True,
)
@click.option(
    "--figure", type=click.Path(path_type=Path), help="File for the confusion matrix: .png, .svg."
)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json", "markdown"]),
    default="table",
    show_default=True,
)
@trust_option
@cache_options
@skip_bad_images_option
def evaluate(file: Path, figure: Path | None, output_format: str, **flags: Any) -> None:
    """Measure a network, FILE.pth, .safetensors, .pt2 or .onnx, on labelled images."""
    from kdtune.export.evaluation import evaluate_file, render_evaluation, write_confusion_figure

    evaluation = evaluate_file(file, **_provided_flags(flags))
    print(render_evaluation(evaluation, output_format), end="")
    if figure is not None:
        write_confusion_figure(evaluation, figure)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@plugin_option
@click.option("--top", type=click.IntRange(min=1), default=3, show_default=True)
@format_option
@trust_option
def predict(
    file: Path, images: tuple[Path, ...], top: int, output_format: str, trust: bool
) -> None:
    """Say which class a network, FILE as in 'kdtune evaluate', gives to images."""
    from kdtune.export.evaluation import predict_images
    from kdtune.reports.text.render import render_table

    print(render_table(predict_images(file, images, top, trust), output_format), end="")


@cli.command()
@click.option(
    "--prune", metavar="GB", type=click.FloatRange(min=0), help="Keep no more than that."
)
@click.option("--verify", is_flag=True, help="Read all arrays and remove those that are damaged.")
def cache(prune: float | None, verify: bool) -> None:
    """List what this machine keeps of images and teachers, and remove what is not used any more.

    The folder is ~/.cache/kdtune, or what the environment variable KDTUNE_CACHE says.
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
        print(f"removed {format_bytes(entry.size_bytes)}: {entry.label}", file=sys.stderr)
    entries = array_cache.list_entries()
    for entry in entries:
        last_used = datetime.fromtimestamp(entry.last_used).strftime("%Y-%m-%d %H:%M")
        print(f"{format_bytes(entry.size_bytes):>10}  last used {last_used}  {entry.label}")
    total = sum(entry.size_bytes for entry in entries)
    print(f"{format_bytes(total):>10}  in {len(entries)} arrays in {array_cache.folder}")


@cli.command()
@click.option("--space", "files", multiple=True, help="A search space of your own; repeatable.")
@plugin_option
def spaces(files: tuple[str, ...]) -> None:
    """Show every search space: its ranges, start points, and where they come from."""
    from kdtune.plugins import load_installed_plugins
    from kdtune.tuning.search.space import describe_space, load_spaces

    load_installed_plugins()
    print("\n\n".join(describe_space(space) for space in load_spaces(files).values()))


@cli.command()
@click.option("--name", default="demo", show_default=True, help="The sweep's folder.")
@add_options(DISPLAY_OPTIONS)
@click.pass_context
def demo(ctx: click.Context, name: str, show: str) -> None:
    """Compare AT and FitNets on real images that come along, in minutes on two cores.

    It stands for an ordinary `teacher` and an ordinary `sweep`, and prints both.
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
    if teacher_file.exists():
        if show != "quiet":
            print(f"using {teacher_file} of an earlier demo", file=sys.stderr)
        del commands[0]
    for command in commands:
        if show != "quiet":
            print(f"$ kdtune {command}", file=sys.stderr, flush=True)
        cli.main(command.split(), standalone_mode=False, parent=ctx)


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        print(f"kdtune: {error.format_message()}", file=sys.stderr)
        sys.exit(2)
    except click.Abort as error:  # click's word for Ctrl-C
        detail = str(error.__cause__ or "")
        print(f"kdtune: interrupted{': ' if detail else ''}{detail}", file=sys.stderr)
        sys.exit(143 if type(error.__cause__).__name__ == "Terminated" else 130)
    except (UserError, RunError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        for file, reason in getattr(error, "failures", ()):
            print(f"{file}: {reason}", file=sys.stderr)
        print(f"kdtune: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
