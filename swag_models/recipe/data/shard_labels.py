"""The labels in local packed shards, read without their images."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from swag_models.archives import find_members
from swag_models.decoding import parse_json
from swag_models.errors import ConfigError
from swag_models.formatting import printable
from swag_models.inference.image_sources import read_span
from swag_models.recipe.data.manifest import MAX_CLASSES
from swag_models.recipe.data.shards import Shards, find_shards
from swag_models.recipe.data.urls import is_url


class ShardLabel(NamedTuple):
    """The label of a packed sample.

    Attributes:
        id: of the image, as in batches.
        key: of its files in the shard.
        classes: class numbers.
        repeat: samples in an epoch.
    """

    id: str
    key: str
    classes: tuple[int, ...]
    repeat: float


def read_shard_labels(shards: Shards) -> Iterator[ShardLabel]:
    """Yield the labels of all samples of packed shards.

    Raises:
        ConfigError: a shard is not local or was not written by `recipe pack`.
    """
    for url in find_shards(shards)[0]:
        if is_url(url):
            raise ConfigError(
                f"{url} is not a local file, but its labels are read first; download the shards"
            )
        for name, span in find_members(Path(url), Counter()):
            if name.endswith(".json"):
                text = f"{name} in {url}"
                yield _read_label(read_span(Path(url), span, text), name, text)


def _read_label(content: bytes, name: str, text: str) -> ShardLabel:
    try:
        record = parse_json(content)
        classes, repeat = record["classes"], record.get("repeat", 1)
        if not all(type(number) is int and 0 <= number < MAX_CLASSES for number in classes):
            raise ValueError(f"classes is {classes!r}")
        key = name.removesuffix(".json")
        identifier = printable(str(record.get("id", key)))
        return ShardLabel(identifier, printable(key), tuple(classes), float(repeat))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ConfigError(f"{text} is not a label of recipe pack: {error}; pack again") from None
