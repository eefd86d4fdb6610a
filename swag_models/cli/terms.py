"""What the subcommands share: exit codes, messages, names of models, and how a subcommand is added."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from swag_models.api import SPECS, get_spec, list_models
from swag_models.errors import UnknownModelError
from swag_models.spec import ModelSpec

Add = Callable[[str, Callable[[argparse.Namespace], int] | str, str], argparse.ArgumentParser]
OK, FAILED, USAGE = 0, 1, 2


def say(message: object) -> None:
    """A message to the user, on stderr."""
    print(f"swag-models: {message}", file=sys.stderr)


def make_add(parser: argparse.ArgumentParser) -> Add:
    """A function that adds a subcommand to `parser`: its name, the function that runs it, and an example for its help."""
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int] | str, example: str) -> argparse.ArgumentParser:
        summary = run if isinstance(run, str) else (run.__doc__ or "").strip()
        command = commands.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")
        command.set_defaults(run=run)
        return command

    return add


def match_all(patterns: Sequence[str]) -> list[ModelSpec]:
    """Specs for names and shell patterns, each once; UnknownModelError if one has no match."""
    return list(dict.fromkeys(spec for pattern in patterns for spec in _match(pattern)))


def _match(pattern: str) -> list[ModelSpec]:
    """Catalog entries for a shell pattern, or whatever a name stands for; UnknownModelError if there is none."""
    if any(sign in pattern for sign in "*?[") and not os.path.exists(pattern):
        if names := list_models(pattern):
            return [SPECS[name] for name in names]
        raise UnknownModelError(f"no model matches {pattern!r}; known: {', '.join(SPECS)}")
    return [get_spec(pattern)]
