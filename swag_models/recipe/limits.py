"""Checks of the settings of the recipe: types, ranges and largest values. Imports no torch.

Values above the largest are mistakes, which would keep a machine busy for years or fill its memory.
Published runs have far smaller ones.
"""

from typing import Any, get_type_hints

from swag_models.decoding import decode_value
from swag_models.errors import ConfigError
from swag_models.formatting import describe
from swag_models.model_limits import LIMITS
from swag_models.runtime import count_cpus

WORKERS_PER_CPU, MIN_WORKER_LIMIT = 8, 64
MAX_STEPS = 10**8
LARGEST = 10**15  # of every other number: products of two, such as epochs and samples, are floats
RUN_LIMITS: dict[str, float] = {
    "image_size": LIMITS["image_size"][1],
    "sizes": LIMITS["image_size"][1],
    "batch_size": 2**20,
    "micro_batch": 2**20,
    "merge_tokens": LIMITS["merge_tokens"][1],
    "epochs": 10**6,
    "steps": MAX_STEPS,
    "workers": 1024,
    "processes": 1024,
    "lanes": 2**20,
    "buffer": 10**8,
}


def check_workers(**counts: int | None) -> None:
    """Check numbers of processes; None for those that are not set.

    Raises:
        ConfigError: there are more than the CPUs can keep busy. Each takes seconds to start, and
            hundreds of megabytes.
    """
    limit = max(MIN_WORKER_LIMIT, WORKERS_PER_CPU * count_cpus())
    for name, count in counts.items():
        if isinstance(count, int) and count > limit:
            raise ConfigError(
                f"{name} is {describe(count)}; allowed: {limit} or less on a machine with "
                f"{count_cpus()} CPUs"
            )


def check_limits(**values: object) -> None:
    """Check settings that are numbers or, if they have a limit, tuples; others are ignored.

    Args:
        **values: value of each setting.

    Raises:
        ConfigError: a value is larger than its limit.
    """
    for name, value in values.items():
        limit = RUN_LIMITS.get(name, LARGEST)
        for number in value if isinstance(value, tuple) and name in RUN_LIMITS else (value,):
            if isinstance(number, (int, float)) and number > limit:
                raise ConfigError(f"{name} is {describe(value)}; allowed: {limit} or less")


def check_fields(part: Any, **rules: tuple[Any, str]) -> None:
    """Convert the fields of a part to their types, and check ranges.

    Args:
        part: a dataclass, whose fields are replaced.
        rules: for a field, a function that checks its value, and what is allowed in words.
    """
    # 1 becomes 1.0 and a list a tuple, so that a run made in Python equals one read from JSON
    for name, hint in get_type_hints(type(part)).items():
        value = decode_value(hint, getattr(part, name), name, positive=False)
        check_limits(**{name: value})
        object.__setattr__(part, name, value)  # `part` is frozen for everybody else
    for name, (is_allowed, allowed) in rules.items():
        value = getattr(part, name)
        if not is_allowed(value):
            raise ConfigError(f"{name} is {value!r}; allowed: {allowed}")


def is_probability(value: float) -> bool:
    """A range for `check_fields`: from 0 to 1."""
    return 0 <= value <= 1


def is_positive(value: float | None) -> bool:
    """A range for `check_fields`: above 0, or None."""
    return value is None or value > 0
