"""The flags of the command line, those that several commands share, and their types."""

from pathlib import Path
from typing import Any

import click

MODELS_HELP = "MultiBranchNet, ResNet18, ResNet50, torchvision:NAME or timm:NAME."
DATA_HELP = "An ImageFolder, or the name of a data set: digits, cifar10, ..."


class _KeyValueParam(click.ParamType):
    name = "KEY=VALUE"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, Any]:
        from kdtune.storage.files import parse_yaml_value

        key, separator, text = value.partition("=")
        if not separator:
            self.fail(f"'{value}' is not KEY=VALUE.", param, ctx)
        return key, parse_yaml_value(text)


def _load_plugin_files(ctx: click.Context, param: click.Parameter, files: tuple[str, ...]) -> None:
    if files:
        from kdtune.plugins import load_plugins

        load_plugins(files)


PLUGIN_HELP = "A file with methods, models or data sets of your own, which is run; repeatable."

plugin_option = click.option(
    "--plugin", multiple=True, expose_value=False, callback=_load_plugin_files, help=PLUGIN_HELP
)

setting_option = click.option(
    "--setting",
    "settings",
    type=_KeyValueParam(),
    multiple=True,
    help="Any other setting of a run.",
)


def cache_options(command: Any) -> Any:
    """The two flags of the cache, for one setting."""
    cache_size = click.option("--cache-gb", type=float, help="Size of the cache.  [default: 20]")
    no_cache = click.option(
        "--no-cache",
        "cache_gb",
        flag_value=0.0,
        type=float,
        help="Keep nothing; the teacher runs live.",
    )
    return cache_size(no_cache(command))


skip_bad_images_option = click.option(
    "--skip-bad-images",
    is_flag=True,
    default=None,
    help="Leave out images that cannot be read.  [default: stop there]",
)


data_root_option = click.option(
    "--data-root",
    metavar="DIR",
    help="Where named data sets are, or are downloaded to.  [default: in the cache's folder]",
)


def subset_options(command: Any) -> Any:
    """The flags that take a part of the images."""
    for split in ("test", "validation", "train"):
        option = click.option(
            f"--{split}-images",
            type=int,
            metavar="N",
            help=f"Use N of the {split} images, of each class its share.  [default: all]",
        )
        command = option(command)
    return command


def add_options(*groups: Any) -> Any:
    """The flags of several groups, for one command."""

    def decorate(command: Any) -> Any:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return decorate


LOCATION_OPTIONS = (
    click.option("--data", help=DATA_HELP),
    data_root_option,
    click.option("--teacher", help="The teacher's checkpoint."),
    click.option("--plugin", "plugins", multiple=True, help=PLUGIN_HELP),
)

SEARCH_OPTIONS = (
    click.option("--methods", help="Methods to compare.  [default: at,fitnets]"),
    click.option(
        "--models", help="Students, named as teachers.  [default: MultiBranchNet,ResNet18]"
    ),
    click.option(
        "--baselines/--no-baselines", default=None, help="Also kd and student.  [default: on]"
    ),
    click.option(
        "--space", "spaces", multiple=True, help="A search space of your own; repeatable."
    ),
    click.option(
        "--trials", type=int, help="Trials in each cell.  [default: 20, if no budget is given]"
    ),
    click.option("--total-epochs", type=int, help="Epochs of all trials together."),
    click.option(
        "--time-budget", metavar="TIME", help="As 2h or 90m; then trials under way end, too."
    ),
    click.option(
        "--sampler",
        help="auto (gp, then tpe), tpe, gp, cmaes, random, qmc, grid or module.Name."
        "  [default: auto]",
    ),
    click.option(
        "--confirm", is_flag=True, default=None, help="Then confirm it, see 'kdtune confirm'."
    ),
)

