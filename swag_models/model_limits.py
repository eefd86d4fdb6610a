"""The smallest and largest value of each number that describes a model. Imports no torch."""

from dataclasses import fields
from types import NoneType
from typing import TYPE_CHECKING, get_args, get_origin

from swag_models.errors import ConfigError
from swag_models.formatting import describe

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Several times what published models have. A config.json from elsewhere must not be able to occupy
# the memory or the CPU.
LIMITS: dict[str, tuple[float, float]] = {
    "depth": (1, 512),  # blocks
    "depths": (1, 512),
    "groups": (1, 32_768),
    "width": (1, 32_768),
    "num_heads": (1, 1024),
    "mlp_width": (1, 131_072),
    "patch_size": (1, 512),
    "w_0": (8, 16_384),
    "w_a": (0, 16_384),
    "w_m": (1.001, 100),
    "group_width": (1, 32_768),
    "se_ratio": (0.001, 16),
    "stem_width": (1, 4096),
    "image_size": (1, 16_384),
    "in_chans": (1, 4096),
    "num_classes": (1, 4_000_000),
    "merge_tokens": (1, 2**18),  # per block
    "num_params": (0, 1e12),
    "gmacs": (0, 1e9),
    "top1": (0, 100),
    "top5": (0, 100),
    "mean": (-1e6, 1e6),
    "std": (1e-6, 1e6),
    "crop_pct": (0.01, 1),
}
_REALS = {"w_a", "w_m", "se_ratio", "gmacs", "top1", "top5", "mean", "std", "crop_pct"}
_COUNTS = LIMITS.keys() - _REALS
MAX_POSITIONS = 2**18  # patches of an image, for a ViT
MAX_PARAMS = 2**35  # in the blocks; the largest published ViT has 22 billion


def check_number(name: str, value: object, hint: str = "") -> None:
    """Check a number that describes a model.

    Args:
        name: key of LIMITS; those of _COUNTS are ints.
        value: the number.
        hint: end of the message.

    Raises:
        ConfigError: another type, or out of range.
    """
    low, high = LIMITS[name]
    kinds = (int,) if name in _COUNTS else (int, float)  # not bool, which is a subclass of int
    if type(value) not in kinds or not low <= value <= high:  # type: ignore[operator]
        kind = "a whole number" if name in _COUNTS else "a number"
        raise ConfigError(
            f"{name} is {describe(value)}; give {kind} from {low:g} to {high:,.0f}{hint}"
        )


def check_params(count: int) -> None:
    """Raise ConfigError if an architecture has more parameters than any machine can train."""
    if count > MAX_PARAMS:
        raise ConfigError(
            f"depth and width give {count:.3g} parameters; allowed: at most {MAX_PARAMS:.3g}"
        )


def check_numbers(part: "DataclassInstance") -> None:
    """Check every number of a dataclass that LIMITS names.

    A tuple and None are accepted only where the type of the field has them.
    """
    for field in fields(part):
        if field.name not in LIMITS:
            continue
        value, kinds = getattr(part, field.name), (field.type, *get_args(field.type))
        lengths = [len(get_args(kind)) for kind in kinds if get_origin(kind) is tuple]
        items = value if isinstance(value, tuple) and len(value) in lengths else (value,)
        for item in items:
            if item is not None or NoneType not in kinds:
                check_number(field.name, item)
