"""Subcommands that train a model on labelled images: show, plan, train."""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from swag_models.cli.common import (
    OK,
    AddCommand,
    add_json_option,
    add_quiet_option,
)
from swag_models.cli.output import print_data, print_line, print_message
from swag_models.errors import PreemptedError
from swag_models.recipe.config import Run, iterate_fields, override
from swag_models.recipe.presets import DATA_FIELDS, PRESETS, Preset, find_value_source, get_preset
from swag_models.runtime import read_environment

if TYPE_CHECKING:
    from swag_models.recipe.training.estimate import Plan

PREEMPTED = 75  # exit code EX_TEMPFAIL of sysexits.h: a rerun can succeed
PRESET_HELP = "name of a preset; list them with: swag-models recipe show"


def show(options: argparse.Namespace) -> int:
    """List the presets, or show every value of a preset and its source."""
    if options.preset is None:
        summaries = {preset.name: preset.summary for preset in PRESETS}
        if options.json:
            print_data(json.dumps(summaries, indent=2))
        else:
            _print_columns(summaries.items())
        return OK
    preset = get_preset(options.preset)
    run = override(preset.run, options.set)
    before, values = _list_values(preset, preset.run), _list_values(preset, run)
    sources = {}
    for name, value in values.items():
        sources[name] = {"mark": "set here", "text": ""}
        # --set can add a part, for example ema, whose fields the preset does not have
        if name in before and before[name] == value:
            source = find_value_source(preset, name)
            sources[name] = {"mark": source.mark, "text": str(source)}
    if options.json:
        planned = {name: values[name] for name in DATA_FIELDS}
        document = {"name": preset.name, "run": run.to_dict(), **planned, "sources": sources}
        print_data(json.dumps(document, indent=2))
    else:
        _print_columns(
            (name, _format_value(value), sources[name]["mark"], sources[name]["text"])
            for name, value in values.items()
        )
    return OK


def plan(options: argparse.Namespace) -> int:
    """Estimate the steps, operations, time and memory of a run."""
    from swag_models.recipe.training.estimate import plan

    preset = get_preset(options.preset)
    samples_per_epoch, num_classes = options.samples_per_epoch, options.classes
    estimate = plan(
        override(preset.run, options.set),
        preset.samples_per_epoch if samples_per_epoch is None else samples_per_epoch,
        num_classes=preset.num_classes if num_classes is None else num_classes,
        gpus=options.gpus,
        throughput=options.throughput,
        flops=options.flops,
        gpu_memory=options.gpu_memory * 1e9,
    )
    memory = asdict(estimate.memory) | {"total": estimate.memory.total}
    if options.json:
        print_data(json.dumps(asdict(estimate) | {"memory": memory}, indent=2))
        return OK
    # `trained` is smaller for a preset that trains only the head
    frozen = "; the rest is frozen" if estimate.trained < estimate.parameters else ""
    plural = "s" * (estimate.gpus > 1)
    rows = {
        "steps": f"{estimate.steps:,}",
        "samples": f"{estimate.samples:,}",
        "parameters": f"{estimate.parameters:,}, {estimate.trained:,} of them trained{frozen}",
        "operations": f"{estimate.flops:.3g} per sample ({estimate.passes}x the forward pass), "
        f"{estimate.flops * estimate.samples:.3g} in all",
        "throughput": f"{estimate.throughput:,.1f} images/s per GPU; {estimate.basis}",
        "time": f"{_format_time(estimate.days)} on {estimate.gpus:,} GPU{plural}",
        "data": f"{estimate.throughput * estimate.gpus:,.0f} images/s must be read; CPU cores that "
        "decode as many JPEG images: about "
        + ", ".join(f"{cores:,} for {size} pixels" for size, cores in estimate.cores.items()),
        "memory": f"{_format_bytes(memory['total'])} per GPU, estimated by formula"
        + _describe_excess(estimate),
    }
    rows |= {
        f"  {name}": _format_bytes(size)
        for name, size in memory.items()
        if name not in ("total", "sample")
    }
    rows["  activations"] += (
        f", {_format_bytes(memory['sample'])} per sample; a smaller engine.micro_batch reduces them"
    )
    rows["  casts"] += ", weights in half precision, which autocast caches"
    _print_columns(rows.items())
    return OK


