"""The header of a safetensors file: name, dtype, shape and position of each tensor.

Imports no torch. Format: 8 bytes of header length (little endian), a JSON object, then the tensors
without gaps (huggingface.co/docs/safetensors).
"""

import math
from typing import Any, BinaryIO, NamedTuple

from swag_models.decoding import parse_json
from swag_models.errors import CheckpointError
from swag_models.formatting import describe

MAX_HEADER_LENGTH = 2**24  # bytes; a header needs about 120 for each tensor
MAX_AXES = 8
# Bytes of an element, by the format's name of the dtype.
ITEM_SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


class HeaderEntry(NamedTuple):
    """One tensor of a safetensors file.

    Attributes:
        dtype: the format's name, a key of ITEM_SIZES.
        shape: shape of the tensor.
        start: position of its first byte in the file.
        size: size in bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def is_safetensors(head: bytes, file_size: int) -> bool:
    """Return whether a file with these first 9 bytes, or more, has the form of a safetensors file.

    Args:
        head: the first bytes.
        file_size: size of the file in bytes.
    """
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= file_size - 8


def read_header(file: BinaryIO, file_size: int) -> dict[str, HeaderEntry]:
    """Read and check the header of a safetensors file.

    Args:
        file: the file, at its first byte.
        file_size: its size in bytes.

    Returns:
        The tensors by name.

    Raises:
        CheckpointError: the header is damaged, or the tensors are not exactly the rest of the file.
    """
    length = int.from_bytes(file.read(8), "little")
    if length > min(MAX_HEADER_LENGTH, file_size - 8):
        raise CheckpointError(f"its header has {length:,} bytes")
    try:
        values = parse_json(file.read(length), unique_keys=True)
    except ValueError as error:
        raise CheckpointError(f"its header is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError("its header is not a JSON object")
    entries = {
        name: _read_entry(name, value, 8 + length)
        for name, value in values.items()
        if name != "__metadata__"
    }
    position = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.size and entry.start != position:
            raise CheckpointError(f"{name} begins at byte {entry.start:,} instead of {position:,}")
        position = max(position, entry.start + entry.size)
    if position != file_size:
        raise CheckpointError(f"it has {file_size:,} bytes instead of {position:,}")
    return entries


def _read_entry(name: str, value: Any, data_start: int) -> HeaderEntry:
    """Check one tensor of the header."""
    try:
        dtype, shape, (start, stop) = value["dtype"], value["shape"], value["data_offsets"]
        numbers = [*shape, start, stop]
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(f"its header describes {name} as {describe(value)}") from None
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise CheckpointError(f"{name} has the dtype {describe(dtype)}")
    if len(shape) > MAX_AXES or not all(
        type(number) is int and 0 <= number < 2**62 for number in numbers
    ):
        raise CheckpointError(f"{name} has the shape {describe(shape)}")
    if math.prod(shape) * ITEM_SIZES[dtype] != stop - start:
        raise CheckpointError(
            f"{name} has the shape {describe(shape)}, which does not fit its {stop - start} bytes"
        )
    return HeaderEntry(dtype, tuple(shape), data_start + start, stop - start)
