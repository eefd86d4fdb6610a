"""A safetensors file as data: where each tensor is stored."""

import math
from typing import BinaryIO

import torch

from swag_models.errors import CheckpointError
from swag_models.hub.safetensors_header import read_header
from swag_models.stored_tensor import Region, Storage, StoredTensor

# torch's dtype for the names of safetensors; getattr, because older torch lacks some.
SAFETENSORS_DTYPES = {
    name: getattr(torch, dtype, None)
    for name, dtype in {
        "F64": "float64",
        "F32": "float32",
        "F16": "float16",
        "BF16": "bfloat16",
        "I64": "int64",
        "I32": "int32",
        "I16": "int16",
        "I8": "int8",
        "U8": "uint8",
        "BOOL": "bool",
        "U64": "uint64",
        "U32": "uint32",
        "U16": "uint16",
        "C64": "complex64",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
        "F8_E8M0": "float8_e8m0fnu",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
    }.items()
}


def read_safetensors(file: BinaryIO, size: int) -> dict[str, StoredTensor]:
    """Read where the tensors of a safetensors file are.

    Args:
        file: the file.
        size: its size in bytes.

    Raises:
        CheckpointError: its header is damaged, or names a dtype that torch lacks.
    """
    tensors = {}
    for name, entry in read_header(file, size).items():
        dtype = SAFETENSORS_DTYPES[entry.dtype]
        if dtype is None:
            raise CheckpointError(f"{name} is {entry.dtype}, which this version of torch lacks")
        count = entry.size // dtype.itemsize
        storage = Storage(dtype, count, Region(entry.start, entry.size))
        # In a contiguous tensor a step along an axis skips all elements of the axes behind it.
        stride = [math.prod(entry.shape[axis + 1 :]) for axis in range(len(entry.shape))]
        tensors[name] = StoredTensor(storage, dtype, 0, entry.shape, tuple(stride))
    return tensors
