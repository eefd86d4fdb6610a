"""The manifest of packed shards, and the comparison of shards with it.

A packed folder contains shard-000000.tar and so on, rejects.jsonl, the vocabulary.parquet of the
labels, and manifest.json with these entries:

    format            1
    versions          versions of this library, and of Pillow, which resizes images
    parameters        parameters of the packing
    labels_sha256     SHA-256 of labels.parquet
    num_classes       the greatest class number of any label, plus 1
    count, bytes      number of samples and size in bytes of all shards
    samples           expected number of samples in an epoch: the sum of all repeat factors
    unlabelled        number of images without a label
    copies            number of images with the pixels of others, see copies.jsonl, and of these
    exclude_like      with images to exclude: their number, and those of images left out for them
    rejects           reason -> number of lines in rejects.jsonl
    shards            name, count, bytes and SHA-256 of each shard
    class_names       names of the classes, if the labels were named and not in a vocabulary
    class_samples     expected number of samples in an epoch that have each class, to 1/65536
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from swag_models.decoding import decode_fields, decode_value, parse_json
from swag_models.errors import ConfigError
from swag_models.formatting import count_noun, describe_error
from swag_models.hub.download import hash_file
from swag_models.paths import expand_location, expand_path, is_system_name
from swag_models.recipe.data.step_folders import explain_folder
from swag_models.recipe.data.urls import is_url, read_all
from swag_models.runtime import count_cpus

MANIFEST_FORMAT = 1
MANIFEST_FILE = "manifest.json"
MAX_REPEAT = 1_000_000  # copies of an image in an epoch
MAX_NUMBER = 2**63 - 1
MAX_CLASSES = 1_000_000  # a model has a weight vector for each
# A manifest may come from someone else, so it may only name plain files: no path, URL or command.
# File systems allow 255 bytes.
SHARD_NAME = re.compile(r"[A-Za-z0-9_][\w.+-]{0,254}", re.ASCII)


@dataclass(frozen=True)
class _ShardEntry:
    """The entry of a shard in a manifest."""

    name: str
    count: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        _check_ranges(count=self.count, bytes=self.bytes)
        if not SHARD_NAME.fullmatch(self.name):
            raise ConfigError(
                f"name is {self.name!r}; allowed: a plain file name of ASCII letters, digits and "
                ". _ + -; pack again"
            )


SHARD_ENTRIES = {field.name for field in fields(_ShardEntry)}


@dataclass(frozen=True)
class _Manifest:
    """The types of a manifest's entries, which the docstring of this module describes."""

    format: int
    versions: dict[str, Any]
    parameters: dict[str, Any]
    labels_sha256: str
    num_classes: int
    count: int
    bytes: int
    samples: float
    unlabelled: int
    rejects: dict[str, Any]
    shards: list[Any]  # checked by `_check_shards`, because there may be millions
    class_names: tuple[str, ...] | None = None
    class_samples: tuple[float, ...] | None = None  # earlier versions did not count them

    def __post_init__(self) -> None:
        _check_ranges(
            count=self.count, bytes=self.bytes, samples=self.samples, unlabelled=self.unlabelled
        )
        _check_ranges(MAX_CLASSES, num_classes=self.num_classes)
        for name, unit in (("class_names", "name"), ("class_samples", "number")):
            entries = getattr(self, name)
            if entries is not None and len(entries) != self.num_classes:
                raise ConfigError(
                    f"{name} has {count_noun(len(entries), unit)} for "
                    f"{count_noun(self.num_classes, 'class')}; pack again"
                )
        if self.shards and not self.samples:
            raise ConfigError("samples is 0, but shards are listed; pack again")
        _check_shards(self.shards)
        # each was rounded, and so was their sum
        if (
            self.class_samples
            and not 0
            <= min(self.class_samples)
            <= max(self.class_samples)
            <= 1.001 * self.samples + 1
        ):
            raise ConfigError(
                f"class_samples has {min(self.class_samples):g} to {max(self.class_samples):g}; "
                f"allowed: 0 to samples, {self.samples:g}; pack again"
            )


