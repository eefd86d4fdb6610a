"""What identifies the work of `embed`: the model, the settings and the images."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from swag_models.errors import ImageError
from swag_models.inference.image_sources import ImageRef
from swag_models.inference.predict import Embedder
from swag_models.resumable import read_state


def describe_job(embedder: Embedder, refs: Sequence[ImageRef]) -> dict[str, Any]:
    """Return what must be equal for two runs to give the same rows.

    The keys are part of the file format.

    Args:
        embedder: the model.
        refs: all images of the run.
    """
    merged = count_merged(embedder.model)
    return {
        "model": embedder.name,
        "width": embedder.model.num_features,
        "preprocess": repr(embedder.preprocess),
        "dtype": str(embedder.dtype).removeprefix("torch."),
        "weights_sha256": hash_weights(embedder.model),
        **describe_images(refs),
        **({"merge_tokens": merged} if merged else {}),
    }


def describe_images(refs: Sequence[ImageRef]) -> dict[str, Any]:
    """Return the part of `describe_job` that depends on the images, but not on the model.

    Args:
        refs: all images of the run.
    """
    images_hash = hashlib.sha256()
    for ref in refs:
        images_hash.update(f"{ref.name}\0".encode())
        if not isinstance(ref.source, Path):  # images in memory are named by number only
            images_hash.update(_hash_pixels(ref))
    return {"images_sha256": images_hash.hexdigest(), "images": len(refs)}


def count_merged(model: nn.Module) -> int:
    """The number of tokens that each block of a model merges."""
    return int(getattr(model, "merge_tokens", 0))


def hash_weights(model: nn.Module) -> str:
    """Return the SHA-256 of the names, shapes, dtypes and values of a model's weights.

    With token merging they mean something else, so that this number is part of the hash.
    """
    digest = hashlib.sha256()
    if merged := count_merged(model):
        digest.update(f"merge_tokens {merged}".encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(content.numpy().data)
    return digest.hexdigest()


def hash_images(refs: Sequence[ImageRef]) -> str:
    """Return a hash of the names, sizes and times of the files of images.

    The hashes of the images are added, so that those of the parts of a run add up to that of all.

    Args:
        refs: the images of one part. Those in memory do not count, see `describe_job`.
    """
    read_state_once = cache(read_state)  # a tar shard has many images
    return hash_states(
        (ref.name, read_state_once(ref.source)) for ref in refs if isinstance(ref.source, Path)
    )


def hash_states(states: Iterable[tuple[str, Any]]) -> str:
    """Return the result of `hash_images` for images whose files have these states.

    Args:
        states: name of each image, and what `read_state` returned for its file.
    """
    total = 0
    for name, state in states:
        line = json.dumps([name, state])
        total += int(hashlib.sha256(line.encode()).hexdigest(), 16)
    return _format(total)


def add_hashes(hashes: Iterable[str]) -> str:
    """Return the result of `hash_images` for all images from the results for parts of them."""
    return _format(sum(int(part, 16) for part in hashes))


def _format(total: int) -> str:
    return f"{total % 2**256:064x}"


def _hash_pixels(ref: ImageRef) -> bytes:
    """SHA-256 of the pixels, or of the reason why they cannot be read."""
    try:
        return hashlib.sha256(np.ascontiguousarray(ref.read()).data).digest()
    except ImageError as error:
        return hashlib.sha256(str(error).encode()).digest()
