"""Largest values of the settings of the recipe; larger ones are mistakes. Imports no torch.

They would keep a machine busy for years or fill its memory. Published runs have far smaller ones.
"""

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
    """Check settings that are numbers, or tuples of them; others are ignored.

    Args:
        **values: value of each setting.

    Raises:
        ConfigError: a value is larger than its limit.
    """
    for name, value in values.items():
        limit = RUN_LIMITS.get(name, LARGEST)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, (int, float)) and number > limit:
                raise ConfigError(f"{name} is {describe(value)}; allowed: {limit} or less")
