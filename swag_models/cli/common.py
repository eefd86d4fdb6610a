"""What the subcommands share: exit codes, messages, names of models, and how a subcommand is added."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from swag_models.api import SPECS, get_spec, list_models
from swag_models.errors import ConfigError, UnknownModelError
from swag_models.spec import ModelSpec

if TYPE_CHECKING:
    from swag_models.recipe.evaluation.models import EvaluatedModel

Add = Callable[[str, Callable[[argparse.Namespace], int] | str, str], argparse.ArgumentParser]
OK, FAILED, USAGE = 0, 1, 2


def say(message: object) -> None:
    """A message to the user, on stderr."""
    print(f"swag-models: {message}", file=sys.stderr)


def make_add(parser: argparse.ArgumentParser) -> Add:
    """A function that adds a subcommand to `parser`: its name, the function that runs it, and an example for its help."""
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(
        name: str, run: Callable[[argparse.Namespace], int] | str, example: str
    ) -> argparse.ArgumentParser:
        summary = run if isinstance(run, str) else (run.__doc__ or "").strip()
        command = commands.add_parser(
            name, help=summary, description=summary, epilog=f"example: {example}"
        )
        command.set_defaults(run=run)
        return command

    return add


def add_measuring_options(command: argparse.ArgumentParser) -> None:
    """Declare how a model that is measured is run: what `read_running` reads."""
    command.add_argument(
        "--device", help="default: the GPU if there is one, under torchrun one for each process"
    )
    command.add_argument("--dtype", help="float32 (default), bfloat16, float16")
    command.add_argument(
        "--batch-size", type=int, default=64, help="pictures in one forward pass (default: 64)"
    )
    command.add_argument(
        "--workers",
        type=int,
        help="processes that read pictures (default: with a GPU one per processor)",
    )
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def read_running(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Where a model that is measured runs (device, dtype), and how its pictures are read (batch_size, workers, progress)."""
    import torch

    from swag_models.runtime import count_cpus

    device, workers = options.device or "cuda", options.workers
    if device == "cuda" and (options.device or torch.cuda.is_available()):
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    elif device == "cuda":
        device = "cpu"
    if workers is None:  # a processor runs the model itself
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        workers = 0 if device == "cpu" else max(1, count_cpus() // processes)
    reading = {"batch_size": options.batch_size, "workers": workers, "progress": not options.quiet}
    return {"device": device, "dtype": options.dtype}, reading


def open_measured(options: argparse.Namespace) -> tuple[EvaluatedModel, dict[str, Any]]:
    """The model that is measured, and how its pictures are read."""
    from swag_models.recipe.evaluation.models import open_evaluated_model

    running, reading = read_running(options)
    return open_evaluated_model(
        options.model, **running, image_size=getattr(options, "image_size", None)
    ), reading


def refuse_ranks() -> None:
    """ConfigError if torchrun started several processes for what one does alone."""
    if (count := int(os.environ.get("WORLD_SIZE", 1))) > 1:
        raise ConfigError(f"this is done by one process, not {count}; start it without torchrun")


def report_skipped(skipped: Mapping[str, int]) -> int:
    """Tell which pictures could not be read, by message; the exit code."""
    for reason, count in skipped.items():
        say(f"skipped: {reason}" + (f" ({count:,} times)" if count > 1 else ""))
    return FAILED if skipped else OK


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
