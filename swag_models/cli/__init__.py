"""The `swag-models` command. Data goes to stdout, messages to stderr.

Each module contains the subcommands of one topic: a function for each of them, and functions that
declare their options.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from swag_models import __version__
from swag_models.cli import curate, models, predict, publish
from swag_models.cli.common import FAILED, INTERRUPTED, OK, USAGE, make_adder, print_message
from swag_models.errors import ConfigError, SwagModelsError, UnknownModelError

MODULES = (models, predict, publish, curate)  # in the order of the help


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        arguments: command line arguments; by default those of this process.

    Returns:
        The exit code: 0 for success, 1 for a failure, 2 for wrong usage, 130 if interrupted.
    """
    return run_command(make_parser().parse_args(arguments))


def run_command(options: argparse.Namespace) -> int:
    """Run a parsed subcommand; an error becomes a message and an exit code.

    Args:
        options: the parsed options, with the function of the subcommand as `run`.

    Returns:
        The exit code, as for `main`.
    """
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except (UnknownModelError, ConfigError) as error:
        return _fail(error, USAGE)
    except SwagModelsError as error:
        return _fail(error, FAILED)
    except BrokenPipeError:  # the program that reads stdout, for example `head`, has ended
        # Python flushes stdout at exit, which would raise again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)


def make_parser() -> argparse.ArgumentParser:
    """The parser with every subcommand."""
    parser = argparse.ArgumentParser(
        prog="swag-models", description="Vision backbones pre-trained on hashtags."
    )
    parser.add_argument("--version", action="version", version=f"swag-models {__version__}")
    add = make_adder(parser)
    for module in MODULES:
        module.add_commands(add)
    return parser


def _fail(error: object, code: int) -> int:
    print_message(f"error: {error}")
    return code
