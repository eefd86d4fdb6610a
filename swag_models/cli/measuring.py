"""Options and steps that the subcommands share which measure models."""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from swag_models.cli.common import (
    FAILED,
    OK,
    add_device_option,
    add_quiet_option,
    read_device,
)
from swag_models.cli.output import print_message
from swag_models.errors import ConfigError
from swag_models.runtime import read_environment

if TYPE_CHECKING:
    from swag_models.recipe.evaluation.models import EvaluatedModel
    from swag_models.recipe.training.distributed import DistContext

MODEL_HELP = "name, folder, hf-hub:org/repo, timm:NAME or torchvision:NAME[@WEIGHTS]"


def add_measuring_options(command: argparse.ArgumentParser) -> None:
    """Declare the options that `get_measuring_options` reads."""
    add_device_option(command)
    command.add_argument("--dtype", help="float32 (default), bfloat16 or float16")
    command.add_argument(
        "--batch-size", type=int, default=64, help="images per forward pass (default: 64)"
    )
    command.add_argument(
        "--workers",
        type=int,
        help="processes that read images (default: on a GPU, one per CPU; otherwise 0)",
    )
    add_quiet_option(command)


def add_skip_option(command: argparse.ArgumentParser, text: str) -> None:
    """Declare --skip-unmatched."""
    command.add_argument("--skip-unmatched", action="store_true", help=text)


def get_measuring_options(
    options: argparse.Namespace,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the options that `add_measuring_options` declares.

    Returns:
        (options of the model: device, dtype; options of loading: batch_size, workers, progress).
    """
    from swag_models.devices import check_device
    from swag_models.runtime import count_cpus

    device, workers = str(check_device(read_device(options))), options.workers
    if workers is None:
        num_processes = max(1, read_environment("LOCAL_WORLD_SIZE", 1))
        # without a GPU, the model itself needs all CPUs
        workers = 0 if device == "cpu" else max(1, count_cpus() // num_processes)
    loading = {"batch_size": options.batch_size, "workers": workers, "progress": not options.quiet}
    return {"device": device, "dtype": options.dtype}, loading


def open_model(options: argparse.Namespace) -> "tuple[EvaluatedModel, dict[str, Any]]":
    """Open the model to measure, and read the options for loading images."""
    from swag_models.recipe.evaluation.models import open_evaluated_model

    running, loading = get_measuring_options(options)
    image_size = getattr(options, "image_size", None)  # not every command has it
    return open_evaluated_model(options.model, **running, image_size=image_size), loading


def check_single_process() -> None:
    """Raise a ConfigError under torchrun, for a command that does not split its work."""
    if (count := read_environment("WORLD_SIZE", 1)) > 1:
        raise ConfigError(
            f"this command runs in one process, not in {count}; start it without torchrun"
        )


@contextmanager
def shared_work() -> "Iterator[DistContext]":
    """The ranks of torchrun for a command that shares its work; this process alone without it."""
    from swag_models.recipe.training.distributed import SINGLE_PROCESS, init_distributed

    if read_environment("WORLD_SIZE", 1) == 1:
        yield SINGLE_PROCESS
        return
    with init_distributed() as dist:
        yield dist


def report_skipped(skipped: Mapping[str, int]) -> int:
    """Print why images could not be read, and how many for each reason; returns the exit code."""
    for reason, count in skipped.items():
        print_message(f"skipped: {reason}" + (f" ({count:,} times)" if count > 1 else ""))
    return FAILED if skipped else OK


def parse_shots(text: str) -> int | float | None:
    """Parse a number of training images per class: "5", a share such as "10%", or "all" (None).

    Raises:
        ConfigError: the text has another form.
    """
    is_share = text.endswith("%")
    try:
        shots = None if text == "all" else float(text[:-1]) / 100 if is_share else int(text)
    except ValueError:
        shots = 0  # rejected below
    if shots is not None and not (0 < shots < 1 if is_share else shots >= 1):
        raise ConfigError(
            f"invalid --shots {text!r}: allowed: a number of images per class such as 5, a share "
            "below 100% such as 10%, or all"
        )
    return shots
