"""What the tests of inference share: pictures on disk, shards, a tiny model, and the command in a process of its own."""

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
from swag_models.preprocess import read_image
from swag_models.spec import ModelSpec

ROOT = Path(__file__).parents[1]
SCENES = ROOT / "examples" / "scenes"
NANO = "vit_nano_hashtags"


def make_pixels(seed: int, height: int = 24, width: int = 32) -> NDArray[np.uint8]:
    """Colours (H, W, 3) that no other seed gives."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def make_pictures(folder: Path, count: int, suffix: str = ".png", **shape: int) -> list[Path]:
    """`count` picture files in a folder, which is made, in the order of their names."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04d}{suffix}" for number in range(count)]
    for number, path in enumerate(paths):
        Image.fromarray(make_pixels(number, **shape)).save(path)
    return paths


def encode(seed: int, kind: str = "png") -> bytes:
    """The bytes of a picture file."""
    file = io.BytesIO()
    Image.fromarray(make_pixels(seed)).save(file, kind)
    return file.getvalue()


def put(path: Path, content: bytes) -> Path:
    """A file with this content."""
    path.write_bytes(content)
    return path


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_tar(path: Path, members: Mapping[str, bytes], mode: str = "w") -> Path:
    """A tar file of these members, in this order, in the form that `mode` says."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def make_spec(family: str, folder: Path) -> tuple[ModelSpec, Path]:
    """A tiny model with class names, and a file with random weights for it."""
    spec = replace(TINY_SPECS[family], classes=tuple("abcdefghij"))
    save_file(tiny(family).state_dict(), folder / f"{family}.safetensors")
    return spec, folder / f"{family}.safetensors"


@cache
def paint_scenes(count: int = 960) -> tuple[list[Image.Image], list[str]]:
    """Held-out pictures and the things that they show, all of them as often: the first of those that studies test on."""
    _, tested = split_held_out(30, 30)
    pictures = [
        Image.open(io.BytesIO(encode_scene(each.scene, 64))).convert("RGB")
        for each in tested[:count]
    ]
    return pictures, [each.row["thing"] for each in tested[:count]]


@torch.inference_mode()
def run_by_hand(pictures: Sequence[Image.Image | Path], name: str = NANO) -> torch.Tensor:
    """The probabilities (N, K) that a model gives pictures."""
    model, preprocess = load_model(name), load_preprocess(name)
    images = [each if isinstance(each, Image.Image) else read_image(each) for each in pictures]
    return model(torch.stack([preprocess(image) for image in images])).softmax(dim=1)


def name_by_hand(*pictures: Image.Image | Path, name: str = NANO) -> list[str]:
    """The likeliest hashtag of each picture."""
    return [
        load_classes(name)[index] for index in run_by_hand(pictures, name).argmax(dim=1).tolist()
    ]


def measure_top1(name: str) -> float:
    """Accuracy in percent on held-out pictures, where only the things' own hashtags compete."""
    pictures, things = paint_scenes()
    columns = [load_classes(name).index(thing) for thing in NAMES]
    found = run_by_hand(pictures, name)[:, columns].argmax(dim=1).tolist()
    return (
        100
        * sum(NAMES[each] == thing for each, thing in zip(found, things, strict=True))
        / len(things)
    )


def make_command(*arguments: str | Path) -> list[str]:
    """`swag-models` with these arguments, to be run with this interpreter."""
    return [sys.executable, "-m", "swag_models", *map(str, arguments)]


def run_command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`swag-models` in a process of its own, once it has ended."""
    return subprocess.run(make_command(*arguments), capture_output=True, text=True, check=False)


@contextlib.contextmanager
def interrupt_when(condition: Callable[[], bool]) -> Iterator[None]:
    """As if Ctrl-C were pressed once the condition holds."""

    def watch() -> None:
        wait_until(condition)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        thread.join()
