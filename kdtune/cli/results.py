"""Commands about the results of sweeps: their progress, tables, pages and students."""

import json
import sys
from pathlib import Path
from typing import Any

import click
from click import Choice, argument, option

from kdtune.cli import options
from kdtune.cli.options import EXISTING_FOLDER, NEW_PATH, find_sweep_folder
from kdtune.errors import UserError
from kdtune.runtime.console import say, waiting


@click.command("list")
@options.output_format
@waiting("reading the logs")
def list_sweeps(output_format: str) -> None:
    """List the sweeps in results/: state, cells, trials, and the best validation accuracy."""
    from kdtune.log.folder import RESULTS_FOLDER
    from kdtune.reports.text.status import sweep_list_text

    folders = sorted(RESULTS_FOLDER.iterdir()) if RESULTS_FOLDER.is_dir() else []
    if text := sweep_list_text(folders, output_format).strip("\n"):
        print(text)
    else:
        say(f"There is no sweep in {RESULTS_FOLDER.absolute()}.")


@click.command()
@argument("names", nargs=-1, required=True)
@option("--yes", is_flag=True, help="Remove without asking.")
def rm(names: tuple[str, ...], yes: bool) -> None:
    """Remove sweeps, NAMES in results/ or folders, with their logs, tables and networks.

    What a sweep has in a storage, MLflow or W&B stays there.
    """
    from kdtune.log.folder import SweepFolder

    paths = [find_sweep_folder(name) for name in names]
    for path in paths:
        SweepFolder(path).require_log()
    if not yes:
        from kdtune.reports.text.status import sweep_list_text

        say(sweep_list_text(paths, "table").strip("\n"))
        print("Remove for good? [y/N] ", end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline()
        if not answer:
            raise UserError("Nothing was removed, because there was no answer: give --yes.")
        if answer.strip().lower() not in ("y", "yes"):
            raise UserError("Nothing was removed.")
    for path in paths:
        SweepFolder(path).remove()
        print(f"removed {path}")


@click.command()
@argument("folder", type=EXISTING_FOLDER)
@option("--format", "output_format", type=Choice(["table", "json"]), default="table")
@waiting("reading the log")
def status(folder: Path, output_format: str) -> None:
    """Show the progress of a sweep, whether it runs or not."""
    from kdtune.log.folder import SweepSnapshot
    from kdtune.reports.text.leaderboard import leaderboard_text
    from kdtune.reports.text.status import status_lines, sweep_status

    if output_format == "json":
        print(json.dumps(sweep_status(SweepSnapshot(folder)), indent=2))
        return
    print("\n".join(status_lines(SweepSnapshot(folder))))
    print(f"\n{leaderboard_text([folder], 'table')}", end="")


@click.command()
@argument("folders", nargs=-1, required=True, type=EXISTING_FOLDER)
@options.limits
@options.output_format
@waiting("making the tables")
def leaderboard(folders: tuple[Path, ...], output_format: str, **limits: Any) -> None:
    """Print which student to ship, which method is better, and the leaderboard of sweeps.

    A cell of a sweep that is not confirmed shows its best trial.
    """
    from kdtune.reports.tables.ship import ShipLimits
    from kdtune.reports.text.leaderboard import leaderboard_text

    print(leaderboard_text(folders, output_format, ShipLimits(**limits)), end="")


@click.command()
@argument("folder", type=EXISTING_FOLDER)
@argument("name")
@options.output_format
@waiting("making the tables")
def table(folder: Path, name: str, output_format: str) -> None:
    """Print a table of a sweep, e.g. ship, comparison, settings, rungs, search_curve."""
    from kdtune.reports.text.leaderboard import table_text

    print(table_text(folder, name, output_format), end="")


@click.command()
@argument("folders", nargs=-1, required=True, type=EXISTING_FOLDER)
@option("--out", type=NEW_PATH, help="File to write.  [default: report.html in the first folder]")
@option("--figures", type=NEW_PATH, help="Folder for the figures, as SVG and PNG.")
@options.limits
@waiting("writing the report")
def report(
    folders: tuple[Path, ...], out: Path | None, figures: Path | None, **limits: Any
) -> None:
    """Write one HTML page about one or more sweeps, also while they run; it needs no network."""
    from kdtune.reports.page.page import write_report
    from kdtune.reports.tables.ship import ShipLimits

    print(write_report(folders, out, figures, ShipLimits(**limits)))
    if figures is not None:
        say(f"wrote the figures to {figures}")


@click.command()
@argument("folders", nargs=-1, required=True, type=EXISTING_FOLDER)
@option("--port", type=click.IntRange(0, 65535), default=8080)
def dashboard(folders: tuple[Path, ...], port: int) -> None:
    """Show sweeps in a browser of this machine, also while they run, until Ctrl-C.

    The dashboard is optuna-dashboard; it has a study for each cell, and no confirmations.
    """
    from kdtune.trackers.dashboard import Dashboard

    Dashboard(folders).serve(port)


@click.command()
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
@waiting("exporting, and checking what is exported")
def export(folder: Path, formats: tuple[str, ...], **selection: Any) -> None:
    """Export the best student of every cell for other projects, each with a card.

    In a confirmed sweep, that is the best run of the chosen trial.
    """
    from kdtune.export.bundle import export_sweep

    words = (name.strip() for name in ",".join(formats).split(","))
    names = tuple(dict.fromkeys(filter(None, words)))
    print("\n".join(export_sweep(folder, formats=names, **selection)))
