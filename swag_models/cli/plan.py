"""Subcommand that estimates a training run before it starts, and writes its SLURM script: plan."""

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from swag_models.cli.common import OK, AddCommand, add_json_option
from swag_models.cli.output import print_data, print_line, print_message
from swag_models.errors import ConfigError
from swag_models.formatting import count_noun
from swag_models.recipe.config import Run
from swag_models.recipe.config_overrides import override
from swag_models.recipe.presets import get_preset

if TYPE_CHECKING:
    from swag_models.recipe.training.estimate import Plan

PRESET_HELP = "name of a preset; list them with: swag-models recipe show"
TRAIN_OPTIONS = ("val", "init", "name", "description", "license")
SCRIPT_OPTIONS = ("output", "gpus_per_node", *TRAIN_OPTIONS)


def plan(options: argparse.Namespace) -> int:
    """Estimate steps, time, memory and the CPU cores for the data; or write a SLURM script."""
    from swag_models.recipe.data.sources import ShardSource, open_source
    from swag_models.recipe.training.decode_rate import measure_decode_rates
    from swag_models.recipe.training.estimate import plan

    _check_options(options)
    preset = get_preset(options.preset)
    run = override(preset.run, options.set)
    source = open_source(options.data) if options.data else None
    samples_per_epoch, num_classes = preset.samples_per_epoch, preset.num_classes
    if source:
        samples = source.samples if isinstance(source, ShardSource) else len(source.names)
        samples_per_epoch = samples or samples_per_epoch  # unknown of shards without a manifest
        num_classes = source.num_classes or num_classes
    if options.decode_rate is None:
        rates, origin = measure_decode_rates(run, source), "measured on this machine"
    else:
        rates, origin = {"images": options.decode_rate}, "given"
    estimate = plan(
        run,
        samples_per_epoch if options.samples_per_epoch is None else options.samples_per_epoch,
        num_classes=num_classes if options.classes is None else options.classes,
        gpus=options.gpus,
        throughput=options.throughput,
        gpu=options.gpu,
        flops=options.flops,
        gpu_memory=None if options.gpu_memory is None else options.gpu_memory * 1e9,
        decode_rates=rates,
    )
    if options.slurm:
        _print_script(options, run, estimate)
    elif options.json:
        memory = asdict(estimate.memory) | {"total": estimate.memory.total}
        document = asdict(estimate) | {"memory": memory, "fits": estimate.fits}
        print_data(json.dumps(document, indent=2))
    else:
        print_columns(_describe(estimate, origin).items())
    return OK


def _check_options(options: argparse.Namespace) -> None:
    """Raise ConfigError for options that do not go together."""
    if options.slurm and options.json:
        raise ConfigError("--slurm writes a script, not JSON; leave out --slurm or --json")
    unused = [name for name in SCRIPT_OPTIONS if getattr(options, name) is not None]
    if unused and not options.slurm:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        raise ConfigError(
            f"{flags} is for the script that --slurm prints; add --slurm or leave it out"
        )
    missing = [f"--{name}" for name in ("data", "output") if not getattr(options, name)]
    if options.slurm and missing:
        raise ConfigError(f"--slurm needs {' and '.join(missing)}, as recipe train does")


def _print_script(options: argparse.Namespace, run: Run, estimate: "Plan") -> None:
    from swag_models.recipe.training.slurm import SlurmJob, write_script

    if not estimate.fits:
        print_message(f"warning: {_describe_excess(estimate)}")
    settings = list(options.set)
    if run.distill:
        if run.distill.teacher is None:
            raise ConfigError("the script needs a teacher; add --set distill.teacher=MODEL")
        settings.append(f"distill.teacher={_make_absolute(run.distill.teacher)}")
    # the job may start in another folder
    values = {name: getattr(options, name) for name in TRAIN_OPTIONS}
    values |= {name: _make_absolute(values[name]) for name in ("val", "init") if values[name]}
    texts = [text for name, value in values.items() if value for text in (f"--{name}", value)]
    script = write_script(
        estimate,
        SlurmJob(
            preset=options.preset,
            data=_make_absolute(options.data),
            output=os.path.abspath(options.output),
            settings=settings,
            options=texts,
            gpus_per_node=options.gpus_per_node,
            workers=run.engine.workers,
            summary=f"{_format_time(estimate.days)} on {estimate.gpus} x {estimate.gpu}, "
            f"{_format_bytes(estimate.memory.total)} of memory each, as estimated",
        ),
    )
    print_data(script.rstrip("\n"))


def _make_absolute(value: str) -> str:
    """The absolute path of something on this machine; URLs, names and patterns as they are."""
    return os.path.abspath(value) if os.path.exists(value) else value


