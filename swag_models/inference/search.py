"""Search for the images nearest to a query in a file of embeddings.

Axes: N images, D features.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from swag_models.api import SPECS, Name, load_preprocess
from swag_models.errors import ConfigError, UnknownModelError, check_minimum, check_types, plain
from swag_models.formatting import MAX_VALUE, count_noun, describe, escape_unprintable
from swag_models.inference.embed_job import describe_job
from swag_models.inference.embeddings_file import (
    read_embeddings_metadata,
    read_intact_embeddings,
)
from swag_models.inference.image_sources import ImageRef
from swag_models.inference.predict import Embedder
from swag_models.models.arguments import check_merge_tokens
from swag_models.paths import expand_path, open_regular

CHUNK_ROWS = 2**16  # rows that are compared at once, which limits the memory
COPY_SIMILARITY = 0.99  # of a copy at least; its content is compared as well
# Metadata that decide the features of an image, and the option that each depends on
DECISIVE = {
    "width": "model",
    "preprocess": "model or image size",
    "dtype": "dtype",
    "weights_sha256": "model",
}


class Neighbour(NamedTuple):
    """A similar image.

    Attributes:
        name: its name in the file of embeddings.
        similarity: cosine similarity of the features, at most 1.
    """

    name: str
    similarity: float


class SearchResult(NamedTuple):
    """The images nearest to one query.

    Attributes:
        name: of the query.
        neighbours: best first.
        copies: images with the same content as the query, which are not among the neighbours.
        reason: why the query cannot be read; None if it can.
    """

    name: str
    neighbours: list[Neighbour]
    copies: list[str]
    reason: str | None


class ImageSearch:
    """Searches a file that `swag-models embed` wrote, with the model that wrote it.

    Args:
        path: a .parquet or .npy file.
        model: anything that `load_model` accepts; by default the model of the catalog that the
            file names.
        options: `device`, `backend`, `batch_size` and `workers` of `InferencePipeline`.

    Raises:
        ConfigError: the file has no embeddings, or those of another model or preprocessing, or
            was changed or damaged after it was written.
        UnknownModelError: the file names a model that is not in the catalog.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, model: Name | None = None, **options: Any
    ) -> None:
        self.path = expand_path(path, "embeddings")
        metadata = read_embeddings_metadata(self.path)
        self.vectors, self.names, self.skipped = read_intact_embeddings(self.path)
        if not self.names:
            raise ConfigError(f"{self.path} has no rows; embed some images")
        # a part of a run has the images of one process
        self.part = (metadata["rank"], metadata["world_size"])
        self.embedder = _open_embedder(self.path, metadata, model, options)

    def __repr__(self) -> str:
        path = escape_unprintable(str(self.path), MAX_VALUE)
        size = count_noun(len(self.names), "vector")
        return f"{type(self).__name__}({path}, {size}, {self.embedder!r})"

    def __call__(self, images: Any, top_k: int = 10) -> Iterator[SearchResult]:
        """Yield the nearest images of each query, in order.

        Args:
            images: anything that `find_images` accepts.
            top_k: number of neighbours.

        Raises:
            ConfigError: `images` is something else, or `top_k` is less than 1.
        """
        top_k = plain(top_k)
        check_types(int, top_k=top_k)
        check_minimum(1, top_k=top_k)
        with closing(self.embedder.run(images)) as batches:
            for batch in batches:
                rows: Iterator[Tensor] = iter(() if batch.values is None else batch.values)
                for index, image in enumerate(batch.images):
                    if reason := batch.errors.get(index):
                        yield SearchResult(image.name, [], [], reason)
                    else:
                        yield self._rank(image, next(rows), top_k)

    def _rank(self, image: ImageRef, query: Tensor, top_k: int) -> SearchResult:
        similarities = compare(self.vectors, query)  # (N,)
        if not similarities.isfinite().all():
            raise ConfigError(
                f"{self.path} has rows that are not finite, or {image.name} gives such a one; "
                "embed the images with dtype float32"
            )
        neighbours: list[Neighbour] = []
        copies: list[str] = []
        order = similarities.argsort(descending=True, stable=True)
        for index in order.tolist():
            if len(neighbours) == top_k:
                break
            name, similarity = self.names[index], similarities[index].item()
            if similarity > COPY_SIMILARITY and is_copy(image, name):
                copies.append(name)
            else:
                neighbours.append(Neighbour(name, similarity))
        return SearchResult(image.name, neighbours, copies, None)


