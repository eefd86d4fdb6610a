"""Tensors that are still in a weight file, and how to read them: mapped, or copied into memory."""

import logging
import math
import mmap
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from swag_models.archives import ZIP_ERRORS
from swag_models.errors import CheckpointError
from swag_models.hub.safetensors_header import MAX_AXES
from swag_models.spec import Backend

MAP_NORESERVE = 0x4000  # of Linux; Python names it from 3.11 on
logger = logging.getLogger("swag_models")


class Region(NamedTuple):
    """Where bytes are in a file.

    Attributes:
        start: position of the first byte.
        size: number of bytes.
        archive: the zip archive that compresses them; None for plain bytes.
        entry: their name in the archive.
    """

    start: int
    size: int
    archive: zipfile.ZipFile | None = None
    entry: str = ""


@dataclass(eq=False)
class Storage:
    """An array of values in a file, which tensors can share.

    Attributes:
        dtype: dtype of the values; None if the tensors state it.
        size: number of values, or of bytes if `dtype` is None.
        region: its bytes; None until they have been located.
    """

    dtype: torch.dtype | None
    size: int
    region: Region | None = None


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        storage: its values.
        dtype: dtype of the values.
        offset: position of the first element in the storage, in elements.
        shape: its shape.
        stride: elements between two positions along each axis.
    """

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.shape, tuple) or not isinstance(self.stride, tuple):
            raise CheckpointError("a tensor has no shape")
        numbers = (self.offset, *self.shape, *self.stride)
        if len(self.shape) != len(self.stride) or len(self.shape) > MAX_AXES:
            raise CheckpointError(f"a tensor has {len(self.shape)} axes; at most {MAX_AXES}")
        if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
            raise CheckpointError("a tensor has an impossible shape, stride or offset")
        capacity = self.storage.size
        if self.storage.dtype is None:
            capacity //= self.dtype.itemsize
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.stride))
        if 0 not in self.shape and last >= capacity:
            raise CheckpointError("a tensor reaches beyond its storage")

    @property
    def repeats(self) -> bool:
        """Whether it has more elements than are stored, so that a copy could take any memory."""
        return math.prod(self.shape) > self.storage.size

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class OddTensor:
    """A tensor that is not a plain array of values.

    Attributes:
        kind: what it is, with an article, for messages.
    """

    kind: str


class TensorReader:
    """Reads the tensors of one file. Tensors that share a storage in the file share their memory.

    Args:
        path: the file.
        file: the same file, open until the last tensor has been read.
        size: its size in bytes.
        backend: as for `read_state_dict`. A file that cannot be mapped is read, with a warning.
    """

    def __init__(self, path: Path, file: BinaryIO, size: int, backend: Backend) -> None:
        self._file = file
        self._content = _map_file(path, size) if backend == "mmap" and size else None
        self._read: dict[Storage, torch.UntypedStorage] = {}

    def read(self, stored: StoredTensor) -> Tensor:
        """Return the values of a tensor.

        Raises:
            CheckpointError: they cannot be read, or are incomplete.
        """
        storage = stored.storage
        if storage not in self._read:
            self._read[storage] = self._read_bytes(storage)
        data = self._read[storage]
        if data.data_ptr() % stored.dtype.itemsize:  # torch needs aligned values
            data = self._read[storage] = data.clone()  # type: ignore[no-untyped-call]
        # The default device, which the caller may have set, does not matter.
        return torch.empty(0, dtype=stored.dtype, device="cpu").set_(
            data,
            stored.offset,
            stored.shape,
            stored.stride,
        )

    def _read_bytes(self, storage: Storage) -> torch.UntypedStorage:
        size = storage.size * (storage.dtype.itemsize if storage.dtype else 1)
        region = storage.region
        if region is None or region.size < size:
            raise CheckpointError("a storage is missing or incomplete")
        try:
            if region.archive is not None:
                content = bytearray(region.archive.read(region.entry))
                if not size:
                    return torch.UntypedStorage(0)  # type: ignore[no-untyped-call]
                return torch.frombuffer(content, dtype=torch.uint8).untyped_storage()
            if self._content is not None:
                # A storage of its own, so that torch.save writes no more than this tensor.
                return self._content[region.start : region.start + size]
            data = torch.empty(size, dtype=torch.uint8, device="cpu")
            self._file.seek(region.start)
            if self._file.readinto(data.numpy()) != size:  # type: ignore[attr-defined]
                raise CheckpointError("it has become shorter while it was read")
            return data.untyped_storage()
        except ZIP_ERRORS as error:
            raise CheckpointError(f"a storage cannot be read: {error}") from None


def _map_file(path: Path, size: int) -> torch.UntypedStorage | None:
    """Return the bytes of a file, mapped privately; None where files cannot be mapped."""
    try:
        return torch.UntypedStorage.from_file(str(path), False, size)  # type: ignore[return-value]
    # Some network and FUSE file systems cannot map; torch cannot open a name that is not UTF-8.
    except (RuntimeError, OSError, ValueError) as error:
        if "Cannot allocate memory" in str(error) and (content := map_unreserved(path, size)):
            return content
        reason = str(error).split(": ")[-1].splitlines()[0]
        logger.warning(
            '%s cannot be mapped (%s) and is read instead, as with backend="pread"', path, reason
        )
        return None


def map_unreserved(path: Path, size: int) -> torch.UntypedStorage | None:
    """Map a file that is larger than the memory; None where this is not possible.

    Linux refuses an ordinary private mapping of more than it could hold if every page was changed.

    Args:
        path: the file.
        size: its size in bytes.
    """
    if sys.platform != "linux":
        return None
    flags = mmap.MAP_PRIVATE | MAP_NORESERVE
    try:
        with open(path, "rb") as file:
            pages = mmap.mmap(
                file.fileno(), size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE
            )
    except (OSError, ValueError):
        return None
    return torch.frombuffer(pages, dtype=torch.uint8).untyped_storage()