def _describe(estimate: "Plan", origin: str) -> dict[str, str]:
    """The rows of the table; `origin` says where the decode rates come from."""
    # `trained` is smaller for a preset that trains only the head
    frozen = "; the rest is frozen" if estimate.trained < estimate.parameters else ""
    memory, total = asdict(estimate.memory), estimate.memory.total
    sample = memory.pop("sample")
    if not memory["teacher"]:
        del memory["teacher"]
    rows = {
        "steps": f"{estimate.steps:,}",
        "samples": f"{estimate.samples:,}",
        "parameters": f"{estimate.parameters:,}, {estimate.trained:,} of them trained{frozen}",
        **({"teacher": estimate.teacher} if estimate.teacher else {}),
        "operations": f"{estimate.flops:.3g} per sample ({estimate.passes}x the forward pass"
        f"{', and the teacher' if estimate.memory.teacher else ''}), "
        f"{estimate.flops * estimate.samples:.3g} in all",
        "throughput": f"{estimate.throughput:,.1f} images/s per GPU; {estimate.basis}",
        "time": f"{_format_time(estimate.days)} on {count_noun(estimate.gpus, 'GPU')}",
        "data": f"{estimate.throughput * estimate.gpus:,.0f} images/s must be read, "
        f"{estimate.throughput:,.1f} by each rank",
    }
    for name, rate in estimate.decode_rates.items():
        rows[f"  {name}"] = (
            f"{rate:,.0f} images/s per CPU core, {origin}; cores needed: "
            f"{estimate.cores_per_rank[name]:,} per rank, {estimate.cores[name]:,} in all"
        )
    fits = f"fits on {estimate.gpu}" if estimate.fits else _describe_excess(estimate)
    rows["memory"] = f"{_format_bytes(total)} per GPU, estimated by formula: {fits}"
    rows |= {f"  {name}": _format_bytes(size) for name, size in memory.items()}
    rows["  activations"] += (
        f", {_format_bytes(sample)} per sample; a smaller engine.micro_batch reduces them"
    )
    rows["  casts"] += ", weights in half precision, which autocast caches"
    return rows


def _describe_excess(estimate: "Plan") -> str:
    """What to change if a GPU has less memory than the run needs."""
    text = f"does not fit on {estimate.gpu}"
    if not estimate.alternatives:
        return (
            f"{text} with any setting; use GPUs with more memory, more of them with "
            "engine.parallel=fsdp, or a smaller model"
        )
    return f"{text}: use " + ", or ".join(
        " and ".join(settings) for settings in estimate.alternatives
    )


def add_command(add: AddCommand) -> None:
    """Declare the subcommand and its options, under `swag-models recipe`."""
    command = add(
        "plan",
        plan,
        "swag-models recipe plan vit_h14_hashtags --gpus 128 --set engine.micro_batch=32",
    )
    command.add_argument("preset", help=PRESET_HELP)
    add_set_option(command)
    command.add_argument("--gpus", type=int, default=8, help="number of GPUs (default: 8)")
    command.add_argument(
        "--gpu",
        default="H100",
        metavar="NAME",
        help="kind of GPU, for example H200 or A100 (default: H100)",
    )
    for name, metavar, help in (
        ("flops", None, "peak FLOP/s of a GPU (default: that of --gpu)"),
        ("gpu-memory", "GB", "memory of a GPU in GB (default: that of --gpu)"),
        ("throughput", "RATE", "measured images/s per GPU (default: estimated from --flops)"),
        (
            "decode-rate",
            "RATE",
            "images/s that a CPU core of the cluster decodes (default: measured on this machine)",
        ),
    ):
        command.add_argument(f"--{name}", type=float, metavar=metavar, help=help)
    command.add_argument(
        "--data",
        help="data as for recipe train, to read its size, and to measure how fast it is decoded "
        "(default: the size of the preset's data, and generated JPEGs)",
    )
    command.add_argument(
        "--samples-per-epoch",
        type=int,
        metavar="SAMPLES",
        help="samples in an epoch (default: those of --data or of the preset's data)",
    )
    command.add_argument(
        "--classes",
        type=int,
        metavar="COUNT",
        help="number of classes (default: those of --data or of the preset's data)",
    )
    add_json_option(command)
    command.add_argument(
        "--slurm", action="store_true", help="print a SLURM script that trains the run"
    )
    command.add_argument("-o", "--output", help="with --slurm: output folder of the run")
    command.add_argument(
        "--gpus-per-node",
        type=int,
        metavar="COUNT",
        help="with --slurm: GPUs of a node (default: all, at most 8)",
    )
    for name in TRAIN_OPTIONS:
        command.add_argument(f"--{name}", help=f"with --slurm: --{name} of recipe train")


def add_set_option(command: argparse.ArgumentParser) -> None:
    """Declare the option that changes values of a preset."""
    command.add_argument(
        "--set",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="override a preset value (repeatable; of one field, the last counts)",
    )


def print_columns(rows: Iterable[Sequence[str]]) -> None:
    """Print rows with their cells aligned, two spaces apart."""
    table = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table)]
    for row in table:
        print_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def _format_bytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 10**8 else f"{size / 1e6:,.2f} MB"


def _format_time(days: float) -> str:
    minutes = days * 24 * 60
    if minutes < 1:
        return "less than a minute"
    if minutes < 60:
        return count_noun(round(minutes), "minute")
    return f"{days:,.1f} days" if days >= 2 else f"{days * 24:,.2f} hours"
