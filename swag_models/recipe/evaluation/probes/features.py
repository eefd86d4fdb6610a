"""Features of a frozen model for all images of a data set, computed once and cached on disk.

A cache folder contains one folder for each combination of model, data and dtype:

    vectors.npy   features, read memory-mapped
    labels.npy    classes
    facts.json    names, class names and skipped images; written last, to mark completion

Axes: N images, D feature width, n images of a batch.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from swag_models.atomic import atomic_write, disk_errors
from swag_models.errors import CacheError, ConfigError, OutputError
from swag_models.hub.cache import cache_folder
from swag_models.paths import expand_path
from swag_models.recipe.data.collate import Batch
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.eval_loader import EvalLoader, log_skipped, open_eval_loader
from swag_models.recipe.data.shards import Shards, find_shards, hash_shards, name_shards
from swag_models.recipe.data.sources import EVAL_SPLITS, find_image_folder, open_image_dataset
from swag_models.recipe.evaluation.models import EvaluatedModel
from swag_models.recipe.evaluation.row_pass import collect_rows
from swag_models.recipe.training.distributed import SINGLE_PROCESS, DistContext
from swag_models.resumable import WorkFolder, read_result, write_result

FACTS_FILE = "facts.json"
COPIED_ROWS = 4096  # at once, from the temporary file
FLOAT16_MAX = float(np.finfo(np.float16).max)
FeatureDtype = Literal["float16", "float32"]


@dataclass(frozen=True)
class Features:
    """Features of labelled images.

    Attributes:
        vectors: (N, D), float16 or float32, memory-mapped.
        labels: first class of each image (N,).
        names: name of each image.
        class_names: name of each class; None if they have no names.
        num_classes: number of classes.
        skipped: number of images that could not be read and are left out, by error message.
    """

    vectors: NDArray[Any]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    class_names: tuple[str, ...] | None
    num_classes: int
    skipped: Mapping[str, int]

    @property
    def num_skipped(self) -> int:
        """Number of images that are left out."""
        return sum(self.skipped.values())


def extract_features(
    model: EvaluatedModel,
    data: Shards | ImageDataset,
    cache: str | os.PathLike[str] | None = None,
    *,
    dtype: FeatureDtype = "float16",
    classes: Sequence[str] | None = None,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
    dist: DistContext = SINGLE_PROCESS,
) -> Features:
    """Compute the features of all images, or read them from the cache, which only rank 0 needs.

    Cached features are used if the weights and preprocessing of the model, the files of the data
    (by path, size and modification time), the classes and the dtype are the same.

    Args:
        model: the model.
        data: as for `open_eval_loader`.
        cache: folder of the cache; by default `features` in the cache folder of downloads.
        dtype: dtype of the stored features.
        classes: class names to number labels by, as for `open_eval_loader`.
        batch_size: images per forward pass of a rank.
        workers: number of processes per rank that read images.
        progress: show a progress bar.
        dist: the ranks that share the work; by default this process alone.

    Returns:
        The features on rank 0. On other ranks only the classes and `skipped` are set, and there are
        no images.

    Raises:
        ConfigError: a feature is not finite or too large for the dtype, or no image can be read.
        CacheError: the cache cannot be written.
    """
    if dtype not in ("float16", "float32"):
        raise ConfigError(f"invalid dtype {dtype!r} of features: allowed float16 and float32")
    if not isinstance(data, ImageDataset) and (root := find_image_folder(data)):
        data = open_image_dataset(root, classes, EVAL_SPLITS)
    loader = open_eval_loader(
        data,
        model.fit,
        batch_size=batch_size,
        rank=dist.rank,
        world_size=dist.world_size,
        workers=workers,
        classes=classes,
    )
    cache_root = expand_path(cache, "cache") if cache is not None else cache_folder() / "features"
    with ExitStack() as stack:
        folder, key, facts = dist.run_on_main(
            partial(_find_cached, stack, cache_root, model, loader, data, dtype)
        )
        paths = [folder / "vectors.npy", folder / "labels.npy"]
        if facts is None:
            try:
                facts = _write_features(
                    model, loader, paths, dtype, dist, batch_size=batch_size, progress=progress
                )
                dist.run_on_main(partial(write_result, folder / FACTS_FILE, key, paths, facts))
            except OutputError as error:
                raise CacheError(f"{error}; choose another cache folder") from None
    if dist.is_main:
        log_skipped(loader.facts["name"], facts["skipped"])
    return Features(
        # Copy-on-write instead of read-only, because torch warns about read-only arrays.
        vectors=np.load(paths[0], mmap_mode="c") if dist.is_main else np.empty((0, 0), dtype),
        labels=np.load(paths[1]) if dist.is_main else np.empty(0, np.int64),
        names=tuple(facts["names"]) if dist.is_main else (),
        class_names=tuple(facts["class_names"]) if facts["class_names"] else None,
        num_classes=facts["num_classes"],
        skipped=facts["skipped"],
    )


def _find_cached(
    stack: ExitStack,
    cache_root: Path,
    model: EvaluatedModel,
    loader: EvalLoader,
    data: Shards | ImageDataset,
    dtype: FeatureDtype,
) -> tuple[Path, Any, dict[str, Any] | None]:
    """Lock the folder of the features in the cache until the stack is closed.

    Returns:
        The folder, the key of the features, and the content of facts.json; None if they must be
        computed.
    """
    # Everything that the stored features and labels depend on.
    key = [
        model.hash_content(),
        loader.facts["sha256"],
        hash_file_states(data),
        dtype,
        loader.class_names,
    ]
    folder = cache_root / hashlib.sha256(json.dumps(key).encode()).hexdigest()
    try:
        with disk_errors(folder):
            # Another process that needs the same features waits for this one, and reads its result.
            stack.enter_context(WorkFolder(folder, wait=True))
            files = [folder / "vectors.npy", folder / "labels.npy"]
            with suppress(LookupError):
                return folder, key, read_result(folder / FACTS_FILE, key, files)
            # If this run is killed, no record may remain beside files that it replaces.
            (folder / FACTS_FILE).unlink(missing_ok=True)
    except OutputError as error:
        raise CacheError(f"{error}; choose another cache folder") from None
    return folder, key, None


def identify_data(data: Shards | ImageDataset) -> list[str] | None:
    """Return texts that change with the images and labels of local data; None for URLs."""
    if isinstance(data, ImageDataset):
        return [data.title, data.sha256, hash_file_states(data)]
    if not all(map(os.path.exists, find_shards(data)[0])):
        return None  # what a URL leads to may change unnoticed
    return [name_shards(data), hash_shards(data), hash_file_states(data)]


def hash_file_states(data: Shards | ImageDataset) -> str:
    """Return the SHA-256 of the paths, sizes and modification times of all files, and of URLs.

    `facts["sha256"]` of the data depends only on names and sizes, so that it is the same on every
    machine. This hash also detects changes of files whose names and sizes stay the same, but is
    valid only on this machine.
    """
    digest, resolve = hashlib.sha256(), cache(os.path.realpath)  # many files, few folders
    if isinstance(data, ImageDataset):
        paths: Iterable[str | Path] = (data.root / path for path in data.files)
    else:
        paths = find_shards(data)[0]
    for path in paths:
        state: list[str | int] = [os.fspath(path)]
        if os.path.exists(path):  # not a URL
            folder, name = os.path.split(path)
            status = os.stat(path)
            state = [resolve(folder), name, status.st_size, status.st_mtime_ns]
        digest.update(f"{json.dumps(state)}\n".encode())
    return digest.hexdigest()


def _write_features(
    model: EvaluatedModel,
    loader: EvalLoader,
    paths: Sequence[Path],
    dtype: FeatureDtype,
    dist: DistContext,
    **options: Any,
) -> dict[str, Any]:
    """Compute the features on all ranks, and write them and the labels on rank 0.

    Returns:
        The content of facts.json.
    """

    def compute(batch: Batch) -> tuple[NDArray[Any]]:
        vectors = model.embed(batch.images).numpy()  # (n, D)
        _check_range(vectors, dtype, model.name, batch.ids[0])
        if () in batch.classes:
            name = batch.ids[batch.classes.index(())]
            raise ConfigError(f"{name} has no class; give images with at least one class each")
        return (vectors.astype(dtype),)

    rows = collect_rows(loader, compute, dist, paths[0].parent, title="features", **options)
    loader.require_images(loader.facts["name"])

    def write() -> dict[str, Any]:
        vectors_path, labels_path = paths
        [vectors], labels = rows.outputs, [classes[0] for classes in rows.classes]
        with atomic_write(vectors_path) as temporary, open(temporary, "wb") as file:
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": vectors.shape}
            np.lib.format.write_array_header_1_0(file, header)
            for block in vectors.split(COPIED_ROWS):
                file.write(block.data)
        with atomic_write(labels_path) as temporary, open(temporary, "wb") as file:
            np.save(file, np.array(labels, np.int64))
        return {
            "names": rows.names,
            "class_names": loader.class_names,
            "num_classes": loader.num_classes or max(labels) + 1,
            "skipped": dict(loader.skipped),
        }

    return dist.run_on_main(write)


def _check_range(vectors: NDArray[Any], dtype: FeatureDtype, model: str, image: str) -> None:
    """Raise ConfigError if features overflow float16; name the first image."""
    largest = float(np.abs(vectors).max())
    if dtype == "float16" and largest > FLOAT16_MAX:
        raise ConfigError(
            f"features of {model} reach {largest:.0f} near {image}; the maximum of float16 is "
            f"{FLOAT16_MAX:.0f}: store features as float32"
        )
