"""Every error that a user, a file or a network can cause, in one tree.

SwagModelsError
├── UnknownModelError (ValueError)   a name that is not in the catalog
├── ConfigError (ValueError)         an argument with a value that is not allowed
├── CheckpointError (ValueError)     a weight file that is damaged or does not fit the model
│   └── UnsafeCheckpointError        a weight file that would run code
├── SignatureError (ValueError)      a folder that is not signed, or differs from the signed one
├── FetchError (OSError)             the weights could not be downloaded
│   ├── HashMismatchError            a downloaded file is not the published one
│   └── CacheError                   the cache folder cannot be written
├── OutputError (OSError)            an output file that cannot be written
├── ExportError (RuntimeError)       an exported file that computes other values than the model, or
│                                    cannot be written or read
├── PublishError (OSError)           a folder or repository to which no model can be published
├── ShardError (OSError)             a training shard that cannot be read or was changed
├── TrainingError (RuntimeError)     a run whose loss diverged
│   └── PreemptedError               a run that a signal stopped after saving a checkpoint
└── ImageError (ValueError)          an image that cannot be read
"""

import difflib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from types import NoneType, UnionType
from typing import Any, ParamSpec, TypeVar

from swag_models.formatting import describe, describe_error, escape_unprintable

__all__ = [
    "CacheError",
    "CheckpointError",
    "ConfigError",
    "ExportError",
    "FetchError",
    "HashMismatchError",
    "ImageError",
    "OutputError",
    "PreemptedError",
    "PublishError",
    "ShardError",
    "SignatureError",
    "SwagModelsError",
    "TrainingError",
    "UnknownModelError",
    "UnsafeCheckpointError",
]


def __dir__() -> list[str]:
    return sorted(__all__)


MAX_MESSAGE = 499  # characters: a few lines of a terminal
_SCALARS = (str, int, float, complex, bytes, bool, NoneType)
# Methods of the built-in types themselves, which return a value of exactly this type.
_CONVERSIONS: dict[type, Callable[[Any], Any]] = {
    str: str.__str__,
    int: int.__pos__,
    float: float.__pos__,
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
    list: lambda value: list(list.__iter__(value)),
    tuple: lambda value: tuple(tuple.__iter__(value)),
    set: lambda value: set(set.__iter__(value)),
    dict: lambda value: dict(dict.items(value)),
}
P = ParamSpec("P")
T = TypeVar("T")


class SwagModelsError(Exception):
    """Base class of all errors of this library. The message is one complete line for the user.

    Messages quote names from files and servers. `str` escapes what is not printable in them and
    shortens a long message to 499 characters; `args` holds the original text.
    """

    def __str__(self) -> str:
        return escape_unprintable(super().__str__(), MAX_MESSAGE)


class UnknownModelError(SwagModelsError, ValueError):
    """The name is not in the catalog. The message suggests similar names."""


class ConfigError(SwagModelsError, ValueError):
    """An argument has a value that is not allowed. The message names what is allowed."""


class CheckpointError(SwagModelsError, ValueError):
    """A weight file is damaged, has an unknown layout, or does not fit the model."""


class UnsafeCheckpointError(CheckpointError):
    """A weight file would run code. It was rejected before any of it ran."""


class SignatureError(SwagModelsError, ValueError):
    """A folder or repository is not signed with the trusted key, or its files differ.

    The message names the file that is missing, changed or not signed.
    """


class FetchError(SwagModelsError, OSError):
    """The weights could not be downloaded from any source."""


class HashMismatchError(FetchError):
    """A file differs from the published one, or from the one pinned on first use."""


class CacheError(FetchError):
    """The cache folder cannot be written, or its disk is full."""


class OutputError(SwagModelsError, OSError):
    """An output file cannot be written: missing folder, no permission, or a full disk."""


class ExportError(SwagModelsError, RuntimeError):
    """An exported file computes other values than the model, or cannot be written or read."""


class PublishError(SwagModelsError, OSError):
    """A model cannot be published to a folder or to a repository of the Hub."""


class ShardError(SwagModelsError, OSError):
    """A training shard cannot be read to its end, or differs from the one that was packed."""


class TrainingError(SwagModelsError, RuntimeError):
    """A training run cannot continue: its loss is not finite, or diverged."""


class PreemptedError(TrainingError):
    """A signal stopped a training run after it saved a checkpoint. Rerunning it resumes it."""


class ImageError(SwagModelsError, ValueError):
    """An image is damaged, too large, or of a mode without a defined conversion to RGB."""


