"""Subcommands of the recipe's second half: from training shards to a model."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from swag_models.cli.common import OK, Add, say
from swag_models.errors import PreemptedError
from swag_models.recipe.config import Run, iterate_fields, override
from swag_models.recipe.presets import PLANNED, PRESETS, Preset, find_value_source, get_preset

PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: not done, worth another try


def show(options: argparse.Namespace) -> int:
    """The presets, one a line, or every value of one of them and where it comes from."""
    if options.preset is None:
        summaries = {preset.name: preset.summary for preset in PRESETS}
        if options.json:
            print(json.dumps(summaries, indent=2))
        else:
            _print_columns(summaries.items())
        return OK
    preset = get_preset(options.preset)
    run = override(preset.run, options.set)
    before, values = _list_values(preset, preset.run), _list_values(preset, run)
    marks = {}
    for name, value in values.items():
        source = (
            find_value_source(preset, name) if name in before and before[name] == value else None
        )
        marks[name] = (source.mark, source.text) if source else ("set here", "")
    if options.json:
        sources = {name: {"mark": mark, "text": text} for name, (mark, text) in marks.items()}
        planned = {name: values[name] for name in PLANNED}
        print(
            json.dumps(
                {"name": preset.name, "run": run.to_dict(), **planned, "sources": sources}, indent=2
            )
        )
    else:
        _print_columns((name, _write_value(value), *marks[name]) for name, value in values.items())
    return OK


def plan(options: argparse.Namespace) -> int:
    """Steps, operations, days and memory that a run takes, before it is begun."""
    from swag_models.recipe.training.estimate import plan

    preset = get_preset(options.preset)
    made = plan(
        override(preset.run, options.set),
        preset.samples_per_epoch
        if options.samples_per_epoch is None
        else options.samples_per_epoch,
        num_classes=preset.num_classes if options.classes is None else options.classes,
        gpus=options.gpus,
        throughput=options.throughput,
        flops=options.flops,
    )
    memory = asdict(made.memory) | {"total": made.memory.total}
    if options.json:
        print(json.dumps(asdict(made) | {"memory": memory}, indent=2))
        return OK
    frozen = "; the rest is frozen" if made.trained < made.parameters else ""
    rows = {
        "steps": f"{made.steps:,}",
        "samples": f"{made.samples:,}",
        "parameters": f"{made.parameters:,}, {made.trained:,} of them trained{frozen}",
        "operations": f"{made.flops:.3g} a sample ({made.passes}x the forward pass), {made.flops * made.samples:.3g} in all",
        "throughput": f"{made.throughput:,.1f} images/s on each GPU; {made.basis}",
        "time": f"{_write_time(made.days)} on {made.gpus:,} GPU{'s' * (made.gpus > 1)}",
        "memory": f"{_write_bytes(made.memory.total)} on each GPU, estimated by formula",
    }
    rows |= {
        f"  {name}": _write_bytes(size)
        for name, size in memory.items()
        if name not in ("total", "sample")
    }
    rows["  activations"] += (
        f", {_write_bytes(made.memory.sample)} of each sample; engine.micro_batch takes fewer at once"
    )
    _print_columns(rows.items())
    return OK


def train(options: argparse.Namespace) -> int:
    """Train a model, or go on training it; under torchrun or a scheduler on many processes."""
    from swag_models.recipe.training.model import PublishInfo
    from swag_models.recipe.training.trainer import train

    preset = get_preset(options.preset)
    settings = [*options.set, *([f"init={options.init}"] if options.init else [])]
    about = PublishInfo(preset.name, options.name, options.description, options.license)
    try:
        model = train(
            override(preset.run, settings),
            options.data,
            options.output,
            val=options.val,
            progress=not options.quiet,
            publish_info=about,
        )
    except PreemptedError as error:
        say(error)
        return PREEMPTED
    if int(os.environ.get("RANK", 0)) == 0:
        print(model)
    return OK


def add_commands(add: Add) -> None:
    """Declare the subcommands of this module, under `swag-models recipe`."""
    command = add("show", show, "swag-models recipe show vit_b16_in1k --set image_size=224")
    command.add_argument("preset", nargs="?", help="name of a preset (default: list them)")
    _add_set(command)
    command.add_argument("--json", action="store_true", help="print JSON")

    command = add(
        "plan",
        plan,
        "swag-models recipe plan vit_h14_hashtags --gpus 128 --set engine.micro_batch=32",
    )
    command.add_argument("preset", help="name of a preset; see: swag-models recipe show")
    _add_set(command)
    command.add_argument("--gpus", type=int, default=8, help="default: 8")
    command.add_argument(
        "--throughput",
        type=float,
        metavar="RATE",
        help="images/s on each GPU, if you have measured it",
    )
    command.add_argument(
        "--flops",
        type=float,
        help="operations a second that a GPU can do at most (default: an H100's)",
    )
    command.add_argument(
        "--samples-per-epoch",
        type=int,
        metavar="SAMPLES",
        help="in an epoch (default: of the preset's own data)",
    )
    command.add_argument(
        "--classes", type=int, metavar="COUNT", help="default: of the preset's own data"
    )
    command.add_argument("--json", action="store_true", help="print JSON")

    command = add(
        "train", train, "swag-models recipe train vit_nano_hashtags --data shards/ -o runs/vit_nano"
    )
    command.add_argument("preset", help="name of a preset; see: swag-models recipe show")
    command.add_argument(
        "--data",
        required=True,
        help="packed shards, a folder with a sub-folder per class, or a Hugging Face dataset on disk",
    )
    command.add_argument("--val", help="the like, to evaluate on")
    command.add_argument(
        "-o", "--output", required=True, help="folder of the run; one that was stopped goes on"
    )
    command.add_argument(
        "--init", metavar="MODEL", help="weights to begin with: a name, folder or hf-hub:org/repo"
    )
    _add_set(command)
    command.add_argument("--name", help="of the model, for its card (default: model)")
    command.add_argument("--description", help="of the model, for its card")
    command.add_argument("--license", help="of the weights, for example apache-2.0")
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_set(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="in place of the preset's; may be given again",
    )


def _list_values(preset: Preset, run: Run) -> dict[str, Any]:
    return {**dict(iterate_fields(run)), **{name: getattr(preset, name) for name in PLANNED}}


def _write_value(value: Any) -> str:
    """A value as `--set` reads it."""
    if isinstance(value, tuple):
        return ",".join(map(_write_value, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _write_bytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 10**8 else f"{size / 1e6:,.2f} MB"


def _write_time(days: float) -> str:
    return f"{days:,.1f} days" if days >= 2 else f"{days * 24:,.2f} hours"


def _print_columns(rows: Iterable[Sequence[str]]) -> None:
    """Rows of words below one another, two spaces apart."""
    table = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
