"""The features of a model for all pictures of labelled data, computed once and kept on disk.

Axes: N pictures, D width, n of a batch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache as remember
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from swag_models.errors import CacheError, ConfigError
from swag_models.hub.cache import cache_folder
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.eval_loader import EvalLoader, open_eval_loader
from swag_models.recipe.data.hf_dataset import EVAL_SPLITS
from swag_models.recipe.data.shards import Shards, find_shards
from swag_models.recipe.data.sources import find_image_folder, open_image_dataset
from swag_models.recipe.evaluation.models import EvaluatedModel

FLOAT16 = float(np.finfo(np.float16).max)
Kind = Literal["float16", "float32"]


@dataclass(frozen=True)
class Features:
    """vectors (N, D), mapped from disk; labels (N,), the first class of each picture; names, of the pictures.

    class_names: None if they have none. skipped: broken pictures, which are left out, by message.
    """

    vectors: NDArray[Any]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    class_names: tuple[str, ...] | None
    num_classes: int
    skipped: Mapping[str, int]


def extract_features(
    candidate: EvaluatedModel,
    data: Shards | ImageDataset,
    cache: str | os.PathLike[str] | None = None,
    *,
    dtype: Kind = "float16",
    classes: Sequence[str] | None = None,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
) -> Features:
    """The features of all pictures, from the cache if they are there: known by the model's content, files' state, and dtype.

    data, classes: as `open_eval_loader` takes them. cache: a folder, by default in that of downloads. ConfigError if a feature is not
    finite or beyond what the dtype holds, or no picture can be read; CacheError if the folder cannot be written.
    """
    if dtype not in ("float16", "float32"):
        raise ConfigError(f"features are {dtype!r}; allowed: float16 and float32")
    if not isinstance(data, ImageDataset) and (root := find_image_folder(data)):
        data = open_image_dataset(root, classes, EVAL_SPLITS)
    check = open_eval_loader(
        data,
        candidate.fit,
        batch_size=batch_size,
        rank=0,
        world_size=1,
        workers=workers,
        classes=classes,
    )
    content = [
        candidate.hash_content(),
        check.facts["sha256"],
        hash_state(data),
        dtype,
        check.class_names,
    ]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    folder = (Path(cache) if cache is not None else cache_folder() / "features") / key
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{key}.lock")):
            if not folder.exists():
                temporary = folder.with_name(f".{key}.tmp")
                shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
                temporary.mkdir()
                try:
                    _write(candidate, check, temporary, dtype, progress)
                    temporary.rename(folder)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise CacheError(
            f"{error.filename or folder} cannot be written: {error.strerror or error}; give another cache"
        ) from None
    return _open(folder)


def hash_state(data: Shards | ImageDataset) -> str:
    """SHA-256 of the places, sizes and times of change of all files, and of URLs as they are.

    Unlike the `facts` of data it tells apart what has equal names and sizes, but only on one machine.
    """
    digest, resolve = hashlib.sha256(), remember(os.path.realpath)
    files = (
        [data.root / file for file in data.files]
        if isinstance(data, ImageDataset)
        else find_shards(data)[0]
    )
    for file in files:
        state: list[str | int] = [os.fspath(file)]
        if os.path.exists(file):
            folder, name = os.path.split(file)
            status = os.stat(file)
            state = [resolve(folder), name, status.st_size, status.st_mtime_ns]
        digest.update(f"{json.dumps(state)}\n".encode())
    return digest.hexdigest()


def _write(
    candidate: EvaluatedModel, check: EvalLoader, folder: Path, dtype: Kind, progress: bool
) -> None:
    names, labels = list[str](), list[int]()
    with (
        open(folder / "vectors.npy", "wb") as file,
        tqdm(total=check.samples, desc="features", unit="img", disable=not progress) as bar,
    ):
        for batch in check:
            vectors = candidate.embed(batch.images).numpy()  # (n, D)
            most = float(np.abs(vectors).max())
            if not np.isfinite(most):
                raise ConfigError(
                    f"features of {candidate.name} are not finite, near {batch.ids[0]}; try dtype float32"
                )
            if dtype == "float16" and most > FLOAT16:
                raise ConfigError(
                    f"features of {candidate.name} reach {most:.0f} near {batch.ids[0]}; float16 ends at {FLOAT16:.0f}: "
                    "keep features as float32"
                )
            if not names:
                _write_header(file, 0, vectors.shape[1], dtype)
                start = file.tell()
            file.write(np.ascontiguousarray(vectors, dtype).data)
            names += batch.ids
            labels += [each[0] for each in batch.classes]
            bar.update(len(batch.ids))
        if not names:
            raise ConfigError(f"{check.facts['name']} has no picture that can be read")
        file.seek(0)
        _write_header(
            file, len(names), vectors.shape[1], dtype
        )  # numpy leaves room for the count to grow
        assert file.tell() == start
    np.save(folder / "labels.npy", np.array(labels, np.int64))
    facts = {
        "names": names,
        "class_names": check.class_names,
        "num_classes": check.num_classes or max(labels) + 1,
        "skipped": dict(check.skipped),
    }
    (folder / "facts.json").write_text(json.dumps(facts), "utf-8")


def _write_header(file: BinaryIO, count: int, width: int, dtype: Kind) -> None:
    shape = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (count, width)}
    np.lib.format.write_array_header_1_0(file, shape)


def _open(folder: Path) -> Features:
    facts = json.loads((folder / "facts.json").read_text("utf-8"))
    return Features(
        np.load(
            folder / "vectors.npy", mmap_mode="c"
        ),  # which torch takes, unlike what cannot be written
        np.load(folder / "labels.npy"),
        tuple(facts["names"]),
        tuple(facts["class_names"]) if facts["class_names"] else None,
        facts["num_classes"],
        facts["skipped"],
    )
