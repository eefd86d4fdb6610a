"""Subcommands that put a model to work on pictures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from swag_models.cli.terms import FAILED, OK, Add, say
from swag_models.errors import ConfigError, ImageError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


def classify(options: argparse.Namespace) -> int:
    """Most probable classes of pictures."""
    paths = list(_find_images(options.image))
    from swag_models.inference import Classifier
    from swag_models.preprocess import read_image

    size = {} if options.image_size is None else {"image_size": options.image_size}
    classifier = Classifier(options.model, device=options.device, **size)
    failed = 0
    for path in paths:
        try:
            (predictions,) = classifier([read_image(path)], top_k=options.top_k)
        except ImageError as error:
            say(f"skipped: {error}")
            failed += 1
            continue
        if options.json:
            print(json.dumps({"image": str(path), "predictions": [asdict(each) for each in predictions]}), flush=True)
        else:
            print(path)
            for each in predictions:
                print(f"  {each.probability:7.2%}  {each.label}", flush=True)
    if failed:
        say(f"{failed} of {len(paths)} images could not be read")
    return FAILED if failed else OK


def add_commands(add: Add) -> None:
    """Declare the subcommands of this module."""
    command = add("classify", classify, "swag-models classify photo.jpg --model vit_b16_in1k --top-k 3")
    command.add_argument("image", nargs="+", help="files, folders or shell patterns")
    command.add_argument("--model", required=True, help="model with classes")
    command.add_argument("--top-k", type=int, default=5, help="classes per image (default: 5)")
    command.add_argument("--image-size", type=int, help="pixels (default: the model's)")
    command.add_argument("--device", default="cpu", help="for example cuda (default: cpu)")
    command.add_argument("--json", action="store_true", help="print one JSON object per image and line")


def _find_images(patterns: Sequence[str]) -> Iterator[Path]:
    """Files as given, images below folders, matches of shell patterns; each group in sorted order."""
    import glob

    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            found = sorted(each for each in path.rglob("*") if each.suffix.lower() in IMAGE_SUFFIXES)
        elif path.exists() or not glob.has_magic(pattern):
            found = [path]  # also if it is missing: reading it will say so
        else:
            found = [Path(each) for each in sorted(glob.glob(pattern, recursive=True))]
        if not found:
            raise ConfigError(f"no image in {pattern}; give files, folders or patterns with {' '.join(sorted(IMAGE_SUFFIXES))}")
        yield from found
