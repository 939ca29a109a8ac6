"""Commands that search: sweeps, their plans and confirmations, and search spaces."""

from pathlib import Path
from typing import Any

import click
from click import argument, option

from kdtune.cli import options, setting_options
from kdtune.cli.options import EXISTING_FOLDER, NEW_PATH, SWEEP_FILE
from kdtune.cli.setting_options import ResumeCommand, SettingsCommand
from kdtune.errors import UserError
from kdtune.runtime.console import waiting

_LOADING = "loading PyTorch and Ray"


def _sweep_settings(file: Path | None, flags: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """Return the settings of a sweep's file and flags; check what needs neither torch nor Ray."""
    from kdtune.config.ranges import is_range
    from kdtune.config.sweep import SweepConfig
    from kdtune.plugins import load_plugins
    from kdtune.storage.files import read_yaml

    from_file = read_yaml(file) if file else {}
    run_settings = from_file.get("settings") or {}
    if isinstance(run_settings, dict):  # else `SweepConfig` refuses it
        run_settings = {**run_settings, **(flags["settings"] or {})}
    settings = {**defaults, **from_file, **options.provided_flags(flags), "settings": run_settings}
    requested = SweepConfig.parse(settings)
    load_plugins(requested.plugins)
    requested.check_names_and_files()
    for space_file in requested.spaces:
        if not is_range(space_file) and not Path(space_file).is_file():
            raise UserError(f"There is no search space {space_file}.")
    return settings


@click.command(cls=SettingsCommand, make_options=setting_options.sweep_options)
@argument("file", required=False, type=SWEEP_FILE)
@options.output_mode
@option("--plan", is_flag=True, help="Plan the sweep first; the report compares it with the plan.")
@options.dry_run
def sweep(file: Path | None, output_mode: str, plan: bool, dry_run: bool, **flags: Any) -> None:
    """Search every method on every model, and show the leaderboard.

    FILE is a YAML file with the settings as keys; flags override it.
    """
    settings = _sweep_settings(file, flags)

    from kdtune.log.folder import RESULTS_FOLDER, SweepFolder

    SweepFolder(RESULTS_FOLDER / settings["name"]).raise_if_exists()

    with waiting(_LOADING, options.make_say(output_mode)):
        from kdtune.tuning.sweep import check_sweep, run_sweep

    if dry_run:
        check_sweep(settings, output_mode)
        print(options.DRY_RUN_PASSED)
        return
    _print_results(run_sweep(settings, output_mode, plan).path)


def _parse_counts(ctx: Any, param: Any, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise click.BadParameter(f"'{text}' is not a list of numbers.", ctx, param) from None


@click.command(cls=SettingsCommand, make_options=setting_options.sweep_options)
@argument("file", required=False, type=SWEEP_FILE)
@options.output_mode
@option(
    "--slots",
    "slot_counts",
    metavar="N,N,...",
    callback=_parse_counts,
    default="1,8,64,1000",
    help="Numbers of trials at once to plan for, besides this machine's.",
)
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
    output_mode: str,
    **flags: Any,
) -> None:
    """Estimate the time, device hours, disk and memory of a sweep.

    The sweep is checked as by 'kdtune sweep', measured on this machine for about a minute, and
    simulated for any number of slots.
    """
    settings = _sweep_settings(file, flags, name="plan")

    with waiting(_LOADING, options.make_say(output_mode)):
        from kdtune.reports.text.plan import plan_text
        from kdtune.tuning.planning.plan import plan_sweep

    with waiting("planning", options.make_say(output_mode)):
        sweep_plan = plan_sweep(settings, slot_counts, curves, output_mode)
    print(plan_text(sweep_plan, output_format), end="")


def _check_sweep_folder(folder: Path, flags: dict[str, Any]) -> None:
    if flags["storage"] is None:  # a storage may have the sweep of a missing folder
        from kdtune.log.folder import SweepFolder

        SweepFolder(folder).require_log()


@click.command(cls=ResumeCommand, make_options=setting_options.resume_options)
@argument("folder", type=NEW_PATH)
@options.output_mode
def resume(folder: Path, output_mode: str, **flags: Any) -> None:
    """Resume a sweep that was interrupted, or that gets more trials, cells or resources.

    Flags change its settings from now on; methods and models can only be added.
    """
    _check_sweep_folder(folder, flags)

    with waiting(_LOADING, options.make_say(output_mode)):
        from kdtune.tuning.sweep import resume_sweep

    _print_results(resume_sweep(folder, options.provided_flags(flags), output_mode).path)


@click.command(cls=ResumeCommand, make_options=setting_options.confirm_options)
@argument("folder", type=NEW_PATH)
@options.output_mode
def confirm(folder: Path, output_mode: str, **flags: Any) -> None:
    """Train the best trials of every cell again with fresh seeds, test once, and give the verdict.

    An interrupted confirmation resumes; further seeds and new cells add the missing runs.
    """
    _check_sweep_folder(folder, flags)

    with waiting(_LOADING, options.make_say(output_mode)):
        from kdtune.tuning.confirm import confirm_sweep

    _print_results(confirm_sweep(folder, options.provided_flags(flags), output_mode).path)


def _print_results(folder: Path) -> None:
    from kdtune.reports.text.leaderboard import leaderboard_text

    print(leaderboard_text([folder], "table"))
    print(f"Log, tables and the best configurations and networks: {folder}")


@click.command()
@argument("folder", required=False, type=EXISTING_FOLDER)
@option("--space", "files", multiple=True, help="Files with your own search spaces; repeatable.")
@options.plugin
@waiting(_LOADING)
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


@click.command()
@option("--name", default="demo", help="The sweep's folder.")
@options.output_mode
@click.pass_context
def demo(ctx: click.Context, name: str, output_mode: str) -> None:
    """Compare four methods on real images that kdtune contains, in minutes on two cores.

    Runs `kdtune teacher`, then `kdtune sweep --confirm`, and prints both commands.
    """
    from kdtune.log.folder import RESULTS_FOLDER, SweepFolder

    SweepFolder(RESULTS_FOLDER / name).raise_if_exists()
    teacher_file = RESULTS_FOLDER / f"{name}-teacher.pth"
    mode = "" if output_mode == "live" else f" --{output_mode}"
    commands = [
        f"teacher --data digits --image-size 8 --model ResNet18 --epochs 5 --out {teacher_file}"
        f"{' --quiet' if output_mode == 'quiet' else ''}",
        f"sweep --data digits --train-images 200 --teacher {teacher_file} --methods at,fitnets"
        f" --models MultiBranchNet --trials 16 --epochs 6 --setting batch_size=32"
        f" --confirm --top 1 --seeds 5 --name {name}{mode}",
    ]
    tell = options.make_say(output_mode)
    if teacher_file.exists():
        tell(f"using {teacher_file} of an earlier demo")
        del commands[0]
    for command in commands:
        tell(f"$ kdtune {command}")
        ctx.find_root().command.main(command.split(), standalone_mode=False, parent=ctx)
