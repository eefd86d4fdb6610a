"""Subcommands that measure a model: its classes, its features, its hashtags, and what they go with."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from swag_models.cli.terms import FAILED, OK, Add, say


def evaluate(options: argparse.Namespace) -> int:
    """Accuracy and calibration of a model on pictures with labels; torchrun splits the work."""
    from swag_models.pictures import count_processors
    from swag_models.recipe.evaluation.candidates import open_candidate
    from swag_models.recipe.evaluation.evaluate import evaluate, tabulate_evaluations, write_evaluation
    from swag_models.recipe.parallel import open_ranks

    with open_ranks() as ranks:
        device = ranks.device if options.device in (None, ranks.device.type) else options.device
        candidate = open_candidate(options.model, device=device, dtype=options.dtype, image_size=options.image_size)
        workers = options.workers
        if workers is None:  # a processor runs the model itself
            processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            workers = 0 if candidate.device.type == "cpu" else max(1, count_processors() // processes)
        found = evaluate(
            candidate,
            options.data,
            options.suite,
            ranks=ranks,
            batch_size=options.batch_size,
            workers=workers,
            only_present=options.only_present,
            progress=not options.quiet,
        )
        if options.output:
            ranks.lead(lambda: write_evaluation(found, Path(options.output)))
        if ranks.first:
            for reason, count in found.skipped.items():
                say(f"skipped: {reason}" + (f" ({count:,} times)" if count > 1 else ""))
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
    command.add_argument("--device", help="default: the GPU if there is one, one for each process")
    command.add_argument("--dtype", help="float32 (default), bfloat16, float16")
    command.add_argument("--image-size", type=int, metavar="PIXELS", help="in place of the model's own")
    command.add_argument("--batch-size", type=int, default=64, help="default: 64")
    command.add_argument("--workers", type=int, help="processes that read pictures (default: with a GPU one per processor)")
    command.add_argument("--json", action="store_true", help="print JSON in place of the table")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
