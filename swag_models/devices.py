"""Devices and dtypes by name, checked on this machine."""

import difflib
import os

import torch

from swag_models.errors import ConfigError, check_types
from swag_models.formatting import describe
from swag_models.runtime import read_environment

NAMES = ("auto", "cpu", "cuda", "mps")
SYNONYMS = {"gpu": "cuda", "nvidia": "cuda", "metal": "mps"}  # that are no names of torch


def check_device(device: str | torch.device) -> torch.device:
    """Convert a device name to a torch device, and check that it can be used.

    Args:
        device: a torch device, its name in any case, or "auto": a CUDA GPU (under torchrun that of
            this process), else MPS, else the CPU.

    Raises:
        ConfigError: the name is invalid, or this machine has no such device.
    """
    wanted = device
    try:
        check_types(str | int | torch.device, device=device)
        if isinstance(device, str):
            wanted = device.lower()
            if wanted == "auto":
                device = wanted = pick_device()
        chosen = torch.device(wanted)
        torch.empty(0, device=chosen)  # a valid name may denote a device that is missing
    # What torch raises depends on the device; its messages are paragraphs for developers of torch.
    except (RuntimeError, AssertionError, TypeError, ValueError, OverflowError, ImportError):
        gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        mps = ["mps"] if torch.backends.mps.is_available() else []
        shown = str(device) if isinstance(device, torch.device) else describe(device)
        raise ConfigError(
            f"device {shown} cannot be used here (no such device); {_suggest(wanted)}allowed for "
            f"example: {', '.join(['cpu', *gpus, *mps, 'auto'])}"
        ) from None
    return chosen


def _suggest(device: object) -> str:
    """Return a question that names the device which a user may have meant."""
    if not isinstance(device, str):
        return ""
    kind = device.partition(":")[0].strip()
    similar = difflib.get_close_matches(kind, NAMES, n=1, cutoff=0.7)
    name = SYNONYMS.get(kind) or next(iter(similar), kind)
    return "" if name == kind else f"did you mean {name}? "


def pick_device() -> str:
    """Return the name of the device that "auto" stands for."""
    if torch.cuda.is_available():
        return f"cuda:{read_environment('LOCAL_RANK', 0)}" if "LOCAL_RANK" in os.environ else "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """Convert a dtype name to a floating-point torch dtype; None means float32.

    Raises:
        ConfigError: not a floating-point dtype of at least 16 bits.
    """
    chosen: object = torch.float32 if dtype is None else dtype
    if isinstance(chosen, str):
        chosen = vars(torch).get(chosen)
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point or chosen.itemsize < 2:
        shown = str(dtype) if isinstance(dtype, torch.dtype) else describe(dtype)
        raise ConfigError(
            f"dtype {shown} is not allowed; give float32, bfloat16, float16 or float64"
        )
    return chosen
