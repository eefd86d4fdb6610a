"""Devices and dtypes by name, checked on this machine."""

import os

import torch

from swag_models.errors import ConfigError, check_types
from swag_models.formatting import describe
from swag_models.runtime import read_environment


def check_device(device: str | torch.device) -> torch.device:
    """Convert a device name to a torch device, and check that it can be used.

    Args:
        device: a torch device, its name, or "auto": a CUDA GPU (under torchrun that of this
            process), else MPS, else the CPU.

    Raises:
        ConfigError: the name is invalid, or this machine has no such device.
    """
    if isinstance(device, str) and device == "auto":
        device = pick_device()
    try:
        check_types(str | int | torch.device, device=device)
        chosen = torch.device(device)
        torch.empty(0, device=chosen)  # a valid name may denote a device that is missing
    # What torch raises depends on the device; its messages are paragraphs for developers of torch.
    except (RuntimeError, AssertionError, TypeError, ValueError, OverflowError, ImportError):
        gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        mps = ["mps"] if torch.backends.mps.is_available() else []
        shown = str(device) if isinstance(device, torch.device) else describe(device)
        raise ConfigError(
            f"device {shown} cannot be used here (no such device); allowed for example: "
            f"{', '.join(['cpu', *gpus, *mps, 'auto'])}"
        ) from None
    return chosen


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
