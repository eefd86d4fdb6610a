"""Support for tests of benchmarks: tiny models, and small releases in their folder layouts."""

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
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.hashtags import load_imagenet

WNIDS = load_imagenet()
MAPPED_WNIDS = {  # of the folders of `write_objectnet`
    "alarm_clock": ("n02708093", "n03196217"),
    "chair": ("n02791124", "n03376595", "n04099969"),
    "tie": ("n02883205",),
    "squeegee": (),
}


def save_tiny(folder: Path, classes: Any = "imagenet-1k", count: int | None = 1000) -> Path:
    """Publish a model with random weights, for images of 32 pixels."""
    spec = TINY_SPECS["vit"]
    preprocess = replace(spec.preprocess, image_size=32)
    spec = replace(spec, num_classes=count, classes=classes, preprocess=preprocess)
    return save(randomise(load_model(spec, pretrained=False)), folder, license="mit")


def write_image(path: Path, seed: int, border: int = 0) -> Path:
    """Write random colours within a red border."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (12 + 2 * border, 10 + 2 * border), "red")
    image.paste(Image.fromarray(make_pixels(seed, 10, 12)), (border, border))
    image.save(path)
    return path


def write_release(root: Path, folders: Iterable[str]) -> Path:
    """Write an image into each folder, named as in ImageNet, with numbers in random order."""
    folders = list(folders)
    numbers = random.Random(0).sample(range(1, len(folders) + 1), len(folders))
    for folder, number in zip(folders, numbers):
        write_image(root / folder / f"ILSVRC2012_val_{number:08d}.png", number)
    return root


def write_objectnet(root: Path, first: int = 0) -> None:
    """Write folders of ObjectNet with two images each, and the mappings of `MAPPED_WNIDS`.

    Args:
        root: the folder of the release.
        first: number of the first line in the mappings.
    """
    lines = list(range(1000))
    random.Random(1).shuffle(lines)  # the line of each class
    descriptions = [""] * 1000
    for index, line in enumerate(lines):
        descriptions[line] = f"{WNIDS[index]}, the same in other words"
    labels = {folder: folder.replace("_", " ").capitalize() for folder in MAPPED_WNIDS}
    label_classes = {
        labels[folder]: "; ".join(f"{wnid}, the same in other words" for wnid in wnids)
        for folder, wnids in MAPPED_WNIDS.items()
        if wnids
    }
    line_numbers = {str(index): line + first for index, line in enumerate(lines)}
    mappings = root / "mappings"
    mappings.mkdir(parents=True)
    (mappings / "folder_to_objectnet_label.json").write_text(json.dumps(labels))
    (mappings / "objectnet_to_imagenet_1k.json").write_text(json.dumps(label_classes))
    (mappings / "imagenet_to_label_2012_v2").write_text("\n".join(descriptions) + "\n")
    (mappings / "pytorch_to_imagenet_2012_id.json").write_text(json.dumps(line_numbers))
    for number, folder in enumerate(MAPPED_WNIDS):
        for seed in (10 * number, 10 * number + 1):
            write_image(root / "images" / folder / f"{seed}.png", seed, border=2)


@torch.inference_mode()
def compute_logits(model: Path, images: Mapping[str, Path]) -> dict[str, torch.Tensor]:
    """Compute the logits of each image (K,) without the evaluation package."""
    network, preprocess = load_model(model), load_preprocess(model)
    inputs = [preprocess(Image.open(path).convert("RGB")) for path in images.values()]
    return dict(zip(images, network(torch.stack(inputs))))


def list_images(root: Path) -> dict[str, Path]:
    """List the path of each image by its name, the path relative to `root`."""
    return {str(path.relative_to(root)): path for path in sorted(root.rglob("*.png"))}


def read_labels(dataset: ImageDataset) -> dict[str, tuple[int, ...]]:
    return {dataset.name(index): labels for index, labels in enumerate(dataset.labels)}
