"""What the tests of benchmarks share: candidates with ImageNet's classes or digits, and small releases in the published folders."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from image_support import make_pixels
from PIL import Image
from tiny import TINY_SPECS, randomise

from swag_models.api import load_model, load_preprocess
from swag_models.publish import save
from swag_models.recipe.hashtags import load_imagenet

IDS = load_imagenet()


def save_tiny(folder: Path, classes: Any = "imagenet-1k", count: int = 1000) -> Path:
    """A published model of random weights, of 32 pixels."""
    spec = TINY_SPECS["vit"]
    spec = replace(
        spec, num_classes=count, classes=classes, preprocess=replace(spec.preprocess, image_size=32)
    )
    return save(randomise(load_model(spec, pretrained=False)), folder, license="mit")


def write_picture(path: Path, seed: int, border: int = 0) -> Path:
    """Colours of this seed, within red pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (12 + 2 * border, 10 + 2 * border), "red")
    image.paste(Image.fromarray(make_pixels(seed, 10, 12)), (border, border))
    image.save(path)
    return path


def write_release(root: Path, folders: Iterable[str]) -> Path:
    """A picture in each folder, named as ImageNet's are, by numbers that are not in the folders' order."""
    folders = list(folders)
    numbers = random.Random(0).sample(range(1, len(folders) + 1), len(folders))
    for folder, number in zip(folders, numbers):
        write_picture(root / folder / f"ILSVRC2012_val_{number:08d}.png", number)
    return root


def write_objectnet(root: Path, first: int = 0) -> dict[str, tuple[str, ...]]:
    """Folders of ObjectNet's with two pictures each, and the mappings, whose lines count from `first`; the ids of each."""
    ids = {
        "alarm_clock": ("n02708093", "n03196217"),
        "chair": ("n02791124", "n03376595", "n04099969"),
        "tie": ("n02883205",),
        "squeegee": (),
    }
    lines = list(range(1000))
    random.Random(1).shuffle(lines)  # the line of each class
    descriptions = [""] * 1000
    for index, line in enumerate(lines):
        descriptions[line] = f"{IDS[index]}, the same in other words"
    labels = {folder: folder.replace("_", " ").capitalize() for folder in ids}
    mapped = {
        labels[folder]: "; ".join(f"{each}, the same in other words" for each in own)
        for folder, own in ids.items()
        if own
    }
    mappings = root / "mappings"
    mappings.mkdir(parents=True)
    (mappings / "folder_to_objectnet_label.json").write_text(json.dumps(labels))
    (mappings / "objectnet_to_imagenet_1k.json").write_text(json.dumps(mapped))
    (mappings / "imagenet_to_label_2012_v2").write_text(
        "".join(f"{line}\n" for line in descriptions)
    )
    numbered = {str(index): line + first for index, line in enumerate(lines)}
    (mappings / "pytorch_to_imagenet_2012_id.json").write_text(json.dumps(numbered))
    for number, folder in enumerate(ids):
        for seed in (10 * number, 10 * number + 1):
            write_picture(root / "images" / folder / f"{seed}.png", seed, border=2)
    return ids


@torch.inference_mode()
def run_by_hand(model: Path, pictures: Mapping[str, Path]) -> dict[str, torch.Tensor]:
    """The logits of each picture (K,), without anything of an evaluation."""
    network, preprocess = load_model(model), load_preprocess(model)
    inputs = torch.stack(
        [preprocess(Image.open(path).convert("RGB")) for path in pictures.values()]
    )
    return dict(zip(pictures, network(inputs)))


def list_pictures(root: Path) -> dict[str, Path]:
    return {str(path.relative_to(root)): path for path in sorted(root.rglob("*.png"))}


def read_labels(album: Any) -> dict[str, tuple[int, ...]]:
    return {album.name(index): album.labels[index] for index in range(len(album))}
