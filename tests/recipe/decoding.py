"""Decoders for tests of the loaders, in a module that worker processes import quickly."""

from __future__ import annotations

from typing import Any

import torch


def decode_name(sample: dict[str, Any]) -> tuple[str, int, int]:
    """Return the id and epoch of the sample, and a random number from torch's generator."""
    return sample["id"], sample["epoch"], int(torch.randint(1 << 30, ()))


def return_batch(batch: list[Any]) -> list[Any]:
    return batch


def to_bytes(image: Any) -> torch.Tensor:
    """Return all pixels of a PIL image, (3, H, W)."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    return pil_to_tensor(image)


def crop_randomly(image: Any) -> torch.Tensor:
    """Return a random crop, (3, 6, 6), by torch's generator."""
    from torchvision.transforms.v2 import RandomResizedCrop

    return to_bytes(RandomResizedCrop(6)(image))