def compare(vectors: Tensor, query: Tensor) -> Tensor:
    """Return the cosine similarity of each row of `vectors` (N, D) and `query` (D,), (N,)."""
    unit = F.normalize(query.float(), dim=0)
    starts = range(0, len(vectors), CHUNK_ROWS)
    rows = [
        F.normalize(vectors[start : start + CHUNK_ROWS].float(), dim=1) @ unit for start in starts
    ]
    return torch.cat(rows).clamp(-1, 1)


def is_copy(image: ImageRef, name: str) -> bool:
    """Whether a query is a file with the same content as the file of a name."""
    path = image.source
    if isinstance(path, bytes):
        with suppress(OSError, ValueError), open_regular(name) as file:
            return bool(file.read(len(path) + 1) == path)
    if not isinstance(path, Path) or image.span is not None:
        return False
    if name == image.name:
        return True
    try:
        if path.samefile(name):
            return True
        if path.stat().st_size != os.stat(name).st_size:
            return False
        with open_regular(path) as one, open_regular(name) as other:
            while (chunk := one.read(2**20)) == other.read(2**20):
                if not chunk:
                    return True
    except (OSError, ValueError):  # it was moved since it was embedded, or is in an archive
        pass
    return False


def _open_embedder(
    path: Path, metadata: dict[str, Any], model: Name | None, options: dict[str, Any]
) -> Embedder:
    """The model that wrote a file, with the options of that run."""
    preprocess, dtype = metadata.get("preprocess"), metadata.get("dtype")
    name = metadata.get("model")
    if not (isinstance(preprocess, str) and isinstance(dtype, str) and isinstance(name, str)):
        raise ConfigError(f"{path} does not say which model wrote it; embed the images again")
    # A file from elsewhere must not decide what else is loaded.
    if model is None and name not in SPECS:
        raise UnknownModelError(
            f"{path} was written with the model {describe(name)}, which is not in the catalog; "
            "pass its folder or hf-hub:org/repo as model"
        )
    if model is None:
        model = name
    own = repr(load_preprocess(model).preprocess)
    embedder = Embedder(
        model,
        image_size=None if own in preprocess else _read_image_size(preprocess),
        dtype=dtype,
        fast="vectorised=True" in preprocess,
        scaled_decoding="scaled=True" in preprocess,
        merge_tokens=check_merge_tokens(metadata.get("merge_tokens", 0)),
        **options,
    )
    _check_job(path, metadata, describe_job(embedder, ()))
    return embedder


def _check_job(path: Path, metadata: dict[str, Any], job: dict[str, Any]) -> None:
    """Raise ConfigError unless a model gives the features that a file has."""
    for key, option in DECISIVE.items():
        if metadata.get(key) != job[key]:
            raise ConfigError(
                f"{path} was written with another {option}: {key} is "
                f"{describe(metadata.get(key))}, and of {job['model']} {describe(job[key])}; "
                f"pass the model that wrote it, {describe(metadata['model'])}, or embed the "
                "images again"
            )


def _read_image_size(preprocess: str) -> int | tuple[int, int] | None:
    """The image size in the description of a preprocessing, of height and width if there are two.

    Returns:
        None if there is none; the comparison with the model's own then shows the difference.
    """
    match = re.search(r"image_size=(?:(\d{1,6})|\((\d{1,6}), (\d{1,6})\))[,)]", preprocess)
    if match is None:
        return None
    numbers: Sequence[int] = [int(group) for group in match.groups() if group]
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])