@contextmanager
def argument_errors(name: str, value: object, hint: str = "") -> Iterator[None]:
    """Turn whatever the methods of an object of the user raise into a ConfigError.

    Args:
        name: the argument.
        value: the object, whose methods the `with` block calls.
        hint: end of the message: what to do instead.
    """
    try:
        yield
    except SwagModelsError:
        raise
    except Exception as error:
        raise ConfigError(
            f"invalid {name} {describe(value)}: it raises {type(error).__name__}: "
            f"{describe_error(error)}{hint}"
        ) from error


def plain(value: Any) -> Any:
    """Return a value of a built-in type for one of a subclass, whose methods may do anything.

    Args:
        value: anything. The items of lists, tuples and dicts are replaced too, to a depth of 2.
            Enums, named tuples and values of other types are returned as they are.
    """
    return _convert(value, 2)


def _convert(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind in _SCALARS:
        return value
    # Not next(): torch.compile, which follows this function, cannot call it in torch 2.6.
    bases = [base for base in _CONVERSIONS if issubclass(kind, base)]
    if not bases or issubclass(kind, Enum) or hasattr(kind, "_fields"):
        return value
    base = bases[0]
    if kind is not base:
        with argument_errors("argument", value):
            value = _CONVERSIONS[base](value)
    if depth and base is dict:
        return {_convert(key, 0): _convert(item, depth - 1) for key, item in value.items()}
    if depth and base in (list, tuple):
        return base(_convert(item, depth - 1) for item in value)
    return value


def plain_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function: its arguments are passed as `plain` returns them."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        values: Any = map(plain, args)
        options: Any = {name: plain(value) for name, value in kwargs.items()}
        return function(*values, **options)

    return call


def suggest_names(kind: str, name: str, allowed: Iterable[str]) -> str:
    """Return the message for an unknown name: it lists similar allowed names, or all of them.

    Upper and lower case are the same to it.

    Args:
        kind: what the name stands for, for example "model".
        name: the unknown name.
        allowed: all allowed names.
    """
    by_lower = {item.lower(): item for item in allowed}
    similar = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    hint = "did you mean" if similar else "allowed"
    names = [by_lower[item] for item in similar or by_lower]
    return f"unknown {kind} {name!r}; {hint}: {', '.join(names)}"


def check_types(kinds: Any, **values: object) -> None:
    """Check the types of options.

    Args:
        kinds: a type or a union of types, for example `str | None`. Unlike for `isinstance`, bool
            is an int only where it is named.
        **values: value of each option.

    Raises:
        ConfigError: a value is of another type.
    """
    # torch.compile follows this function; that of torch 2.6 cannot call typing.get_args.
    allowed = kinds.__args__ if isinstance(kinds, UnionType) else (kinds,)
    for name, value in values.items():
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            types = " or ".join("None" if kind is NoneType else kind.__name__ for kind in allowed)
            raise ConfigError(f"invalid {name} {describe(value)}: allowed: {types}")


def check_choice(name: str, value: object, *allowed: str, subject: str = "") -> None:
    """Check an option that has one of several values.

    Args:
        name: the option.
        value: its value, of any type.
        *allowed: the values that it may have.
        subject: what the allowed values are for, for example " for a ViT".

    Raises:
        ConfigError: it has another value.
    """
    # As an exact str: a subclass could compare or hash itself in any way.
    text = value if type(value) is str else plain(value)
    if not isinstance(text, str) or text not in allowed:
        choices = ", ".join(choice or "''" for choice in allowed)
        raise ConfigError(f"{name} is {describe(value)}; allowed{subject}: {choices}")


def check_minimum(minimum: int, **values: float | None) -> None:
    """Check options that have a smallest value.

    Args:
        minimum: the smallest allowed value.
        **values: value of each option; None for one that is not set.

    Raises:
        ConfigError: a value is smaller, or not a number.
    """
    for name, value in values.items():
        check_types(int | float | None, **{name: value})
        # NaN is neither, and a larger int cannot be converted to float.
        if value is not None and not minimum <= value <= sys.float_info.max:
            raise ConfigError(f"invalid {name} {describe(value)}: allowed: {minimum} or more")


def check_maximum(maximum: float, **values: float | None) -> None:
    """Check options that have a largest value.

    Args:
        maximum: the largest allowed value.
        **values: value of each option, a number; None for one that is not set.

    Raises:
        ConfigError: a value is larger.
    """
    for name, value in values.items():
        if value is not None and value > maximum:
            raise ConfigError(f"invalid {name} {describe(value)}: allowed: {maximum} or less")
