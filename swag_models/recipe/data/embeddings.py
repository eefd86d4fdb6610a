"""Stored embeddings as training data or as a teacher: rows of a file, found by the names of images.

Axes: N embeddings, D features.
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from swag_models.errors import ConfigError
from swag_models.formatting import count_noun, escape_unprintable, list_names, printable
from swag_models.hub.hf_format import VOCABULARY_FILE
from swag_models.inference.embeddings_file import (
    EMBEDDING_SUFFIXES,
    read_embeddings_metadata,
    read_intact_embeddings,
)
from swag_models.paths import expand_path
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.label_tables import find_labels, open_labels
from swag_models.recipe.data.shards import Shards, find_vocabulary
from swag_models.recipe.data.sources import find_image_folder, open_image_dataset
from swag_models.recipe.data.unlabelled import open_shard_labels

MAX_COMPARED = 1000  # images whose file is compared with the one that was embedded

logger = logging.getLogger("swag_models")


def is_embeddings_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a path names a file of embeddings, by its suffix."""
    return os.fspath(path).endswith(EMBEDDING_SUFFIXES)


class StoredEmbeddings:
    """Embeddings that `swag-models embed` wrote, by the names of their images.

    The name of an image is its path, or the path of its tar shard and its key. If no image of the
    data is found by its whole path, all are found by the end of it: "owl/1.png", or without the
    suffix "owl/1".

    Args:
        path: a .parquet or .npy file.

    Attributes:
        vectors: (N, D), float32.
        metadata: how they were computed; see `describe_job`.

    Raises:
        ConfigError: the file cannot be read, or was changed after it was written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = expand_path(path, "embeddings")
        self.vectors, self.names, _ = read_intact_embeddings(self.path)
        self.metadata = read_embeddings_metadata(self.path)

    @property
    def facts(self) -> dict[str, Any]:
        """What identifies the embeddings: the model, its weights, and the hash of the rows."""
        return {name: self.metadata[name] for name in ("model", "weights_sha256", "rows_sha256")}

    def find_all(
        self, names: Sequence[tuple[str, ...]], what: str, root: Path | None = None
    ) -> list[int]:
        """Return the row of each image, -1 for those without; they are counted in a warning.

        All images are found in the same way, because the end of the path of one may be that of
        another, or its id the key of another: by whole paths if any is found so, otherwise by the
        ends of paths, with the names of the kind that most images are found by.

        Args:
            names: of each image in its data set, one or several of different kinds.
            what: what messages call the data.
            root: folder that the first names are relative to.

        Raises:
            ConfigError: no image has a row, or one has several rows, or that of another file.
        """
        rows = [-1] * len(names)
        if root is not None:
            resolve = _make_resolver()
            whole = {resolve(name): row for row, name in enumerate(self.names)}
            rows = [whole.get(resolve(root / each[0]), -1) for each in names]
        if not any(row >= 0 for row in rows):
            found = [self._find_by_ends(kind) for kind in zip(*names, strict=True)]
            matches = max(found, key=lambda kind: sum(map(bool, kind)), default=[])
            rows = [self._select_row(row) for row in matches]
            if root is not None:
                self._check_files([root / each[0] for each in names], rows, what)
        missing = [each[0] for each, row in zip(names, rows, strict=True) if row < 0]
        if len(missing) == len(rows):
            raise ConfigError(
                f"{self.path} has no embedding of any image of {what}, such as "
                f"{list_names(missing[:1]) or 'none'}; its names are like "
                f"{list_names(self.names[:1]) or 'none'}: embed the images of the data"
            )
        if missing:
            logger.warning(
                "%s of %s left out, because %s has no embedding of them: %s",
                count_noun(len(missing), "image"),
                what,
                self.path,
                list_names(missing, 5),
            )
        return rows

    def _find_by_ends(self, names: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the rows, at most two of them, whose paths end in each name.

        A name that is the end of a path is not also taken as the end of one without its suffix.
        """
        depths = [name.count("/") + 1 for name in names]
        ends: dict[int, dict[str, tuple[int, ...]]] = {depth: {} for depth in set(depths)}
        stems: dict[int, dict[str, tuple[int, ...]]] = {depth: {} for depth in set(depths)}
        for row, name in enumerate(self.names):
            parts = os.path.abspath(name).split(os.sep)
            for depth in ends:
                end = "/".join(parts[-depth:])
                for rows, key in ((ends[depth], end), (stems[depth], os.path.splitext(end)[0])):
                    rows[key] = (*rows.get(key, ())[:1], row)
        return [
            ends[depth].get(name) or stems[depth].get(name, ())
            for name, depth in zip(names, depths, strict=True)
        ]

    def _select_row(self, rows: tuple[int, ...]) -> int:
        """Return the only row of an image, -1 if it has none; ConfigError if it has several."""
        if len(rows) > 1:
            raise ConfigError(
                f"{self.path} has several embeddings for an image of the data: those of "
                f"{list_names([self.names[row] for row in rows], limit=2)} end alike; embed only "
                "the images of the data"
            )
        return rows[0] if rows else -1

    def _check_files(self, paths: Sequence[Path], rows: Sequence[int], what: str) -> None:
        """Check images that are found by the ends of their paths, and say so.

        Only those at the beginning: an embedded folder is the folder of the data or it is not.

        Raises:
            ConfigError: the image that was embedded still exists, and has another size.
        """
        pairs = [
            (path, Path(self.names[row]))
            for path, row in zip(paths[:MAX_COMPARED], rows)
            if row >= 0 and path.is_file()
        ]
        for path, embedded in pairs:
            if embedded.is_file() and path.stat().st_size != embedded.stat().st_size:
                raise ConfigError(
                    f"{self.path} has no embedding of {path}, but one of {embedded}, which ends "
                    "alike and is another image; embed the images of the data"
                )
        if pairs:
            path, embedded = pairs[0]
            line = (
                f"no image of {what} has an embedding in {self.path} under its whole path; they "
                f"are found by the ends of paths, such as {path} by {embedded}"
            )
            logger.warning("%s", escape_unprintable(line, 499))


