"""Stored embeddings as training data or as a teacher: rows of a file, found by the names of images.

Axes: N embeddings, D features.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from swag_models.errors import ConfigError
from swag_models.formatting import count_noun, list_names
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

logger = logging.getLogger("swag_models")


def is_embeddings_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a path names a file of embeddings, by its suffix."""
    return os.fspath(path).endswith(EMBEDDING_SUFFIXES)


class StoredEmbeddings:
    """Embeddings that `swag-models embed` wrote, by the names of their images.

    The name of an image is its path, or the path of its tar shard and its key. It is found by its
    whole path, or by the end of it: "owl/1.png", or without the suffix "owl/1".

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
        self._rows = dict[int, dict[str, int]]()  # by number of parts of a name; -1 for several

    @property
    def facts(self) -> dict[str, Any]:
        """What identifies the embeddings: the model, its weights, and the hash of the rows."""
        return {name: self.metadata[name] for name in ("model", "weights_sha256", "rows_sha256")}

    def find(self, name: str, root: Path | None = None) -> int | None:
        """Return the row of an image, or None.

        Args:
            name: of the image in its data set.
            root: folder that the name is relative to.

        Raises:
            ConfigError: several images have this name.
        """
        if root is not None:
            row = self._list_rows(0).get(os.path.abspath(root / name))
            if row is not None and row >= 0:
                return row
        row = self._list_rows(name.count("/") + 1).get(name)
        if row == -1:
            raise ConfigError(
                f"{self.path} has several embeddings of images called {name}; embed only the "
                "images of the data"
            )
        return row

    def find_all(
        self, names: Sequence[tuple[str, ...]], what: str, root: Path | None = None
    ) -> list[int]:
        """Return the row of each image, -1 for those without; they are counted in a warning.

        Args:
            names: of each image, one or several, of which the first that has a row counts.
            what: what messages call the data.
            root: as for `find`.

        Raises:
            ConfigError: no image has a row, or several rows.
        """
        rows = [
            next((row for name in each if (row := self.find(name, root)) is not None), -1)
            for each in names
        ]
        missing = [each[0] for each, row in zip(names, rows) if row < 0]
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

    def _list_rows(self, depth: int) -> dict[str, int]:
        """Return name -> row, for the last `depth` parts of each path; 0 for the whole path."""
        if depth not in self._rows:
            rows = self._rows[depth] = {}
            for row, name in enumerate(self.names):
                path = os.path.abspath(name)
                end = path if not depth else "/".join(path.split(os.sep)[-depth:])
                for key in {end, os.path.splitext(end)[0]}:
                    rows[key] = row if rows.get(key, row) == row else -1
        return self._rows[depth]


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
