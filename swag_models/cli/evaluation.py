"""Subcommands that measure a model: its classes, its features, its hashtags, and what they go with."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from swag_models.cli.terms import FAILED, OK, Add, add_measuring_options, open_measured, report_skipped


def evaluate(options: argparse.Namespace) -> int:
    """Accuracy and calibration of a model on pictures with labels; torchrun splits the work."""
    from swag_models.recipe.evaluation.evaluate import evaluate, tabulate_evaluations, write_evaluation
    from swag_models.recipe.parallel import open_ranks

    with open_ranks() as ranks:
        candidate, reading = open_measured(options, options.model)
        found = evaluate(candidate, options.data, options.suite, ranks=ranks, only_present=options.only_present, **reading)
        if options.output:
            ranks.lead(lambda: write_evaluation(found, Path(options.output)))
        if ranks.first:
            report_skipped(found.skipped)
            print(json.dumps(found.to_dict(), indent=2) if options.json else tabulate_evaluations([found]).rstrip())
    return FAILED if found.skipped else OK


def add_commands(add: Add) -> None:
    """Declare the subcommands of this module, under `swag-models recipe`."""
    command = add("evaluate", evaluate, "swag-models recipe evaluate vit_b16_in1k --data imagenet/ --suite imagenet-real")
    command.add_argument("model", help="name, folder, hf-hub:org/repo, timm:NAME or torchvision:NAME[@WEIGHTS]")
    command.add_argument("--data", required=True, help="the suite's folder, or a sub-folder of pictures for each class")
    command.add_argument(
        "--suite",
        default="folder",
        help="imagenet, imagenet-v2, imagenet-real, imagenet-a, imagenet-r, sketch, objectnet or folder (default)",
    )
    command.add_argument("-o", "--output", metavar="FOLDER", help="folder for .json, .md, and .parquet with every picture")
    command.add_argument("--only-present", action="store_true", help="only the classes of the pictures compete")
    command.add_argument("--image-size", type=int, metavar="PIXELS", help="in place of the model's own")
    add_measuring_options(command)
