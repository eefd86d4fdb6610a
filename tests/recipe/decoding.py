"""Decoders for tests of the stream, in a module that a new process imports fast."""

from __future__ import annotations

from typing import Any

import torch


def decode_name(sample: dict[str, Any]) -> tuple[str, int, int]:
    """Which sample, in which epoch, and a number that is random by torch's generator."""
    return sample["id"], sample["epoch"], int(torch.randint(1 << 30, ()))


def keep(batch: list[Any]) -> list[Any]:
    return batch


def to_bytes(image: Any) -> torch.Tensor:
    """All pixels, (3, H, W)."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    return pil_to_tensor(image)


def crop_randomly(image: Any) -> torch.Tensor:
    """Some pixels, (3, 6, 6), by torch's generator."""
    from torchvision.transforms.v2 import RandomResizedCrop

    return to_bytes(RandomResizedCrop(6)(image))
