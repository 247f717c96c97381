"""Registers the commands, and turns errors into one line and an exit code."""

from __future__ import annotations

import os
import re
import sys
import traceback
import warnings
from typing import Annotated, Any

import typer
from typer.exceptions import Abort, TyperException

from hlnet.cli import tree
from hlnet.cli.app import app as page
from hlnet.cli.attend import attend
from hlnet.cli.build_tree import build_tree
from hlnet.cli.calibrate import calibrate
from hlnet.cli.demo import demo
from hlnet.cli.eval import evaluate
from hlnet.cli.export import export
from hlnet.cli.graft import graft
from hlnet.cli.make_expert import make_expert
from hlnet.cli.merge import merge
from hlnet.cli.predict import predict
from hlnet.cli.profile import profile
from hlnet.cli.show import show
from hlnet.cli.train import TrainCommand, train
from hlnet.errors import HlnetError, did_you_mean
from hlnet.version import __version__

app = typer.Typer(
    name="hlnet",
    help="Train one image classifier for all your classes; cut out smaller, faster ones for some of them.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo)
app.command("build-tree")(build_tree)
app.add_typer(tree.app, name="tree")
app.command("train", cls=TrainCommand)(train)
app.command("calibrate")(calibrate)
app.command("eval")(evaluate)
app.command("attend")(attend)
app.command("predict")(predict)
app.command("show")(show)
app.command("app")(page)
app.command("make-expert")(make_expert)
app.command("merge")(merge)
app.command("graft")(graft)
app.command("export")(export)
app.command("profile")(profile)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hlnet {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
) -> None:
    """Train one image classifier for all your classes; cut out smaller, faster ones for some of them."""
    from hlnet.cli.shared import output

    output.show_log()


def main() -> None:
    """Run the command line; ``--debug`` may stand anywhere."""
    # Waiting threads sleep instead of spinning: on a machine that others use too, spinning costs a factor of ten. And
    # libraries' notes to their developers are not for our users. Both before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    if "" in arguments:  # as a path it would mean the current folder
        fail("an argument is empty (''); give it a value or leave it out", 2, debug)
    try:
        given = [argument for argument in arguments if argument != "--debug"]
        sys.exit(app(given, prog_name="hlnet", standalone_mode=False))  # so that Typer's errors come here, too
    except HlnetError as error:
        fail(str(error), error.exit_code, debug)
    except TyperException as error:
        if told := usage_error(error):
            fail(told, error.exit_code, debug)
        sys.exit(error.exit_code)  # of a command without anything, its help was shown
    except Abort:  # Ctrl-C at a prompt, or Ctrl-D
        sys.exit(130)
    except Exception as error:  # whatever we did not foresee is still one line
        reason = " ".join(str(error).split())[:300]
        fail(f"{type(error).__name__}: {reason} (run again with --debug for the traceback)", 1, debug)


def usage_error(error: TyperException) -> str:
    """Typer's error on one line; for a wrong value, the value and what is expected.

    >>> usage_error(TyperException("No such command 'evl'."))
    "No such command 'evl'"
    """
    message = error.format_message().rstrip(".")
    wrong: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()  # pydantic's, of the value
    if wrong:
        option, _, _ = message.removeprefix("Invalid value for ").partition(": ")
        expected, _, _ = wrong[0]["msg"].removeprefix("Value error, ").partition(", unable to parse")
        _, _, choices = expected.partition(" is not one of ")
        near = did_you_mean(str(wrong[0]["input"]), re.findall("'([^']+)'", choices))
        expected = f"one of {choices.rstrip('.')}" if choices else expected.removeprefix("Input should be ")
        expected = f"a number {expected}" if expected.startswith(("greater", "less")) else expected
        message = f"{option.strip(chr(39))} '{wrong[0]['input']}': expected {expected}{near and f'.{near}'}"
    path = getattr(getattr(error, "ctx", None), "command_path", "")
    return f"{message}{' See' if message.endswith('?') else '; see'} {path} --help" if message and path else message


def fail(message: str, exit_code: int, debug: bool) -> None:
    """Print the error to stderr, the traceback too if asked for, and exit."""
    if debug:
        traceback.print_exc()
    print(f"hlnet: {message}", file=sys.stderr)
    sys.exit(exit_code)
