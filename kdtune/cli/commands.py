"""The group of all commands, and `main`; each command imports what it needs when it runs."""

import sys
from contextlib import suppress

import click

from kdtune.cli import results, runs, sweeps
from kdtune.errors import RunError, UserError
from kdtune.runtime.console import say
from kdtune.runtime.signals import EXIT_TERMINATED, Terminated


@click.group(context_settings={"max_content_width": 100, "show_default": True})
@click.version_option(package_name="kdtune")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Find out which distillation method, with which settings, makes your student best."""
    if debug:
        ctx.ensure_object(dict)["debug"] = True


for command in (
    *(runs.teacher, runs.data),
    *(sweeps.sweep, sweeps.plan, sweeps.resume, sweeps.confirm),
    *(results.list_sweeps, results.status, results.leaderboard, results.table, results.report),
    *(results.dashboard, results.rm),
    *(runs.train, results.export, runs.evaluate, runs.predict, runs.cache),
    *(sweeps.spaces, sweeps.demo),
):
    cli.add_command(command)


def main() -> None:
    """Run the command line; report a user's mistake in one sentence, with exit code 2."""
    with suppress(AttributeError, OSError, ValueError):  # stdout may be closed, or not a file
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
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
        sys.exit(EXIT_TERMINATED if isinstance(error.__cause__, Terminated) else 130)
    except (UserError, RunError, OSError) as error:
        if global_options.get("debug"):
            raise
        for file, reason in getattr(error, "failures", ()):
            say(f"{file}: {reason}")
        say(f"kdtune: {error}")
        sys.exit(2 if isinstance(error, UserError) else 1)
