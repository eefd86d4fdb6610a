"""Subcommands that measure models: evaluate, associations, report; their shared options."""

import argparse
import json
from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

from swag_models.cli.common import (
    FAILED,
    OK,
    AddCommand,
    add_device_option,
    add_json_option,
    add_quiet_option,
    read_device,
)
from swag_models.cli.output import print_data, print_line, print_message, print_text
from swag_models.cli.thresholds import add_threshold_option, read_threshold
from swag_models.errors import ConfigError
from swag_models.paths import expand_path
from swag_models.resumable import output_folder
from swag_models.runtime import read_environment

if TYPE_CHECKING:
    from swag_models.recipe.evaluation.models import EvaluatedModel

MODEL_HELP = "name, folder, hf-hub:org/repo, timm:NAME or torchvision:NAME[@WEIGHTS]"


def evaluate(options: argparse.Namespace) -> int:
    """Measure accuracy and calibration on labelled images; runs in parallel with torchrun."""
    from swag_models.recipe.evaluation.accuracy.benchmarks import FOLDER, MULTILABEL
    from swag_models.recipe.evaluation.evaluation_files import (
        evaluate_any,
        evaluate_into,
        format_evaluation,
    )
    from swag_models.recipe.training.distributed import init_distributed

    output = expand_path(options.output, "--output") if options.output else None
    with init_distributed() as dist:
        model, loading = open_model(options)
        loading |= {"dist": dist, "only_present": options.only_present}
        benchmark = options.benchmark or (MULTILABEL if model.multi_label else FOLDER)
        if (threshold := read_threshold(options)) is not None:
            if benchmark != MULTILABEL:
                raise ConfigError(f"--threshold needs --benchmark {MULTILABEL}; omit it")
            loading["threshold"] = threshold
        if output:
            evaluation = evaluate_into(output, model, options.data, benchmark, **loading)
        else:
            evaluation = evaluate_any(model, options.data, benchmark, **loading)
        if dist.is_main:  # every rank has the same results
            report_skipped(evaluation.skipped)
            if options.json:
                print_data(json.dumps(evaluation.summarise(), indent=2))
            else:
                print_text(format_evaluation(evaluation).rstrip())
    return FAILED if evaluation.skipped else OK


def associations(options: argparse.Namespace) -> int:
    """Compare a model's labels and nearest neighbours between groups of images."""
    from swag_models.recipe.evaluation.bias.associations import (
        AssociationConfig,
        measure_associations,
    )
    from swag_models.recipe.evaluation.bias.dataset import open_grouped_images
    from swag_models.recipe.evaluation.bias.report import (
        create_output_folder,
        format_disparities,
        write_associations,
    )

    check_single_process()
    config = AssociationConfig(
        top_k=options.top_k,
        threshold=options.threshold,
        min_group=options.min_group,
        permutations=options.permutations,
        neighbours=options.neighbours,
        seed=options.seed,
    )
    output = expand_path(options.output, "--output")
    images = open_grouped_images(options.groups, options.group_column, options.path_column)
    model, loading = open_model(options)
    with output_folder(output):  # before the work, so that an error is reported early
        create_output_folder(output)
        result = measure_associations(model, images, config, **loading)
        write_associations(result, output)
    if result.unreadable:
        print_message(f"{result.unreadable:,} images could not be read")
    if options.json:
        print_data(json.dumps(result.to_dict(), indent=2))
    else:
        print_text(format_disparities(result).removesuffix("\n"))
    return FAILED if result.unreadable else OK


def report(options: argparse.Namespace) -> int:
    """Compare models on benchmarks and probes; results of an earlier run are reused."""
    from swag_models.recipe.evaluation.report.collect import collect_report

    today = date.today()
    running, loading = get_measuring_options(options)
    page = collect_report(
        options.models,
        [_parse_benchmark(text) for text in options.benchmarks],
        options.output,
        date=f"{today.day} {today:%B %Y}",  # %d would pad the day with a zero
        train=options.train,
        test=options.test,
        shots=[parse_shots(text) for text in options.shots.split(",")],
        **running,
        **loading,
    )
    print_line(page)
    return OK


