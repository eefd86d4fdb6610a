"""Long lists of shards in little memory, and their order in an epoch. Imports no torch."""

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import overload

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 16  # shards that are hashed at a time


class ShardList(Sequence[str]):
    """Paths or URLs of shards: an immutable sequence of str.

    A list of str takes about 120 bytes for each shard, in every worker process that receives it.
    This takes 24 for the shards of `recipe pack`: their common prefix is stored once, and the rest
    of all names in one piece.

    Args:
        urls: the paths or URLs.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self._prefix = os.path.commonprefix(urls)  # noqa: RUF071 - of characters, not folders
        start = len(self._prefix)
        ends = [url[start:].encode("utf-8", "surrogatepass") for url in urls]
        self._text = b"".join(ends)
        self._offsets = np.zeros(len(urls) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, ends), np.int64, len(ends)), out=self._offsets[1:])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        numbers = range(len(self))[index]
        if isinstance(numbers, range):
            return [self[number] for number in numbers]
        end = self._text[self._offsets[numbers] : self._offsets[numbers + 1]]
        return self._prefix + end.decode("utf-8", "surrogatepass")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, (str, bytes)):
            return NotImplemented
        return len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]  # equal to lists, which have no hash

    def __repr__(self) -> str:
        return f"ShardList({self[:]!r})"

    @cached_property
    def names_sha256(self) -> str:
        """SHA-256 of the names without their folders, joined by newlines."""
        digest = hashlib.sha256()
        for start in range(0, len(self), BLOCK):
            names = "\n".join(url.rpartition("/")[2] for url in self[start : start + BLOCK])
            digest.update((("\n" if start else "") + names).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


# Cached for streams that one process reads in turn.
@lru_cache(maxsize=1)
def order_shards(count: int, seed: int, epoch: int) -> NDArray[np.int32]:
    """Return the numbers of all shards in the order of an epoch, (count,).

    They are sorted by a hash of seed, epoch and number. The array is shared: do not change it.

    Args:
        count: number of shards.
        seed: seed of the run.
        epoch: number of the epoch.
    """
    start = hashlib.blake2b(f"{seed}/{epoch}/shard/".encode(), digest_size=16)

    def hash_number(number: int) -> bytes:
        digest = start.copy()
        digest.update(b"%d" % number)
        return digest.digest()

    # Sorting a list by such a key takes 14 times the memory.
    digests = np.empty((2, count), np.uint64)
    for first in range(0, count, BLOCK):
        numbers = range(first, min(first + BLOCK, count))
        block = np.frombuffer(b"".join(map(hash_number, numbers)), ">u8")
        digests[:, first : numbers.stop] = block.reshape(-1, 2).T
    order = np.lexsort((digests[1], digests[0])).astype(np.int32)
    order.flags.writeable = False
    return order
