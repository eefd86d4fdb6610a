"""Every error a user can cause, in one tree.

SwagModelsError
├── UnknownModelError (ValueError)   a name that is not in the catalog
├── ConfigError (ValueError)         an argument that no model, device or file can satisfy
├── CheckpointError (ValueError)     a weight file that is broken, foreign, or does not fit the model
│   └── UnsafeCheckpointError        a weight file that would run code
├── FetchError (OSError)             no source could give the weights
│   ├── HashMismatchError            bytes arrived that are not the published ones
│   └── CacheError                   the cache folder cannot take the file
├── OutputError (OSError)            a file that cannot be written
├── ExportError (RuntimeError)       an exported file that does not do what the model does, or cannot be written or read
├── PublishError (OSError)           a folder or repository that could not take a model
├── ShardError (OSError)             a training shard that cannot be read, or is not what was packed
├── TrainingError (RuntimeError)     a run whose loss went bad
│   └── PreemptedError               a run that a signal stopped, after a checkpoint
└── ImageError (ValueError)          a picture that cannot be read
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

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
    "SwagModelsError",
    "TrainingError",
    "UnknownModelError",
    "UnsafeCheckpointError",
]


class SwagModelsError(Exception):
    """Base of all errors of this library; its message is complete and meant to be read."""


class UnknownModelError(SwagModelsError, ValueError):
    """The name is not in the catalog."""


class ConfigError(SwagModelsError, ValueError):
    """An argument has a value that cannot be satisfied."""


class CheckpointError(SwagModelsError, ValueError):
    """A weight file is broken, of an unknown layout, or does not fit the model."""


class UnsafeCheckpointError(CheckpointError):
    """A weight file asks for code to be run; it was refused and nothing ran."""


class FetchError(SwagModelsError, OSError):
    """No source could give the weights."""


class HashMismatchError(FetchError):
    """The bytes are not those that were published, or not those pinned on first use."""


class CacheError(FetchError):
    """The cache folder cannot be written, or its disk is full."""


class OutputError(SwagModelsError, OSError):
    """A result cannot be written: no such folder, no permission, or a full disk."""


class ExportError(SwagModelsError, RuntimeError):
    """An exported file does not give what the model gives, or cannot be written or read."""


class PublishError(SwagModelsError, OSError):
    """A folder or a repository of the Hub could not take a model."""


class ShardError(SwagModelsError, OSError):
    """A training shard cannot be read to its end, or its bytes are not those that were packed."""


class TrainingError(SwagModelsError, RuntimeError):
    """A training run cannot go on: its loss is not finite, or exploded."""


class PreemptedError(TrainingError):
    """A signal asked a training run to stop; it did, after a checkpoint, and goes on when it is started again."""


class ImageError(SwagModelsError, ValueError):
    """A picture is broken, too large, or of a kind without a defined conversion to RGB."""


def suggest_names(what: str, name: str, known: Iterable[str]) -> str:
    """What to say of an unknown name: the known ones that are most like it, or all."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"unknown {what} {name!r}; {'did you mean' if near else 'known'}: {', '.join(near or known)}"