def add_commands(add: AddCommand) -> None:
    """Declare the subcommands of this module and their options, under `swag-models recipe`."""
    _add_evaluate_options(
        add(
            "evaluate",
            evaluate,
            "swag-models recipe evaluate vit_b16_in1k --data imagenet/ --benchmark imagenet-real",
        )
    )
    _add_associations_options(
        add(
            "associations",
            associations,
            "swag-models recipe associations vit_b16_in1k --groups posts.jsonl "
            "--group-column country -o associations/",
        )
    )
    _add_report_options(
        add(
            "report",
            report,
            "swag-models recipe report vit_nano_hashtags --benchmarks folder=scenes/held_out "
            "-o report/",
        )
    )


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


def _parse_benchmark(text: str) -> tuple[str, str]:
    name, separator, folder = text.partition("=")
    if not (name and separator and folder):
        example = f"folder={text or 'images'}"
        raise ConfigError(
            f"invalid --benchmarks {text!r}: allowed: NAME=FOLDER, for example {example}"
        )
    return name, folder


def _add_evaluate_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help=MODEL_HELP)
    command.add_argument(
        "--data",
        required=True,
        help="folder of the benchmark, folder with a sub-folder of images for each class, or list "
        "of images and labels (.csv .jsonl .json, COCO annotations)",
    )
    command.add_argument(
        "--benchmark",
        help="imagenet, imagenet-v2, imagenet-real, imagenet-a, imagenet-r, sketch, objectnet, "
        "folder, or multilabel for images with any number of labels (default: multilabel for a "
        "multi-label model, otherwise folder)",
    )
    add_threshold_option(
        command, "for multilabel: smallest probability of a predicted class (default: 0.5)"
    )
    command.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        help="output folder: .json, .md, and .parquet with a row for each image",
    )
    command.add_argument(
        "--only-present",
        action="store_true",
        help="predict only classes that occur in the data",
    )
    command.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="image size (default: the model's)"
    )
    add_json_option(command)
    add_measuring_options(command)


def _add_associations_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help=MODEL_HELP)
    command.add_argument(
        "--groups",
        required=True,
        metavar="TABLE",
        help=".csv, .jsonl or .parquet with a row for each image",
    )
    command.add_argument("--group-column", required=True, metavar="COLUMN", help="column of groups")
    command.add_argument(
        "--path-column",
        default="path",
        metavar="COLUMN",
        help="column of image paths, relative to the table (default: path)",
    )
    command.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FOLDER",
        help="output folder for .md, .json and plots",
    )
    number: dict[str, Any] = {"type": int, "metavar": "COUNT"}
    command.add_argument(
        "--top-k", default=5, **number, help="maximum number of labels per image (default: 5)"
    )
    command.add_argument(
        "--threshold",
        type=float,
        default=0.1,
        help="minimum probability of a label (default: 0.1)",
    )
    command.add_argument(
        "--min-group",
        default=30,
        **number,
        help="minimum number of images in a group (default: 30)",
    )
    command.add_argument(
        "--permutations",
        default=2000,
        **number,
        help="number of permutations for p-values (default: 2000)",
    )
    command.add_argument(
        "--neighbours",
        default=10,
        **number,
        help="nearest neighbours per image, or 0 for none (default: 10)",
    )
    command.add_argument(
        "--seed", type=int, default=0, help="seed of permutations and resampling (default: 0)"
    )
    add_json_option(command)
    add_measuring_options(command)


def _add_report_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("models", nargs="+", metavar="MODEL", help=MODEL_HELP)
    command.add_argument(
        "--benchmarks",
        nargs="+",
        default=[],
        metavar="NAME=FOLDER",
        help="benchmarks and their data, for example imagenet-v2=data/v2",
    )
    command.add_argument(
        "--train", metavar="FOLDER", help="labelled images on which probes are trained"
    )
    command.add_argument(
        "--test", metavar="FOLDER", help="labelled images on which probes are tested"
    )
    command.add_argument(
        "--shots",
        default="1,5,10,all",
        help="training images per class: numbers, shares or all (default: 1,5,10,all)",
    )
    command.add_argument("-o", "--output", required=True, help="output folder of the report")
    add_measuring_options(command)
