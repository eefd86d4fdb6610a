"""Shared by all subcommands: exit codes, common options, model names."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, get_args

from swag_models.api import SPECS, get_spec, list_models
from swag_models.cli.output import print_data
from swag_models.errors import MAX_MESSAGE, UnknownModelError
from swag_models.formatting import escape_unprintable
from swag_models.runtime import read_environment
from swag_models.spec import Backend, ModelSpec

RunCommand = Callable[[argparse.Namespace], int]  # options -> exit code
AddCommand = Callable[[str, RunCommand | str, str], argparse.ArgumentParser]  # see `make_adder`
OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130  # exit codes; 130 as a shell reports SIGINT


class Parser(argparse.ArgumentParser):
    """A parser whose errors quote arguments as printable text."""

    def error(self, message: str) -> NoReturn:
        super().error(escape_unprintable(message, MAX_MESSAGE - len(f"{self.prog}: error: ")))

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse ignores that the help cannot be written.
        if file is sys.stdout:
            print_data(message.removesuffix("\n"))
        else:
            super()._print_message(message, file)


def make_adder(parser: argparse.ArgumentParser) -> AddCommand:
    """Add subcommands to a parser.

    Args:
        parser: parser of the parent command.

    Returns:
        A function that adds a subcommand and returns its parser. Its arguments are the name, the
        function that runs the subcommand (whose docstring is the summary in the help), and an
        example. For a group of subcommands, pass a summary in place of the function.
    """
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: RunCommand | str, example: str) -> argparse.ArgumentParser:
        summary = run if isinstance(run, str) else (run.__doc__ or "").strip()
        command = commands.add_parser(
            name, help=summary, description=summary, epilog=f"example: {example}"
        )
        command.set_defaults(run=run, command=command)
        return command

    return add


def add_json_option(command: argparse.ArgumentParser, help: str = "print JSON") -> None:
    """Declare --json."""
    command.add_argument("--json", action="store_true", help=help)


def add_backend_option(command: argparse.ArgumentParser) -> None:
    """Declare --backend."""
    command.add_argument(
        "--backend",
        choices=get_args(Backend),
        default="mmap",
        help="map the weight file, or read it, for network disks (default: mmap)",
    )


def add_merge_option(command: argparse.ArgumentParser) -> None:
    """Declare --merge-tokens."""
    command.add_argument(
        "--merge-tokens",
        type=int,
        metavar="R",
        help="merge R tokens in each block of a ViT, which is faster and less accurate (default: "
        "the model's, 0 in the catalog); docs/usage.md has figures",
    )


def add_device_option(command: argparse.ArgumentParser) -> None:
    """Declare --device, which `read_device` reads."""
    command.add_argument(
        "--device",
        default="auto",
        help="device to run on, for example cpu or cuda (default: auto, a GPU if there is one; "
        "with torchrun, one for each process)",
    )


def read_device(options: argparse.Namespace) -> str:
    """Return the value of --device; "cuda" means the GPU that torchrun assigns to this process."""
    device: str = options.device
    if device.lower() == "cuda" and "LOCAL_RANK" in os.environ:
        return f"cuda:{read_environment('LOCAL_RANK', 0)}"
    return device


def add_quiet_option(command: argparse.ArgumentParser) -> None:
    """Declare --quiet."""
    command.add_argument("--quiet", action="store_true", help="hide the progress bar")


def match_specs(patterns: Sequence[str]) -> list[ModelSpec]:
    """Find models by name or shell pattern.

    Args:
        patterns: shell patterns of catalog names, or anything that `get_spec` accepts.

    Returns:
        The specs without duplicates, in the order of the patterns.

    Raises:
        UnknownModelError: a pattern has no match.
    """
    return list(dict.fromkeys(spec for pattern in patterns for spec in _match_specs(pattern)))


def _match_specs(pattern: str) -> list[ModelSpec]:
    # the name of an existing folder may contain these characters
    if any(character in pattern for character in "*?[") and not os.path.exists(pattern):
        if names := list_models(pattern):
            return [SPECS[name] for name in names]
        raise UnknownModelError(f"no model matches {pattern!r}; known: {', '.join(SPECS)}")
    return [get_spec(pattern)]