DISPLAY_OPTIONS = (
    click.option(
        "--quiet", "show", flag_value="quiet", default="live", help="Say only what goes wrong."
    ),
    click.option(
        "--verbose",
        "show",
        flag_value="verbose",
        default="live",
        help="Show Ray's own output, and no live display.",
    ),
)

CONFIRM_OPTIONS = (
    click.option("--top", type=int, help="Trials of each cell to confirm.  [default: 3]"),
    click.option(
        "--seeds", type=int, help="Fresh seeds of each of them, 3 or more.  [default: 5]"
    ),
    click.option(
        "--min-difference",
        type=float,
        help="Points of accuracy below which a difference does not matter.  [default: 0.5]",
    ),
)

RESOURCE_OPTIONS = (
    click.option(
        "--address",
        metavar="HOST:PORT",
        help="Join a Ray cluster; auto is the one of this machine.  [default: RAY_ADDRESS]",
    ),
    click.option(
        "--storage",
        metavar="URI",
        help="Keep checkpoints and a copy of the sweep there: a folder, s3://, gs://, ...",
    ),
    cache_options,
    click.option(
        "--cpus-per-trial", metavar="N", help="A number, or MODEL=N,...  [default: an equal share]"
    ),
    click.option(
        "--gpus-per-trial",
        metavar="N",
        help="A number, a part of one, MODEL=N,..., or auto.  [default: 1 if there are GPUs]",
    ),
    click.option("--max-concurrent", type=int, help="Trials at once, at most."),
    click.option(
        "--max-restarts",
        type=int,
        help="Times that a trial whose process died is begun again.  [default: 3]",
    ),
    click.option(
        "--stall-timeout",
        metavar="TIME",
        help="Without progress until a trial is begun again, once.  [default: 1h]",
    ),
    click.option(
        "--shutdown-grace",
        metavar="TIME",
        help="What a SIGTERM leaves to the epochs under way.  [default: 20s]",
    ),
    click.option(
        "--tracker",
        "trackers",
        type=click.Choice(["mlflow", "wandb", "none"]),
        multiple=True,
        help="What else gets the figures of trials; repeatable; none is no more.",
    ),
)


format_option = click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "csv", "json", "markdown"]),
    default="table",
    show_default=True,
)


SWEEP_OPTIONS = (
    click.argument("file", required=False, type=click.Path(path_type=Path)),
    click.option("--name", help="The sweep's folder under results/."),
    *LOCATION_OPTIONS,
    subset_options,
    *SEARCH_OPTIONS,
    *RESOURCE_OPTIONS,
    click.option(
        "--balance-by",
        type=click.Choice(["trials", "epochs", "seconds"]),
        help="Of what every cell gets the same.  [default: trials]",
    ),
    click.option("--epochs", type=int, help="Epochs of a full trial.  [default: 50]"),
    click.option(
        "--allow-duplicates/--no-allow-duplicates",
        default=None,
        help="Train again what was trained before, if it is proposed.  [default: off]",
    ),
    click.option(
        "--warm-start", multiple=True, metavar="FOLDER", help="An earlier sweep; repeatable."
    ),
    click.option(
        "--scheduler",
        type=click.Choice(["asha", "hyperband", "median", "none"]),
        help="Who stops trials early.  [default: asha]",
    ),
    click.option("--grace-period", type=int, help="Epochs before a stop.  [default: half]"),
    click.option("--reduction-factor", type=int, help="One in so many goes on.  [default: 2]"),
    click.option("--image-size", type=int, help="Pixels.  [default: as the teacher]"),
    click.option("--seed", type=int, help="Fixes the whole sweep.  [default: 0]"),
    skip_bad_images_option,
    setting_option,
)


class IntListParam(click.ParamType):
    """Whole numbers with commas between them."""

    name = "N,N,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        """Read them; click passes a default as it is."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(word) for word in value.split(","))
        except ValueError:
            self.fail(f"'{value}' is no list of numbers.", param, ctx)


trust_option = click.option("--trust", is_flag=True, help="Open a .pt2, which can run any code.")
