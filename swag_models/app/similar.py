"""Search a folder for images: those similar to an image, and those of a class.

Axes: N images, D features, K classes.
"""

import os
import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from swag_models.app.folder_index import FolderImage, FolderIndex
from swag_models.app.service import (
    DECODER_TURN,
    MODEL_TURN,
    FileContent,
    load_folder_embedder,
    load_predictor,
)
from swag_models.errors import ConfigError
from swag_models.formatting import describe, printable
from swag_models.inference.predict import Skipped
from swag_models.inference.search import compare
from swag_models.model_metadata import load_classes
from swag_models.paths import open_regular
from swag_models.spec import ModelSpec

THUMBNAIL_SIDE = 320  # pixels
NUM_FOUND = 8  # images that are shown
MAX_WORD = 100  # characters
NUM_SUGGESTED = 5
HEAD_ROWS = 4096  # rows that a head is applied to at once, which limits the memory


class FoundImage(NamedTuple):
    """An image that a search found.

    Attributes:
        name: path within the folder.
        score: cosine similarity of the features, or probability of a class.
        thumbnail: a small copy.
    """

    name: str
    score: float
    thumbnail: Image.Image


def find_similar(
    index: FolderIndex,
    image: Image.Image | Tensor,
    count: int = NUM_FOUND,
    exclude: Collection[str] = (),
) -> tuple[list[FoundImage], list[Skipped]]:
    """Find the images of a folder that are most similar to an image.

    Args:
        index: the folder; images that are not embedded yet are ignored.
        image: the query, a PIL image or uint8 (3, H, W).
        count: the largest number of images to return.
        exclude: paths within the folder that are not returned.

    Returns:
        The images, best first, and those that cannot be read.
    """
    images, vectors, skipped = index.list_rows()
    kept = [number for number, image in enumerate(images) if _name(index, image) not in exclude]
    if not kept:
        return [], skipped
    query = load_folder_embedder(index.spec)(image).vectors  # (1, D)
    scores = compare(vectors[kept], query[0])  # (N,)
    return _pick(index, [images[number] for number in kept], scores, count), skipped


def find_class(
    index: FolderIndex, classes: Sequence[int], count: int = NUM_FOUND
) -> tuple[list[FoundImage], list[Skipped]]:
    """Find the images of a folder in which some classes are most probable.

    The head of the model is applied to the features in the index, so no image is read again.

    Args:
        index: the folder; images that are not embedded yet are ignored.
        classes: the result of `match_classes`. The probability of several classes is their sum,
            or for a multi-label model the largest.
        count: the largest number of images to return.

    Returns:
        The images, best first, and those that cannot be read.
    """
    images, vectors, skipped = index.list_rows()
    if not images:
        return [], skipped
    with MODEL_TURN.take():
        predictor = load_predictor(index.spec)
        head = predictor.model.get_classifier()
        scores = []
        with torch.inference_mode():
            for rows in torch.split(vectors, HEAD_ROWS):
                logits = head(rows.to(predictor.device, predictor.dtype)).float()  # (N, K)
                if index.spec.multi_label:
                    scores.append(logits.sigmoid()[:, classes].amax(dim=1).cpu())
                else:
                    scores.append(logits.softmax(dim=1)[:, classes].sum(dim=1).cpu())
    return _pick(index, images, torch.cat(scores), count), skipped


def match_classes(spec: ModelSpec, word: str) -> list[int]:
    """Find the classes of a model that a word names.

    Args:
        spec: the model.
        word: the name of a class, with or without `#`; upper and lower case, spaces and
            punctuation do not matter. If no class has this name, every class is meant in whose
            name it is a word of its own.

    Returns:
        Indices of the classes, at least one.

    Raises:
        ConfigError: the model has no class names, or no class has such a name; the message
            suggests others.
    """
    if not spec.classes:
        raise ConfigError(
            f"{spec.name} has no class names to search for; choose a model with classes"
        )
    classes = load_classes(spec)
    words = _split(word)
    if len(word) > MAX_WORD or not words:
        raise ConfigError(
            f"{describe(word)} is not a class: enter a word of at most {MAX_WORD} characters"
        )
    split = [_split(name) for name in classes]
    named = [index for index, parts in enumerate(split) if "".join(parts) == "".join(words)]
    phrase = f" {' '.join(words)} "
    named = named or [i for i, parts in enumerate(split) if phrase in f" {' '.join(parts)} "]
    if not named:
        names = {name.lower(): name for name in classes}
        similar = get_close_matches(" ".join(words), names, n=NUM_SUGGESTED, cutoff=0.6)
        hint = "did you mean" if similar else "its classes include"
        names_shown = [names[name] for name in similar] or classes[:NUM_SUGGESTED]
        raise ConfigError(
            f"{spec.name} has no class {describe(word)}; {hint} {', '.join(names_shown)}"
        )
    return named


def list_copies(index: FolderIndex, content: FileContent) -> list[str]:
    """Find the files in a folder that have the content of another file.

    Returns:
        Their paths within the folder, sorted.
    """
    copies = []
    for image in index.images.values():
        if not image.state or image.state[0] != content.size:
            continue
        try:
            assert isinstance(image.ref.source, Path)
            with open_regular(image.ref.source) as file:
                is_copy = FileContent.read(file) == content
            copies += [_name(index, image)] * is_copy
        except OSError:  # it is gone, or cannot be read
            continue
    return sorted(copies)


def _pick(
    index: FolderIndex, images: Sequence[FolderImage], scores: Tensor, count: int
) -> list[FoundImage]:
    """The images with the highest scores (N,), best first."""
    found = []
    top = scores.topk(min(count, len(images)))
    for number, score in zip(top.indices.tolist(), top.values.tolist()):
        with DECODER_TURN.take():
            thumbnail = images[number].ref.read()
        assert isinstance(thumbnail, Image.Image)
        thumbnail.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        found.append(FoundImage(_name(index, images[number]), score, thumbnail))
    return found


def _name(index: FolderIndex, image: FolderImage) -> str:
    return image.ref.name.removeprefix(printable(f"{index.root}{os.sep}"))


def _split(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"\w+", text.casefold().replace("_", " "))
