"""Options of the command line; those of settings are made from the fields of the settings."""

from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import click

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

FLAG_NAMES = {
    "data_dir": "data", "plugins": "plugin", "settings": "setting", "spaces": "space",
    "trackers": "tracker",
}  # fmt: skip
"""Names of flags that are not those of their settings."""

IMAGE_FIELDS = (
    "data_dir", "data_root", "train_images", "validation_images", "test_images", "cache_gb",
    "skip_bad_images",
)  # fmt: skip

EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
EXISTING_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


def parse_settings(
    ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]
) -> dict[str, Any] | None:
    """Return the settings that are given as KEY=VALUE, with values as in YAML; None without any."""
    from kdtune.storage.files import parse_yaml_value

    settings = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator:
            raise click.BadParameter(f"'{text}' is not KEY=VALUE.", ctx, param)
        settings[key] = parse_yaml_value(value)
    return settings or None


def parse_counts(ctx: click.Context, param: click.Parameter, text: str) -> tuple[int, ...]:
    """Return whole numbers that commas separate."""
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise click.BadParameter(f"'{text}' is no list of numbers.", ctx, param) from None


class SettingsCommand(click.Command):
    """A command whose options for settings are made when it is used, as pydantic loads slowly.

    Args:
        make_options: returns these options.
        kwargs: those of `click.Command`.
    """

    def __init__(self, *, make_options: Callable[[], list[click.Option]], **kwargs: Any):
        super().__init__(**kwargs)
        self._make_options = make_options

    @cached_property
    def setting_options(self) -> list[click.Option]:
        """The options for settings."""
        return self._make_options()

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return all parameters, those for settings first."""
        return [*self.setting_options, *super().get_params(ctx)]


def _make_options(
    config: "type[BaseModel]", names: Collection[str], show_defaults: bool = True, **defaults: Any
) -> list[click.Option]:
    """Make the options for some fields; `defaults` are those that differ from the fields'."""
    options = []
    for name in names:
        options.append(_make_option(name, config.model_fields[name], show_defaults, defaults))
        if name == "cache_gb":
            text = "Disable the cache; run the teacher in every step."
            options.append(
                click.Option(["--no-cache", name], flag_value=0.0, type=float, help=text)
            )
    return options


def _make_option(
    name: str, field: "FieldInfo", show_default: bool, defaults: dict[str, Any]
) -> click.Option:
    from kdtune.config.sweep import DURATION

    flag = FLAG_NAMES.get(name, name).replace("_", "-")
    is_bool, is_settings = field.annotation is bool, name == "settings"
    value_type, is_list = _click_type(field.annotation)
    is_required = name == "data_dir"
    help_text = f"{field.description}{'; repeatable' * is_list}."
    default = defaults.get(name, None if field.default_factory else field.default)
    if show_default and default not in (None, (), {}) and not field.is_required() | is_required:
        text = ("off", "on")[default] if is_bool else default
        help_text += f"  [default: {','.join(text) if isinstance(text, tuple) else text}]"
    metavar = "TIME" if DURATION in field.metadata else "KEY=VALUE" if is_settings else None
    return click.Option(
        [f"--{flag}/--no-{flag}" if is_bool else f"--{flag}", name],
        type=str if DURATION in field.metadata else value_type,
        metavar=metavar,
        multiple=is_list,
        callback=parse_settings if is_settings else None,
        default=defaults.get(name),
        required=is_required,
        help=help_text[0].upper() + help_text[1:],
    )


def _click_type(annotation: Any) -> tuple[Any, bool]:
    """Return the type of an option's values, and True if the option can be repeated."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else [annotation]
    kinds = [kind for kind in kinds if kind is not type(None)]
    origin, inner = get_origin(kinds[0]), get_args(kinds[0])
    if len(kinds) > 1:  # such as a number, or a number for each model
        return str, False
    if origin is tuple and get_origin(inner[0]) is Literal:
        return click.Choice([*get_args(inner[0]), "none"]), True
    if origin in (tuple, dict):
        return str, True
    return click.Choice(inner) if origin is Literal else kinds[0], False


def sweep_options() -> list[click.Option]:
    """Return an option for every setting of a sweep."""
    from kdtune.config.sweep import SweepConfig

    return _make_options(SweepConfig, dict.fromkeys(("name", "data", *SweepConfig.model_fields)))


def resume_options(confirm: bool = False) -> list[click.Option]:
    """Return options for the settings that may change when a sweep is resumed or confirmed."""
    from kdtune.config.sweep import CONFIRM_FIELDS, RESUME_FIELDS, SweepConfig

    fields = CONFIRM_FIELDS if confirm else RESUME_FIELDS
    names = [name for name in SweepConfig.model_fields if name in fields]
    return _make_options(SweepConfig, names, show_defaults=False)


def teacher_options() -> list[click.Option]:
    """Return options for the settings of a teacher's training."""
    from kdtune.config.train import TrainConfig

    names = ("model", "weights", "epochs", "image_size", "seed", *IMAGE_FIELDS)
    return _make_options(TrainConfig, names, model="ResNet50", epochs=30)


def evaluate_options() -> list[click.Option]:
    """Return options for the images on which a network is evaluated."""
    from kdtune.config.train import TrainConfig

    return _make_options(TrainConfig, IMAGE_FIELDS)


def _load_plugin_files(ctx: click.Context, param: click.Parameter, files: tuple[str, ...]) -> None:
    if files:
        from kdtune.plugins import load_plugins

        load_plugins(files)


plugin_option = click.option(
    "--plugin",
    multiple=True,
    expose_value=False,
    callback=_load_plugin_files,
    help="Files with your own methods, models or data sets, which are run; repeatable.",
)

setting_option = click.option(
    "--setting",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    callback=parse_settings,
    help="Other settings of the run; repeatable.",
)

quiet_option = click.option(
    "--quiet", "show", flag_value="quiet", default="live", help="Print only warnings and errors."
)


def show_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what a command shows while it runs."""
    verbose_option = click.option(
        "--verbose",
        "show",
        flag_value="verbose",
        default="live",
        help="Show Ray's own output instead of the live display.",
    )
    return quiet_option(verbose_option(command))


format_option = click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "csv", "json", "markdown"]),
    default="table",
    show_default=True,
)

trust_option = click.option(
    "--trust", is_flag=True, help="Open a .pt2 file that others wrote, which can run any code."
)
