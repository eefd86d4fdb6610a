"""Embeddings of the images of a folder, kept on disk so that each image is embedded once.

The index of one model and one folder is stored in a folder of its own, as files of embeddings that
`swag-models nearest` reads too. Each save adds a file with the new rows, and once all images are
embedded one file replaces them. A process that is killed loses the rows since its last save.

Axes: N images, D features.
"""

import hashlib
import json
import logging
import os
import time
from collections import Counter, OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swag_models.app.service import load_folder_embedder
from swag_models.atomic import disk_errors
from swag_models.errors import ConfigError, OutputError
from swag_models.inference.embed_job import describe_images, describe_job, hash_states
from swag_models.inference.embeddings_file import (
    get_metadata_path,
    hash_rows,
    read_embeddings_metadata,
    read_intact_embeddings,
    write_embeddings_file,
)
from swag_models.inference.image_sources import ImageRef, find_images
from swag_models.inference.predict import Skipped
from swag_models.paths import expand_path
from swag_models.resumable import read_state
from swag_models.spec import ModelSpec

MAX_INDEXES = 2  # in memory; 100,000 images of ViT-B/16 take 300 MB
LIST_INTERVAL = 60  # seconds until a folder that is being embedded is listed again
SAVE_INTERVAL = 30  # seconds of work that a killed process loses at most
SHUTDOWN_WAIT = 1  # seconds that the end of the page waits for a batch

logger = logging.getLogger("swag_models")


class FolderImage(NamedTuple):
    """An image of a folder.

    Attributes:
        ref: the image.
        state: what `read_state` returned for its file; None if that is not known.
    """

    ref: ImageRef
    state: Any


@dataclass
class Row:
    """What the index has of an image.

    Attributes:
        state: state of the file that was embedded.
        value: its features (D,), or the reason why it cannot be read.
        is_saved: whether it is on disk. Reasons are not saved, so that the next start tries again.
    """

    state: Any
    value: Tensor | Skipped
    is_saved: bool = False


class FolderIndex:
    """The index of one folder for one model.

    Args:
        spec: the model, whose weights are on this machine.
        root: the folder, an absolute path; it is searched to any depth.
        store: folder with the indexes of all models and folders; None to keep it in memory only.
        lock: locked while images are embedded.

    Attributes:
        images: the images of the folder by name, as last listed by `embed`.
        problem: why the index is not kept on disk; "" if it is.
    """

    def __init__(self, spec: ModelSpec, root: Path, store: Path | None, lock: RLock) -> None:
        self.spec, self.root, self.lock = spec, root, lock
        self.images: dict[str, FolderImage] = {}
        self.rows: dict[str, Row] = {}
        self.problem = ""
        self._missing: list[ImageRef] = []
        self._listed = self._saved = time.monotonic()
        self._files: list[Path] = []
        self._folder: Path | None = None
        self._job: dict[str, Any] = {}
        if store is not None:
            self._job = describe_job(load_folder_embedder(spec), ())
            key = json.dumps([str(root), self._job], sort_keys=True)
            self._folder = store / hashlib.sha256(key.encode()).hexdigest()[:32]
            self._read()

    def embed(self, seconds: float = 1) -> tuple[int, int]:
        """Embed images that are new or have changed, for a limited time.

        Args:
            seconds: stop after the first batch that ends later.

        Returns:
            (number of images embedded so far, number of images in the folder).

        Raises:
            ConfigError: the folder is missing or contains no image.
        """
        with self.lock:
            if not self._missing or time.monotonic() > self._listed + LIST_INTERVAL:
                self._list()
            start = time.monotonic()
            refs = list(self._missing)
            for batch in load_folder_embedder(self.spec).run(refs) if refs else ():
                values = [] if batch.values is None else list(batch.values)
                for name, value in [
                    *zip(batch.names, values),
                    *((image.name, image) for image in batch.skipped),
                ]:
                    self.rows[name] = Row(self.images[name].state, value)
                del self._missing[: len(batch.images)]
                if time.monotonic() > start + seconds:
                    break
            done = len(self.images) - len(self._missing)
            if done == len(self.images) or time.monotonic() > self._saved + SAVE_INTERVAL:
                self.save()
            return done, len(self.images)

    def _list(self) -> None:
        """List the images of the folder, and those that have to be embedded."""
        self._listed = time.monotonic()
        self.images = list_images(self.root)
        self._missing = [
            image.ref
            for name, image in self.images.items()
            if name not in self.rows or self.rows[name].state != image.state
        ]

    def list_rows(self) -> tuple[list[FolderImage], Tensor, list[Skipped]]:
        """The images that are embedded, their features (N, D), and those that cannot be read."""
        with self.lock:
            rows = [
                (image, row.value)
                for name, image in self.images.items()
                if (row := self.rows.get(name)) and row.state == image.state
            ]
        images = [image for image, value in rows if isinstance(value, Tensor)]
        vectors = [value for _, value in rows if isinstance(value, Tensor)]
        skipped = [value for _, value in rows if isinstance(value, Skipped)]
        return images, torch.stack(vectors) if vectors else torch.empty(0, 0), skipped

    def save(self) -> None:
        """Write rows that are not on disk yet; of a complete index, one file with all rows."""
        self._saved = time.monotonic()
        if self._folder is None or self.problem:
            return
        is_complete = bool(self.images) and self.images.keys() <= self.rows.keys()
        if is_complete:
            self.rows = {name: self.rows[name] for name in self.images}
        vectors = {
            name: row.value for name, row in self.rows.items() if isinstance(row.value, Tensor)
        }
        new = {name: x for name, x in vectors.items() if not self.rows[name].is_saved}
        old_files = self._files
        if is_complete and (new or len(old_files) > 1):
            new = vectors
        if not new:
            return
        try:
            with disk_errors(self._folder):
                path = self._write(self._folder, new)
        except OutputError as error:
            self.problem = str(error)
            logger.warning("the index is kept in memory only: %s", error)
            return
        for name in new:
            self.rows[name].is_saved = True
        self._files = [path] if is_complete else [*old_files, path]
        if is_complete:
            _delete(old_files)

    def _write(self, folder: Path, rows: dict[str, Tensor]) -> Path:
        """Write a file of features (D,) by name, and return its path."""
        folder.mkdir(0o700, parents=True, exist_ok=True)
        path = folder / f"{time.time_ns():020d}.npy"  # sorted by time
        names = list(rows)
        vectors = torch.stack(list(rows.values())).numpy().astype("<f4")
        states = {name: self.rows[name].state for name in names}
        metadata = {
            **self._job,
            **describe_images([ImageRef(name, self.root) for name in names]),
            "rank": 0,
            "world_size": 1,
            "files_hash": hash_states(states.items()),
            "skipped": [],
            "rows_sha256": hash_rows(vectors, names),
            "folder": str(self.root),
            "states": states,
        }
        write_embeddings_file(path, vectors, names, metadata)
        return path

    def _read(self) -> None:
        """Read the rows that earlier processes saved; a damaged file is deleted."""
        assert self._folder
        for path in sorted(self._folder.glob("*.npy")):
            try:
                vectors, names, _ = read_intact_embeddings(path)
                states = read_embeddings_metadata(path)["states"]
                rows = {
                    name: Row(states[name], vector, is_saved=True)
                    for name, vector in zip(names, vectors.clone(), strict=True)
                }
            except (ConfigError, LookupError, TypeError) as error:
                logger.warning("a part of an index is embedded again: %s", error)
                _delete([path])
                continue
            self.rows |= rows
            self._files.append(path)


