"""Subcommands that measure models: evaluate, associations, report."""

import argparse
import json
from contextlib import ExitStack
from datetime import date
from typing import Any

from swag_models.cli.common import FAILED, OK, AddCommand, add_json_option
from swag_models.cli.measuring import (
    MODEL_HELP,
    add_measuring_options,
    add_skip_option,
    get_measuring_options,
    open_model,
    parse_shots,
    report_skipped,
    shared_work,
)
from swag_models.cli.output import print_data, print_line_once, print_message, print_text
from swag_models.cli.thresholds import add_threshold_option, read_threshold
from swag_models.errors import ConfigError
from swag_models.formatting import count_noun
from swag_models.paths import expand_path
from swag_models.resumable import output_folder


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
        loading |= {name: getattr(options, name) for name in ("only_present", "skip_unmatched")}
        loading["dist"] = dist
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
    with shared_work() as dist, ExitStack() as stack:
        model, loading = open_model(options)

        def create_output() -> None:
            stack.enter_context(output_folder(output))
            create_output_folder(output)

        dist.run_on_main(create_output)  # before the work, so that an error is reported early
        result = measure_associations(
            model, images, config, dist=dist, scratch=output.parent, **loading
        )
        dist.run_on_main(lambda: write_associations(result, output))
        if dist.is_main:  # every rank has the same results
            if result.unreadable:
                print_message(f"{count_noun(result.unreadable, 'image')} could not be read")
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
    print_line_once(page)
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
    add_skip_option(command, "leave out images of classes that the model does not have")
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
