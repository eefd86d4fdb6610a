"""The smallest probabilities with which `Classifier` returns a class."""

from collections.abc import Mapping, Sequence
from typing import Any

from swag_models.errors import ConfigError, argument_errors, suggest_names
from swag_models.formatting import count_noun, describe

DEFAULT_THRESHOLD = 0.5  # of classes that a mapping does not name
Thresholds = float | Sequence[float] | Mapping[str, float]


def read_thresholds(threshold: Thresholds, classes: Sequence[str]) -> tuple[float, ...]:
    """Return the threshold of each class.

    Args:
        threshold: one for all classes; one for each class, in order; or by the names of classes,
            with DEFAULT_THRESHOLD for all others.
        classes: names of the classes.

    Raises:
        ConfigError: a value is not a number from 0 to 1, the number of values is not that of the
            classes, or a name is not that of a class.
    """
    with argument_errors("threshold", threshold):  # of any class
        values: Any = threshold
        if not isinstance(values, (str, bytes, Mapping)) and hasattr(values, "tolist"):
            values = values.tolist()  # NumPy's and torch's arrays and scalars
        if isinstance(values, Mapping):
            values = dict(values)
        elif isinstance(values, Sequence) and not isinstance(values, (str, bytes)):
            values = list(values)
        else:
            return (_check_threshold(values, ""),) * len(classes)
    if isinstance(values, dict):
        for name in values:
            if name not in classes:
                if isinstance(name, str):
                    raise ConfigError(f"threshold: {suggest_names('class', name, classes)}")
                raise ConfigError(
                    f"invalid threshold of {describe(name)}: allowed: names of classes"
                )
        values = [values.get(name, DEFAULT_THRESHOLD) for name in classes]
    if len(values) != len(classes):
        raise ConfigError(
            f"threshold has {count_noun(len(values), 'value')}; allowed: one number, or one for "
            f"each of the {count_noun(len(classes), 'class')}"
        )
    return tuple(
        _check_threshold(value, f" of class {name}") for value, name in zip(values, classes)
    )


def _check_threshold(value: Any, place: str) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 1:  # NaN is neither
        raise ConfigError(
            f"invalid threshold{place} {describe(value)}: allowed: a number from 0 to 1"
        )
    return float(value)
