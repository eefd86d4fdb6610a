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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from fetch_support import wait_until
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tiny import TINY_SPECS, tiny

from swag_models.spec import ModelSpec

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "examples" / "digits"
NANO = "vit_nano_digits"


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


def split_digits(part: str = "held out") -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures (N, 8, 8) and digits (N,): the 450 that the model that ships never saw, or the 1347 it was trained on."""
    digits = load_digits()
    pixels = (digits.images * 255 / 16).round().astype(np.uint8)
    split = train_test_split(pixels, digits.target, test_size=0.25, random_state=0, stratify=digits.target)
    return (split[1], split[3]) if part == "held out" else (split[0], split[2])


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
