"""The `swag-models` command. Data goes to stdout, everything else to stderr.

Each module beside this one holds some subcommands: one function each, and `add_commands`, which says what they take.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from swag_models import __version__
from swag_models.cli import app, curate, export, models, predict, publish
from swag_models.cli.common import FAILED, OK, USAGE, make_add, say
from swag_models.errors import ConfigError, SwagModelsError, UnknownModelError

MODULES = (models, predict, publish, export, app, curate)  # in the order of the help


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; the exit code is 0, 1 (something failed), 2 (wrong usage) or 130 (interrupted)."""
    return run_command(make_parser().parse_args(arguments))


def run_command(options: argparse.Namespace) -> int:
    """Run the function of a parsed subcommand, and turn what it raises into a message and an exit code."""
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except (UnknownModelError, ConfigError) as error:
        return _fail(error, USAGE)
    except SwagModelsError as error:
        return _fail(error, FAILED)
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def make_parser() -> argparse.ArgumentParser:
    """The parser with every subcommand."""
    parser = argparse.ArgumentParser(
        prog="swag-models", description="Vision backbones pre-trained on hashtags."
    )
    parser.add_argument("--version", action="version", version=f"swag-models {__version__}")
    add = make_add(parser)
    for module in MODULES:
        module.add_commands(add)
    return parser


def _fail(error: object, code: int) -> int:
    say(f"error: {error}")
    return code
