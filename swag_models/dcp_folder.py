"""Read a folder of torch.distributed.checkpoint (DCP): `.metadata`, and parts in .distcp files.

torch's own reader is not used, because it unpickles `.metadata`, which can run code.
"""

import io
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swag_models.errors import CheckpointError, UnsafeCheckpointError
from swag_models.formatting import describe, describe_error, list_names
from swag_models.hub.safetensors_header import MAX_AXES
from swag_models.paths import open_regular, read_regular
from swag_models.pickle_reader import PickleReader, Reference
from swag_models.stored_tensor import Storage, StoredTensor, TensorReader
from swag_models.torch_file import MAX_PICKLE, read_zip

METADATA_FILE, PART_SUFFIX = ".metadata", ".distcp"
PART_FILE = re.compile(r"[\w.-]+\.distcp", re.ASCII)  # in the folder itself


class Part(NamedTuple):
    """A block of a tensor, which one process saved.

    Attributes:
        offset: position of its first element along each axis.
        shape: its shape.
        file: name of the file that contains it, in the format of torch.save.
        start: position of the first byte in that file.
        size: number of bytes there.
    """

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    start: int
    size: int


class DcpFolder:
    """The tensors of a folder.

    Attributes:
        folder: the folder.
        tensors: by name; nested keys are joined by dots.

    Raises:
        CheckpointError: `.metadata` is damaged.
        OSError: it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, StoredTensor] = {}
        self._parts: dict[Storage, list[Part]] = {}
        try:
            self._read_metadata()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"its {METADATA_FILE} is damaged: {error}") from None

    def _read_metadata(self) -> None:
        content = read_regular(self.folder / METADATA_FILE, MAX_PICKLE + 1)
        if len(content) > MAX_PICKLE:
            raise CheckpointError(f"its {METADATA_FILE} has more than {MAX_PICKLE:,} bytes")
        reader = PickleReader({"torch.Size": _make_shape}, _reject_persistent, records=True)
        metadata = reader.read(io.BytesIO(content)).state
        if reader.calls:
            raise UnsafeCheckpointError(
                f"{self.folder} was rejected, nothing in it ran: its {METADATA_FILE} calls "
                f"{list_names(list(reader.calls))}"
            )
        locations = {
            (str(key.state["fqn"]), _make_shape(key.state.get("offset") or ())): value.state
            for key, value in metadata["storage_data"].items()
        }
        for name, entry in metadata["state_dict_metadata"].items():
            if isinstance(entry.state, dict) and "size" in entry.state:  # others are not tensors
                self._add(str(name), entry.state, locations)

    def _add(self, name: str, entry: dict[str, Any], locations: dict[Any, dict[str, Any]]) -> None:
        """Add a tensor; nothing is read or allocated yet."""
        shape, dtype = _make_shape(entry["size"]), entry["properties"].state[0]
        kind = getattr(torch, dtype.name.removeprefix("torch."), None)
        if not isinstance(dtype, Reference) or not isinstance(kind, torch.dtype):
            raise CheckpointError(f"{name} has no dtype")
        parts = []
        for chunk in entry["chunks"]:
            offset = _make_shape(chunk.state["offsets"])
            parts.append(_make_part(offset, chunk.state["sizes"], locations[name, offset]))
        # A sum of sizes is enough, because a gap then needs an overlap.
        count = math.prod(shape)
        if count != sum(math.prod(part.shape) for part in parts):
            raise CheckpointError(f"{name} is incomplete; parts of it are missing")
        stride = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        storage = Storage(kind, count)
        self.tensors[name] = StoredTensor(storage, kind, 0, shape, stride)
        self._parts[storage] = parts

    def read(self, stored: StoredTensor) -> Tensor:
        """Return the values of a tensor.

        Raises:
            CheckpointError: a part of it is damaged, or cannot be read.
        """
        parts = self._parts[stored.storage]
        try:
            return self._join(parts, stored)
        except OSError as error:
            files = list_names(sorted({part.file for part in parts}))
            raise CheckpointError(f"cannot read {files}: {describe_error(error)}") from None

    def _join(self, parts: list[Part], stored: StoredTensor) -> Tensor:
        if len(parts) == 1:
            return self._read_part(parts[0], stored.dtype)
        files = {part.file for part in parts}
        if stored.nbytes > sum(os.stat(self.folder / file).st_size for file in files):
            raise CheckpointError("a tensor is larger than the files of its parts")
        values = torch.zeros(stored.shape, dtype=stored.dtype, device="cpu")
        for part in parts:
            block = tuple(slice(n, n + size) for n, size in zip(part.offset, part.shape))
            if values[block].shape != part.shape:
                raise CheckpointError(f"{part.file} has a part outside of a tensor")
            values[block] = self._read_part(part, stored.dtype)
        return values

    def _read_part(self, part: Part, dtype: torch.dtype) -> Tensor:
        path = self.folder / part.file
        with open_regular(path) as file:
            if part.start + part.size > os.fstat(file.fileno()).st_size:
                raise CheckpointError(f"{part.file} is cut short")
            file.seek(part.start)
            content = io.BytesIO(file.read(part.size))
        size = len(content.getbuffer())
        saved = read_zip(content, size)
        tensor = saved.content
        if not isinstance(tensor, StoredTensor) or saved.calls or tensor.repeats:
            raise CheckpointError(f"{part.file} has something else than a tensor")
        if tensor.shape != part.shape or tensor.dtype != dtype:
            raise CheckpointError(f"{part.file} has a tensor of another shape or dtype")
        return TensorReader(path, content, size, "pread").read(tensor)


def _make_part(offset: tuple[int, ...], shape: Any, place: dict[str, Any]) -> Part:
    """Check where a part is."""
    file, start, size = place["relative_path"], place["offset"], place["length"]
    if not isinstance(file, str) or not PART_FILE.fullmatch(file):
        raise CheckpointError(f"a part is in {describe(file)}, not in a .distcp file")
    if place.get("transform_descriptors"):
        raise CheckpointError("its parts are transformed; save it without extensions of DCP")
    return Part(offset, _make_shape(shape), file, *_make_shape((start, size)))


def _make_shape(values: Any = ()) -> tuple[int, ...]:
    """Return a shape, an offset or a position as a tuple of numbers."""
    if not isinstance(values, (list, tuple)) or len(values) > MAX_AXES:
        raise CheckpointError("a shape is damaged")
    if not all(type(number) is int and 0 <= number < 2**62 for number in values):
        raise CheckpointError("a shape is damaged")
    return tuple(values)


def _reject_persistent(identity: Any) -> Any:
    raise CheckpointError(f"its {METADATA_FILE} refers to {describe(identity)}")