class FolderIndexes:
    """The indexes of the folders and models that were used last.

    Args:
        store: folder to keep indexes in; None to keep them in memory only.
        max_indexes: the largest number of indexes in memory.
    """

    def __init__(self, store: Path | None, max_indexes: int = MAX_INDEXES) -> None:
        self.store = store
        self.max_indexes = max_indexes
        self.indexes: OrderedDict[tuple[ModelSpec, Path], FolderIndex] = OrderedDict()
        self.lock = RLock()  # one for all, because a model uses all cores by itself

    def open(self, spec: ModelSpec, folder: str) -> FolderIndex:
        """Return the index of a folder, with the rows that an earlier process saved.

        Args:
            spec: a model whose weights are on this machine.
            folder: the path of a folder.

        Raises:
            ConfigError: the folder is missing.
        """
        root = Path(os.path.abspath(expand_path(folder, "folder")))
        if not root.is_dir():
            raise ConfigError(
                f"{folder} is not a folder on this machine; enter the path of a folder of images"
            )
        with self.lock:
            key = spec, root
            if key not in self.indexes:
                self.indexes[key] = FolderIndex(spec, root, self.store, self.lock)
            self.indexes.move_to_end(key)
            while len(self.indexes) > self.max_indexes:
                _, oldest = self.indexes.popitem(last=False)
                oldest.save()
            return self.indexes[key]

    def close(self) -> None:
        """Save all rows, unless a batch is being embedded and takes too long."""
        if self.lock.acquire(timeout=SHUTDOWN_WAIT):
            try:
                for index in self.indexes.values():
                    index.save()
            finally:
                self.lock.release()


def list_images(root: Path) -> dict[str, FolderImage]:
    """The images in a folder with the states of their files, by name.

    Raises:
        ConfigError: the folder contains no image.
    """
    images = {}
    for ref in find_images(root, Counter()):  # logs nothing: the page asks every second
        assert isinstance(ref.source, Path)
        state = None
        with suppress(OSError):  # reading the file will report the reason
            state = read_state(ref.source)
        images[ref.name] = FolderImage(ref, state)
    return images


def _delete(files: list[Path]) -> None:
    """Delete files of embeddings; another process may have deleted them already."""
    for path in files:
        for part in (path, get_metadata_path(path)):
            with suppress(OSError):
                part.unlink()
