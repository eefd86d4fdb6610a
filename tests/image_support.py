"""Support for tests of inference: image files, shards, a tiny model, and the command line."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from fetch_support import wait_until
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from tiny import TINY_SPECS, tiny

from studies.scenes.posts import split_held_out
from studies.scenes.scene import encode as encode_scene
from studies.scenes.things import NAMES
from swag_models.api import load_classes, load_model, load_preprocess
from swag_models.image_decoding import read_image
from swag_models.spec import ModelSpec

ROOT = Path(__file__).parents[1]
SCENES = ROOT / "examples" / "scenes"
NANO = "vit_nano_hashtags"


def make_pixels(seed: int, height: int = 24, width: int = 32) -> NDArray[np.uint8]:
    """Make random colours (H, W, 3), different for each seed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_images(folder: Path, count: int, suffix: str = ".png", **shape: int) -> list[Path]:
    """Create a folder with `count` image files; return their sorted paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04d}{suffix}" for number in range(count)]
    for number, path in enumerate(paths):
        Image.fromarray(make_pixels(number, **shape)).save(path)
    return paths


def encode_image(seed: int, kind: str = "png") -> bytes:
    """Return the bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(make_pixels(seed)).save(file, kind)
    return file.getvalue()


def write_file(path: Path, content: bytes) -> Path:
    """Write a file; return its path."""
    path.write_bytes(content)
    return path


def list_names(folder: Path) -> list[str]:
    """List the names of the files in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())


def write_tar(path: Path, members: Mapping[str, bytes], mode: str = "w") -> Path:
    """Write a tar file of these members, in this order; `mode` is that of `tarfile.open`."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def make_spec(family: str, folder: Path) -> tuple[ModelSpec, Path]:
    """Make a tiny model with class names, and a file with random weights for it."""
    spec = replace(TINY_SPECS[family], classes=tuple("abcdefghij"))
    save_file(tiny(family).state_dict(), folder / f"{family}.safetensors")
    return spec, folder / f"{family}.safetensors"


@cache
def render_scenes(count: int = 960) -> tuple[list[Image.Image], list[str]]:
    """Render the first held-out images of the studies, balanced by class, with their classes."""
    _, posts = split_held_out(30, 30)
    posts = posts[:count]
    images = [Image.open(io.BytesIO(encode_scene(post.scene, 64))).convert("RGB") for post in posts]
    return images, [post.row["thing"] for post in posts]


@torch.inference_mode()
def compute_probabilities(images: Sequence[Image.Image | Path], name: str = NANO) -> torch.Tensor:
    """Compute the probabilities (N, K) of images without the inference package."""
    model, preprocess = load_model(name), load_preprocess(name)
    opened = [image if isinstance(image, Image.Image) else read_image(image) for image in images]
    return model(torch.stack([preprocess(image) for image in opened])).softmax(dim=1)


def predict_labels(*images: Image.Image | Path, name: str = NANO) -> list[str]:
    """Find the most probable hashtag of each image without the inference package."""
    classes = load_classes(name)
    return [classes[index] for index in compute_probabilities(images, name).argmax(dim=1).tolist()]


def measure_top1(name: str) -> float:
    """Measure accuracy in percent on held-out images, among the hashtags of the classes only."""
    images, truths = render_scenes()
    columns = [load_classes(name).index(class_name) for class_name in NAMES]
    predicted = compute_probabilities(images, name)[:, columns].argmax(dim=1).tolist()
    hits = sum(NAMES[index] == truth for index, truth in zip(predicted, truths, strict=True))
    return 100 * hits / len(truths)


def make_command(*arguments: str | Path) -> list[str]:
    """Return the command line of `swag-models` with these arguments, for this interpreter."""
    return [sys.executable, "-m", "swag_models", *map(str, arguments)]


def run_command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `swag-models` in a new process and wait until it ends."""
    return subprocess.run(make_command(*arguments), capture_output=True, text=True, check=False)


@contextlib.contextmanager
def interrupt_when(condition: Callable[[], bool]) -> Iterator[None]:
    """Send this process SIGINT, as Ctrl-C does, once the condition holds."""

    def watch() -> None:
        wait_until(condition)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        thread.join()