def _check_shards(shards: list[Any]) -> None:
    """Raise ConfigError for an entry of a shard that is invalid, or a name that occurs twice.

    There may be millions of shards: only an entry that is not valid is decoded, for its message.
    """
    names, is_name = set[str](), SHARD_NAME.fullmatch
    for number, shard in enumerate(shards):
        if not (
            type(shard) is dict
            and shard.keys() == SHARD_ENTRIES
            and type(name := shard["name"]) is str
            and is_name(name)
            and type(shard["count"]) is int
            and 0 <= shard["count"] <= MAX_NUMBER
            and type(shard["bytes"]) is int
            and 0 <= shard["bytes"] <= MAX_NUMBER
            and type(shard["sha256"]) is str
        ):
            decode_value(_ShardEntry, shard, f"shards[{number}]", positive=False)
        if name in names:
            raise ConfigError(f"shards lists {name!r} more than once; pack again")
        names.add(name)


def _check_ranges(maximum: int = MAX_NUMBER, **values: float) -> None:
    """Raise ConfigError if a value is not from 0 to the maximum."""
    for name, value in values.items():
        if not 0 <= value <= maximum:
            raise ConfigError(f"{name} is {value}; allowed: 0 to {maximum:,}")


class Flaw(NamedTuple):
    """A file of a packed folder that differs from what was packed."""

    name: str
    problem: str


def read_manifest(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a manifest.json.

    Args:
        source: its path or URL.

    Raises:
        ConfigError: it cannot be read, has another format, or names something other than plain
            files.
    """
    source = expand_location(source)
    try:
        content = read_all(source)
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"{source} cannot be read: {describe_error(error)}") from None
    try:
        manifest = parse_json(content)
        if not isinstance(manifest, dict):
            raise ConfigError(f"it is a {type(manifest).__name__}, not an object")
        if (number := manifest.get("format")) != MANIFEST_FORMAT:
            raise ConfigError(
                f"format is {number!r}; this version reads {MANIFEST_FORMAT}: update swag-models"
            )
        names = {field.name for field in fields(_Manifest)}
        entries = {name: value for name, value in manifest.items() if name in names}
        decode_fields(_Manifest, entries, name="the manifest", positive=False)
    except ValueError as error:  # a ConfigError too
        if not is_url(source) and (text := explain_folder(Path(source).parent, ("pack",))):
            raise ConfigError(text) from None
        raise ConfigError(f"{source} is not the manifest of packed shards: {error}") from None
    return manifest


def verify_shards(folder: str | os.PathLike[str]) -> list[Flaw]:
    """Compare every shard of a packed folder with the manifest, by reading all of them.

    Args:
        folder: the packed folder.

    Returns:
        Every shard that is missing, is not in the manifest, or has another size or SHA-256.

    Raises:
        ConfigError: the manifest cannot be read.
    """
    folder = expand_path(folder, "folder")
    # By name, to find shards that are not listed too.
    listed = {shard["name"]: shard for shard in read_manifest(folder / MANIFEST_FILE)["shards"]}

    def find_flaw(name: str) -> Flaw | None:
        path = folder / name
        if name not in listed:
            return Flaw(name, f"is not in {MANIFEST_FILE}")
        if not path.is_file():
            return Flaw(name, "is missing")
        if (size := path.stat().st_size) != listed[name]["bytes"]:
            return Flaw(name, f"has {size} bytes instead of {listed[name]['bytes']}")
        try:
            digest = hash_file(path)
        except OSError as error:
            return Flaw(name, f"cannot be read: {error.strerror or error}")
        if digest != (expected := listed[name]["sha256"]):
            return Flaw(name, f"was changed: its SHA-256 is {digest} instead of {expected}")
        return None

    shards = {path.name for path in folder.glob("*.tar") if not is_system_name(path.name)}
    names = sorted({*listed, *shards})
    # Threads suffice, because hashing releases the global interpreter lock.
    with ThreadPoolExecutor(count_cpus()) as pool:
        return [flaw for flaw in pool.map(find_flaw, names) if flaw]
