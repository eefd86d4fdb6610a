"""Subcommands that measure models: their classes, their features, and several of them side by side."""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path

from swag_models.cli.common import (
    FAILED,
    OK,
    Add,
    add_measuring_options,
    open_measured,
    read_running,
    refuse_ranks,
    report_skipped,
)
from swag_models.errors import ConfigError


def evaluate(options: argparse.Namespace) -> int:
    """Accuracy and calibration of a model on pictures with labels; torchrun splits the work."""
    from swag_models.recipe.evaluation.accuracy.evaluate import (
        evaluate,
        tabulate_evaluations,
        write_evaluation,
    )
    from swag_models.recipe.training.distributed import init_distributed

    with init_distributed() as dist:
        candidate, reading = open_measured(options)
        output = Path(options.output) if options.output else None
        asked = {"only_present": options.only_present, "output": output}
        found = evaluate(candidate, options.data, options.benchmark, dist=dist, **asked, **reading)
        if output:
            dist.run_on_main(lambda: write_evaluation(found, output))
        if dist.is_main:
            report_skipped(found.skipped)
            print(
                json.dumps(found.summarise(), indent=2)
                if options.json
                else tabulate_evaluations([found]).rstrip()
            )
    return FAILED if found.skipped else OK


def probe(options: argparse.Namespace) -> int:
    """Measure the features of a frozen model: nearest neighbours, and linear classifiers with few labels and with all."""
    from swag_models.recipe.evaluation.probes.probe import format_probes, probe, write_probes

    refuse_ranks()
    candidate, reading = open_measured(options)
    probes = probe(
        candidate,
        options.train,
        options.test,
        methods=options.methods.split(","),
        shots=[_read_shots(text) for text in options.shots.split(",")],
        splits=options.splits,
        cache=options.cache,
        features=options.features,
        output=options.output,
        init=options.model,
        settings=options.set,
        **reading,
    )
    if options.output:
        write_probes(probes, options.output)
    print(
        json.dumps([each.to_dict() for each in probes], indent=2)
        if options.json
        else format_probes(probes)
    )
    return OK


def report(options: argparse.Namespace) -> int:
    """Measure models on benchmarks, and by probes, and show them side by side; what is measured already is not done again."""
    from swag_models.recipe.evaluation.report.collect import collect_report

    today = date.today()
    running, reading = read_running(options)
    page = collect_report(
        options.models,
        [_read_benchmark(text) for text in options.benchmarks],
        options.output,
        date=f"{today.day} {today:%B %Y}",
        train=options.train,
        test=options.test,
        shots=[_read_shots(text) for text in options.shots.split(",")],
        **running,
        **reading,
    )
    print(page)
    return OK


def add_commands(add: Add) -> None:
    """Declare the subcommands of this module, under `swag-models recipe`."""
    command = add(
        "evaluate",
        evaluate,
        "swag-models recipe evaluate vit_b16_in1k --data imagenet/ --benchmark imagenet-real",
    )
    command.add_argument(
        "model", help="name, folder, hf-hub:org/repo, timm:NAME or torchvision:NAME[@WEIGHTS]"
    )
    command.add_argument(
        "--data",
        required=True,
        help="the benchmark's folder, or a sub-folder of pictures for each class",
    )
    command.add_argument(
        "--benchmark",
        default="folder",
        help="imagenet, imagenet-v2, imagenet-real, imagenet-a, imagenet-r, sketch, objectnet or folder (default)",
    )
    command.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        help="folder for .json, .md, and .parquet with every picture",
    )
    command.add_argument(
        "--only-present", action="store_true", help="only the classes of the pictures compete"
    )
    command.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="in place of the model's own"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    add_measuring_options(command)

    command = add(
        "probe",
        probe,
        "swag-models recipe probe vit_b16 --train pets/train --test pets/test --shots 1,5,all",
    )
    command.add_argument(
        "model", help="name, folder, hf-hub:org/repo, timm:NAME or torchvision:NAME[@WEIGHTS]"
    )
    data = "packed shards, a folder with a sub-folder per class, or a Hugging Face dataset on disk"
    command.add_argument("--train", required=True, metavar="DATA", help=data)
    command.add_argument(
        "--test", required=True, metavar="DATA", help="the like, with the same classes"
    )
    command.add_argument(
        "--methods", default="knn,logistic", help="of knn, logistic and sgd (default: knn,logistic)"
    )
    command.add_argument(
        "--shots",
        default="1,2,5,10,1%,10%,all",
        help="labels of each class for logistic, or shares, or all (default: 1,2,5,10,1%%,10%%,all)",
    )
    command.add_argument(
        "--splits", type=int, default=5, help="choices of so few labels (default: 5)"
    )
    command.add_argument(
        "--cache", metavar="FOLDER", help="for features (default: in the cache of downloads)"
    )
    command.add_argument(
        "--features",
        choices=("float16", "float32"),
        default="float16",
        help="as kept (default: float16)",
    )
    command.add_argument(
        "-o", "--output", metavar="FOLDER", help="for probes.json, probes.md and the run of sgd"
    )
    command.add_argument(
        "--set",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="for sgd, in place of the preset's; may be given again",
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    add_measuring_options(command)

    command = add(
        "report",
        report,
        "swag-models recipe report vit_nano_hashtags --benchmarks folder=scenes/held_out -o report/",
    )
    command.add_argument("models", nargs="+", metavar="MODEL", help="as evaluate takes them")
    command.add_argument(
        "--benchmarks",
        nargs="+",
        default=[],
        metavar="NAME=FOLDER",
        help="what to measure on, for example imagenet-v2=data/v2",
    )
    command.add_argument(
        "--train", metavar="FOLDER", help="labelled pictures for probes to learn from"
    )
    command.add_argument("--test", metavar="FOLDER", help="the like, to test probes on")
    command.add_argument(
        "--shots",
        default="1,5,10,all",
        help="labels of each class, shares or all (default: 1,5,10,all)",
    )
    command.add_argument("-o", "--output", required=True, help="folder of the report")
    add_measuring_options(command)


def _read_benchmark(text: str) -> tuple[str, str]:
    name, sign, folder = text.partition("=")
    if not (name and sign and folder):
        raise ConfigError(
            f"--benchmarks has {text!r}; allowed: NAME=FOLDER, for example folder={text or 'pictures'}"
        )
    return name, folder


def _read_shots(text: str) -> int | float | None:
    """A number of labels, a share such as 10%, or all."""
    try:
        shots = (
            None if text == "all" else float(text[:-1]) / 100 if text.endswith("%") else int(text)
        )
    except ValueError:
        shots = 0
    if shots is not None and not (0 < shots < 1 if text.endswith("%") else shots >= 1):
        raise ConfigError(
            f"invalid --shots {text!r}: allowed images of each class such as 5, shares below 100% "
            "such as 10%, and all"
        )
    return shots
