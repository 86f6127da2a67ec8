"""docml: the command line over the same definitions that the Dagster UI shows.

A sub-command is a click command of its name in the module that COMMANDS names. Modules are imported when their command is called, so
that `docml --help` and `docml validate` do not pay for Dagster.

Exit codes: 0 done; 1 the work failed or the input is wrong (one message, no traceback); 2 usage; 130 interrupted.
"""

import atexit
import gc
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple, NoReturn

import click

from docml_assets.terminal import guarded_streams, say


class CommandEntry(NamedTuple):
    """Where a command is found, and the sentence that the overview shows."""

    module: str
    help: str


COMMANDS = {
    "new": CommandEntry("experiment", "Scaffold an experiment folder that validates and runs as it is."),
    "validate": CommandEntry(
        "experiment", "Find every mistake of an experiment that can be known before a job starts."
    ),
    "run": CommandEntry("run", "Claim a run of an experiment and execute its steps in this process."),
    "runs": CommandEntry("runs", "Show runs: status by step, scores, age, duration, jobs."),
    "report": CommandEntry("report", "Show the summary of a run's inference report and where its page lies."),
    "compare": CommandEntry("report", "Compare two runs on the test documents that they share."),
    "labels": CommandEntry("labels", "Show labels that look wrong, or what to label next."),
    "predict": CommandEntry("predict", "Classify documents without labels with a model of a finished run."),
    "serve": CommandEntry("predict", "Answer over HTTP with a model of a finished run."),
    "deploy": CommandEntry("endpoints", "Let an endpoint answer with a model of a finished run."),
    "endpoints": CommandEntry("endpoints", "Show what is up, since when, and what it costs."),
    "undeploy": CommandEntry("endpoints", "Take an endpoint down."),
    "promote": CommandEntry(
        "champion", "Make a model the champion of its experiment, unless it is worse than the present one."
    ),
    "rollback": CommandEntry("champion", "Go back to the champion before."),
    "champion": CommandEntry("champion", "Show which model is used by default, and how that came about."),
    "image": CommandEntry("image", "Build or push an experiment's image."),
    "gc": CommandEntry("runs", "Remove data versions and checkpoints that nothing needs any more."),
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and help without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order of the overview."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command; None if there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(f"docml_assets.cli.{COMMANDS[cmd_name].module}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is asked for; of one that there is not, the nearest is named."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from docml_assets.errors import nearest

            guess = nearest(args[0], list(COMMANDS))
            raise click.UsageError(f"{error.message}{f' Did you mean {guess}?' if guess else ''}", ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The overview, from what COMMANDS says of each."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="docml")
def cli() -> None:
    """Turn labelled documents into a document classifier.

    An experiment is a folder below experiments/ (DOCML_EXPERIMENTS) with settings.ini and user_defined_funcs.py. Its runs, data
    and models lie in ./storage (DOCML_STORE), its history in ./.dagster_home (DAGSTER_HOME).
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    # A command makes many objects and no garbage to speak of: at Python's pace the collector takes an eighth of its time. And at its end,
    # to unload Dagster object by object takes half a second.
    gc.set_threshold(50_000, 20, 20)
    atexit.register(gc.freeze)
    with guarded_streams():
        code = _run(arguments)
    sys.exit(code)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        code = cli.main(args=arguments, prog_name="docml", standalone_mode=False)
    except (KeyboardInterrupt, click.Abort):
        say("Interrupted.", err=True)
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Exception as error:
        from docml_assets.errors import EXPLAINED_ERRORS  # here, so that `docml --help` does not pay for pydantic

        if not isinstance(error, EXPLAINED_ERRORS):
            raise
        say(f"docml: {error}", fg="red", err=True)
        return 1
    return code if isinstance(code, int) else 0
