"""Options of the command line that are made from the fields of settings."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import click
from click import Choice

from kdtune.errors import UserError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

FLAG_NAMES = {
    "data_dir": "data", "max_latency_ms": "max-latency", "plugins": "plugin",
    "settings": "setting", "spaces": "space", "trackers": "tracker",
}  # fmt: skip
"""Flags of settings that have another name."""


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
            if advice := self._advise(error.option_name, words, ctx):
                raise click.UsageError(advice, ctx) from None
            raise

    def _advise(self, flag: str, words: list[str], ctx: click.Context) -> str | None:
        """Return what to do instead of giving a flag; None if it is the flag of no setting."""
        from kdtune.config.train import METHOD_DEFAULTS, check_searchable

        key = _setting_name(flag)
        try:
            check_searchable([key], METHOD_DEFAULTS)
        except UserError:
            return None
        if "settings" not in self._option_names(ctx):
            return None
        index = next(i for i, word in enumerate(words) if word.partition("=")[0] == flag)
        value = words[index].partition("=")[2] or next(iter(words[index + 1 : index + 2]), "VALUE")
        return f"No such option '{flag}'; did you mean '--setting {key}={value}'?"

    def _option_names(self, ctx: click.Context) -> set[str | None]:
        return {param.name for param in self.get_params(ctx)}


class ResumeCommand(SettingsCommand):
    """A command that changes some settings of a sweep."""

    def _advise(self, flag: str, words: list[str], ctx: click.Context) -> str | None:
        from kdtune.config.sweep import RESUME_FIELDS, SweepConfig

        key = _setting_name(flag)
        if key not in SweepConfig.model_fields.keys() - self._option_names(ctx):
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


confirm_options = partial(resume_options, confirm=True)


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
        callback=parse_settings if name == "settings" else None,
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


def parse_settings(ctx: Any, param: Any, texts: tuple[str, ...]) -> dict[str, Any] | None:
    """Return settings with values as in YAML; None if there are none.

    Args:
        ctx: of the command.
        param: the option.
        texts: settings as KEY=VALUE.
    """
    from kdtune.storage.files import parse_yaml_value

    settings = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator:
            raise click.BadParameter(f"'{text}' is not KEY=VALUE.", ctx, param)
        settings[key] = parse_yaml_value(value)
    return settings or None