def _describe_excess(estimate: "Plan") -> str:
    """What to change if a GPU has less memory than the run needs; otherwise empty."""
    if estimate.memory.total <= estimate.gpu_memory:
        return ""
    change = f"set engine.micro_batch={estimate.micro_batch} or less"
    if not estimate.micro_batch:
        change = "engine.parallel=fsdp, engine.grad_checkpointing=true or a smaller model need less"
    return f": more than the {estimate.gpu_memory / 1e9:g} GB of a GPU; {change}"


def train(options: argparse.Namespace) -> int:
    """Train a model, or resume an interrupted run; runs in parallel with torchrun."""
    from swag_models.recipe.training.model import PublishInfo
    from swag_models.recipe.training.trainer import train

    preset = get_preset(options.preset)
    # --init is a field of the run as well; it is applied after --set
    settings = [*options.set, *([f"init={options.init}"] if options.init else [])]
    publish_info = PublishInfo(preset.name, options.name, options.description, options.license)
    try:
        model = train(
            override(preset.run, settings),
            options.data,
            options.output,
            val=options.val,
            progress=not options.quiet,
            publish_info=publish_info,
        )
    except PreemptedError as error:
        print_message(error)
        return PREEMPTED
    if read_environment("RANK", 0) == 0:  # every process reaches this line
        print_line(model)
    return OK


def add_commands(add: AddCommand) -> None:
    """Declare the subcommands of this module and their options, under `swag-models recipe`."""
    command = add("show", show, "swag-models recipe show vit_b16_in1k --set image_size=224")
    command.add_argument("preset", nargs="?", help="name of a preset (default: list all presets)")
    _add_set_option(command)
    add_json_option(command)
    _add_plan_options(
        add(
            "plan",
            plan,
            "swag-models recipe plan vit_h14_hashtags --gpus 128 --set engine.micro_batch=32",
        )
    )
    _add_train_options(
        add(
            "train",
            train,
            "swag-models recipe train vit_nano_hashtags --data shards/ -o runs/vit_nano",
        )
    )


def _add_plan_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("preset", help=PRESET_HELP)
    _add_set_option(command)
    command.add_argument("--gpus", type=int, default=8, help="number of GPUs (default: 8)")
    command.add_argument(
        "--throughput",
        type=float,
        metavar="RATE",
        help="measured images/s per GPU (default: estimated from --flops)",
    )
    command.add_argument(
        "--flops",
        type=float,
        help="peak FLOP/s of a GPU (default: that of an H100)",
    )
    command.add_argument(
        "--gpu-memory",
        type=float,
        default=80,
        metavar="GB",
        help="memory of a GPU in GB (default: 80, that of an H100)",
    )
    command.add_argument(
        "--samples-per-epoch",
        type=int,
        metavar="SAMPLES",
        help="samples in an epoch (default: those of the preset's data)",
    )
    command.add_argument(
        "--classes",
        type=int,
        metavar="COUNT",
        help="number of classes (default: those of the preset's data)",
    )
    add_json_option(command)


def _add_train_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("preset", help=PRESET_HELP)
    command.add_argument(
        "--data",
        required=True,
        help="packed shards, a folder with a sub-folder per class, a list of images and labels "
        "(.csv .jsonl .json, COCO annotations), or a Hugging Face dataset on disk",
    )
    command.add_argument("--val", help="validation data, in any of these forms")
    command.add_argument(
        "-o", "--output", required=True, help="output folder; an interrupted run is resumed"
    )
    command.add_argument(
        "--init", metavar="MODEL", help="initial weights: a name, folder or hf-hub:org/repo"
    )
    _add_set_option(command)
    command.add_argument("--name", help="name in the model card (default: model)")
    command.add_argument("--description", help="description in the model card")
    command.add_argument("--license", help="license of the weights, for example apache-2.0")
    add_quiet_option(command)


def _add_set_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="override a preset value (repeatable; of one field, the last counts)",
    )


def _list_values(preset: Preset, run: Run) -> dict[str, Any]:
    """Every field of a run, and the preset's values that only `plan` uses."""
    return {**dict(iterate_fields(run)), **{name: getattr(preset, name) for name in DATA_FIELDS}}


def _format_value(value: Any) -> str:
    """A value as `--set` reads it."""
    if isinstance(value, tuple):
        return ",".join(map(_format_value, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _format_bytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 10**8 else f"{size / 1e6:,.2f} MB"


def _format_time(days: float) -> str:
    return f"{days:,.1f} days" if days >= 2 else f"{days * 24:,.2f} hours"


def _print_columns(rows: Iterable[Sequence[str]]) -> None:
    """Print rows with their cells aligned, two spaces apart."""
    table = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table)]
    for row in table:
        print_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
