"""Options of the command line; those of settings are made from the fields of the settings."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial, wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import click
from click import Choice, option

from kdtune.errors import UserError
from kdtune.runtime.console import say, waiting

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

FLAG_NAMES = {
    "data_dir": "data", "max_latency_ms": "max-latency", "plugins": "plugin",
    "settings": "setting", "spaces": "space", "trackers": "tracker",
}  # fmt: skip
"""Flags of settings that have another name."""

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


class SettingsCommand(click.Command):
    """A command whose options for settings are made on first use, since pydantic loads slowly.

    Args:
        make_options: returns these options.
        kwargs: those of `click.Command`.
    """

    def __init__(self, *, make_options: Callable[[], Iterable[click.Option]], **kwargs: Any):
        super().__init__(**kwargs)
        self._setting_options = cache(lambda: [*make_options()])

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return all parameters, those for settings first."""
        return [*self._setting_options(), *super().get_params(ctx)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse arguments; the unknown flag of a setting is answered with what to do instead."""
        words = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if advice := self.advise(error.option_name, words, ctx):
                raise click.UsageError(advice, ctx) from None
            raise

    def advise(self, flag: str, words: list[str], ctx: click.Context) -> str | None:
        """Return what to do instead of giving a flag; None if it is the flag of no setting.

        Args:
            flag: unknown, with its hyphens.
            words: all words of the command.
            ctx: of the command.
        """
        has_settings = any(param.name == "settings" for param in self.get_params(ctx))
        return _setting_advice(flag, words) if has_settings else None


class ResumeCommand(SettingsCommand):
    """A command that changes some settings of a sweep."""

    def advise(self, flag: str, words: list[str], ctx: click.Context) -> str | None:
        """Return what to do instead of changing a setting."""
        from kdtune.config.sweep import RESUME_FIELDS, SweepConfig

        if (key := _setting_name(flag)) not in SweepConfig.model_fields:
            return None
        if key in RESUME_FIELDS:
            return f"No such option '{flag}': give it to 'kdtune resume'."
        return (
            f"No such option '{flag}': it stays as it was when the sweep started; a new sweep can "
            "learn from this one with --warm-start."
        )


def _setting_name(flag: str) -> str:
    from kdtune.config.base import ALIASES

    name = flag.lstrip("-")
    key = {name: key for key, name in FLAG_NAMES.items()}.get(name, name.replace("-", "_"))
    return ALIASES.get(key, key)


def _setting_advice(flag: str, words: list[str]) -> str | None:
    """Return how to give a setting that was given as a flag; None for other flags."""
    from kdtune.config.train import METHOD_DEFAULTS, check_searchable

    key = _setting_name(flag)
    try:
        check_searchable([key], METHOD_DEFAULTS)
    except UserError:
        return None
    index = next(i for i, word in enumerate(words) if word.partition("=")[0] == flag)
    value = words[index].partition("=")[2] or next(iter(words[index + 1 : index + 2]), "VALUE")
    return f"No such option '{flag}'; did you mean '--setting {key}={value}'?"


def provided_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags that the user gave."""
    return {key: value for key, value in flags.items() if value not in (None, ())}


def sweep_options() -> Iterator[click.Option]:
    """Return an option for every setting of a sweep."""
    from kdtune.config.sweep import SweepConfig

    return _make_options(SweepConfig, dict.fromkeys(("name", "data", *SweepConfig.model_fields)))


def resume_options(confirm: bool = False) -> Iterator[click.Option]:
    """Return options for the settings that may change when a sweep is resumed or confirmed."""
    from kdtune.config.sweep import CONFIRM_FIELDS, RESUME_FIELDS, SweepConfig

    fields = CONFIRM_FIELDS if confirm else RESUME_FIELDS
    names = [name for name in SweepConfig.model_fields if name in fields]
    return _make_options(SweepConfig, names, show_defaults=False)


def train_options(*names: str) -> Iterator[click.Option]:
    """Return options for settings of a run: its images, and those that are named."""
    from kdtune.config.data import DataConfig
    from kdtune.config.train import TrainConfig

    return _make_options(TrainConfig, ("data_dir", *DataConfig.model_fields, *names))


def data_options() -> Iterator[click.Option]:
    """Return options for the settings that say which images there are, and how they look."""
    from kdtune.config.data import DataSource
    from kdtune.config.train import TrainConfig

    return _make_options(TrainConfig, DataSource._fields[1:])


teacher_options = partial(
    train_options, "recipe", "weights", "image_size", "seed", "metric", "patience"
)


def _make_options(
    config: "type[BaseModel]", names: Iterable[str], show_defaults: bool = True
) -> Iterator[click.Option]:
    for name in names:
        yield _make_option(name, config.model_fields[name], show_defaults)
        if name == "cache_gb":
            text = "Disable the cache; run the teacher in every step."
            yield click.Option(["--no-cache", name], flag_value=0.0, type=float, help=text)


def _make_option(name: str, field: "FieldInfo", show_default: bool) -> click.Option:
    from kdtune.config.field_types import COUNT, DURATION

    flag = FLAG_NAMES.get(name, name).replace("_", "-")
    is_flag, is_text = field.annotation is bool, False
    metavar = {"settings": "KEY=VALUE", "max_latency_ms": "MS"}.get(name)
    for marker, marker_metavar in ((DURATION, "TIME"), (COUNT, "N")):
        if marker in field.metadata:
            is_text, metavar = True, marker_metavar
    value_type, is_list = _click_type(field.annotation)
    text = f"{field.description}{'; repeatable' * is_list}."
    is_required = name == "data_dir"
    has_default = not (is_required or field.is_required() or field.default_factory)
    if show_default and has_default and field.default not in (None, (), {}):
        default = ("off", "on")[field.default] if is_flag else field.default
        text += f"  [default: {','.join(default) if isinstance(default, tuple) else default}]"
    return click.Option(
        [f"--{flag}/--no-{flag}" if is_flag else f"--{flag}", name],
        type=str if is_text else value_type,
        metavar=metavar,
        multiple=is_list,
        default=None,
        callback=_parse_settings if name == "settings" else None,
        required=is_required,
        help=text[0].upper() + text[1:],
    )


def _click_type(annotation: Any) -> tuple[Any, bool]:
    """Return the type of an option's values, and True if the option can be repeated."""
    is_union = get_origin(annotation) in (Union, UnionType)
    kinds = [k for k in get_args(annotation) if k is not NoneType] if is_union else [annotation]
    origin, inner = get_origin(kinds[0]), get_args(kinds[0])
    if len(kinds) > 1:  # such as a number, or a number for each model
        return str, False
    if origin is tuple and get_origin(inner[0]) is Literal:
        return Choice([*get_args(inner[0]), "none"]), True
    if origin in (tuple, dict):
        return str, True
    return Choice(inner) if origin is Literal else kinds[0], False


def _parse_settings(ctx: Any, param: Any, texts: tuple[str, ...]) -> dict[str, Any] | None:
    """Return the settings of KEY=VALUE, with values as in YAML; None if there are none."""
    from kdtune.storage.files import parse_yaml_value

    settings = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator:
            raise click.BadParameter(f"'{text}' is not KEY=VALUE.", ctx, param)
        settings[key] = parse_yaml_value(value)
    return settings or None


def _parse_counts(ctx: Any, param: Any, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise click.BadParameter(f"'{text}' is not a list of numbers.", ctx, param) from None


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

setting = option(
    "--setting",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    callback=_parse_settings,
    help="Other settings of the run; repeatable.",
)

threads = option(
    "--threads",
    type=click.IntRange(min=1),
    help="CPU threads of torch; fewer leave cores to other programs.",
)

slots = option(
    "--slots",
    "slot_counts",
    metavar="N,N,...",
    callback=_parse_counts,
    default="1,8,64,1000",
    help="Numbers of trials at once to plan for, besides this machine's.",
)

output_format = option(
    "--format", "output_format", type=Choice(["table", "csv", "json", "markdown"]), default="table"
)

dry_run = option("--dry-run", is_flag=True, help="Check everything, and train nothing.")

trust = option("--trust", is_flag=True, help="Open a .pt2 file, which can run any code.")


def say_if_slow(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let a command say what it does if that takes long.

    Args:
        what: it does, such as "reading the logs".
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def run(**arguments: Any) -> None:
            with waiting(what):
                command(**arguments)

        return run

    return decorate


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
    latency = click.FloatRange(min=0, min_open=True)
    text = "Ship a student with at most N parameters, e.g. 1.5M."
    add_options = (
        option("--max-parameters", metavar="N", callback=_parse_count, help=text),
        option(
            "--max-latency",
            "max_latency_ms",
            metavar="MS",
            type=latency,
            help="Ship a student that takes at most MS milliseconds for an image, as measured.",
        ),
        option("--model", help="Ship this student."),
    )
    for add in reversed(add_options):
        command = add(command)
    return command
