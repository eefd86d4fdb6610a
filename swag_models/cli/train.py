"""Subcommands that train a model: show, plan, train, distill."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from swag_models.cli import plan
from swag_models.cli.common import (
    OK,
    AddCommand,
    add_json_option,
    add_quiet_option,
)
from swag_models.cli.output import print_data, print_line_once, print_message
from swag_models.cli.plan import PRESET_HELP, add_set_option, print_columns
from swag_models.errors import PreemptedError
from swag_models.recipe.config import Run
from swag_models.recipe.config_overrides import iterate_fields, override
from swag_models.recipe.presets import DATA_FIELDS, PRESETS, Preset, find_value_source, get_preset

PREEMPTED = 75  # exit code EX_TEMPFAIL of sysexits.h: a rerun can succeed


def show(options: argparse.Namespace) -> int:
    """List the presets, or show every value of a preset and its source."""
    if options.preset is None:
        summaries = {preset.name: preset.summary for preset in PRESETS}
        if options.json:
            print_data(json.dumps(summaries, indent=2))
        else:
            print_columns(summaries.items())
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
        print_columns(
            (name, _format_value(value), sources[name]["mark"], sources[name]["text"])
            for name, value in values.items()
        )
    return OK


def train(options: argparse.Namespace) -> int:
    """Train a model, or resume an interrupted run; runs in parallel with torchrun."""
    from swag_models.recipe.training.model import PublishInfo
    from swag_models.recipe.training.trainer import train

    preset = get_preset(options.preset)
    # --init is a field of the run as well; it is applied after --set
    settings = [*options.set, *([f"init={options.init}"] if options.init else [])]
    return run_training(
        lambda: train(
            override(preset.run, settings),
            options.data,
            options.output,
            val=options.val,
            embeddings=options.embeddings,
            progress=not options.quiet,
            publish_info=PublishInfo(
                preset.name, options.name, options.description, options.license
            ),
        ),
    )


def distill(options: argparse.Namespace) -> int:
    """Train a small model to give the features or probabilities of a larger one, without labels."""
    from swag_models.recipe.training.distill import distill

    return run_training(
        lambda: distill(
            options.student,
            options.teacher,
            options.data,
            options.output,
            settings=options.set,
            init=options.init,
            name=options.name,
            description=options.description,
            license=options.license,
            progress=not options.quiet,
        ),
    )


def run_training(work: Callable[[], Path]) -> int:
    """Call a function that trains, and print the folder of the model that it returns."""
    try:
        model = work()
    except PreemptedError as error:
        print_message(error)
        return PREEMPTED
    print_line_once(model)
    return OK


def add_commands(add: AddCommand) -> None:
    """Declare the subcommands of this module and their options, under `swag-models recipe`."""
    command = add("show", show, "swag-models recipe show vit_b16_in1k --set image_size=224")
    command.add_argument("preset", nargs="?", help="name of a preset (default: list all presets)")
    add_set_option(command)
    add_json_option(command)
    plan.add_command(add)
    _add_train_options(
        add(
            "train",
            train,
            "swag-models recipe train vit_nano_hashtags --data shards/ -o runs/vit_nano",
        )
    )
    _add_distill_options(
        add(
            "distill",
            distill,
            "swag-models recipe distill vit_b16 --teacher vit_h14 --data images/ -o runs/small",
        )
    )


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
        "--embeddings",
        metavar="FILE",
        help="train a head on stored embeddings of the images, which are not read (.parquet .npy, "
        "from swag-models embed); --data may then also be labels.parquet",
    )
    _add_output_options(command)


def _add_distill_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "student",
        help="architecture, for example vit_b16 or regnety_16gf; or timm: and a timm architecture",
    )
    command.add_argument(
        "--teacher",
        required=True,
        metavar="MODEL",
        help="a name, folder or hf-hub:org/repo; or a file that swag-models embed wrote",
    )
    command.add_argument(
        "--data",
        required=True,
        help="images in any folders or tar files, packed shards, or labelled data as for train; "
        "labels are not used",
    )
    _add_output_options(command)


def _add_output_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-o", "--output", required=True, help="output folder; an interrupted run is resumed"
    )
    command.add_argument(
        "--init", metavar="MODEL", help="initial weights: a name, folder or hf-hub:org/repo"
    )
    add_set_option(command)
    command.add_argument("--name", help="name in the model card (default: model)")
    command.add_argument("--description", help="description in the model card")
    command.add_argument("--license", help="license of the weights, for example apache-2.0")
    add_quiet_option(command)


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
