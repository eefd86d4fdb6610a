"""Subcommands that put a model to work on pictures."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from typing import Any

from swag_models.cli.common import FAILED, OK, Add, say
from swag_models.errors import ConfigError


def classify(options: argparse.Namespace) -> int:
    """Most probable classes of pictures."""
    from swag_models.inference.image_sources import find_images
    from swag_models.inference.predict import Classifier

    pictures = find_images(options.image)
    classifier = Classifier(options.model, **_engine_options(options))
    failed = 0
    for name, predictions, reason in classifier.stream(pictures, options.top_k):
        if reason:
            say(f"skipped: {reason}")
            failed += 1
        elif options.json:
            print(
                json.dumps({"image": name, "predictions": [asdict(each) for each in predictions]}),
                flush=True,
            )
        else:
            print(name)
            for each in predictions:
                print(f"  {each.probability:7.2%}  {each.label}", flush=True)
    if failed:
        say(f"{failed} of {len(pictures)} images could not be read")
    return FAILED if failed else OK


def embed(options: argparse.Namespace) -> int:
    """Features of pictures, in one file; run again after a kill, it goes on; torchrun splits the work."""
    from swag_models.inference.embed import write_embeddings
    from swag_models.inference.embeddings_file import check_embeddings_path
    from swag_models.inference.image_sources import find_images
    from swag_models.inference.predict import Embedder

    output = check_embeddings_path(options.output)
    pictures = find_images(options.image)
    rank, world_size = _read_number("RANK", 0), _read_number("WORLD_SIZE", 1)
    if options.device == "cuda" and world_size > 1:
        options.device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    embedder = Embedder(options.model, **_engine_options(options))
    report = write_embeddings(
        embedder,
        pictures,
        output,
        rank=rank,
        world_size=world_size,
        progress=not options.quiet and rank == 0,
    )
    for each in report.skipped:
        say(f"skipped: {each.reason}")
    say(
        f"{report.rows} rows"
        + (f", {len(report.skipped)} pictures could not be read" if report.skipped else "")
    )
    print(report.path)
    return FAILED if report.skipped else OK


def merge(options: argparse.Namespace) -> int:
    """Put the embeddings that several processes wrote into one file."""
    from swag_models.inference.embed import merge_embeddings

    report = merge_embeddings(options.part, options.output)
    say(f"{report.rows} rows")
    print(report.path)
    return OK


def add_commands(add: Add) -> None:
    """Declare the subcommands of this module."""
    command = add(
        "classify", classify, "swag-models classify photo.jpg --model vit_b16_in1k --top-k 3"
    )
    _add_engine_options(command)
    command.add_argument("--top-k", type=int, default=5, help="classes per image (default: 5)")
    command.add_argument(
        "--json", action="store_true", help="print one JSON object per image and line"
    )

    command = add("embed", embed, "swag-models embed photos/ --model vit_b16 -o photos.parquet")
    _add_engine_options(command)
    command.add_argument("-o", "--output", required=True, help="file to write: .parquet or .npy")
    command.add_argument("--quiet", action="store_true", help="no progress bar")

    command = add("merge", merge, "swag-models merge photos-0*-of-00002.parquet -o photos.parquet")
    command.add_argument("part", nargs="+", help="the files that the processes wrote")
    command.add_argument("-o", "--output", required=True, help="file to write")


def _add_engine_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("image", nargs="+", help="files, folders, tar shards or shell patterns")
    command.add_argument("--model", required=True, help="name, folder or hf-hub:org/repo")
    command.add_argument("--image-size", type=int, help="pixels (default: the model's)")
    command.add_argument("--device", default="cpu", help="for example cuda (default: cpu)")
    command.add_argument(
        "--dtype", help="float32, bfloat16 or float16 (default: float32, or with --fast the best)"
    )
    command.add_argument(
        "--fast", action="store_true", help="the best safe setting for the hardware"
    )
    command.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="torch.compile (default: if --fast and it repays)",
    )
    command.add_argument(
        "--batch-size", type=int, help="pictures in one forward pass (default: 32, on a GPU 256)"
    )
    command.add_argument(
        "--workers", type=int, help="threads that read pictures (default: one per processor)"
    )


def _read_number(name: str, default: int) -> int:
    """A number that torchrun sets in the environment."""
    text = os.environ.get(name, default)
    try:
        return int(text)
    except ValueError:
        raise ConfigError(
            f"{name} is {text!r} in the environment; give a whole number as torchrun does, or unset it"
        ) from None


def _engine_options(options: argparse.Namespace) -> dict[str, Any]:
    names = ("image_size", "device", "dtype", "fast", "compile", "batch_size", "workers")
    return {name: getattr(options, name) for name in names}