def _make_resolver() -> Callable[[str | os.PathLike[str]], str]:
    """Return a function that makes paths comparable; each folder is resolved once."""
    real_path = cache(os.path.realpath)

    def resolve(path: str | os.PathLike[str]) -> str:
        folder, name = os.path.split(os.path.abspath(path))
        return printable(os.path.join(real_path(folder), name))

    return resolve


def select_embedded(
    data: ImageDataset, stored: StoredEmbeddings, names: Sequence[tuple[str, ...]] | None = None
) -> tuple[ImageDataset, list[int]]:
    """Return the images of a data set that have an embedding, and the row of each.

    Args:
        data: the images, or only their labels.
        stored: the embeddings.
        names: that each image may have; by default its name.

    Raises:
        ConfigError: none has one.
    """
    names = names or [(data.name(index),) for index in range(len(data))]
    rows = stored.find_all(names, data.title, data.root)
    if -1 in rows:
        labels = {index: data.labels[index] for index, row in enumerate(rows) if row >= 0}
        data = data.relabel(labels, data.class_names, data.num_classes)
        rows = [row for row in rows if row >= 0]
    return data, rows


def open_embedded(
    data: Shards | ImageDataset, stored: StoredEmbeddings
) -> tuple[ImageDataset, Path | None]:
    """Open labels whose items are embeddings (D,) instead of images; no image is read.

    Args:
        data: as for `open_train_loader`, or labels.parquet of `recipe curate`, or its folder.
        stored: the embeddings.

    Returns:
        The data set, and the vocabulary if its classes are hashtags.

    Raises:
        ConfigError: no image has an embedding, or the data are not allowed.
    """
    names, vocabulary = None, None
    if isinstance(data, ImageDataset):
        dataset = data
    elif path := find_labels(data):
        dataset, vocabulary = open_labels(path), path.with_name(VOCABULARY_FILE)
    elif root := find_image_folder(data):
        dataset = open_image_dataset(root)
    else:
        dataset, names = open_shard_labels(data)
        vocabulary = find_vocabulary(data)
    selected, rows = select_embedded(dataset, stored, names)
    return replace(selected, reader=partial(_read_vector, stored.vectors, rows)), vocabulary


def _read_vector(vectors: Tensor, rows: Sequence[int], index: int) -> Any:
    return vectors[rows[index]]
