"""Options that commands share; those of settings are in `kdtune.cli.setting_options`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click import Choice, option

from kdtune.runtime.console import say

DRY_RUN_PASSED = "All checks passed; nothing was trained."
"""What a command prints at the end of a dry run."""

EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NEW_PATH = click.Path(path_type=Path)


def find_sweep_folder(name: str) -> Path:
    """Return the folder that a name stands for, one in results/ if there is no other."""
    from kdtune.log.folder import RESULTS_FOLDER

    in_results = RESULTS_FOLDER / name
    return in_results if in_results.is_dir() and not Path(name).exists() else Path(name)


class _SweepFolderPath(click.Path):
    """An existing folder, or the name of one in results/."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(find_sweep_folder(value), param, ctx)


class _SweepFilePath(click.Path):
    """An existing file; other words without a flag are refused with the flag that they need."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if Path(value).is_dir():
            self.fail(f"'{value}' is a folder; images are given by --data {value}.", param, ctx)
        if not Path(value).exists():
            problem = f"There is no file '{value}'"
            self.fail(f"{problem}; names of a list need commas, as in at,fitnets.", param, ctx)
        return super().convert(value, param, ctx)


class NewFile(click.Path):
    """A file to write, with one of some suffixes.

    Args:
        suffixes: in lower case, such as ``.png``.
    """

    def __init__(self, *suffixes: str):
        super().__init__(path_type=Path)
        self.suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path; refuse another suffix before the command does its work."""
        if Path(value).suffix.lower() not in self.suffixes:
            self.fail(f"'{value}' must end with {' or '.join(self.suffixes)}.", param, ctx)
        return super().convert(value, param, ctx)


EXISTING_FOLDER = _SweepFolderPath(exists=True, file_okay=False, path_type=Path)
SWEEP_FILE = _SweepFilePath(path_type=Path)


def provided_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags that the user gave."""
    return {key: value for key, value in flags.items() if value not in (None, ())}


def _parse_count(ctx: Any, param: Any, text: str | None) -> int | None:
    from kdtune.units import parse_count

    try:
        return None if text is None else parse_count(text)
    except ValueError as error:
        raise click.BadParameter(f"'{text}' is not a number: {error}.", ctx, param) from None


def _load_plugin_files(ctx: Any, param: Any, files: tuple[str, ...]) -> None:
    if files:
        from kdtune.plugins import load_plugins

        load_plugins(files)


plugin = option(
    "--plugin",
    multiple=True,
    expose_value=False,
    callback=_load_plugin_files,
    help="Files with your own methods, models or data sets, which are run; repeatable.",
)

threads = option(
    "--threads",
    type=click.IntRange(min=1),
    help="CPU threads of torch; fewer leave cores to other programs.",
)

output_format = option(
    "--format", "output_format", type=Choice(["table", "csv", "json", "markdown"]), default="table"
)

dry_run = option("--dry-run", is_flag=True, help="Check everything, and train nothing.")

trust = option("--trust", is_flag=True, help="Open a .pt2 file, which can run any code.")


def make_say(output_mode: str) -> Callable[[str], None]:
    """Return a function that writes lines to stderr, unless the user wants warnings alone."""
    return (lambda line: None) if output_mode == "quiet" else say


def output_mode(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what a command shows while it runs."""
    quiet, verbose = "Print only warnings and errors.", "Show all output of Ray, no live display."
    for mode, text in (("verbose", verbose), ("quiet", quiet)):
        names = (f"--{mode}", "output_mode")
        add = option(*names, flag_value=mode, default="live", show_default=False, help=text)
        command = add(command)
    return command


def limits(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what the student to ship may cost."""
    command = option("--model", help="Ship this student.")(command)
    command = option(
        "--max-latency",
        "max_latency_ms",
        metavar="MS",
        type=click.FloatRange(min=0, min_open=True),
        help="Ship a student that takes at most MS milliseconds for an image, as measured.",
    )(command)
    text = "Ship a student with at most N parameters, e.g. 1.5M."
    return option("--max-parameters", metavar="N", callback=_parse_count, help=text)(command)
